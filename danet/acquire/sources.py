"""Where does this file come from? One answer, for archives, ImageNet weights and released weights alike.

In order:

1. the folder that ``DANET_ARCHIVES`` names;
2. ``data/archives`` in the workspace;
3. the mirror that ``DANET_MIRROR`` names (an http(s) address);
4. the file's official URL;
5. for Cityscapes the login, with ``CITYSCAPES_USERNAME`` and ``CITYSCAPES_PASSWORD``.

A folder may hold the file itself, or a folder named as the dataset (or ``weights``, ``released``) that holds it. A
source that does not serve is noted, and the next one tried. Before all of them comes a dataset's own unpacked folder
(:func:`unpacked_folder`), from which :mod:`danet.data.raw` packs what is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from danet.acquire import cityscapes_login
from danet.acquire.http import fetch_file, public, wrong
from danet.core.errors import DownloadError

PAGES = ("drive.google.com",)
"""Hosts whose links are pages for people: a browser gets the file, a program a form."""


@dataclass(frozen=True)
class Wanted:
    """A file, and what is known of it."""

    file: str
    group: str
    """The dataset, ``weights`` or ``released``: a folder of archives may hold the file below that name."""
    url: str | None = None
    checksum: str | None = None
    """As in :func:`~danet.acquire.http.fetch_file`."""
    package: int | None = None
    """Cityscapes: the number of the package behind the login."""
    also: tuple[str, ...] = ()
    """Other names under which a folder of archives may hold it."""
    command: str | None = None
    """What makes it on this machine."""


@dataclass(frozen=True)
class Source:
    """One place that may serve a file."""

    kind: Literal["local folder", "mirror", "url", "login"]
    path: Path | None = None
    """Of a local file."""
    url: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else public(self.url or "")


def unpacked_folder(dataset: str) -> Path | None:
    """The unpacked official folder that ``DANET_<DATASET>`` (as ``DANET_CAMVID``) names."""
    return _named_folder(folder_variable(dataset))


def folder_variable(dataset: str) -> str:
    """The environment variable that names a dataset's unpacked folder."""
    return "DANET_" + dataset.upper().replace("-", "_")


def _named_folder(variable: str) -> Path | None:
    named = os.environ.get(variable)
    return Path(named).expanduser() if named else None


def sources(wanted: Wanted, archives: Path) -> Iterator[Source]:
    """Where the file may come from, in order; local ones only where a file of that name lies.

    ``archives`` is ``data/archives`` of the workspace.
    """
    for folder in filter(None, (_named_folder("DANET_ARCHIVES"), archives)):
        for name in (wanted.file, *wanted.also):
            for path in (folder / name, folder / wanted.group / name):
                if path.is_file():
                    yield Source("local folder", path=path)
    if mirror := os.environ.get("DANET_MIRROR"):
        yield Source("mirror", url=f"{mirror.rstrip('/')}/{wanted.file}")
    if wanted.url is not None and urlsplit(wanted.url).hostname not in PAGES:
        yield Source("url", url=wanted.url)
    if wanted.package is not None and cityscapes_login.has_credentials():
        yield Source("login", url=f"{cityscapes_login.SITE}/file-handling/?packageID={wanted.package}")


def by_hand(wanted: Wanted, archives: Path) -> str:
    """What a person can do to place the file."""
    place = archives / wanted.file
    if wanted.package is not None:
        site = cityscapes_login.SITE
        return (
            f"register at {site}/register/, then set CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD, or download "
            f"{wanted.file} with a browser and save it as {place}"
        )
    if wanted.command is not None:
        return f"`{wanted.command}` makes it; `dvc repro -k` goes on with what does not need it"
    if wanted.url is not None:
        return f"open {public(wanted.url)} in a browser and save the file as {place}"
    return f"it has no URL: save it as {place}"


def obtain(wanted: Wanted, target: Path, archives: Path) -> tuple[Path, Source]:
    """The file and its source: a local file where it lies, else downloaded to ``target`` (resumed in a later call).

    Raises:
        DownloadError: saying for each source why it does not serve, and where to place the file by hand.
    """
    named = _named_folder("DANET_ARCHIVES")
    tried = [f"{named}: no such folder"] if named and not named.is_dir() else []
    for source in sources(wanted, archives):
        try:
            if source.url is not None:
                session = cityscapes_login.log_in() if source.kind == "login" else None
                fetch_file(source.url, wanted.checksum, target, session=session)
                return target, source
            assert source.path is not None
            problem = wrong(source.path, wanted.checksum)
            if problem is None:
                return source.path, source
            tried.append(f"{source}: {problem}; replace or delete it")
        except DownloadError as error:
            permission = " (this account may lack the permission to download)" if source.kind == "login" else ""
            tried.append(f"{error}{permission}")
    tried.append(by_hand(wanted, archives))
    raise DownloadError(f"{wanted.file} could not be obtained: " + "; ".join(tried))
