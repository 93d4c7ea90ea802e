"""Stage ``verify@ROW``: the released weights under their source's testing protocol."""

from __future__ import annotations

from danet.config.workspace import Workspace
from danet.data.raw import refuse_changed_source
from danet.evaluation.verify import verify_row
from danet.results.tracking import log
from pipelines import stage


def main(workspace: Workspace, name: str) -> None:
    """Evaluates what the stage ``released`` wrote, in every mode the row defines."""
    row = workspace.params().row(name)
    refuse_changed_source(workspace, row.dataset)
    verify_row(row, workspace, weights=workspace.released(row) / "weights.safetensors")
    log([row], workspace)


if __name__ == "__main__":
    stage(main)
