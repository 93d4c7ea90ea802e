"""Getting archives: from a folder, a mirror, their URL or the Cityscapes login; whole and verified, or not at all.

A download goes into ``.<file>.part`` and is resumed by HTTP ranges if the server still has the same file (by ETag or
Last-Modified; by its length only where a checksum will tell); the finished file is checked against its checksum before
it gets its name (by pooch, or here where only a prefix of the digest is published). A redirect from https to http is
never followed, at no hop and neither with the login. Without a checksum, a body of which nothing says where it ends is
refused, since a cut one could not be told from a whole one.

The sources, in order, for each archive of a dataset:

1. an unpacked official folder, given by ``tree`` or ``DANET_<DATASET>`` (as ``DANET_CAMVID``), packed into
   ``tree.zip``;
2. a folder of archives, given by ``archives`` or ``DANET_ARCHIVES``, then ``data/archives``, with ``FILE`` or
   ``DATASET/FILE``;
3. a mirror, ``<mirror>/FILE``, given by ``mirror`` or ``DANET_MIRROR``;
4. the archive's own URL;
5. for Cityscapes the login, by ``CITYSCAPES_USERNAME`` and ``CITYSCAPES_PASSWORD``.

If any of the three arguments is given, the environment is not asked for the others.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import pooch
import requests
import urllib3
from filelock import FileLock, Timeout

from danet.config.rows import Archive, Dataset
from danet.core import files
from danet.core.errors import DataError, DownloadError
from danet.core.progress import Progress, size_text
from danet.data.layout import DatasetSpec
from danet.data.registry import ADAPTERS

CITYSCAPES = "https://www.cityscapes-dataset.com"
SOURCE = "SOURCE.json"
TREE = "tree.zip"
CHUNK = 1 << 20
DIGITS = {"md5": 32, "sha1": 40, "sha256": 64}
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time stamp of everything in our zip files: the same input gives the same bytes."""


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
    """A failure that a second attempt may mend."""


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
    if checksum is not None:
        algorithm, digits = _parse_checksum(checksum)
    if path.exists() and (checksum is None or checksum_matches(path, checksum)):
        return
    complete = path.with_name(f".{path.name}.complete")
    whole = checksum is not None and len(digits) == DIGITS[algorithm]
    downloader = ResumingDownloader(
        path.with_name(f".{path.name}.part"),
        prefix=None if whole else checksum,
        verified=checksum is not None,
        progress=progress,
        session=session,
        patience=patience,
    )
    pooch.get_logger().setLevel("WARNING")
    for attempt in range(2):
        try:
            with _disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                complete.unlink(missing_ok=True)
                pooch.retrieve(
                    url,
                    known_hash=checksum if whole else None,
                    fname=complete.name,
                    path=path.parent,
                    downloader=downloader,
                )
                complete.replace(path)
            return
        except ValueError as error:
            if " but got " not in str(error):  # not pooch's checksum error
                raise DownloadError(f"{_public(url)}: {error}; correct the URL") from error
            if attempt == 0 and downloader.resumed:
                continue  # the part from last time may have been of another file: once more from the start
            got = str(error).rpartition(" but got ")[2].split(".")[0]
            raise DownloadError(
                f"{_public(url)}: {path.name} has {algorithm} {got}, expected {digits}: the file was changed or is "
                "damaged on the way; try a mirror (DANET_MIRROR), or check the checksum in datasets.yaml"
            ) from error


