"""The stages of ``dvc.yaml``: one thin file each, named as the stage. All work is done in :mod:`danet`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from danet.console import report_errors
from danet.workspace import Workspace


def stage(work: Callable[[Workspace, str], None]) -> None:
    """Runs a stage on the workspace in the current folder; its one argument is the name that DVC filled in.

    Exits with the error's code and one clear line if the harness refuses to go on.
    """
    with report_errors():
        work(Workspace(), sys.argv[1] if len(sys.argv) > 1 else "")
