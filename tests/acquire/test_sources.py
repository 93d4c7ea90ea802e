"""One order of sources for every file, and one way to obtain it."""

import hashlib
from pathlib import Path

import pytest

from danet.acquire import cityscapes_login
from danet.acquire.sources import Wanted, obtain, sources, unpacked_folder
from danet.core.errors import DownloadError

pytestmark = pytest.mark.usefixtures("no_environment")

DATA = bytes(range(256)) * 4000
WANTED = Wanted("a.bin", "group", "http://127.0.0.1:9/a.bin", f"sha256:{hashlib.sha256(DATA).hexdigest()}")


def put(path, data=DATA):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def get(wanted, archives, target):
    path, source = obtain(wanted, target, archives)
    return path.read_bytes(), source.kind


def test_the_order(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DANET_CAMVID", "~/CamVid")
    assert unpacked_folder("camvid") == tmp_path / "CamVid"
    assert unpacked_folder("voc2012") is None
    monkeypatch.setenv("DANET_ARCHIVES", "~/named")
    monkeypatch.setenv("DANET_MIRROR", "http://mirror/path/")
    monkeypatch.setenv("CITYSCAPES_USERNAME", "someone")
    monkeypatch.setenv("CITYSCAPES_PASSWORD", "secret")
    archives = tmp_path / "data" / "archives"
    local = [put(tmp_path / "named/a.bin"), put(tmp_path / "named/group/a.bin"), put(archives / "a.bin")]
    wanted = Wanted("a.bin", "group", "https://official/a.bin", package=3)
    found = list(sources(wanted, archives))
    assert [source.kind for source in found] == [*["local folder"] * 3, "mirror", "url", "login"]
    assert [source.path for source in found[:3]] == local
    assert [source.url for source in found[3:]] == [
        "http://mirror/path/a.bin",
        "https://official/a.bin",
        "https://www.cityscapes-dataset.com/file-handling/?packageID=3",
    ]


@pytest.mark.parametrize("checksum", [WANTED.checksum, None])
def test_each_source_that_fails_is_followed_by_the_next(site, tmp_path, monkeypatch, checksum):
    """A wrong local file, a mirror without it, then the URL; what broke off is resumed by a later call."""
    site.files = {"/official/a.bin": DATA}
    wanted = Wanted("a.bin", "group", f"{site.url}/official/a.bin", checksum)
    monkeypatch.setenv("DANET_MIRROR", f"{site.url}/mirror")
    put(tmp_path / "archives/a.bin", b"")
    site.cut = [400_000, 0, 0, 0]
    with pytest.raises(DownloadError) as error:
        get(wanted, tmp_path / "archives", tmp_path / "a.bin")
    for fact in (
        str(tmp_path / "archives/a.bin"),
        "replace or delete it",
        "/mirror/a.bin",
        "404",
        "400,000 bytes so far",
    ):
        assert fact in str(error.value)
    site.asked.clear()
    site.cut = []
    assert get(wanted, tmp_path / "archives", tmp_path / "a.bin") == (DATA, "url")
    assert site.ranges_asked()[-1] == ("bytes=400000-" if checksum else None)
    assert (tmp_path / "archives/a.bin").read_bytes() == b"", "a person's file is never touched"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "has zero bytes"), (b"<!DOCTYPE html>", "is a web page"), (b"\xef\xbb\xbf <html>", "is a web page")],
)
def test_rubbish_placed_by_hand_is_not_taken(tmp_path, content, problem):
    file = put(tmp_path / "a.bin", content)
    with pytest.raises(DownloadError, match=rf"{file}: {problem}.*; replace or delete it"):
        get(Wanted("a.bin", "group"), tmp_path, tmp_path / "t")
    file.write_bytes(DATA)  # as the message says
    assert get(Wanted("a.bin", "group"), tmp_path, tmp_path / "t") == (DATA, "local folder")


def test_what_makes_it_here_is_named(tmp_path):
    wanted = Wanted("rehearsal-a.pth", "released", command="make rehearsal")
    with pytest.raises(DownloadError, match=r"rehearsal-a\.pth .*: `make rehearsal` makes it; `dvc repro -k`"):
        get(wanted, tmp_path, tmp_path / "t")


def test_where_to_place_it_by_hand(tmp_path):
    """Following the message is enough; a link to Google Drive is for a browser and not asked for by us."""
    link = "https://drive.google.com/open?id=1XmpFEF-tbPH0Rmv4eKRxYJngr3pTbj6p"
    for url in (link, None):
        wanted, archives = Wanted("net.pth.tar", "released", url), tmp_path / str(url is None)
        with pytest.raises(DownloadError) as error:
            get(wanted, archives, tmp_path / "t")
        assert (link in str(error.value)) == (url is not None)
        place = Path(str(error.value).rpartition(" as ")[2])
        put(place)
        assert get(wanted, archives, tmp_path / "t") == (DATA, "local folder")


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("DANET_ARCHIVES", str(tmp_path / "typo"))
    with pytest.raises(DownloadError, match=f"{tmp_path / 'typo'}: no such folder"):
        get(Wanted("a.bin", "group"), tmp_path, tmp_path / "t")


def test_credentials_are_not_shown(site, tmp_path, monkeypatch):
    monkeypatch.setenv("DANET_MIRROR", site.url.replace("http://", "http://me:secret@"))
    with pytest.raises(DownloadError) as error:
        get(WANTED, tmp_path, tmp_path / "t")
    assert "secret" not in str(error.value)
    assert f"{site.url}/a.bin" in str(error.value)


def test_cityscapes_login(site, tmp_path, monkeypatch):
    monkeypatch.setattr(cityscapes_login, "SITE", site.url)
    wanted, archives = Wanted("gtFine.zip", "cityscapes", package=1), tmp_path / "archives"
    with pytest.raises(DownloadError) as error:
        get(wanted, archives, tmp_path / "t")
    for fact in ("/register/", "CITYSCAPES_USERNAME", "CITYSCAPES_PASSWORD", str(tmp_path / "archives/gtFine.zip")):
        assert fact in str(error.value)
    assert site.posted == []
    monkeypatch.setenv("CITYSCAPES_USERNAME", "someone")
    monkeypatch.setenv("CITYSCAPES_PASSWORD", "s3cret&word")
    site.login = False
    with pytest.raises(DownloadError, match="'someone' was refused") as error:
        get(wanted, archives, tmp_path / "t")
    assert "s3cret" not in str(error.value)
    site.login = True
    site.files["/file-handling/?packageID=1"] = b"<html>no permission</html>"
    with pytest.raises(DownloadError, match=r"web page.*lack the permission"):
        get(wanted, archives, tmp_path / "t")
    site.files["/file-handling/?packageID=1"] = b"labels"
    assert get(wanted, archives, tmp_path / "t") == (b"labels", "login")
    assert site.posted[-1] == "username=someone&password=s3cret%26word&submit=Login"
