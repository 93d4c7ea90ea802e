"""Downloads from a server that fails in every way."""

import dataclasses
import gzip
import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
import requests

from danet.acquire import http
from danet.acquire.http import checksum_matches, fetch_file, redirect_target
from danet.core.errors import DownloadError
from tests.acquire.server import FAST, Handler

pytestmark = pytest.mark.usefixtures("no_environment")

DATA = bytes(range(256)) * 4000  # 1 MB
SHA256 = "sha256:" + hashlib.sha256(DATA).hexdigest()


def fetch(site, path, checksum=SHA256, name="/a.zip", patience=FAST):
    fetch_file(site.url + name, checksum, path, progress=False, patience=patience)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("digits", [None, 8])
def test_checksums(site, tmp_path, algorithm, digits):
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
def test_checksum_of_unknown_form(tmp_path, checksum):
    with pytest.raises(DownloadError, match="must be md5:, sha1: or sha256:"):
        fetch_file("http://127.0.0.1:9/a", checksum, tmp_path / "a")


@pytest.mark.parametrize("checksum", ["sha256:" + 64 * "0", "sha256:00000000"])
@pytest.mark.parametrize("present", [False, True])
def test_wrong_checksum(site, tmp_path, checksum, present):
    site.files["/a.zip"] = DATA
    if present:
        (tmp_path / "a.zip").write_bytes(b"what was there")
    with pytest.raises(DownloadError, match=r"/a\.zip.*sha256 " + SHA256[7:] + r".*expected 0{8}.*datasets\.yam"):
        fetch(site, tmp_path / "a.zip", checksum)
    assert left(tmp_path) == (["a.zip"] if present else [])
    assert not present or (tmp_path / "a.zip").read_bytes() == b"what was there"


def test_wrong_file_is_replaced(site, tmp_path):
    site.files["/a.zip"] = DATA
    for checksum in (SHA256, SHA256[:15]):
        (tmp_path / "a.zip").write_bytes(b"half")
        fetch(site, tmp_path / "a.zip", checksum)
        assert (tmp_path / "a.zip").read_bytes() == DATA


def test_broken_connections_are_resumed(site, tmp_path):
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
def test_resume_in_a_later_run(site, tmp_path, headers):
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
def test_file_changed_between_runs(site, tmp_path, validator):
    old, new = DATA[::-1], DATA + b"longer"
    site.files["/a.zip"], site.headers = old, {validator: '"old"'} if validator else {}
    site.cut = [5000] * 3
    with pytest.raises(DownloadError):
        fetch(site, tmp_path / "a.zip", None)
    site.files["/a.zip"], site.headers = new, {validator: '"new"'} if validator else {}
    fetch(site, tmp_path / "a.zip", None)
    assert (tmp_path / "a.zip").read_bytes() == new


@pytest.mark.parametrize("checksum", [SHA256, SHA256[:20]])
def test_part_of_another_file_that_looks_the_same_is_found_by_checksum(site, tmp_path, checksum):
    site.files["/a.zip"], site.headers = DATA[::-1], {}
    site.cut = [5000] * 3
    with pytest.raises(DownloadError):
        fetch(site, tmp_path / "a.zip", checksum)
    site.files["/a.zip"] = DATA
    fetch(site, tmp_path / "a.zip", checksum)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert site.ranges_asked()[-1] is None, "once more from the start"


