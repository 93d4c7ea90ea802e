"""Downloads from a server that fails in every way."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from danet.acquire.http import checksum_matches, fetch_file
from danet.core.errors import DownloadError
from tests.acquire.server import Site

pytestmark = pytest.mark.usefixtures("no_environment")

DATA = bytes(range(256)) * 4000  # 1 MB
SHA256 = "sha256:" + hashlib.sha256(DATA).hexdigest()


def fetch(site: Site, path: Path, checksum: str | None = SHA256, name: str = "/a.bin") -> None:
    fetch_file(site.url + name, checksum, path)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("digits", [None, 8])
def test_checksums(site, tmp_path, algorithm, digits):
    site.files["/a.bin"] = DATA
    digest = hashlib.new(algorithm, DATA).hexdigest()[:digits]
    fetch(site, tmp_path / "a.bin", f"{algorithm}:{digest}")
    assert (tmp_path / "a.bin").read_bytes() == DATA
    fetch(site, tmp_path / "a.bin", f"{algorithm}:{digest}")
    assert len(site.asked) == 1, "a verified file is not fetched again"
    assert checksum_matches(tmp_path / "a.bin", f"{algorithm}:{digest.upper()}")
    assert left(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("present", [False, True])
def test_wrong_checksum(site: Site, tmp_path: Path, present: bool) -> None:
    site.files["/a.bin"] = DATA
    if present:
        (tmp_path / "a.bin").write_bytes(b"what was there")
    with pytest.raises(DownloadError, match=r"/a\.bin: is not the .*sha256:0{8}.*" + SHA256[7:] + r".*datasets\.yaml"):
        fetch(site, tmp_path / "a.bin", "sha256:00000000")
    assert left(tmp_path) == (["a.bin"] if present else [])
    assert not present or (tmp_path / "a.bin").read_bytes() == b"what was there"


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_connections_are_resumed(site: Site, tmp_path: Path, ranges: bool) -> None:
    site.files["/a.bin"], site.ranges = DATA, ranges
    site.cut = [1000, 300_000]
    fetch(site, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == DATA
    if ranges:
        assert site.ranges_asked() == [None, "bytes=1000-", "bytes=301000-"]
    assert left(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("checksum", [SHA256, None])
def test_a_later_run_resumes_where_a_checksum_will_tell(site: Site, tmp_path: Path, checksum: str | None) -> None:
    site.files["/a.bin"] = DATA
    site.cut = [100_000] * 3
    with pytest.raises(DownloadError, match=r"300,000 bytes so far.*run the same command again"):
        fetch(site, tmp_path / "a.bin", checksum)
    site.asked.clear()
    fetch(site, tmp_path / "a.bin", checksum)
    assert site.ranges_asked() == ["bytes=300000-" if checksum else None]
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert left(tmp_path) == ["a.bin"]


def test_part_of_another_file_is_found_by_checksum(site: Site, tmp_path: Path) -> None:
    site.files["/a.bin"] = DATA[::-1]
    site.cut = [5000] * 3
    with pytest.raises(DownloadError):
        fetch(site, tmp_path / "a.bin")
    site.files["/a.bin"] = DATA
    fetch(site, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert site.ranges_asked()[-1] is None, "once more from the start"


@pytest.mark.parametrize("more", [b"", b"more"])
def test_part_that_is_whole_or_longer(site: Site, tmp_path: Path, more: bytes) -> None:
    site.files["/a.bin"] = DATA
    (tmp_path / ".a.bin.part").write_bytes(DATA + more)
    fetch(site, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == DATA


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (400, 1), (503, 3), (429, 3)])
def test_statuses(site, tmp_path, status, attempts):
    site.status["/a.bin"] = status
    with pytest.raises(DownloadError, match=rf"{site.url}/a\.bin: .*the server answered {status}"):
        fetch(site, tmp_path / "a.bin")
    assert len(site.asked) == attempts
    assert left(tmp_path) == []


def test_no_server(tmp_path):
    with pytest.raises(DownloadError, match=r"no connection to the server \(3 attempts"):
        fetch_file("http://127.0.0.1:9/a.bin", None, tmp_path / "a.bin")


@pytest.mark.parametrize(
    "page",
    [
        b"\n <!DOCTYPE HTML>\n<p>log in",
        b"\xef\xbb\xbf<!-- a page --><html>",
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        b'{ "error": "quota"}',
    ],
)
def test_web_page(site: Site, tmp_path: Path, page: bytes) -> None:
    site.files["/a.bin"] = page
    with pytest.raises(DownloadError, match="web page"):
        fetch(site, tmp_path / "a.bin", None)
    assert left(tmp_path) == []


@pytest.mark.parametrize("chunked", [True, False])
def test_body_that_breaks_off_is_not_taken(site: Site, tmp_path: Path, chunked: bool) -> None:
    site.files["/a.bin"], site.chunked, site.cut = DATA, chunked, [5000, 6000, 7000]
    with pytest.raises(DownloadError, match="3 attempts"):
        fetch(site, tmp_path / "a.bin", None)
    assert not (tmp_path / "a.bin").exists()
    fetch(site, tmp_path / "a.bin", None)
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_unknown_length_and_content_encoding(site: Site, tmp_path: Path) -> None:
    """A .tgz that the server calls a gzip-encoded tar is kept as it lies there."""
    site.files["/a.tgz"] = gzip.compress(DATA)
    site.headers = {"Content-Encoding": "gzip"}
    site.chunked = True
    fetch(site, tmp_path / "a.tgz", None, "/a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == site.files["/a.tgz"]


def test_silence_is_given_up(site: Site, tmp_path: Path) -> None:
    site.files["/a.bin"], site.hang = DATA, True
    with pytest.raises(DownloadError, match="did not answer"):
        fetch(site, tmp_path / "a.bin")
