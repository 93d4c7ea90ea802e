"""The options that several groups of commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[
    Path,
    typer.Option(
        "--workspace",
        "-C",
        envvar="DANET_WORKSPACE",
        help="Folder with params.yaml (default: here).",
        show_default=False,
    ),
]
RowName = Annotated[str, typer.Argument(metavar="ROW", help="A row's name, as `danet rows` prints it.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N (default: the GPU if there is one).", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there already.")]


class Format(StrEnum):
    """How a command prints."""

    table = "table"
    json = "json"


class TestMode(StrEnum):
    """How a network is tested."""

    ss = "ss"
    ms = "ms"