class ResumingDownloader:
    """A downloader for pooch that resumes, retries and tells what is wrong.

    ``part`` keeps what has come so far, and ``<part>.json`` which file of the server it is a part of.
    """

    def __init__(
        self,
        part: Path,
        *,
        prefix: str | None = None,
        verified: bool = True,
        progress: bool = True,
        session: requests.Session | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.part, self.state = part, part.with_name(f"{part.name}.json")
        self.prefix, self.verified, self.progress = prefix, verified, progress
        self.session = session or requests.Session()
        self.patience = patience or Patience()
        self.resumed = False
        """Whether the last download continued a part of an earlier call."""

    def __call__(
        self, url: str, output_file: str | Path, pooch_object: object, check_only: bool = False
    ) -> bool | None:
        """Brings ``url`` to ``output_file`` (as pooch calls it).

        Raises:
            DownloadError: for everything that another attempt would not mend, and after the last attempt.
        """
        if check_only:
            with self._request(url, {}) as response:
                return bool(response.ok)
        self.resumed = self.part.exists() and self.part.stat().st_size > 0
        self._transfer(url)
        with self.part.open("rb") as stream:
            page = is_web_page(stream.read(512))
        if page:
            self.discard()
            raise self._html(url)
        if self.prefix is not None and not checksum_matches(self.part, self.prefix):
            algorithm, digits = _parse_checksum(self.prefix)
            got = _digest(self.part, algorithm)
            self.discard()
            if self.resumed:
                return self(url, output_file, pooch_object)
            raise DownloadError(
                f"{_public(url)}: {algorithm} is {got}, expected {digits}...: the file was changed or is damaged on "
                "the way; try again later, or check the checksum in datasets.yaml"
            )
        self.part.replace(output_file)
        self.state.unlink(missing_ok=True)
        return None

    def discard(self) -> None:
        """Removes what has come so far."""
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def _transfer(self, url: str) -> None:
        failures, most = 0, self._have()
        while True:
            try:
                self._attempt(url)
                return
            except (
                _TransientError,
                requests.RequestException,
                urllib3.exceptions.HTTPError,
                ConnectionError,
                TimeoutError,
            ) as error:
                if isinstance(error, ValueError):  # a URL that is none
                    raise
                # more than ever before: a server that starts anew each time would else be asked for ever
                failures, most = (0, self._have()) if self._have() - most >= CHUNK else (failures + 1, most)
                if failures > self.patience.retries:
                    raise DownloadError(
                        f"{_public(url)}: {_cause(error)} ({failures} attempts, {self._have():,} bytes so far); run "
                        "the same command again to resume, or set DANET_MIRROR or DANET_ARCHIVES"
                    ) from error
                time.sleep(min(self.patience.backoff_s * 2 ** max(failures - 1, 0), 30.0))

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _attempt(self, url: str) -> None:
        """One connection. Returns when the part is whole."""
        known = self._read_state(url)
        have = self._have() if known else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            etag = known.get("etag") or "W/"
            validator = known.get("last_modified") if etag.startswith("W/") else etag
            if validator:
                headers["If-Range"] = validator
        with self._request(url, headers) as response:
            if response.status_code == 416 and have and have == known.get("length"):
                return
            if response.status_code == 416:
                self.discard()
                raise _TransientError(f"the server refused to resume after {have:,} bytes; begun anew")
            self._check_status(url, response)
            if "text/html" in response.headers.get("Content-Type", "") and not url.endswith((".html", ".htm")):
                raise self._html(url)
            now = _identity(url, response)
            if response.status_code == 206 and not self._continues(response, have, known, now):
                self.discard()
                raise _TransientError("the file on the server has changed")
            if response.status_code != 206:
                have = 0
            length = now["length"]
            if length == 0:
                raise DownloadError(f"{_public(url)}: is empty on the server; try a mirror (DANET_MIRROR)")
            if length is None and not self.verified and not getattr(response.raw, "chunked", False):
                raise DownloadError(
                    f"{_public(url)}: the server does not say how long the file is and no checksum is known, so a cut "
                    "file could not be told from a whole one; add its checksum to datasets.yaml or place it in "
                    "data/archives"
                )
            self._check_space(url, None if length is None else length - have)
            files.write_json(self.state, now)
            self._copy(response, "ab" if have else "wb", have, length)
        got = self._have()
        if length is not None and got < length:
            raise _TransientError(f"the connection ended after {got:,} of {length:,} bytes")
        if length is not None and got > length:
            self.discard()
            raise _TransientError(f"the server sent {got:,} bytes instead of {length:,}")

    def _read_state(self, url: str) -> dict[str, Any]:
        """What the part is a part of; empty where that is unknown or could not be recognised again."""
        try:
            known = json.loads(self.state.read_text(encoding="utf-8"))
            etag = str(known.get("etag") or "W/")  # a weak one may stay while bytes change
            recognisable = not etag.startswith("W/") or known.get("last_modified")
            recognisable = recognisable or (self.verified and (known.get("etag") or known.get("length")))
            return dict(known) if known["url"] == _public(url) and recognisable and self.part.exists() else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    @staticmethod
    def _continues(response: requests.Response, have: int, known: dict[str, Any], now: dict[str, Any]) -> bool:
        """Whether a 206 is the rest of the very file that the part began."""
        start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if start is None or int(start[1]) != have:
            return False
        return all(known.get(key) in {None, now[key]} for key in ("etag", "last_modified", "length"))

    def _request(self, url: str, headers: dict[str, str]) -> requests.Response:
        """GET, following redirects except from https to http."""
        return open_url(self.session, url, headers, self.patience)

    def _check_status(self, url: str, response: requests.Response) -> None:
        status = response.status_code
        if status in {200, 206}:
            return
        text = f"{_public(url)}: the server answered {status} {response.reason}"
        if status in {404, 410}:
            raise DownloadError(f"{text}: the file is not there (any more); set DANET_MIRROR or DANET_ARCHIVES")
        if status in {401, 403}:
            raise DownloadError(f"{text}: access needs a login or is not granted; place the file in data/archives")
        if status in {408, 425, 429} or status >= 500:
            raise _TransientError(f"the server answered {status} {response.reason}")
        raise DownloadError(f"{text}; try a mirror (DANET_MIRROR)")

    @staticmethod
    def _html(url: str) -> DownloadError:
        return DownloadError(
            f"{_public(url)}: came as a web page (a login or error page), not as a file; log in and place the file in "
            "data/archives, or set DANET_MIRROR"
        )

    def _check_space(self, url: str, needed: int | None) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if needed is not None and needed + (16 << 20) > free:
            raise DownloadError(
                f"{_public(url)}: needs {size_text(needed)} more, but {self.part.parent} has {size_text(free)} "
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
                try:
                    stream.write(chunk)
                    stream.flush()
                except OSError as error:
                    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                        raise
                    here = self._have()
                    more = f"needs {length - here:,} bytes more" if length is not None else "has an unknown length"
                    raise DownloadError(
                        f"{self.part}: the disk is full after {here:,} bytes, and the file {more}; make room and run "
                        "the same command again, which goes on from there"
                    ) from error
                bar.advance(len(chunk))
                window += len(chunk)
                if time.monotonic() >= window_end:
                    if window < patience.window_bytes:
                        raise _TransientError(f"stalled: {window:,} bytes in {patience.window_s:g} s")
                    window_end, window = time.monotonic() + patience.window_s, 0


def open_url(session: requests.Session, url: str, headers: dict[str, str], patience: Patience) -> requests.Response:
    """GET, following redirects except from https to http, without reading the body.

    Raises:
        DownloadError: for a redirect that is not followed, or the eleventh.
        requests.RequestException: if the server cannot be reached.
    """
    timeout = (patience.connect_s, patience.read_s)
    first = url
    for _ in range(10):
        try:
            response = session.get(url, headers=headers, stream=True, timeout=timeout, allow_redirects=False)
        except requests.RequestException:
            raise
        except ValueError as error:  # requests parses the Location even where it is not to follow it
            raise DownloadError(
                f"{_public(url)}: redirects to what is no address ({error}); set DANET_MIRROR"
            ) from None
        if not response.is_redirect:
            return response
        place = response.headers["Location"]
        response.close()
        url = redirect_target(url, place)
    raise DownloadError(f"{_public(first)}: more than 10 redirects; try a mirror (DANET_MIRROR)")


def redirect_target(url: str, place: str) -> str:
    """Where a redirect leads; raises like :func:`check_redirect`, and for what is no address."""
    try:
        target = urljoin(url, place)
        check_redirect(url, target)
    except ValueError:
        raise DownloadError(
            f"{_public(url)}: redirects to {place[:200]!r}, which is no address; set DANET_MIRROR"
        ) from None
    return target


def is_web_page(head: bytes) -> bool:
    """Whether a file begins as HTML or XML does, or as the JSON of an error: never an archive, never weights."""
    return (
        re.match(rb"(\xef\xbb\xbf)?\s*(<(!doctype|!--|html|head|body|title|\?xml)|\{\s*\")", head[:512], re.I)
        is not None
    )


def check_redirect(url: str, target: str) -> None:
    """Refuses a redirect from https to anything else, and to anything but http(s).

    Raises:
        DownloadError: naming both addresses.
    """
    old, new = urlsplit(url).scheme, urlsplit(target).scheme
    if new not in {"http", "https"} or (old == "https" and new != "https"):
        raise DownloadError(
            f"{_public(url)}: redirects to the insecure {_public(target)}, which is not followed; set DANET_MIRROR"
        )


def _identity(url: str, response: requests.Response) -> dict[str, Any]:
    """What tells this version of the file from another. ``length`` is of the whole file."""
    headers = response.headers
    total = re.search(r"/(\d+)$", headers.get("Content-Range", "")) if response.status_code == 206 else None
    length = total[1] if total else headers.get("Content-Length") if response.status_code == 200 else None
    plausible = length is not None and re.fullmatch(r"[0-9]{1,18}", length)
    return {
        "url": _public(url),
        "etag": headers.get("ETag"),
        "last_modified": headers.get("Last-Modified"),
        "length": int(length) if length is not None and plausible else None,
    }


def _public(url: str) -> str:
    """The URL without user name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _cause(error: Exception) -> str:
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return "stalled: no data came"
    if isinstance(error, requests.ConnectTimeout):
        return "the server did not answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "no secure connection: the server's certificate does not hold"
    if isinstance(error, requests.ConnectionError):
        return "no connection to the server"
    if isinstance(error, urllib3.exceptions.ProtocolError):  # IncompleteRead and its kin, in words for programmers
        return "the connection broke off"
    return " ".join(str(error).split()) or type(error).__name__


class _disk_errors:  # noqa: N801 - reads as a statement
    """Turns a full or read-only disk into a ``DownloadError`` that says so."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        network = isinstance(error, requests.RequestException)
        if isinstance(error, OSError) and not network:
            room = "the disk is full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else str(error.strerror or error)
            raise DownloadError(
                f"{self.path}: cannot be written ({room}); mend that and run the same command again"
            ) from error


def download_dataset(
    name: str,
    spec: Dataset,
    out: Path,
    *,
    archives: Path | None = None,
    mirror: str | None = None,
    tree: Path | None = None,
    progress: bool = True,
    patience: Patience | None = None,
) -> None:
    """Brings the archives of a dataset into the folder ``out``, with ``out/SOURCE.json`` saying where each came from.

    ``out`` appears, or changes, only when all are there and right; archives that are there and right stay. See the
    module's description for the sources.

    Raises:
        DownloadError: saying for each source why it did not serve, and what to do.
        DataError: if ``tree`` is not the dataset's official folder.
    """
    if archives is None and mirror is None and tree is None:
        environment = os.environ
        tree = _path(environment.get("DANET_" + name.upper().replace("-", "_")))
        archives, mirror = _path(environment.get("DANET_ARCHIVES")), environment.get("DANET_MIRROR") or None
    job = _Job(name, spec, out, progress, patience)
    with _disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(out.parent / f".{out.name}.lock", timeout=0):
                if tree is not None:
                    job.from_tree(tree)
                else:
                    folders = [folder for folder in (archives, out.parent.parent / "archives") if folder is not None]
                    job.from_archives(folders, mirror)
        except Timeout as error:
            raise DownloadError(f"{out}: another process is downloading {name}; wait for it or stop it") from error


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None


class _Job:
    """The download of one dataset: collects in ``staging`` (outside ``out``, which DVC may delete), then swaps."""

    def __init__(self, name: str, spec: Dataset, out: Path, progress: bool, patience: Patience | None) -> None:
        self.name, self.spec, self.out, self.progress, self.patience = name, spec, out, progress, patience
        self.staging = out.with_name(f".{out.name}.download")
        self.old = self._old_records()
        self._session: requests.Session | None = None

    def _old_records(self) -> dict[str, dict[str, Any]]:
        try:
            recorded = json.loads((self.out / SOURCE).read_text(encoding="utf-8"))["archives"]
            return {entry["file"]: entry for entry in recorded}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def from_tree(self, tree: Path) -> None:
        """Packs the official folder ``tree``."""
        if not tree.is_dir():
            raise DownloadError(f"{tree}: no such folder; it was given as the unpacked {self.spec.title}")
        self.staging.mkdir(exist_ok=True)
        with files.atomic_write(self.staging / TREE) as temporary:
            pack_tree(ADAPTERS[self.spec.adapter], tree, temporary, progress=self.progress)
        self.finish([self.record(TREE, "tree", None)])

    def from_archives(self, folders: list[Path], mirror: str | None) -> None:
        """Gets every archive from the first source that serves it."""
        if mirror is not None and urlsplit(mirror).scheme in {"", "file"}:
            folders, mirror = [Path(urlsplit(mirror).path), *folders], None
        self.staging.mkdir(exist_ok=True)
        records, problems = [], []
        for archive in self.spec.archives:
            tried: list[str] = []
            record = self.get(archive, folders, mirror, tried)
            if record is not None:
                records.append(record)
            elif archive.optional:
                print(f"{self.name}: optional {archive.file} left out: " + "; ".join(tried), file=sys.stderr)
            else:
                problems.append(f"{archive.file} could not be had: " + "; ".join(tried))
        if problems:
            raise DownloadError(f"{self.name}: " + "\n".join(problems))
        self.finish(records)

    def get(self, archive: Archive, folders: list[Path], mirror: str | None, tried: list[str]) -> dict[str, Any] | None:
        """Puts one archive into ``staging``; notes in ``tried`` why the sources before did not serve."""
        target = self.staging / archive.file
        old = self.old.get(archive.file)
        if old is not None and self.keep(archive, old):
            return old
        if target.exists() and (archive.checksum is None or not checksum_matches(target, archive.checksum)):
            target.unlink()
        if target.exists():
            return self.record(archive.file, "earlier run", archive.url)
        return self.local(archive, folders, target, tried) or self.remote(archive, mirror, target, tried)

    def local(self, archive: Archive, folders: list[Path], target: Path, tried: list[str]) -> dict[str, Any] | None:
        """Takes the archive from the first folder that has the right one."""
        tried += [f"{folder} is no folder" for folder in folders if folder.name != "archives" and not folder.is_dir()]
        for path in [folder / part / archive.file for folder in folders for part in ("", self.name)]:
            if path.is_file():
                problem = _not_wanted(path, archive.checksum)
                if problem is None:
                    _link_or_copy(path.resolve(), target)
                    return self.record(archive.file, "local folder", None)
                tried.append(f"{path} {problem}; delete it or download it again")
        return None

    def remote(self, archive: Archive, mirror: str | None, target: Path, tried: list[str]) -> dict[str, Any] | None:
        """Downloads the archive from the first server that serves it."""
        sources: list[tuple[str, str, Callable[[], requests.Session] | None]] = []
        if mirror is not None:
            sources.append(("mirror", f"{mirror.rstrip('/')}/{archive.file}", None))
        if archive.url is not None:
            sources.append(("url", archive.url, None))
        if archive.package is not None:
            sources.append(("login", f"{CITYSCAPES}/file-handling/?packageID={archive.package}", self.login))
        for kind, url, login in sources:
            try:
                session = login() if login else None
                fetch_file(
                    url, archive.checksum, target, progress=self.progress, session=session, patience=self.patience
                )
                return self.record(archive.file, kind, url)
            except DownloadError as error:
                text = str(error)
                if login is not None and "web page" in text:
                    text += " (the login was probably refused, or this account lacks the permission to download)"
                tried.append(text)
        if not tried:
            tried.append(
                f"it has no URL; place it in data/archives or a folder named by DANET_ARCHIVES ({self.spec.title})"
            )
        return None

    def keep(self, archive: Archive, old: dict[str, Any]) -> bool:
        """Takes over an archive that ``out`` already has, if it is what is wanted."""
        present = self.out / archive.file
        recorded = f"sha256:{old.get('sha256')}"
        if not present.is_file() or not checksum_matches(present, archive.checksum or recorded):
            return False
        if archive.checksum is None and old.get("from") == "url" and old.get("url") != archive.url:
            return False
        _link_or_copy(present.resolve(), self.staging / archive.file)
        return True

    def login(self) -> requests.Session:
        """A session logged in to the Cityscapes site.

        Raises:
            DownloadError: without credentials, telling both ways; never naming the password.
        """
        if self._session is not None:
            return self._session
        user, password = os.environ.get("CITYSCAPES_USERNAME"), os.environ.get("CITYSCAPES_PASSWORD")
        if not user or not password:
            raise DownloadError(
                f"Cityscapes needs a registration ({CITYSCAPES}/register/): either set CITYSCAPES_USERNAME and "
                "CITYSCAPES_PASSWORD, or download the file with a browser into data/archives (or DANET_ARCHIVES)"
            )
        session = requests.Session()
        form = {"username": user, "password": password, "submit": "Login"}
        try:
            # The redirect after a good login is checked and not followed: the session has its cookie then.
            response = session.post(f"{CITYSCAPES}/login/", data=form, timeout=60, allow_redirects=False)
        except requests.RequestException as error:
            raise DownloadError(f"{CITYSCAPES}/login/: {_cause(error)}; try again later") from error
        if response.is_redirect:
            redirect_target(f"{CITYSCAPES}/login/", response.headers["Location"])
        if not response.ok or not session.cookies:
            raise DownloadError(
                f"{CITYSCAPES}/login/: the login of {user!r} was refused (status {response.status_code}); check "
                "CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD"
            )
        self._session = session
        return session

    def record(self, file: str, kind: str, url: str | None) -> dict[str, Any]:
        """The entry of SOURCE.json; an unchanged archive keeps its old one, so that the folder's hash stays."""
        path = self.staging / file
        digest, size = files.sha256(path), path.stat().st_size
        old = self.old.get(file)
        if old is not None and old.get("sha256") == digest:
            return old
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        public = _public(url) if url is not None else None
        return {"file": file, "from": kind, "url": public, "sha256": digest, "bytes": size, "date": date}

    def finish(self, records: list[dict[str, Any]]) -> None:
        """Leaves in ``staging`` what belongs there and makes it ``out``."""
        expected = {str(record["file"]) for record in records}
        for path in self.staging.iterdir():
            if path.name not in expected:
                path.unlink()
        files.write_json(self.staging / SOURCE, {"format": 1, "dataset": self.name, "archives": records})
        swap(self.staging, self.out)


def swap(new: Path, out: Path) -> None:
    """Renames the folder ``new`` to ``out``, removing what was there."""
    old = out.with_name(f".{out.name}.old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    if out.is_symlink() or out.is_file():
        out.unlink()
    elif out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _not_wanted(path: Path, checksum: str | None) -> str | None:
    """What is wrong with a file placed by hand, if anything is."""
    if checksum is not None:
        return None if checksum_matches(path, checksum) else f"is not the expected file ({checksum})"
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        return "has zero bytes"
    return "is a web page, not an archive" if is_web_page(head) else None


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        with files.atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)


def pack_tree(adapter: DatasetSpec, tree: Path, path: Path, *, progress: bool = True) -> None:
    """Writes the files that ``adapter`` needs of an unpacked official folder into a zip in official layout.

    Stored, sorted, with fixed time stamps: the same tree gives the same bytes. Links to files are followed.

    Raises:
        DataError: if the tree has not the dataset's layout or none of its files.
    """
    located = adapter.locate(tree)
    found = adapter.layout(located)
    wanted = [*found.lists, *(item.image for item in found.items), *(item.mask for item in found.items if item.mask)]
    members: dict[str, Path] = {}
    for file in wanted:
        prefix, folder = next((prefix, folder) for prefix, folder in located.items() if file.is_relative_to(folder))
        if file.is_file():  # what is missing is convert's to report, with everything else that is wrong
            members[f"{prefix}/{file.relative_to(folder).as_posix()}"] = file
    if not members:
        raise DataError(f"{tree}: has none of the files of {adapter.name}")
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        Progress(f"pack {tree.name}", len(members), "files", show=progress) as bar,
    ):
        for name in sorted(members):
            archive.writestr(zip_entry(name), members[name].read_bytes())
            bar.advance()


def zip_entry(name: str) -> zipfile.ZipInfo:
    """A zip entry with fixed time, mode and system."""
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    return entry
