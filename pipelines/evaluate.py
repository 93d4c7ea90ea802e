"""Stage ``evaluate@ROW``: the row's trained weights under its source's testing protocol."""

from __future__ import annotations

from danet.config.workspace import Workspace
from danet.data.raw import refuse_changed_source
from danet.evaluation.evaluate import evaluate_row
from danet.results.tracking import log
from pipelines import stage
from pipelines.sweep.launch import launched


def main(workspace: Workspace, name: str) -> None:
    """Evaluates every seed in every mode the row defines; seeds that are evaluated already keep their results."""
    row = workspace.params().row(name)
    refuse_changed_source(workspace, row.dataset)
    evaluate_row(row, workspace, reuse=True)
    log([row], workspace)


if __name__ == "__main__":
    launched("pipelines.evaluate")
    stage(main)
