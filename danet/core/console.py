"""What every entry point prints to: one rich console, and errors as one clear line."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from danet.core.errors import DanetError, Interrupted

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""For everything that is not a command's result: results go to standard output, so that they can be piped."""


def output(width: int = 140) -> Console:
    """For a command's result, on standard output: of the terminal's width, or of ``width`` where it is piped."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


def result_table(*columns: str, left: Collection[str] = (), **options: Any) -> Table:
    """A table of results without lines; the columns named in ``left`` are aligned there, all others right."""
    table = Table(box=None, pad_edge=False, header_style="bold", **options)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


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
