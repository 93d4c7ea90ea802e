"""Stage ``train@ROW``: every seed of the row, into ``models/ROW``; resumes what was interrupted."""

from __future__ import annotations

from danet.config.workspace import Workspace
from danet.data.raw import refuse_changed_source
from danet.results.tracking import log, run
from danet.training.train import train_row
from pipelines import stage
from pipelines.sweep.launch import launched


def main(workspace: Workspace, name: str) -> None:
    """Trains the row by its recipe."""
    row = workspace.params().row(name)
    refuse_changed_source(workspace, row.dataset)
    train_row(row, workspace, tracker_factory=run)
    log([row], workspace)


if __name__ == "__main__":
    launched("pipelines.train")
    stage(main)
