"""One file over http(s): resumed where it stopped, checked, whole or not at all.

A download goes into ``.<file>.part``, which a later call resumes by an HTTP range where a checksum will tell whether
the parts fit. The file gets its name when it is whole and matches its checksum.
"""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3

from danet.acquire.unpack import damage
from danet.core.errors import DownloadError
from danet.core.progress import Progress
from danet.core.text import reason

CHUNK: Final = 1 << 20
TIMEOUT_S = (15.0, 60.0)
"""To connect, and of silence on an open connection."""
RETRIES = 3
"""Further connections after one that failed; one that brought at least ``CHUNK`` bytes starts the count again."""
PAUSE_S = 1.0
"""Before the first retry; doubled before each further one."""


def checksum_matches(path: Path, checksum: str) -> bool:
    """Whether a file has a checksum ``md5:``, ``sha1:`` or ``sha256:`` and the digest, or its first digits."""
    algorithm, _, digits = checksum.partition(":")
    return _digest(path, algorithm).startswith(digits.lower())


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def fetch_file(url: str, checksum: str | None, path: Path, *, session: requests.Session | None = None) -> None:
    """Downloads ``url`` to ``path``; does nothing if ``path`` is there and has the checksum.

    Raises:
        DownloadError: naming the URL, what is wrong and the remedy. ``path`` is then as it was.
    """
    if path.exists() and checksum is not None and checksum_matches(path, checksum):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    if checksum is None:
        part.unlink(missing_ok=True)
    while True:
        resumed = part.exists()
        _download(url, part, session or requests.Session())
        problem = wrong(part, checksum)
        if problem is None:
            part.replace(path)
            return
        part.unlink()
        if not resumed:  # else the part of last time may have been of another file: once more from the start
            raise DownloadError(
                f"{public(url)}: {problem}; try a mirror (DANET_MIRROR), or correct the URL or checksum in "
                "datasets.yaml (of released weights: params.yaml)"
            )


def wrong(path: Path, checksum: str | None) -> str | None:
    """What is wrong with a file, or with the ``.part`` of one, if anything is."""
    with path.open("rb") as stream:
        head = stream.read(512)
    # as HTML and XML begin, and the JSON of an error: never an archive, never weights
    if re.match(rb"(\xef\xbb\xbf)?\s*(<(!doctype|!--|html|head|body|title|\?xml)|\{\s*\")", head, re.I):
        return "is a web page (a login or an error), not the file: open its address in a browser"
    if checksum is None:
        return damage(path) if head else "has zero bytes"
    if checksum_matches(path, checksum):
        return None
    return f"is not the expected file ({checksum}): its digest is {_digest(path, checksum.partition(':')[0])}"


def _download(url: str, part: Path, session: requests.Session) -> None:
    """Makes ``part`` whole, in as many connections as it takes."""
    failures = 0
    while True:
        before = _size(part)
        try:
            _attempt(url, part, session)
            return
        except ValueError:
            raise DownloadError(f"{public(url)}: is no http(s) address; correct the URL") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            failures = 0 if _size(part) - before >= CHUNK else failures + 1
            if failures > RETRIES:
                raise DownloadError(
                    f"{public(url)}: {cause(error)} ({failures} attempts, {_size(part):,} bytes so far); run the same "
                    "command again, or set DANET_MIRROR or DANET_ARCHIVES"
                ) from error
            time.sleep(PAUSE_S * 2 ** max(failures - 1, 0))


def _attempt(url: str, part: Path, session: requests.Session) -> None:
    """One connection. Returns when the part is whole."""
    have = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        status = response.status_code
        if status in {408, 416, 425, 429} or status >= 500:
            if status == 416:  # the part is whole already, or longer than the file
                part.unlink()
            raise requests.HTTPError(f"the server answered {status} {response.reason}")
        if status not in {200, 206}:
            raise DownloadError(f"{public(url)}: the server answered {status} {response.reason}")
        if status == 200:
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        name = part.name.removeprefix(".").removesuffix(".part")
        bar = Progress(f"download {name}", total, "bytes", done=have)
        with part.open("ab" if have else "wb") as stream, bar:
            # the bytes as they lie on the server, even where it calls a .tgz a gzip-encoded tar
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                stream.write(chunk)
                bar.advance(len(chunk))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def public(url: str) -> str:
    """The URL without user name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def cause(error: Exception) -> str:
    """A failed connection in plain words."""
    if isinstance(error, requests.Timeout | urllib3.exceptions.ReadTimeoutError):
        return "the server did not answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "no secure connection: the server's certificate is not valid"
    if isinstance(error, requests.ConnectionError):
        return "no connection to the server"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection broke off"
    return reason(error)
