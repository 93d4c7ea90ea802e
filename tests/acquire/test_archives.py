from __future__ import annotations

import errno
import gzip
import io
import shutil
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danet.acquire import unpack as archives
from danet.acquire.unpack import Limits, member_path, unpack
from danet.core.errors import ArchiveError, DataError
from tests.data.samples import tar_of, zip_of

FILES = {"top/a.txt": b"alpha", "top/sub/b.bin": bytes(range(256)) * 40, "top/empty": b""}


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def good(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"good.{kind}"
    if kind == "zip":
        return zip_of(path, FILES)
    mode = {"tar": "w", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}[kind]
    return tar_of(path, [(info(name), data) for name, data in FILES.items()], mode)


def refused(archive: Path, problem: str, member: str | None = None, **options: object) -> None:
    folder = archive.parent / "out"
    before = sorted(path.name for path in archive.parent.iterdir())
    with pytest.raises(ArchiveError, match=problem) as error:
        unpack(archive, folder, progress=False, **options)  # type: ignore[arg-type]
    assert len(str(error.value)) < 1500
    assert str(archive) in str(error.value)
    assert "download it again" in str(error.value)
    assert "\n" not in str(error.value)
    if member is not None:
        assert repr(member)[:500] in str(error.value)
    assert sorted(path.name for path in archive.parent.iterdir()) == before, "something was left behind"


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz", "tar.bz2", "tar.xz"])
def test_whole_archive(tmp_path: Path, kind: str) -> None:
    assert unpack(good(tmp_path, kind), tmp_path / "out", progress=False) == 3
    assert contents(tmp_path / "out") == FILES


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_only_what_is_wanted(tmp_path: Path, kind: str) -> None:
    count = unpack(good(tmp_path, kind), tmp_path / "out", wanted=lambda name: name.endswith(".txt"), progress=False)
    assert count == 1
    assert contents(tmp_path / "out") == {"top/a.txt": b"alpha"}


BAD_NAMES = [
    ("../up", "out of the tree"),
    ("a/../../up", "out of the tree"),
    ("..\\up", "out of the tree"),
    ("/etc/passwd", "absolute"),
    ("\\windows", "absolute"),
    ("C:/windows", "absolute"),
    ("line\nbreak", "control characters"),
    ("a/" + "n" * 256, "too long for a disk"),
    ("é" * 128, "too long for a disk"),
    ("/".join("d" * 200 for _ in range(6)), "too long for a disk"),
]


@pytest.mark.parametrize(("name", "problem"), BAD_NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_bad_names(tmp_path: Path, kind: str, name: str, problem: str) -> None:
    path = tmp_path / f"bad.{kind}"
    if kind == "zip":
        zip_of(path, {"good": b"1", name: b"2"})
    else:
        tar_of(path, [(info("good"), b"1"), (info(name), b"2")])
    refused(path, problem, name)


def test_name_cut_at_nul(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "nul.zip", {"goodXevil": b"1"})
    path.write_bytes(path.read_bytes().replace(b"goodXevil", b"good\0evil"))
    refused(path, "control characters")


@given(
    st.text(min_size=1, max_size=30)
    | st.lists(st.sampled_from(["..", ".", "", "a", "b\\c", "C:"]), max_size=6).map("/".join)
)
def test_member_path_never_leads_out(name: str) -> None:
    root = Path("/somewhere/root")
    try:
        path = member_path(name)
    except ValueError:
        return
    target = root.joinpath(*path.split("/")) if path else root
    assert target.is_relative_to(root)
    assert ".." not in target.parts
    assert "\0" not in path
    assert not path.startswith("/")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_in_tar(tmp_path: Path, kind: bytes) -> None:
    refused(tar_of(tmp_path / "a.tar", [(info("dev/null", kind), b"")]), "device", "dev/null")


@pytest.mark.parametrize(
    ("name", "kind", "target", "problem"),
    [
        ("a/link", tarfile.SYMTYPE, "/etc/passwd", "absolute"),
        ("a/link", tarfile.SYMTYPE, "../../etc/passwd", "out of the tree"),
        ("a/link", tarfile.LNKTYPE, "../etc/passwd", "out of the tree"),
        ("a/link", tarfile.SYMTYPE, "nowhere", "no file of the archive"),
        ("a/link", tarfile.SYMTYPE, "link", "no file of the archive"),
        ("a/link", tarfile.SYMTYPE, "..", "no file of the archive"),
    ],
)
def test_links_in_tar(tmp_path: Path, name: str, kind: bytes, target: str, problem: str) -> None:
    refused(tar_of(tmp_path / "a.tar", [(info("a/file"), b"1"), (info(name, kind, target), b"")]), problem, name)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_inside_become_files_and_nothing_after_them_is_lost(tmp_path: Path, mode: str) -> None:
    members = [
        (info("a/file"), b"content"),
        (info("a/b/soft", tarfile.SYMTYPE, "../file"), b""),
        (info("hard", tarfile.LNKTYPE, "a/file"), b""),
        (info("z/last"), b"last"),
    ]
    unpack(tar_of(tmp_path / "a.tgz", members, mode), tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == {
        "a/file": b"content",
        "a/b/soft": b"content",
        "hard": b"content",
        "z/last": b"last",
    }
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_writing_through_a_link(tmp_path: Path) -> None:
    members = [(info("dir", tarfile.SYMTYPE, str(tmp_path)), b""), (info("dir/evil"), b"evil")]
    refused(tar_of(tmp_path / "a.tar", members), "absolute", "dir")


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFCHR | 0o666, stat.S_IFIFO | 0o666])
def test_special_files_in_zip(tmp_path: Path, mode: int) -> None:
    entry = zipfile.ZipInfo("special")
    entry.create_system, entry.external_attr = 3, mode << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    refused(tmp_path / "a.zip", "link|device", "special")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ("a/x", "a/x", "comes twice"),
        ("a/x", "A/X", "case alone"),
        ("é", "e\u0301", "case alone"),
        ("a/./x", "a//x", "comes twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_for_one_file(tmp_path: Path, kind: str, first: str, second: str, problem: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(first, b"1")
            archive.writestr(second, b"2")
    else:
        tar_of(path, [(info(first), b"1"), (info(second), b"2")])
    refused(path, problem)


def test_file_that_is_a_folder_too(tmp_path: Path) -> None:
    refused(tar_of(tmp_path / "a.tar", [(info("a"), b"1"), (info("a/b"), b"2")]), "file and a folder", "a/b")
    refused(tar_of(tmp_path / "b.tar", [(info("a/b"), b"1"), (info("a"), b"2")]), "file and a folder", "a")


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_bombs(tmp_path: Path, kind: str) -> None:
    data = bytes(4 << 20)
    path = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        zip_of(path, {"zeros": data})
    else:
        tar_of(path, [(info("zeros"), data)], "w:gz")
    refused(path, "more than 200 times")
    refused(path, "limit of 1,000,000 bytes", limits=Limits(total_bytes=1_000_000, ratio=1e9))
    assert unpack(path, tmp_path / "out", limits=Limits(ratio=1e9), progress=False) == 1


def test_bomb_of_members_and_behind_the_end(tmp_path: Path) -> None:
    many = zip_of(tmp_path / "many.zip", {f"f{index}": b"" for index in range(50)})
    refused(many, "more than 20 members", limits=Limits(members=20))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(info("a"), io.BytesIO())
    path = tmp_path / "tail.tgz"
    path.write_bytes(gzip.compress(stream.getvalue() + bytes(32 << 20)))
    refused(path, "goes on after its end")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packers_that_are_read_as_a_whole_are_refused(tmp_path: Path, method: int) -> None:
    """Python unpacks a megabyte of bzip2 or LZMA at once, which may be gigabytes of zeros."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("zeros", bytes(1000))
    refused(path, f"is packed by method {method}", "zeros")
    assert unpack(path, tmp_path / "out", wanted=lambda name: False, progress=False) == 0


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_headers_of_gigabytes_are_not_read(tmp_path: Path, kind: bytes) -> None:
    """4 GB of zeros as the extended header of one file, in 4 MB of gzip: tarfile would read it into memory."""
    entry = info("x", kind)
    entry.size = 4 << 30
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(4 << 20)))
    tracemalloc.start()
    refused(path, "an extended header has 4,294,967,296 bytes")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_sizes_that_lead_backwards(tmp_path: Path) -> None:
    """CVE-2025-8194: a negative size makes tarfile read the same header for ever."""
    header = bytearray(info("loop").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-512 & (1 << 96) - 1 | 0xFF << 88).to_bytes(12, "big")
    for start in range(0, len(header), 512):
        block = header[start : start + 512]
        block[148:156] = b" " * 8
        header[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header) + bytes(1024))
    refused(path, "negative size")
    path.unlink()
    pax = info("loop")
    pax.pax_headers = {"size": "-1024"}
    again = tar_of(tmp_path / "b.tar", [(info("first"), b"1" * 600), (pax, b"")])
    refused(again, "lead backwards|damaged")


def test_headers_within_headers(tmp_path: Path) -> None:
    one = io.BytesIO()
    with tarfile.open(fileobj=one, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = info("x")
        entry.pax_headers = {"comment": "y"}
        archive.addfile(entry)
    path = tmp_path / "a.tar"
    path.write_bytes(one.getvalue()[:1024] * 5000)
    refused(path, "damaged")


def test_sparse_members(tmp_path: Path) -> None:
    header = bytearray(info("hole", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"  # the size that it claims: 8 GiB, of which nothing is there
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header) + bytes(1024))
    refused(path, "is a sparse file", "hole")


def test_what_is_skipped_counts_too(tmp_path: Path) -> None:
    """Nobody wants the zeros, but to get behind them they must be decompressed."""
    path = tar_of(tmp_path / "a.tgz", [(info("zeros"), bytes(8 << 20)), (info("good"), b"1")], "w:gz")
    refused(path, "more than 200 times", wanted=lambda name: name == "good")


def test_links_to_one_file_count_each(tmp_path: Path) -> None:
    members = [(info("file"), bytes(100_000))]
    members += [(info(f"link{index}", tarfile.SYMTYPE, "file"), b"") for index in range(40)]
    refused(tar_of(tmp_path / "a.tgz", members, "w:gz"), "more than 200 times")


def test_members_that_overlap(tmp_path: Path) -> None:
    """The compressed bytes of one member serve a hundred entries of the directory."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("kernel00", np.random.default_rng(0).bytes(1000) * 300)
    data = stream.getvalue()
    start = data.index(b"PK\1\2")
    entry, end = data[start : data.index(b"PK\5\6")], bytearray(data[data.index(b"PK\5\6") :])
    directory = b"".join(entry.replace(b"kernel00", b"kernel%02d" % index) for index in range(100))
    end[8:12] = struct.pack("<HH", 100, 100)
    end[12:16] = struct.pack("<I", len(directory))
    path = tmp_path / "a.zip"
    path.write_bytes(data[:start] + directory + bytes(end))
    refused(path, "damaged|more than 200 times")


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A full disk is no fault of the archive: nobody is told to download it again."""
    path = good(tmp_path, kind)
    if kind == "zip":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
        expected = r"unpacking needs 0\.01 MB, but .* has 0\.00 MB free"
    else:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(archives._Unpacking, "_count", full)
        expected = r"cannot be unpacked into .* \(the disk is full after 0 bytes\)"
    with pytest.raises(DataError, match=expected) as error:
        unpack(path, tmp_path / "out", progress=False)
    assert not isinstance(error.value, ArchiveError)
    assert "download" not in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_many_small_bombs_count_together(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {f"zeros{index}": bytes(512 << 10) for index in range(16)})
    refused(path, "more than 200 times")


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz", "tar.bz2", "tar.xz"])
def test_cut_anywhere_is_refused_or_whole(tmp_path: Path, kind: str) -> None:
    """At every length: what is unpacked is all there, or nothing is. (A tar is padded behind its end mark.)"""
    whole = good(tmp_path, kind).read_bytes()
    (tmp_path / f"good.{kind}").unlink()
    path = tmp_path / f"cut.{kind}"
    end = 512 * 26 if kind == "tar" else len(whole)  # its second block of zeros; the rest is padding
    for length in [*range(0, end, end // 70 + 1), end - 1]:
        path.write_bytes(whole[:length])
        if kind == "tar" and length >= end - 512:
            assert unpack(path, tmp_path / "out", progress=False) == 3
            shutil.rmtree(tmp_path / "out")
        else:
            refused(path, "damaged|truncated|no zip|cannot be unpacked")


def test_tar_cut_between_two_members(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [(info("a"), b"1" * 512), (info("b"), b"2" * 512)])
    path.write_bytes(path.read_bytes()[:1024])
    refused(path, "end mark is missing")


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_flipped_bytes(tmp_path: Path, kind: str) -> None:
    data = bytearray(good(tmp_path, kind).read_bytes())
    place = len(data) // 3
    for index in range(place, place + 20):
        data[index] ^= 0x5A
    (tmp_path / f"good.{kind}").unlink()
    path = tmp_path / f"flipped.{kind}"
    path.write_bytes(data)
    refused(path, "damaged|truncated")


@pytest.mark.parametrize("content", [b"", b"<html>not an archive</html>", bytes(3000)])
@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_no_archive_at_all(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content)
    if kind == "zip" or len(content) != 3000:
        refused(path, "no zip|damaged")
    else:  # zeros are an empty tar, and it says so by its count
        assert unpack(path, tmp_path / "out", progress=False) == 0


def test_encrypted_member(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"secret": b"1"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    refused(path, "encrypted", "secret")


def test_declared_size_that_lies(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"liar": b"x" * 5000})
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2") + 24
    data[place : place + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    refused(path, "damaged|truncated")


def test_a_zip_inside_a_tar_does_not_make_it_a_zip(tmp_path: Path) -> None:
    inner = zip_of(tmp_path / "inner.zip", {"x": b"1"}).read_bytes()
    path = tar_of(tmp_path / "a.tar", [(info("inner.zip"), inner)])
    unpack(path, tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == {"inner.zip": inner}


@given(st.binary(max_size=400), st.sampled_from(["zip", "tar", "tgz"]))
def test_garbage_raises_our_own_error_only(tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    path = folder / f"a.{kind}"
    path.write_bytes((b"PK\3\4" if kind == "zip" else b"\x1f\x8b" if kind == "tgz" else b"") + data)
    try:
        unpack(path, folder / "out", progress=False)
    except ArchiveError:
        assert not (folder / "out").exists()
