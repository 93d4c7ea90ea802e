"""Stage ``train@ROW``: every seed of the row, into ``models/ROW``; resumes what was interrupted."""

from __future__ import annotations

from danet.tracking import run
from danet.training.loop import train_row
from danet.workspace import Workspace
from pipelines import stage


def main(workspace: Workspace, name: str) -> None:
    """Trains the row by its recipe."""
    train_row(workspace.params().row(name), workspace, tracker_factory=run)


if __name__ == "__main__":
    stage(main)
