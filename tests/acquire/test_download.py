from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import shutil
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from filelock import FileLock

from danet.acquire import download
from danet.acquire.download import (
    Patience,
    ResumingDownloader,
    check_redirect,
    checksum_matches,
    download_dataset,
    fetch_file,
)
from danet.config.rows import Dataset
from danet.core.errors import DataError, DownloadError
from tests.data.samples import camvid_spec, camvid_tree, dataset, generated

FAST = Patience(connect_s=2, read_s=0.3, window_s=0.2, window_bytes=1000, retries=2, backoff_s=0.01)
DATA = bytes(range(256)) * 4000  # 1 MB
SHA256 = "sha256:" + hashlib.sha256(DATA).hexdigest()


@dataclasses.dataclass
class Site:
    """What the test server serves, and what it was asked."""

    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    headers: dict[str, str] = dataclasses.field(default_factory=lambda: {"ETag": '"one"'})
    status: dict[str, int] = dataclasses.field(default_factory=dict)
    redirects: dict[str, str] = dataclasses.field(default_factory=dict)
    cut: list[int] = dataclasses.field(default_factory=list)
    """Bytes after which the next connections break off."""
    ranges: bool = True
    drip: float = 0.0
    hang: bool = False
    chunked: bool = False
    forced: dict[str, str | None] = dataclasses.field(default_factory=dict)
    """Headers that are sent whatever is right; null leaves one out."""
    stubborn: bool = False
    """Sends the range asked for, even of a changed file."""
    new_each_time: bool = False
    asked: list[tuple[str, dict[str, str]]] = dataclasses.field(default_factory=list)
    posted: list[str] = dataclasses.field(default_factory=list)
    login: bool = True
    url: str = ""

    def ranges_asked(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.asked]


class Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.site.posted.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        if self.site.login:
            self.send_header("Set-Cookie", "session=good; Path=/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        site = self.site
        site.asked.append((self.path, dict(self.headers)))
        path = self.path
        if path in site.redirects or path in site.status:
            self.send_response(site.status.get(path, 302))
            if path in site.redirects:
                self.send_header("Location", site.redirects[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path.startswith("/file-handling") and "session=good" not in self.headers.get("Cookie", ""):
            page = b"<!DOCTYPE html><html>log in</html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
            return
        if path not in site.files:
            self.send_error(404)
            return
        self.serve(site.files[path])

    def serve(self, data: bytes) -> None:  # noqa: PLR0912 - every way in which a server can fail
        site = self.site
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and site.ranges else 0
        condition = self.headers.get("If-Range")
        if site.new_each_time:
            site.headers = {"ETag": f'"{len(site.asked)}"'}
        if condition is not None and condition not in site.headers.values() and not site.stubborn:
            start = 0
        if start and start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        headers: dict[str, str | None] = dict(site.headers)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if site.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(data) - start)
        headers |= site.forced
        for key, value in headers.items():
            if value is not None:
                self.send_header(key, value)
        if headers.get("Content-Length") is None:
            self.close_connection = True
        self.end_headers()
        body = data[start:]
        if site.hang:
            time.sleep(1.0)
            self.close_connection = True
            return
        if site.cut:
            body = body[: site.cut.pop(0)]
            self.wfile.write(f"{len(body) + 9:x}\r\n".encode() + body if site.chunked else body)
            self.close_connection = True
            return
        if site.drip:
            try:
                for index in range(0, len(body), 10):
                    piece = body[index : index + 10]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if site.chunked else piece)
                    self.wfile.flush()
                    time.sleep(site.drip)
            except OSError:
                pass
            return
        if site.chunked:
            self.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
            return
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients hang up on purpose


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    handler = type("ThisHandler", (Handler,), {"site": site})
    server = Server(("127.0.0.1", 0), handler)
    assert isinstance(server, socketserver.ThreadingMixIn)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("DANET_", "CITYSCAPES_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def fetch(
    site: Site, path: Path, checksum: str | None = SHA256, name: str = "/a.zip", patience: Patience = FAST
) -> None:
    fetch_file(site.url + name, checksum, path, progress=False, patience=patience)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("digits", [None, 8])
def test_checksums(site: Site, tmp_path: Path, algorithm: str, digits: int | None) -> None:
    site.files["/a.zip"] = DATA
    digest = hashlib.new(algorithm, DATA).hexdigest()[:digits]
    fetch(site, tmp_path / "a.zip", f"{algorithm}:{digest}")
    assert (tmp_path / "a.zip").read_bytes() == DATA
    fetch(site, tmp_path / "a.zip", f"{algorithm}:{digest}")
    assert len(site.asked) == 1, "a verified file is not fetched again"
    assert checksum_matches(tmp_path / "a.zip", f"{algorithm}:{digest.upper()}")
    assert left(tmp_path) == ["a.zip"]


@pytest.mark.parametrize(
    "checksum", ["crc:12345678", "sha256:", "sha256:xyzxyzxyz", "md5:" + 33 * "a", "sha1:abc", "12345678"]
)
def test_checksum_of_unknown_form(tmp_path: Path, checksum: str) -> None:
    with pytest.raises(DownloadError, match="must be md5:, sha1: or sha256:"):
        fetch_file("http://127.0.0.1:9/a", checksum, tmp_path / "a")


@pytest.mark.parametrize("checksum", ["sha256:" + 64 * "0", "sha256:00000000"])
@pytest.mark.parametrize("present", [False, True])
def test_wrong_checksum(site: Site, tmp_path: Path, checksum: str, present: bool) -> None:
    site.files["/a.zip"] = DATA
    if present:
        (tmp_path / "a.zip").write_bytes(b"what was there")
    with pytest.raises(DownloadError, match=r"/a\.zip.*sha256 (is )?" + SHA256[7:] + r".*expected 0{8}.*datasets\.yam"):
        fetch(site, tmp_path / "a.zip", checksum)
    assert left(tmp_path) == (["a.zip"] if present else [])
    assert not present or (tmp_path / "a.zip").read_bytes() == b"what was there"


def test_wrong_file_is_replaced(site: Site, tmp_path: Path) -> None:
    site.files["/a.zip"] = DATA
    for checksum in (SHA256, SHA256[:15]):
        (tmp_path / "a.zip").write_bytes(b"half")
        fetch(site, tmp_path / "a.zip", checksum)
        assert (tmp_path / "a.zip").read_bytes() == DATA


def test_broken_connections_are_resumed(site: Site, tmp_path: Path) -> None:
    site.files["/a.zip"] = DATA
    site.cut = [1000, 300_000]
    fetch(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert site.ranges_asked() == [None, "bytes=1000-", "bytes=301000-"]
    assert site.asked[1][1]["If-Range"] == '"one"'
    assert left(tmp_path) == ["a.zip"]


@pytest.mark.parametrize(
    "headers", [{"ETag": '"one"'}, {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}, {"ETag": 'W/"weak"'}, {}]
)
def test_resume_in_a_later_run(site: Site, tmp_path: Path, headers: dict[str, str]) -> None:
    site.files["/a.zip"], site.headers = DATA, headers
    site.cut = [100_000] * 3
    with pytest.raises(DownloadError, match="resume"):
        fetch(site, tmp_path / "a.zip")
    assert left(tmp_path) == [".a.zip.part", ".a.zip.part.json"]
    site.asked.clear()
    fetch(site, tmp_path / "a.zip")
    assert site.ranges_asked() == ["bytes=300000-"]
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert left(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified", None])
def test_file_changed_between_runs(site: Site, tmp_path: Path, validator: str | None) -> None:
    old, new = DATA[::-1], DATA + b"longer"
    site.files["/a.zip"], site.headers = old, {validator: '"old"'} if validator else {}
    site.cut = [5000] * 3
    with pytest.raises(DownloadError):
        fetch(site, tmp_path / "a.zip", None)
    site.files["/a.zip"], site.headers = new, {validator: '"new"'} if validator else {}
    fetch(site, tmp_path / "a.zip", None)
    assert (tmp_path / "a.zip").read_bytes() == new


@pytest.mark.parametrize("checksum", [SHA256, SHA256[:20]])
def test_part_of_another_file_that_looks_the_same_is_found_by_checksum(
    site: Site, tmp_path: Path, checksum: str
) -> None:
    site.files["/a.zip"], site.headers = DATA[::-1], {}
    site.cut = [5000] * 3
    with pytest.raises(DownloadError):
        fetch(site, tmp_path / "a.zip", checksum)
    site.files["/a.zip"] = DATA
    fetch(site, tmp_path / "a.zip", checksum)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert site.ranges_asked()[-1] is None, "once more from the start"


def test_server_without_ranges(site: Site, tmp_path: Path) -> None:
    site.files["/a.zip"], site.ranges = DATA, False
    site.cut = [1000]
    fetch(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_part_without_its_description_is_not_trusted(site: Site, tmp_path: Path) -> None:
    site.files["/a.zip"] = DATA
    (tmp_path / ".a.zip.part").write_bytes(b"what is this")
    (tmp_path / ".a.zip.part.json").write_text("{not json")
    fetch(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert site.ranges_asked() == [None]


def test_part_that_is_whole_already(site: Site, tmp_path: Path) -> None:
    site.files["/a.zip"] = DATA
    (tmp_path / ".a.zip.part").write_bytes(DATA)
    state = {"url": f"{site.url}/a.zip", "etag": '"one"', "last_modified": None, "length": len(DATA)}
    (tmp_path / ".a.zip.part.json").write_text(json.dumps(state))
    fetch(site, tmp_path / "a.zip")
    assert left(tmp_path) == ["a.zip"]


def test_part_longer_than_the_file(site: Site, tmp_path: Path) -> None:
    site.files["/a.zip"] = DATA
    (tmp_path / ".a.zip.part").write_bytes(DATA + b"more")
    state = {"url": f"{site.url}/a.zip", "etag": '"one"', "last_modified": None, "length": len(DATA)}
    (tmp_path / ".a.zip.part.json").write_text(json.dumps(state))
    fetch(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_short_body(site: Site, tmp_path: Path) -> None:
    site.files["/a.zip"] = DATA
    site.cut = [10, 0, 0]
    with pytest.raises(DownloadError, match=r"ended after 10 |10 of 1,024,000|no connection|3 attempts") as error:
        fetch(site, tmp_path / "a.zip", None)
    assert "10 bytes so far" in str(error.value)
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize(
    ("status", "problem", "attempts"),
    [
        (404, "not there", 1),
        (410, "not there", 1),
        (403, "login", 1),
        (401, "login", 1),
        (400, "400", 1),
        (503, "503", 3),
        (429, "429", 3),
    ],
)
def test_statuses(site: Site, tmp_path: Path, status: int, problem: str, attempts: int) -> None:
    site.status["/a.zip"] = status
    with pytest.raises(DownloadError, match=problem) as error:
        fetch(site, tmp_path / "a.zip")
    assert f"{site.url}/a.zip" in str(error.value)
    assert len(site.asked) == attempts
    assert left(tmp_path) == []


def test_server_that_recovers(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/a.zip"] = DATA
    site.status["/a.zip"] = 503
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            del site.status["/a.zip"]

    monkeypatch.setattr(download.time, "sleep", sleep)
    fetch(site, tmp_path / "a.zip", patience=dataclasses.replace(FAST, backoff_s=1.0))
    assert pauses == [1.0, 2.0]


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"no connection to the server \(3 attempts"):
        fetch_file("http://127.0.0.1:9/a.zip", None, tmp_path / "a.zip", progress=False, patience=FAST)


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://host/file"])
def test_url_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="correct the URL"):
        fetch_file(url, None, tmp_path / "a.zip", progress=False, patience=FAST)


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (b"<html>please log in</html>", "text/html"),
        (b"\n <!DOCTYPE HTML>\n<p>log in", "application/zip"),
        (b"<html>", "application/octet-stream"),
        (b"\xef\xbb\xbf<!-- a page --><html>", "application/zip"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "application/zip"),
        (b'{ "error": "quota"}', "application/zip"),
    ],
)
def test_web_page(site: Site, tmp_path: Path, page: bytes, kind: str) -> None:
    site.files["/a.zip"], site.headers = page, {"Content-Type": kind}
    with pytest.raises(DownloadError, match="web page"):
        fetch(site, tmp_path / "a.zip", None)
    assert left(tmp_path) == []


def test_file_changed_between_two_ranges_of_one_run(site: Site, tmp_path: Path) -> None:
    """A server that sends the range asked for, of another file: its ETag tells, whether there is a checksum or not."""
    new = DATA[::-1]
    site.files["/a.zip"], site.stubborn, site.cut = DATA, True, [5000]
    original = Handler.serve

    def serve(self: Handler, data: bytes) -> None:
        if len(self.site.asked) == 2:
            self.site.headers = {"ETag": '"two"'}
            data = self.site.files["/a.zip"] = new
        original(self, data)

    Handler.serve = serve  # type: ignore[method-assign]
    try:
        fetch(site, tmp_path / "a.zip", None)
    finally:
        Handler.serve = original  # type: ignore[method-assign]
    assert (tmp_path / "a.zip").read_bytes() == new
    assert site.ranges_asked() == [None, "bytes=5000-", None]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}])
