"""Unpacking tar, tgz and zip files that came over a network, without trusting them.

Only regular files are written, by our own copy loop into a temporary folder that is renamed when whole. A member with
an absolute path or ``..``, a device, a link out of the tree, two members for one file (also such that differ in case
alone) and more data than the limits allow are refused with :class:`ArchiveError`; links inside a tar are replaced by
the file that they name. Members that nobody asked for are checked and skipped.
"""

from __future__ import annotations

import lzma
import posixpath
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from danet.data.progress import Progress
from danet.errors import ArchiveError

CHUNK = 1 << 20

DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    ValueError,
    LookupError,
    OverflowError,
)
"""What the standard library's readers raise on damaged archives."""


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to. Cityscapes, the largest, has 12 GB and 25,000 files; images do not compress."""

    total_bytes: int = 200 << 30
    members: int = 1_000_000
    ratio: float = 200.0
    """Unpacked over packed bytes, of one member (over 1 MiB) and of the whole."""
    ratio_from: int = 1 << 20
    """Below so many unpacked bytes the ratio is not looked at: a text of blanks may compress well."""


def unpack(
    archive: Path,
    folder: Path,
    *,
    wanted: Callable[[str], object] | None = None,
    limits: Limits | None = None,
    progress: bool = True,
    remedy: str = "delete it and download it again",
) -> int:
    """Unpacks the members for which ``wanted(path)`` is true into ``folder``, which must not exist, and counts them.

    Raises:
        ArchiveError: naming archive, member and remedy; ``folder`` then does not exist.
    """
    temporary = folder.with_name(f".{folder.name}.unpack.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    state = _Unpacking(archive, temporary, wanted or (lambda name: True), limits or Limits(), remedy)
    try:
        temporary.mkdir(parents=True)
        with archive.open("rb") as stream:
            is_zip = stream.read(4) in {b"PK\3\4", b"PK\5\6"}
        if archive.suffix == ".zip" and not is_zip:
            raise state.error("is no zip file")
        total = archive.stat().st_size if is_zip or archive.suffix == ".tar" else None
        with Progress(f"unpack {archive.name}", total, "bytes", show=progress) as bar:
            state.unpack_zip(bar) if is_zip else state.unpack_tar(bar)
        temporary.rename(folder)
    except DAMAGE as error:
        raise state.error(f"is damaged ({' '.join(str(error).split()) or type(error).__name__})") from error
    except OSError as error:
        # gzip raises bare OSErrors without a number for a bad header or checksum.
        kind = "cannot be unpacked" if error.errno else "is damaged"
        raise state.error(f"{kind} ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return state.count


def member_path(name: str) -> str:
    """The relative POSIX path of a member name; "" for the top folder itself.

    Raises:
        ValueError: saying what is wrong, for names that lead out of the tree or are no plain paths.
    """
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise ValueError("has control characters in its name")
    unified = name.replace("\\", "/")
    if unified.startswith("/") or (len(unified) > 1 and unified[1] == ":"):
        raise ValueError("has an absolute path")
    parts = [part for part in unified.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise ValueError("leads out of the tree with '..'")
    return "/".join(parts)


class _Unpacking:
    """State of one archive being unpacked."""

    def __init__(
        self, archive: Path, folder: Path, wanted: Callable[[str], object], limits: Limits, remedy: str
    ) -> None:
        self.archive, self.folder, self.wanted, self.limits, self.remedy = archive, folder, wanted, limits, remedy
        self.count = 0
        self._members = 0
        self._bytes = 0
        self._names: dict[str, str] = {}
        self._packed = max(archive.stat().st_size, 1) if archive.exists() else 1

    def error(self, problem: str, member: str | None = None) -> ArchiveError:
        where = f"{self.archive}: member {member!r}" if member is not None else f"{self.archive}"
        return ArchiveError(f"{where} {problem}; {self.remedy}")

    def path_of(self, name: str) -> str:
        """The member's checked path; counts it."""
        self._members += 1
        if self._members > self.limits.members:
            raise self.error(f"has more than {self.limits.members} members")
        try:
            return member_path(name)
        except ValueError as error:
            raise self.error(str(error), name) from None

    def target_of(self, path: str) -> Path:
        """Where a wanted member goes; refuses a second member for the same file."""
        key = unicodedata.normalize("NFC", path).casefold()
        if key in self._names:
            other = self._names[key]
            problem = "comes twice" if other == path else f"differs from {other!r} in case alone"
            raise self.error(problem, path)
        self._names[key] = path
        return self.folder.joinpath(*path.split("/"))

    def copy(self, source: IO[bytes], path: str, size: int, packed: int | None, bar: Progress | None = None) -> None:
        """Writes one member, counting real bytes, since declared sizes can lie."""
        target = self.target_of(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            written = 0
            with target.open("xb") as stream:
                while chunk := source.read(CHUNK):
                    written += len(chunk)
                    self._count(len(chunk), written, packed, path)
                    stream.write(chunk)
                    if bar is not None:
                        bar.advance(len(chunk))
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise self.error("is a file and a folder at once", path) from error
        if written != size:
            raise self.error(f"is truncated: {written} of {size} bytes", path)
        self.count += 1

    def _count(self, chunk: int, written: int, packed: int | None, path: str) -> None:
        self._bytes += chunk
        limits = self.limits
        if self._bytes > limits.total_bytes:
            raise self.error(f"unpacks to more than the limit of {limits.total_bytes:,} bytes")
        if packed is not None and written > limits.ratio_from and written > limits.ratio * max(packed, 1):
            raise self.error(f"unpacks to more than {limits.ratio:g} times its size", path)
        if self._bytes > limits.ratio_from and self._bytes > limits.ratio * self._packed:
            raise self.error(f"unpacks to more than {limits.ratio:g} times its size")

    def unpack_zip(self, bar: Progress) -> None:
        with zipfile.ZipFile(self.archive) as archive:
            for info in archive.infolist():
                # Python cuts names at NUL; the name as stored says whether that happened.
                path = self.path_of(info.orig_filename)
                mode = info.external_attr >> 16
                kind = stat.S_IFMT(mode) if info.create_system == 3 else 0
                if kind == stat.S_IFLNK and self.wanted(path):
                    raise self.error("is a link, which a zip of images has no use for", path)
                if kind not in {0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}:
                    raise self.error("is a device or another special file", path)
                if info.flag_bits & 0x1 and not info.is_dir():
                    raise self.error("is encrypted", path)
                if not info.is_dir() and path and self.wanted(path):
                    with archive.open(info) as source:
                        self.copy(source, path, info.file_size, info.compress_size)
                bar.advance(info.compress_size)

    def unpack_tar(self, bar: Progress) -> None:
        with tarfile.open(self.archive, "r:*") as archive:
            for member in archive:
                path = self.path_of(member.name)
                if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
                    raise self.error("is a device or another special file", path)
                source_member: tarfile.TarInfo | None = member
                if member.issym() or member.islnk():
                    source_member = self._link_target(archive, member, path)
                if member.isdir() or source_member is None or not path or not self.wanted(path):
                    continue
                source = archive.extractfile(source_member)
                if source is None:
                    raise self.error("cannot be read", path)
                with source:
                    self.copy(source, path, source_member.size, None, bar)
            self._check_end(archive)

    def _link_target(self, archive: tarfile.TarFile, link: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        """The regular file that a wanted link names inside the archive."""
        name = link.linkname
        if link.issym() and not name.startswith("/"):
            name = posixpath.normpath("/".join([*path.split("/")[:-1], name]))
        try:
            target = member_path(name)
        except ValueError as error:
            raise self.error(f"is a link to {link.linkname!r}, which {error}", path) from None
        if not self.wanted(path):
            return None
        for member in archive.getmembers():
            if member.isfile() and not member.islnk() and member.name.removeprefix("./") == target:
                return member
        raise self.error(f"is a link to {link.linkname!r}, which is no file of the archive", path)

    def _check_end(self, archive: tarfile.TarFile) -> None:
        """A whole tar ends with zero blocks (tarfile itself takes a cut between two members for the end)."""
        stream = archive.fileobj
        assert stream is not None
        stream.seek(archive.offset)
        end = stream.read(tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
            raise self.error("is truncated: its end mark is missing")
        rest = 0
        while chunk := stream.read(CHUNK):  # reading to the end checks gzip's own checksum
            rest += len(chunk)
            if rest > self.limits.ratio_from + 10 * CHUNK:
                raise self.error("goes on after its end mark")
