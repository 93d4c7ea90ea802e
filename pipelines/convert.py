"""Stage ``convert@DATASET``: from archives to the checked prepared form in ``data/prepared/DATASET``."""

from __future__ import annotations

from danet.config.workspace import Workspace
from danet.data.convert import convert_dataset
from danet.data.raw import refuse_changed_source
from pipelines import stage


def main(workspace: Workspace, dataset: str) -> None:
    """Converts and checks every pair; fails with a list of all offenders."""
    refuse_changed_source(workspace, dataset)
    convert_dataset(dataset, workspace.params().dataset(dataset), workspace.raw(dataset), workspace.prepared(dataset))


if __name__ == "__main__":
    stage(main)