def test_server_without_ranges(site, tmp_path):
    site.files["/a.zip"], site.ranges = DATA, False
    site.cut = [1000]
    fetch(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_part_without_its_description_is_not_trusted(site, tmp_path):
    site.files["/a.zip"] = DATA
    (tmp_path / ".a.zip.part").write_bytes(b"what is this")
    (tmp_path / ".a.zip.part.json").write_text("{not json")
    fetch(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert site.ranges_asked() == [None]


def test_part_that_is_whole_already(site, tmp_path):
    site.files["/a.zip"] = DATA
    (tmp_path / ".a.zip.part").write_bytes(DATA)
    state = {"url": f"{site.url}/a.zip", "etag": '"one"', "last_modified": None, "length": len(DATA)}
    (tmp_path / ".a.zip.part.json").write_text(json.dumps(state))
    fetch(site, tmp_path / "a.zip")
    assert left(tmp_path) == ["a.zip"]


def test_part_longer_than_the_file(site, tmp_path):
    site.files["/a.zip"] = DATA
    (tmp_path / ".a.zip.part").write_bytes(DATA + b"more")
    state = {"url": f"{site.url}/a.zip", "etag": '"one"', "last_modified": None, "length": len(DATA)}
    (tmp_path / ".a.zip.part.json").write_text(json.dumps(state))
    fetch(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_short_body(site, tmp_path):
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
def test_statuses(site, tmp_path, status, problem, attempts):
    site.status["/a.zip"] = status
    with pytest.raises(DownloadError, match=problem) as error:
        fetch(site, tmp_path / "a.zip")
    assert f"{site.url}/a.zip" in str(error.value)
    assert len(site.asked) == attempts
    assert left(tmp_path) == []


def test_server_that_recovers(site, tmp_path, monkeypatch):
    site.files["/a.zip"] = DATA
    site.status["/a.zip"] = 503
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            del site.status["/a.zip"]

    monkeypatch.setattr(http.time, "sleep", sleep)
    fetch(site, tmp_path / "a.zip", patience=dataclasses.replace(FAST, backoff_s=1.0))
    assert pauses == [1.0, 2.0]


def test_no_server(tmp_path):
    with pytest.raises(DownloadError, match=r"no connection to the server \(3 attempts"):
        fetch_file("http://127.0.0.1:9/a.zip", None, tmp_path / "a.zip", progress=False, patience=FAST)


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://host/file"])
def test_url_that_is_none(tmp_path, url):
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
def test_web_page(site, tmp_path, page, kind):
    site.files["/a.zip"], site.headers = page, {"Content-Type": kind}
    with pytest.raises(DownloadError, match="web page"):
        fetch(site, tmp_path / "a.zip", None)
    assert left(tmp_path) == []


def test_file_changed_between_two_ranges_of_one_run(site, tmp_path):
    """A server that sends the range asked for, of another file: its ETag tells, whether there is a checksum or not."""
    new = DATA[::-1]
    site.files["/a.zip"], site.stubborn, site.cut = DATA, True, [5000]
    original = Handler.serve

    def serve(self, data):
        if len(self.site.asked) == 2:
            self.site.headers = {"ETag": '"two"'}
            data = self.site.files["/a.zip"] = new
        original(self, data)

    Handler.serve = serve
    try:
        fetch(site, tmp_path / "a.zip", None)
    finally:
        Handler.serve = original
    assert (tmp_path / "a.zip").read_bytes() == new
    assert site.ranges_asked() == [None, "bytes=5000-", None]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}])
def test_without_checksum_only_a_sure_sign_is_enough_to_resume(site, tmp_path, headers):
    """Two files of one length must not be mixed where nothing would ever tell."""
    site.files["/a.zip"], site.headers, site.cut = DATA[::-1], headers, [5000] * 3
    with pytest.raises(DownloadError):
        fetch(site, tmp_path / "a.zip", None)
    site.files["/a.zip"] = DATA
    fetch(site, tmp_path / "a.zip", None)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert set(site.ranges_asked()) == {None}


