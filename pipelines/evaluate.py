"""Stage ``evaluate@ROW``: the row's trained weights under its source's testing protocol."""

from __future__ import annotations

from danet.evaluation.evaluate import evaluate_row
from danet.tracking import run
from danet.workspace import Workspace
from pipelines import stage


def main(workspace: Workspace, name: str) -> None:
    """Evaluates every seed in every mode the row defines."""
    evaluate_row(workspace.params().row(name), workspace, tracker_factory=run)


if __name__ == "__main__":
    stage(main)
