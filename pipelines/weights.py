"""Stage ``weights@NAME``: an ImageNet initialisation in our names, into ``data/weights/NAME``."""

from __future__ import annotations

from danet.config.workspace import Workspace
from danet.weights.fetch import fetch_weights
from pipelines import stage


def main(workspace: Workspace, name: str) -> None:
    """Fetches and converts; for ``none`` it only records that the start is random."""
    fetch_weights(workspace, name)


if __name__ == "__main__":
    stage(main)
