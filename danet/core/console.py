"""What every entry point prints to: one rich console, and errors as one clear line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from danet.core.errors import DanetError, Interrupted

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""For everything that is not a command's result: results go to standard output, so that they can be piped."""


@contextmanager
def report_errors() -> Iterator[None]:
    """Turns a :class:`DanetError` into a line on standard error and its exit code; bugs keep their traceback."""
    try:
        yield
    except Interrupted as stop:
        console.print(f"[yellow]stopped:[/] {escape(str(stop))}")
        sys.exit(stop.exit_code)
    except DanetError as error:
        if os.environ.get("DANET_DEBUG"):
            raise
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(error.exit_code)
