"""Stage ``released@ROW``: the weights that the row's source released, verified and in our names."""

from __future__ import annotations

from danet.config.workspace import Workspace
from danet.weights.fetch import fetch_released
from pipelines import stage


def main(workspace: Workspace, name: str) -> None:
    """Downloads, or takes the file that was placed by hand."""
    fetch_released(workspace, name)


if __name__ == "__main__":
    stage(main)