@pytest.mark.parametrize("answer", [None, "bytes 0-99/1024000", "bytes 5001-9/1024000", "bytes */*", "what"])
def test_range_that_was_not_asked_for(site, tmp_path, answer):
    site.files["/a.zip"], site.cut = DATA, [5000]
    site.forced = {"Content-Range": answer}
    site.stubborn = True
    fetch(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA


@pytest.mark.parametrize("length", ["1", "500000", "2000000", "-5", "abc", "\xb2", "9" * 30, "9" * 5000])
@pytest.mark.parametrize("checksum", [SHA256, None])
def test_wrong_content_length(site, tmp_path, length, checksum):
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
def test_body_whose_end_nothing_tells(site, tmp_path, checksum):
    """Without length and chunks a cut body looks whole: only a checksum makes such a server usable."""
    site.files["/a.zip"], site.forced = DATA, {"Content-Length": None}
    if checksum:
        fetch(site, tmp_path / "a.zip", checksum)
        assert (tmp_path / "a.zip").read_bytes() == DATA
    else:
        with pytest.raises(DownloadError, match="does not say how long the file is and no checksum is known"):
            fetch(site, tmp_path / "a.zip", None)
        assert left(tmp_path) == []


def test_chunked_body_that_breaks_off(site, tmp_path):
    site.files["/a.zip"], site.chunked, site.cut = DATA, True, [5000, 6000, 7000]
    with pytest.raises(DownloadError, match=r"3 attempts, 18,?000 bytes so far"):
        fetch(site, tmp_path / "a.zip", None)
    assert not (tmp_path / "a.zip").exists()
    fetch(site, tmp_path / "a.zip", None)
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_server_that_begins_anew_each_time_is_not_asked_for_ever(site, tmp_path):
    site.files["/a.zip"], site.new_each_time, site.stubborn = DATA * 3, True, True
    site.cut = [2_000_000] * 50
    with pytest.raises(DownloadError, match="run the same command again"):
        fetch(site, tmp_path / "a.zip", None)
    assert len(site.asked) < 12


def test_empty_file(site, tmp_path):
    site.files["/a.zip"] = b""
    with pytest.raises(DownloadError, match="is empty"):
        fetch(site, tmp_path / "a.zip", None)
    assert left(tmp_path) == []


def test_unknown_length_and_content_encoding(site, tmp_path):
    """A .tgz that the server calls a gzip-encoded tar is kept as it lies there."""
    site.files["/a.tgz"] = gzip.compress(DATA)
    site.headers = {"Content-Encoding": "gzip"}
    site.chunked = True
    fetch(site, tmp_path / "a.tgz", None, "/a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == site.files["/a.tgz"]


def test_silence_and_drip_are_given_up(site, tmp_path):
    site.files["/a.zip"], site.hang = DATA, True
    patience = dataclasses.replace(FAST, retries=0)
    with pytest.raises(DownloadError, match="stalled: no data came"):
        fetch(site, tmp_path / "a.zip", patience=patience)
    site.hang, site.drip = False, 0.01
    for site.chunked in (False, True):
        with pytest.raises(DownloadError, match=r"stalled: \d+ bytes in 0\.2 s"):
            fetch(site, tmp_path / "a.zip", patience=patience)


def test_no_space(site, tmp_path, monkeypatch):
    site.files["/a.zip"] = DATA
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(http.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(DownloadError, match=r"needs 1\.02 MB more.*has 0\.10 MB free"):
        fetch(site, tmp_path / "a.zip")
    assert len(site.asked) == 1
    assert left(tmp_path) == []


def test_disk_full_in_the_middle(site, tmp_path, monkeypatch):
    """What fitted stays, is never taken for the file, and the next run goes on behind it."""
    site.files["/a.zip"] = DATA
    original = Path.open

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > 300_000:
                super().write(bytes(data)[: 300_000 - self.tell()])
                raise OSError(28, "No space left on device")
            return super().write(data)

    def limited(self, mode="r", *args, **kwargs):
        return Full(self, mode) if self.name.endswith(".part") and mode in {"wb", "ab"} else original(self, mode, *args)

    monkeypatch.setattr(Path, "open", limited)
    with pytest.raises(
        DownloadError, match=r"a\.zip: cannot be written \(the disk is full\); make room and run the same command again"
    ):
        fetch(site, tmp_path / "a.zip")
    monkeypatch.undo()
    assert left(tmp_path) == [".a.zip.part", ".a.zip.part.json"]
    fetch(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert site.ranges_asked() == [None, "bytes=300000-"]


def test_redirects(site, tmp_path):
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
    with pytest.raises(DownloadError, match=r"/none\.zip: redirects to what is not an address"):
        fetch(site, tmp_path / "b.zip", name="/none.zip")
    assert left(tmp_path) == ["a.zip"]


def test_https_never_becomes_http(tmp_path):
    redirect_target("http://a/x", "https://a/x")
    redirect_target("http://a/x", "http://b/x")
    redirect_target("https://a/x", "https://b/x")
    with pytest.raises(DownloadError, match="insecure http://b/x"):
        redirect_target("https://user:secret@a/x", "http://b/x")

    class Session(requests.Session):
        def get(self, url, **kwargs):
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
def test_https_never_becomes_http_at_any_hop(tmp_path, hops):
    asked = []

    class Session(requests.Session):
        def get(self, url, **kwargs):
            asked.append(str(url))
            response = requests.Response()
            response.status_code, response.url, response.raw = 302, str(url), io.BytesIO()
            response.headers["Location"] = hops[len(asked)]
            return response

    with pytest.raises(DownloadError, match=f"insecure {hops[-1]}"):
        fetch_file(hops[0], None, tmp_path / "a.zip", session=Session(), progress=False, patience=FAST)
    assert asked == hops[:-1], "the insecure address was never asked"
