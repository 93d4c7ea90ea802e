"""Unpacking tar, tgz and zip files that came over a network, without trusting them.

Only regular files are written, by our own copy loop into a temporary folder that is renamed when whole. A member with
an absolute path or ``..``, a device, a link out of the tree, two members for one file (also such that differ in case
alone), a name that no disk can hold and more data than the limits allow are refused with :class:`ArchiveError`; links
inside a tar are replaced by the file that they name. Members that nobody asked for are checked and skipped.

Three things that the standard library would take are refused before it sees them, since they cost it memory or time
without end: members of a zip packed by bzip2 or LZMA (read as a whole), headers of a tar with a negative size (read
again and again, CVE-2025-8194 and its kin) and extended headers of more than 1 MiB (read as a whole).
"""

from __future__ import annotations

import errno
import lzma
import posixpath
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from danet.core.errors import ArchiveError, DataError
from danet.core.progress import Progress, size_text

CHUNK = 1 << 20
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1024
"""Of a member's path; the folder that it is unpacked to may have a long one too (the limit of Linux is 4096)."""
MAX_HEADER_BYTES = 1 << 20

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
    RecursionError,
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
        DataError: if the disk is full or cannot be written; neither does it then.
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
        raise state.error(f"is damaged ({_reason(error)})") from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}:
            raise state.no_room(error) from error
        # gzip raises bare OSErrors without a number for a bad header or checksum.
        kind = "cannot be unpacked" if error.errno else "is damaged"
        raise state.error(f"{kind} ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return state.count


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    found = re.search(r"ReadError\('(a member has [^']*|an extended header [^']*)'\)", text)  # of :class:`_Header`
    return found[1] if found else text


def member_path(name: str) -> str:
    """The relative POSIX path of a member name; "" for the top folder itself.

    Raises:
        ValueError: saying what is wrong, for names that lead out of the tree, are no plain paths or fit on no disk.
    """
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise ValueError("has control characters in its name")
    unified = name.replace("\\", "/")
    if unified.startswith("/") or (len(unified) > 1 and unified[1] == ":"):
        raise ValueError("has an absolute path")
    parts = [part for part in unified.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise ValueError("leads out of the tree with '..'")
    try:
        lengths = [len(part.encode(errors="surrogateescape")) for part in parts]
    except UnicodeEncodeError:
        raise ValueError("has a name that no disk can hold") from None
    if max(lengths, default=0) > MAX_NAME_BYTES or sum(lengths) + len(lengths) > MAX_PATH_BYTES:
        raise ValueError(f"has a name that is too long for a disk ({sum(lengths)} bytes)")
    return "/".join(parts)


class _Header(tarfile.TarInfo):
    """A member whose header cannot make tarfile run in circles or read without limit."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """As the base class."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.ReadError("a member has a negative size")
        if header.type in _EXTENDED and header.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header has {header.size:,} bytes")
        return header


_EXTENDED = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}


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
        self._tar_files: dict[str, tarfile.TarInfo] | None = None
        self._packed = max(archive.stat().st_size, 1) if archive.exists() else 1

    def error(self, problem: str, member: str | None = None) -> ArchiveError:
        where = f"{self.archive}: member {member!r}" if member is not None else f"{self.archive}"
        shown = where if len(where) < 600 else f"{where[:600]}..."
        return ArchiveError(f"{shown} {problem}; {self.remedy}")

    def no_room(self, error: OSError) -> DataError:
        """The archive is not to blame, so it is not to be fetched again."""
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        problem = f"the disk is full after {self._bytes:,} bytes" if full else str(error.strerror)
        return DataError(
            f"{self.archive}: cannot be unpacked into {self.folder.parent} ({problem}); mend that and run the same "
            "command again"
        )

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DataError(
                f"{self.archive}: unpacking needs {size_text(needed)}, but {self.folder.parent} has "
                f"{size_text(free)} free; make room and run the same command again"
            )

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
            infos = archive.infolist()
            needed = sum(info.file_size for info in infos if self.wanted(info.filename))
            if needed <= self.limits.total_bytes:  # more than that is refused for what it is
                self._check_room(needed)
            for info in infos:
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
                if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} and self.wanted(path):
                    raise self.error(f"is packed by method {info.compress_type}, not by deflate", path)
                if not info.is_dir() and path and self.wanted(path):
                    with archive.open(info) as source:
                        self.copy(source, path, info.file_size, info.compress_size)
                bar.advance(info.compress_size)

    def unpack_tar(self, bar: Progress) -> None:
        with tarfile.open(self.archive, "r:*", tarinfo=_Header) as archive:
            for member in self._tar_members(archive):
                path = self.path_of(member.name)
                if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
                    raise self.error("is a device or another special file", path)
                if member.issparse():
                    raise self.error("is a sparse file, whose size says nothing of its bytes", path)
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

    def _tar_members(self, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        """The members, each behind the one before it, as long as what was read so far is no bomb."""
        last = -1
        for member in archive:
            if member.size < 0 or member.offset <= last:
                raise self.error("is damaged: its headers lead backwards")
            last = member.offset
            data = member.size if member.isreg() and not member.issparse() else 0
            unpacked = member.offset_data + data  # what is skipped must be decompressed too
            if unpacked > self.limits.ratio_from and unpacked > self.limits.ratio * self._packed:
                raise self.error(f"unpacks to more than {self.limits.ratio:g} times its size")
            yield member

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
        if self._tar_files is None:
            self._tar_files = {}
            for member in self._tar_members(archive):
                if member.isreg() and not member.issparse():
                    self._tar_files.setdefault(member.name.removeprefix("./"), member)
        if target in self._tar_files:
            return self._tar_files[target]
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
