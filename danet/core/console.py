"""What every entry point prints to: one rich console, and errors as one clear line."""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from danet.core.errors import DanetError, Interrupted, out_of_memory

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""For everything that is not a command's result: results go to standard output, so that they can be piped."""


def prepare_program() -> None:
    """Makes this process a program of ours; for entry points, not for a notebook that imports the library."""
    # a notebook's backend, which its shell commands inherit, need not be installed here; figures are files anyway
    os.environ["MPLBACKEND"] = "agg"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of Latin-1 cannot print every name
    sys.excepthook = _except_interrupts


def _except_interrupts(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C is a line too, also while modules are being imported; Python then exits as the signal has it (130)."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("stopped by the keyboard\n")
    else:
        sys.__excepthook__(kind, error, trace)


def output() -> Console:
    """For a command's result, on standard output: of the terminal's width, or wide where it is piped."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def result_table(*columns: str, left: Collection[str] = (), **options: Any) -> Table:
    """A table of results without lines; the columns named in ``left`` are aligned there, all others right."""
    table = Table(box=None, pad_edge=False, header_style="bold", **options)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def print_columns(out: Console, columns: Mapping[str, Sequence[str]], left: Collection[str] = ()) -> list[str]:
    """Prints the columns that fit whole, from the first on: no name or number is ever cut. Returns the others."""
    widths = itertools.accumulate(2 + max(map(len, [title, *cells])) for title, cells in columns.items())
    count = max(1, sum(used - 2 <= out.width for used in widths))
    titles = list(columns)
    table = result_table(*titles[:count], left=left)
    for line in zip(*(columns[title] for title in titles[:count]), strict=True):
        table.add_row(*map(escape, line))
    out.print(table)
    return titles[count:]


@contextmanager
def report_errors() -> Iterator[None]:
    """Turns what a user can act on into a line on standard error and an exit code; bugs keep their traceback.

    That is a :class:`DanetError`, and what the system refuses: files (``OSError``) and memory.
    """
    try:
        yield
    except Interrupted as stop:
        console.print(f"[yellow]stopped:[/] {escape(str(stop))}")
        sys.exit(stop.exit_code)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (DanetError, OSError, MemoryError, RuntimeError) as error:
        if os.environ.get("DANET_DEBUG") or (isinstance(error, RuntimeError) and not out_of_memory(error)):
            raise
        console.print(f"[bold red]error:[/] {escape(_message(error))}")
        sys.exit(error.exit_code if isinstance(error, DanetError) else DanetError.exit_code)


def _message(error: DanetError | OSError | MemoryError | RuntimeError) -> str:
    if isinstance(error, DanetError):
        return str(error)
    if isinstance(error, OSError):
        shown = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else None
        where = f"{shown if len(shown) <= 200 else shown[:200] + '...'}: " if shown else ""
        return f"{where}{error.strerror or error}; fix that and run again"
    first = next(iter(str(error).splitlines()), "")[:200]
    return f"the memory is too small ({first}); close other programs, or take a smaller image or batch"
