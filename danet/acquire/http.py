"""One file over http(s): resumed where it stopped, checked, whole or not at all.

A download goes into ``.<file>.part`` and is resumed by HTTP ranges if the server still has the same file (by ETag or
Last-Modified; by its length only where a checksum will tell). The file gets its name when it is whole and matches its
checksum. A redirect from https to http is never followed. Without a checksum, a body of which nothing says where it
ends is refused: a cut one could not be told from a whole one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
import urllib3

from danet.core import files
from danet.core.errors import DownloadError
from danet.core.progress import Progress, size_text

CHUNK = 1 << 20
DIGITS = {"md5": 32, "sha1": 40, "sha256": 64}


@dataclass(frozen=True)
class Patience:
    """When to give up on a server."""

    connect_s: float = 15.0
    read_s: float = 60.0
    """Longest silence on an open connection."""
    window_s: float = 60.0
    window_bytes: int = 64 << 10
    """A connection that brings less than this in a window is dropped as stalled, and resumed on a new one."""
    retries: int = 5
    """Further attempts after one that failed; one that brought at least ``CHUNK`` bytes starts the count again."""
    backoff_s: float = 1.0
    """Pause before the first retry; doubles up to 30 s."""


class _TransientError(Exception):
    """A failure that a second attempt may fix."""


def checksum_matches(path: Path, checksum: str) -> bool:
    """Whether a file has a checksum ``algorithm:digits``; fewer digits than the algorithm has are a prefix."""
    algorithm, digits = _parse_checksum(checksum)
    return _digest(path, algorithm).startswith(digits)


def _parse_checksum(checksum: str) -> tuple[str, str]:
    algorithm, _, digits = checksum.lower().partition(":")
    if algorithm not in DIGITS or not re.fullmatch(r"[0-9a-f]{6,}", digits) or len(digits) > DIGITS[algorithm]:
        raise DownloadError(f"checksum {checksum!r}: must be md5:, sha1: or sha256: and 6 or more hexadecimal digits")
    return algorithm, digits


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def fetch_file(
    url: str,
    checksum: str | None,
    path: Path,
    *,
    progress: bool = True,
    session: requests.Session | None = None,
    patience: Patience | None = None,
) -> None:
    """Downloads ``url`` to ``path``, resuming what an earlier call left; does nothing if ``path`` is there and right.

    ``checksum`` is ``md5:``, ``sha1:`` or ``sha256:`` and the digest or the first digits of it. Without one a file
    that is there counts as right, since files only get their name when whole.

    Raises:
        DownloadError: naming the URL, what is wrong and the remedy. ``path`` is then as it was.
    """
    algorithm, digits = _parse_checksum(checksum) if checksum is not None else ("", "")
    if path.exists() and (checksum is None or checksum_matches(path, checksum)):
        return
    part = path.with_name(f".{path.name}.part")
    transfer = _Transfer(url, part, checksum is not None, progress, session or requests.Session(), patience)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            resumed = transfer.have() > 0
            transfer.run()
            with part.open("rb") as stream:
                page = is_web_page(stream.read(512))
            got = "" if checksum is None else _digest(part, algorithm)
            if not page and got.startswith(digits):
                part.replace(path)
                transfer.state.unlink(missing_ok=True)
                return
            transfer.discard()
            if page:
                raise _html(url)
            if not resumed:  # else the part from last time may have been of another file: once more from the start
                raise DownloadError(
                    f"{public(url)}: {path.name} has {algorithm} {got}, expected {digits}: the file was changed or is "
                    "damaged on the way; try a mirror (DANET_MIRROR), or check the checksum in datasets.yaml"
                )


class _Transfer:
    """``part`` keeps what has come so far, and ``<part>.json`` which file of the server it is a part of."""

    def __init__(
        self,
        url: str,
        part: Path,
        verified: bool,
        progress: bool,
        session: requests.Session,
        patience: Patience | None,
    ) -> None:
        self.url, self.part, self.state = url, part, part.with_name(f"{part.name}.json")
        self.verified, self.progress, self.session = verified, progress, session
        self.patience = patience or Patience()

    def discard(self) -> None:
        """Removes what has come so far."""
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def have(self) -> int:
        """Bytes that have come so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self) -> None:
        """Makes ``part`` whole, in as many connections as it takes."""
        failures, most = 0, self.have()
        while True:
            try:
                self._attempt()
                return
            except (
                _TransientError,
                requests.RequestException,
                urllib3.exceptions.HTTPError,
                ConnectionError,
                TimeoutError,
            ) as error:
                if isinstance(error, ValueError):  # of requests, for what is not a URL
                    raise DownloadError(f"{public(self.url)}: {error}; correct the URL") from error
                # more than ever before: a server that starts again each time would else be asked for ever
                failures, most = (0, self.have()) if self.have() - most >= CHUNK else (failures + 1, most)
                if failures > self.patience.retries:
                    raise DownloadError(
                        f"{public(self.url)}: {cause(error)} ({failures} attempts, {self.have():,} bytes so far); run "
                        "the same command again to resume, or set DANET_MIRROR or DANET_ARCHIVES"
                    ) from error
                time.sleep(min(self.patience.backoff_s * 2 ** max(failures - 1, 0), 30.0))

    def _attempt(self) -> None:
        """One connection. Returns when the part is whole."""
        known = self._read_state()
        have = self.have() if known else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            etag = known.get("etag") or "W/"
            validator = known.get("last_modified") if etag.startswith("W/") else etag
            if validator:
                headers["If-Range"] = validator
        with _open(self.session, self.url, headers, self.patience) as response:
            if response.status_code == 416 and have and have == known.get("length"):
                return
            if response.status_code == 416:
                self.discard()
                raise _TransientError(f"the server refused to resume after {have:,} bytes; started again")
            _check_status(self.url, response)
            if "text/html" in response.headers.get("Content-Type", ""):
                raise _html(self.url)
            now = _identity(self.url, response)
            if response.status_code == 206 and not _continues(response, have, known, now):
                self.discard()
                raise _TransientError("the file on the server has changed")
            have = have if response.status_code == 206 else 0
            length = now["length"]
            if length == 0:
                raise DownloadError(f"{public(self.url)}: is empty on the server; try a mirror (DANET_MIRROR)")
            if length is None and not self.verified and not getattr(response.raw, "chunked", False):
                raise DownloadError(
                    f"{public(self.url)}: the server does not say how long the file is and no checksum is known, so a "
                    "cut file could not be told from a whole one; add its checksum to datasets.yaml"
                )
            self._check_space(None if length is None else length - have)
            files.write_json(self.state, now)
            self._copy(response, "ab" if have else "wb", have, length)
        got = self.have()
        if length is not None and got < length:
            raise _TransientError(f"the connection ended after {got:,} of {length:,} bytes")
        if length is not None and got > length:
            self.discard()
            raise _TransientError(f"the server sent {got:,} bytes instead of {length:,}")

    def _read_state(self) -> dict[str, Any]:
        """What the part is a part of; empty where that is unknown or could not be recognised again."""
        try:
            known = json.loads(self.state.read_text(encoding="utf-8"))
            etag = str(known.get("etag") or "W/")  # a weak one may stay while bytes change
            recognisable = not etag.startswith("W/") or known.get("last_modified")
            recognisable = recognisable or (self.verified and (known.get("etag") or known.get("length")))
            return dict(known) if known["url"] == public(self.url) and recognisable and self.part.exists() else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _check_space(self, needed: int | None) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if needed is not None and needed + (16 << 20) > free:
            raise DownloadError(
                f"{public(self.url)}: needs {size_text(needed)} more, but {self.part.parent} has {size_text(free)} "
                "free; make room and run the same command again"
            )

    def _copy(self, response: requests.Response, mode: str, have: int, length: int | None) -> None:
        patience = self.patience
        name = self.part.name.removeprefix(".").removesuffix(".part")
        bar = Progress(f"download {name}", length, "bytes", show=self.progress, done=have)
        with self.part.open(mode) as stream, bar:
            window_end, window = time.monotonic() + patience.window_s, 0
            # read1 gives what has arrived, so that a slow drip is seen; raw keeps the bytes as they lie on the server
            # even where it calls a .tgz a gzip-encoded tar.
            while chunk := response.raw.read1(CHUNK, decode_content=False):
                stream.write(chunk)
                stream.flush()
                bar.advance(len(chunk))
                window += len(chunk)
                if time.monotonic() >= window_end:
                    if window < patience.window_bytes:
                        raise _TransientError(f"stalled: {window:,} bytes in {patience.window_s:g} s")
                    window_end, window = time.monotonic() + patience.window_s, 0


