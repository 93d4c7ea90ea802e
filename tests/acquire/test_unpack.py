"""Archives are unpacked whole, or refused with one message that names them."""

import errno
import shutil
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danet.acquire import unpack as module
from danet.acquire.unpack import damage, unpack
from danet.core.errors import ArchiveError, DataError
from tests.data.samples import tar_of, zip_of

FILES = {"top/a.txt": b"alpha", "top/sub/b.bin": bytes(range(256)) * 40, "top/empty": b""}
KINDS = ["zip", "tar", "tgz", "tar.bz2", "tar.xz"]


def info(name, kind=tarfile.REGTYPE, link=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def good(tmp_path, kind):
    path = tmp_path / f"good.{kind}"
    if kind == "zip":
        return zip_of(path, FILES)
    mode = {"tar": "w", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}[kind]
    return tar_of(path, [(info(name), data) for name, data in FILES.items()], mode)


def refused(archive):
    before = sorted(path.name for path in archive.parent.iterdir())
    with pytest.raises(ArchiveError) as error:
        unpack(archive, archive.parent / "out", progress=False, remedy="do this")
    assert str(error.value).startswith(f"{archive}: cannot be unpacked (")
    assert str(error.value).endswith("; do this")
    assert sorted(path.name for path in archive.parent.iterdir()) == before, "something was left behind"
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_archive(tmp_path, kind):
    archive = good(tmp_path, kind)
    assert damage(archive) is None
    assert unpack(archive, tmp_path / "out", progress=False) == 3
    assert contents(tmp_path / "out") == FILES


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_only_what_is_wanted(tmp_path, kind):
    count = unpack(good(tmp_path, kind), tmp_path / "out", wanted=lambda name: name.endswith(".txt"), progress=False)
    assert count == 1
    assert contents(tmp_path / "out") == {"top/a.txt": b"alpha"}


@pytest.mark.parametrize("name", ["../up", "a/../../up", "/etc/passwd", "..\\up", "C:/windows"])
def test_a_member_that_leads_out_of_a_zip(tmp_path, name):
    assert "leads out of the folder" in refused(zip_of(tmp_path / "bad.zip", {"good": b"1", name: b"2"}))


@pytest.mark.parametrize(
    "member",
    [
        info("../up"),
        info("a/../../up"),
        info("dev/null", tarfile.CHRTYPE),
        info("fifo", tarfile.FIFOTYPE),
        info("link", tarfile.SYMTYPE, "/etc/passwd"),
        info("a/link", tarfile.SYMTYPE, "../../etc/passwd"),
        info("link", tarfile.LNKTYPE, "../etc/passwd"),
    ],
    ids=lambda member: f"{member.name}-{member.linkname}",
)
def test_a_member_that_leads_out_of_a_tar(tmp_path, member):
    refused(tar_of(tmp_path / "bad.tar", [(info("good"), b"1"), (member, b"")]))
    assert not (tmp_path / "up").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere_is_refused(tmp_path, kind):
    whole = good(tmp_path, kind).read_bytes()
    (tmp_path / f"good.{kind}").unlink()
    path = tmp_path / f"cut.{kind}"
    end = 512 * 26 if kind == "tar" else len(whole)  # a tar is padded behind its two blocks of zeros
    for length in [*range(0, end - 1024, end // 40 + 1), end - 1024 if kind == "tar" else end - 1]:
        path.write_bytes(whole[:length])
        assert damage(path) is not None
        refused(path)


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_flipped_bytes(tmp_path, kind):
    path = good(tmp_path, kind)
    data = bytearray(path.read_bytes())
    place = len(data) // 3
    for index in range(place, place + 20):
        data[index] ^= 0x5A
    path.write_bytes(data)
    assert "damaged" in str(damage(path))
    refused(path)


def test_encrypted_member(tmp_path):
    path = zip_of(tmp_path / "a.zip", {"secret": b"1"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in refused(path)


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_no_room(tmp_path, monkeypatch, kind):
    """A full disk is not the archive's fault: nobody is told to download it again."""
    path = good(tmp_path, kind)
    if kind == "zip":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    else:

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(DataError, match="make room") as error:
        unpack(path, tmp_path / "out", progress=False)
    assert not isinstance(error.value, ArchiveError)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@given(st.binary(max_size=400), st.sampled_from(["zip", "tar", "tgz"]))
def test_garbage_raises_our_own_error_only(tmp_path_factory, data, kind):
    folder = tmp_path_factory.mktemp("garbage")
    path = folder / f"a.{kind}"
    path.write_bytes((b"PK\3\4" if kind == "zip" else b"\x1f\x8b" if kind == "tgz" else b"") + data)
    refused_or_empty = damage(path)
    assert refused_or_empty is None or "damaged" in refused_or_empty
    try:
        unpack(path, folder / "out", progress=False)
    except ArchiveError:
        assert not (folder / "out").exists()