def test_without_checksum_only_a_sure_sign_is_enough_to_resume(
    site: Site, tmp_path: Path, headers: dict[str, str]
) -> None:
    """Two files of one length must not be mixed where nothing would ever tell."""
    site.files["/a.zip"], site.headers, site.cut = DATA[::-1], headers, [5000] * 3
    with pytest.raises(DownloadError):
        fetch(site, tmp_path / "a.zip", None)
    site.files["/a.zip"] = DATA
    fetch(site, tmp_path / "a.zip", None)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert set(site.ranges_asked()) == {None}


@pytest.mark.parametrize("answer", [None, "bytes 0-99/1024000", "bytes 5001-9/1024000", "bytes */*", "what"])
def test_range_that_was_not_asked_for(site: Site, tmp_path: Path, answer: str | None) -> None:
    site.files["/a.zip"], site.cut = DATA, [5000]
    site.forced = {"Content-Range": answer}
    site.stubborn = True
    fetch(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA


@pytest.mark.parametrize("length", ["1", "500000", "2000000", "-5", "abc", "\xb2", "9" * 30, "9" * 5000])
@pytest.mark.parametrize("checksum", [SHA256, None])
def test_wrong_content_length(site: Site, tmp_path: Path, length: str, checksum: str | None) -> None:
    """A file is whole, or it is not there. Only a wrong length that nothing contradicts can pass without a checksum."""
    site.files["/a.zip"], site.forced = DATA, {"Content-Length": length}
    refusal = None
    try:
        fetch(site, tmp_path / "a.zip", checksum, patience=dataclasses.replace(FAST, read_s=0.1, retries=1))
    except DownloadError as error:
        refusal = str(error)
    if refusal is not None:
        assert f"{site.url}/a.zip" in refusal
        assert not (tmp_path / "a.zip").exists()
    elif checksum is not None:
        assert (tmp_path / "a.zip").read_bytes() == DATA
    else:
        assert (tmp_path / "a.zip").stat().st_size == int(length)


@pytest.mark.parametrize("checksum", [SHA256, None])
def test_body_whose_end_nothing_tells(site: Site, tmp_path: Path, checksum: str | None) -> None:
    """Without length and chunks a cut body looks whole: only a checksum makes such a server usable."""
    site.files["/a.zip"], site.forced = DATA, {"Content-Length": None}
    if checksum:
        fetch(site, tmp_path / "a.zip", checksum)
        assert (tmp_path / "a.zip").read_bytes() == DATA
    else:
        with pytest.raises(DownloadError, match="does not say how long the file is and no checksum is known"):
            fetch(site, tmp_path / "a.zip", None)
        assert left(tmp_path) == []


def test_chunked_body_that_breaks_off(site: Site, tmp_path: Path) -> None:
    site.files["/a.zip"], site.chunked, site.cut = DATA, True, [5000, 6000, 7000]
    with pytest.raises(DownloadError, match=r"3 attempts, 18,?000 bytes so far"):
        fetch(site, tmp_path / "a.zip", None)
    assert not (tmp_path / "a.zip").exists()
    fetch(site, tmp_path / "a.zip", None)
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_server_that_begins_anew_each_time_is_not_asked_for_ever(site: Site, tmp_path: Path) -> None:
    site.files["/a.zip"], site.new_each_time, site.stubborn = DATA * 3, True, True
    site.cut = [2_000_000] * 50
    with pytest.raises(DownloadError, match="run the same command again"):
        fetch(site, tmp_path / "a.zip", None)
    assert len(site.asked) < 12


def test_empty_file(site: Site, tmp_path: Path) -> None:
    site.files["/a.zip"] = b""
    with pytest.raises(DownloadError, match="is empty"):
        fetch(site, tmp_path / "a.zip", None)
    assert left(tmp_path) == []


def test_unknown_length_and_content_encoding(site: Site, tmp_path: Path) -> None:
    """A .tgz that the server calls a gzip-encoded tar is kept as it lies there."""
    import gzip

    site.files["/a.tgz"] = gzip.compress(DATA)
    site.headers = {"Content-Encoding": "gzip"}
    site.chunked = True
    fetch(site, tmp_path / "a.tgz", None, "/a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == site.files["/a.tgz"]


def test_silence_and_drip_are_given_up(site: Site, tmp_path: Path) -> None:
    site.files["/a.zip"], site.hang = DATA, True
    patience = dataclasses.replace(FAST, retries=0)
    with pytest.raises(DownloadError, match="stalled: no data came"):
        fetch(site, tmp_path / "a.zip", patience=patience)
    site.hang, site.drip = False, 0.01
    for site.chunked in (False, True):
        with pytest.raises(DownloadError, match=r"stalled: \d+ bytes in 0\.2 s"):
            fetch(site, tmp_path / "a.zip", patience=patience)


def test_no_space(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/a.zip"] = DATA
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(DownloadError, match=r"needs 1\.02 MB more.*has 0\.10 MB free"):
        fetch(site, tmp_path / "a.zip")
    assert len(site.asked) == 1
    assert left(tmp_path) == []


def test_disk_full_while_writing(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/a.zip"] = DATA

    def full(self: ResumingDownloader, *args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ResumingDownloader, "_copy", full)
    with pytest.raises(DownloadError, match=r"a\.zip: cannot be written \(the disk is full\)"):
        fetch(site, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_disk_full_in_the_middle(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fitted stays, is never taken for the file, and the next run goes on behind it."""
    site.files["/a.zip"] = DATA
    original = Path.open

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 300_000:
                super().write(bytes(data)[: 300_000 - self.tell()])
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def limited(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return Full(self, mode) if self.name.endswith(".part") and mode in {"wb", "ab"} else original(self, mode, *args)

    monkeypatch.setattr(Path, "open", limited)
    with pytest.raises(
        DownloadError, match=r"\.a\.zip\.part: the disk is full after 300,000 bytes.*needs 724,000 bytes more"
    ):
        fetch(site, tmp_path / "a.zip")
    monkeypatch.undo()
    assert left(tmp_path) == [".a.zip.part", ".a.zip.part.json"]
    fetch(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert site.ranges_asked() == [None, "bytes=300000-"]


def test_redirects(site: Site, tmp_path: Path) -> None:
    site.files["/a.zip"] = DATA
    site.redirects = {"/old.zip": "/older.zip", "/older.zip": f"{site.url}/a.zip", "/loop.zip": "/loop.zip"}
    fetch(site, tmp_path / "a.zip", name="/old.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA
    with pytest.raises(DownloadError, match="more than 10 redirects"):
        fetch(site, tmp_path / "b.zip", name="/loop.zip")
    site.redirects["/file.zip"] = "file:///etc/passwd"
    with pytest.raises(DownloadError, match=r"redirects to the insecure file:///etc/passwd"):
        fetch(site, tmp_path / "b.zip", name="/file.zip")
    site.redirects["/none.zip"] = "http://[half/an/address"
    with pytest.raises(DownloadError, match=r"/none\.zip: redirects to what is no address"):
        fetch(site, tmp_path / "b.zip", name="/none.zip")
    assert left(tmp_path) == ["a.zip"]


def test_https_never_becomes_http(tmp_path: Path) -> None:
    check_redirect("http://a/x", "https://a/x")
    check_redirect("http://a/x", "http://b/x")
    check_redirect("https://a/x", "https://b/x")
    with pytest.raises(DownloadError, match="insecure http://b/x"):
        check_redirect("https://user:secret@a/x", "http://b/x")

    class Session(requests.Session):
        def get(self, url: str | bytes, **kwargs: Any) -> requests.Response:  # type: ignore[override]
            assert kwargs["allow_redirects"] is False
            response = requests.Response()
            response.status_code, response.url = 302, str(url)
            response.headers["Location"] = "http://other/a.zip"
            response.raw = io.BytesIO()
            return response

    with pytest.raises(DownloadError, match="insecure") as error:
        fetch_file("https://user:secret@host/a.zip", None, tmp_path / "a.zip", session=Session(), progress=False)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "hops",
    [
        ["https://a/1", "https://b/2", "http://c/3"],
        ["http://a/1", "https://b/2", "http://c/3"],
        ["https://a/1", "https://b/2", "https://c/3", "https://d/4", "http://e/5"],
    ],
)
def test_https_never_becomes_http_at_any_hop(tmp_path: Path, hops: list[str]) -> None:
    asked: list[str] = []

    class Session(requests.Session):
        def get(self, url: str | bytes, **kwargs: Any) -> requests.Response:  # type: ignore[override]
            asked.append(str(url))
            response = requests.Response()
            response.status_code, response.url, response.raw = 302, str(url), io.BytesIO()
            response.headers["Location"] = hops[len(asked)]
            return response

    with pytest.raises(DownloadError, match=f"insecure {hops[-1]}"):
        fetch_file(hops[0], None, tmp_path / "a.zip", session=Session(), progress=False, patience=FAST)
    assert asked == hops[:-1], "the insecure address was never asked"


def test_the_login_is_not_sent_on_to_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def post(self: requests.Session, url: str, **kwargs: Any) -> requests.Response:
        assert kwargs["allow_redirects"] is False
        response = requests.Response()
        response.status_code, response.headers["Location"] = 307, "http://www.cityscapes-dataset.com/login/"
        return response

    monkeypatch.setattr(requests.Session, "post", post)
    monkeypatch.setenv("CITYSCAPES_USERNAME", "me")
    monkeypatch.setenv("CITYSCAPES_PASSWORD", "secret")
    spec = spec_of({"one.zip": b"1"}, package=1)
    with pytest.raises(DownloadError, match="insecure http://www") as error:
        download_dataset("camvid", spec, tmp_path / "data/raw/camvid", progress=False, patience=FAST)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "has zero bytes"), (b"<!DOCTYPE html>", "is a web page"), (b"\xef\xbb\xbf <html>", "is a web page")],
)
def test_rubbish_placed_by_hand_is_not_taken(tmp_path: Path, content: bytes, problem: str) -> None:
    spec = camvid_spec()
    (tmp_path / "data" / "archives").mkdir(parents=True)
    (tmp_path / "data" / "archives" / "archive.zip").write_bytes(content)
    with pytest.raises(DownloadError, match=rf"archive\.zip {problem}.*delete it or download it again"):
        download_dataset("camvid", spec, tmp_path / "data/raw/camvid", progress=False, patience=FAST)


# --- whole datasets


def spec_of(files: dict[str, bytes], **fields: Any) -> Dataset:
    archives = [
        {"file": name, "checksum": f"sha256:{hashlib.sha256(data).hexdigest()}", **fields}
        for name, data in files.items()
    ]
    return Dataset.model_validate(
        {"adapter": "camvid", "title": "CamVid", "archives": archives, "counts": {"train": 1}}
    )


FILES = {"one.zip": b"first archive", "two.zip": b"second archive"}


def get(spec: Dataset, root: Path, **options: Any) -> dict[str, Any]:
    out = root / "data" / "raw" / "camvid"
    download_dataset("camvid", spec, out, progress=False, patience=FAST, **options)
    source = json.loads((out / "SOURCE.json").read_text())
    assert left(out) == sorted(["SOURCE.json", *(entry["file"] for entry in source["archives"])])
    assert left(out.parent) in ([".camvid.lock", "camvid"], ["camvid"])
    for entry in source["archives"]:
        data = (out / entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["bytes"] == len(data)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", entry["date"])
    assert str(root) not in json.dumps(source), "machine paths stay out of what is shared"
    return {entry["file"]: entry for entry in source["archives"]}


def test_sources_in_order(site: Site, tmp_path: Path) -> None:
    spec = spec_of(FILES)
    folder = tmp_path / "archives"
    (folder / "camvid").mkdir(parents=True)
    (folder / "camvid" / "one.zip").write_bytes(FILES["one.zip"])
    site.files = {f"/mirror/{name}": data for name, data in FILES.items()}
    got = get(spec, tmp_path, archives=folder, mirror=f"{site.url}/mirror/")
    assert [got[name]["from"] for name in FILES] == ["local folder", "mirror"]
    assert got["two.zip"]["url"] == f"{site.url}/mirror/two.zip"
    assert [path for path, _ in site.asked] == ["/mirror/two.zip"]


def test_present_archives_are_not_fetched_again_and_the_record_stays(site: Site, tmp_path: Path) -> None:
    spec = spec_of(FILES)
    site.files = {f"/{name}": data for name, data in FILES.items()}
    get(spec, tmp_path, mirror=site.url)
    out = tmp_path / "data/raw/camvid"
    record = (out / "SOURCE.json").read_text().replace('"date": "2', '"date": "1')
    (out / "SOURCE.json").write_text(record)
    site.asked.clear()
    download_dataset("camvid", spec, out, mirror=site.url, progress=False, patience=FAST)
    assert site.asked == []
    assert (out / "SOURCE.json").read_text() == record
    (out / "two.zip").unlink()  # DVC may have linked it: replaced, never written into
    (out / "two.zip").write_bytes(b"damaged")
    get(spec, tmp_path, mirror=site.url)
    assert [path for path, _ in site.asked] == ["/two.zip"]
    assert (out / "two.zip").read_bytes() == FILES["two.zip"]


def test_without_checksum_the_hash_is_recorded_and_checked(site: Site, tmp_path: Path) -> None:
    spec = dataset("camvid", {"train": 1}, ("a.zip",))
    site.files["/a.zip"] = DATA
    get(spec, tmp_path, mirror=site.url)
    site.asked.clear()
    get(spec, tmp_path, mirror=site.url)
    assert site.asked == []
    out = tmp_path / "data/raw/camvid/a.zip"
    out.unlink()
    out.write_bytes(DATA[:-1])
    get(spec, tmp_path, mirror=site.url)
    assert out.read_bytes() == DATA


def test_finished_archives_survive_an_interrupted_run(site: Site, tmp_path: Path) -> None:
    spec = spec_of(FILES)
    site.files["/one.zip"] = FILES["one.zip"]
    with pytest.raises(DownloadError, match=r"two\.zip could not be had.*404"):
        get(spec, tmp_path, mirror=site.url)
    assert not (tmp_path / "data/raw/camvid").exists()
    site.files["/two.zip"] = FILES["two.zip"]
    site.asked.clear()
    get(spec, tmp_path, mirror=site.url)
    assert [path for path, _ in site.asked] == ["/two.zip"]


def test_wrong_local_archive_is_named_and_the_next_source_tried(site: Site, tmp_path: Path) -> None:
    spec = spec_of({"one.zip": b"right"})
    folder = tmp_path / "archives"
    folder.mkdir()
    (folder / "one.zip").write_bytes(b"wrong")
    with pytest.raises(DownloadError, match=r"one\.zip is not the expected file \(sha256:"):
        get(spec, tmp_path, archives=folder)
    site.files["/one.zip"] = b"right"
    get(spec, tmp_path, archives=folder, mirror=site.url)
    assert (folder / "one.zip").read_bytes() == b"wrong"


def test_environment(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of({"one.zip": b"right"})
    site.files["/one.zip"] = b"right"
    monkeypatch.setenv("DANET_MIRROR", site.url)
    assert get(spec, tmp_path / "a")["one.zip"]["from"] == "mirror"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "one.zip").write_bytes(b"right")
    monkeypatch.setenv("DANET_ARCHIVES", str(folder))
    assert get(spec, tmp_path / "b")["one.zip"]["from"] == "local folder"
    monkeypatch.setenv("DANET_CAMVID", str(camvid_tree(tmp_path / "tree", 1)))
    assert list(get(spec, tmp_path / "c")) == ["tree.zip"]
    monkeypatch.setenv("DANET_CAMVID", str(tmp_path / "nowhere"))
    with pytest.raises(DownloadError, match="no such folder"):
        get(spec, tmp_path / "d")
    # What is asked for in words wins over the environment.
    assert get(spec, tmp_path / "e", mirror=site.url)["one.zip"]["from"] == "mirror"


def test_default_folder_of_archives_and_file_mirror(tmp_path: Path) -> None:
    spec = spec_of({"one.zip": b"right"})
    (tmp_path / "data" / "archives").mkdir(parents=True)
    (tmp_path / "data" / "archives" / "one.zip").write_bytes(b"right")
    assert get(spec, tmp_path)["one.zip"]["from"] == "local folder"
    assert get(spec, tmp_path / "b", mirror=(tmp_path / "data" / "archives").as_uri())["one.zip"]["url"] is None


def test_optional_archive_may_be_missing(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archives = [{"file": "one.zip"}, {"file": "more.zip", "optional": True}]
    spec = Dataset.model_validate({"adapter": "camvid", "title": "x", "archives": archives, "counts": {"train": 1}})
    site.files["/one.zip"] = b"data"
    assert list(get(spec, tmp_path, mirror=site.url)) == ["one.zip"]
    assert "optional more.zip left out" in capsys.readouterr().err


def test_mirror_credentials_are_not_recorded(site: Site, tmp_path: Path) -> None:
    spec = spec_of({"one.zip": b"right"})
    site.files["/one.zip"] = b"right"
    got = get(spec, tmp_path, mirror=site.url.replace("http://", "http://me:secret@"))
    assert got["one.zip"]["url"] == f"{site.url}/one.zip"
    with pytest.raises(DownloadError) as error:
        get(spec_of({"none.zip": b"x"}), tmp_path / "b", mirror=site.url.replace("http://", "http://me:secret@"))
    assert "secret" not in str(error.value)


def test_cityscapes_login(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CITYSCAPES", site.url)
    spec = spec_of({"gtFine.zip": b"labels"}, package=1)
    with pytest.raises(DownloadError, match="CITYSCAPES_USERNAME") as error:
        get(spec, tmp_path)
    assert "data/archives" in str(error.value)
    assert "DANET_ARCHIVES" in str(error.value)
    assert site.posted == []
    monkeypatch.setenv("CITYSCAPES_USERNAME", "someone")
    monkeypatch.setenv("CITYSCAPES_PASSWORD", "s3cret&word")
    site.login = False
    with pytest.raises(DownloadError, match="'someone' was refused") as error:
        get(spec, tmp_path)
    assert "s3cret" not in str(error.value)
    site.login = True
    site.files["/file-handling/?packageID=1"] = b"labels"
    assert get(spec, tmp_path)["gtFine.zip"]["from"] == "login"
    assert site.posted[-1] == "username=someone&password=s3cret%26word&submit=Login"


def test_cityscapes_page_instead_of_file(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CITYSCAPES", site.url)
    monkeypatch.setenv("CITYSCAPES_USERNAME", "someone")
    monkeypatch.setenv("CITYSCAPES_PASSWORD", "secret")
    site.files["/file-handling/?packageID=1"] = b"<html>no permission</html>"
    with pytest.raises(DownloadError, match=r"web page.*login was probably refused"):
        get(spec_of({"gtFine.zip": b"labels"}, package=1), tmp_path)


def test_two_processes_at_once(tmp_path: Path) -> None:
    (tmp_path / "data/raw").mkdir(parents=True)
    with FileLock(tmp_path / "data/raw/.camvid.lock"), pytest.raises(DownloadError, match="another process"):
        get(spec_of(FILES), tmp_path)


def test_tree_is_packed_the_same_every_time(tmp_path: Path) -> None:
    tree = camvid_tree(tmp_path / "somewhere" / "CamVid", 2)
    (tree / "notes.txt").write_text("not needed")
    elsewhere = tmp_path / "elsewhere.png"
    (tree / "train" / "train_0.png").rename(elsewhere)
    (tree / "train" / "train_0.png").symlink_to(elsewhere)
    (tree / "loop").symlink_to(tree)
    spec = camvid_spec(2)
    first = get(spec, tmp_path / "a", tree=tree)["tree.zip"]
    for path in tree.rglob("*.png"):
        os.utime(path, (1, 1))
    second = get(spec, tmp_path / "b", tree=tree.parent)["tree.zip"]
    assert first["sha256"] == second["sha256"]
    import zipfile

    with zipfile.ZipFile(tmp_path / "a/data/raw/camvid/tree.zip") as archive:
        names = archive.namelist()
        assert archive.read("CamVid/train/train_0.png") == elsewhere.read_bytes()
    assert names == sorted(names)
    assert len(names) == 12
    assert all(name.startswith("CamVid/") and name.endswith(".png") for name in names)


def test_tree_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with pytest.raises(DataError, match="no folder with train/"):
        get(camvid_spec(), tmp_path, tree=tmp_path / "tree")
    assert not (tmp_path / "data/raw/camvid").exists()


def test_from_mirror_to_prepared(site: Site, tmp_path: Path) -> None:
    """The whole way of the demo, for the three datasets."""
    from danet.data.convert import convert_dataset
    from danet.data.prepared import PreparedDataset

    specs = generated(tmp_path / "made")
    site.files = {f"/m/{path.name}": path.read_bytes() for path in (tmp_path / "made").iterdir()}
    for name, spec in specs.items():
        raw, out = tmp_path / "data/raw" / name, tmp_path / "data/prepared" / name
        download_dataset(name, spec, raw, mirror=f"{site.url}/m", progress=False, patience=FAST)
        assert convert_dataset(name, spec, raw, out, progress=False) == spec.counts
        for split, count in spec.counts.items():
            samples = PreparedDataset(out, split)
            assert len(samples) == count
            samples.verify(full=True)
