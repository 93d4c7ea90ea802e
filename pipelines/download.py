"""Stage ``download@DATASET``: the dataset's archives, fetched and verified, into ``data/raw/DATASET``."""

from __future__ import annotations

from danet.config.workspace import Workspace
from danet.data.raw import download_dataset
from pipelines import stage


def main(workspace: Workspace, dataset: str) -> None:
    """Downloads, or takes from the folder or mirror that the environment names."""
    download_dataset(dataset, workspace.params().dataset(dataset), workspace.raw(dataset), workspace.archives())


if __name__ == "__main__":
    stage(main)
