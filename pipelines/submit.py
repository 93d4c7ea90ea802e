"""Stage ``submit@ROW``: the trained row's predictions of the Cityscapes test images, zipped for the test server."""

from __future__ import annotations

from danet.config.workspace import Workspace
from danet.evaluation.submission import write_submission
from pipelines import stage


def main(workspace: Workspace, name: str) -> None:
    """Predicts with the row's first seed, multi-scale where the row defines it."""
    row = workspace.params().row(name)
    weights = workspace.model(row) / f"seed{row.seeds[0]}.safetensors"
    write_submission(row, workspace, weights=weights, out=workspace.submission(row))


if __name__ == "__main__":
    stage(main)