def _continues(response: requests.Response, have: int, known: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a 206 is the rest of the very file that the part began."""
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if start is None or int(start[1]) != have:
        return False
    return all(known.get(key) in {None, now[key]} for key in ("etag", "last_modified", "length"))


def _check_status(url: str, response: requests.Response) -> None:
    status = response.status_code
    text = f"{public(url)}: the server answered {status} {response.reason}"
    if status in {408, 425, 429} or status >= 500:
        raise _TransientError(f"the server answered {status} {response.reason}")
    if status in {404, 410}:
        raise DownloadError(f"{text}: the file is not there (any more)")
    if status in {401, 403}:
        raise DownloadError(f"{text}: access needs a login or is not granted")
    if status not in {200, 206}:
        raise DownloadError(text)


def _html(url: str) -> DownloadError:
    return DownloadError(
        f"{public(url)}: is a web page (a login, a form or an error), not a file; open the address in a browser"
    )


def _open(session: requests.Session, url: str, headers: dict[str, str], patience: Patience) -> requests.Response:
    """GET without reading the body; follows redirects, except from https to http."""
    timeout = (patience.connect_s, patience.read_s)
    first = url
    for _ in range(10):
        try:
            response = session.get(url, headers=headers, stream=True, timeout=timeout, allow_redirects=False)
        except requests.RequestException:
            raise
        except ValueError as error:  # requests parses the Location even where it is not to follow it
            raise DownloadError(f"{public(url)}: redirects to what is not an address ({error})") from None
        if not response.is_redirect:
            return response
        response.close()
        url = redirect_target(url, response.headers["Location"])
    raise DownloadError(f"{public(first)}: more than 10 redirects")


def redirect_target(url: str, place: str) -> str:
    """Where a redirect leads.

    Raises:
        DownloadError: if that is not an http(s) address, or leads from https to http.
    """
    try:
        target = urljoin(url, place)
        old, new = urlsplit(url).scheme, urlsplit(target).scheme
    except ValueError:
        raise DownloadError(f"{public(url)}: redirects to {place[:200]!r}, which is not an address") from None
    if new not in {"http", "https"} or (old == "https" and new != "https"):
        raise DownloadError(f"{public(url)}: redirects to the insecure {public(target)}, which is not followed")
    return target


def is_web_page(head: bytes) -> bool:
    """Whether a file begins as HTML or XML does, or as the JSON of an error: never an archive, never weights."""
    page = rb"(\xef\xbb\xbf)?\s*(<(!doctype|!--|html|head|body|title|\?xml)|\{\s*\")"
    return re.match(page, head[:512], re.I) is not None


def _identity(url: str, response: requests.Response) -> dict[str, Any]:
    """What tells this version of the file from another. ``length`` is of the whole file."""
    headers = response.headers
    total = re.search(r"/(\d+)$", headers.get("Content-Range", "")) if response.status_code == 206 else None
    length = total[1] if total else headers.get("Content-Length") if response.status_code == 200 else None
    plausible = length is not None and re.fullmatch(r"[0-9]{1,18}", length)
    return {
        "url": public(url),
        "etag": headers.get("ETag"),
        "last_modified": headers.get("Last-Modified"),
        "length": int(length) if length is not None and plausible else None,
    }


def public(url: str) -> str:
    """The URL without user name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def cause(error: Exception) -> str:
    """A failed connection in plain words."""
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return "stalled: no data came"
    if isinstance(error, requests.ConnectTimeout):
        return "the server did not answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "no secure connection: the server's certificate is not valid"
    if isinstance(error, requests.ConnectionError):
        return "no connection to the server"
    if isinstance(error, urllib3.exceptions.ProtocolError):  # IncompleteRead and its kin, in words for programmers
        return "the connection broke off"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk into a ``DownloadError`` that says so."""
    try:
        yield
    except requests.RequestException:  # an OSError too
        raise
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        reason = "the disk is full" if full else str(error.strerror or error)
        remedy = "make room" if full else "fix that"
        raise DownloadError(
            f"{path}: cannot be written ({reason}); {remedy} and run the same command again, which resumes"
        ) from error
