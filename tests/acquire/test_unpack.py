"""Archives are unpacked whole, or refused with one message that names them."""

import errno
import tarfile

import pytest

from danet.acquire.unpack import damage, unpack
from danet.core.errors import ArchiveError
from tests.data.samples import contents, tar_of, zip_of

FILES = {"top/a.txt": b"alpha", "top/sub/b.bin": bytes(range(256)) * 40, "top/empty": b""}
KINDS = ["zip", "tar", "tgz"]


def info(name, kind=tarfile.REGTYPE, link=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


def good(tmp_path, kind):
    path = tmp_path / f"good.{kind}"
    if kind == "zip":
        return zip_of(path, FILES)
    mode = {"tar": "w", "tgz": "w:gz"}[kind]
    return tar_of(path, [(info(name), data) for name, data in FILES.items()], mode)


def refused(archive):
    before = sorted(path.name for path in archive.parent.iterdir())
    with pytest.raises(ArchiveError) as error:
        unpack(archive, archive.parent / "out", remedy="do this")
    assert str(error.value).startswith(f"{archive}: cannot be unpacked (")
    assert str(error.value).endswith("; do this")
    assert sorted(path.name for path in archive.parent.iterdir()) == before, "something was left behind"
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_archive(tmp_path, kind):
    archive = good(tmp_path, kind)
    assert damage(archive) is None
    unpack(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == FILES


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_only_what_is_wanted(tmp_path, kind):
    unpack(good(tmp_path, kind), tmp_path / "out", wanted=lambda name: name.endswith(".txt"))
    assert contents(tmp_path / "out") == {"top/a.txt": b"alpha"}


@pytest.mark.parametrize("name", ["../up", "a/../../up", "/up"])
def test_no_member_of_a_zip_leads_out(tmp_path, name):
    unpack(zip_of(tmp_path / "bad.zip", {"good": b"1", name: b"2"}), tmp_path / "in" / "out")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()].count("up") == 1
    assert [path for path in (tmp_path / "in" / "out").rglob("up") if path.is_file()]


@pytest.mark.parametrize(
    "member",
    [
        info("a/../../up"),
        info("dev/null", tarfile.CHRTYPE),
        info("a/link", tarfile.SYMTYPE, "../../etc/passwd"),
        info("link", tarfile.LNKTYPE, "../etc/passwd"),
    ],
    ids=lambda member: f"{member.name}-{member.linkname}",
)
def test_a_member_that_leads_out_of_a_tar(tmp_path, member):
    refused(tar_of(tmp_path / "bad.tar", [(info("good"), b"1"), (member, b"")]))
    assert not (tmp_path / "up").exists()


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_cut_anywhere_is_refused(tmp_path, kind):
    whole = good(tmp_path, kind).read_bytes()
    (tmp_path / f"good.{kind}").unlink()
    path = tmp_path / f"cut.{kind}"
    for length in range(1, len(whole) - 60, len(whole) // 20):
        path.write_bytes(whole[:length])
        assert kind == "tgz" or damage(path) is not None
        refused(path)


def test_no_room(tmp_path, monkeypatch):
    """A full disk is not the archive's fault: nobody is told to download it again."""
    path = good(tmp_path, "tgz")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
