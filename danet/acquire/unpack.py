"""Unpacking tar, tgz and zip files that came over a network.

The members that are wanted go into a temporary folder, which is renamed when whole. Tars go through ``tarfile``'s
filter ``data``, which refuses devices and whatever leads out of the folder; zips are checked for such paths here.
"""

from __future__ import annotations

import errno
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from danet.core.errors import ArchiveError, DataError
from danet.core.progress import Progress, size_text

CHUNK = 1 << 20
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
)
"""What the standard library's readers raise on damaged (or encrypted) archives."""


def unpack(
    archive: Path,
    folder: Path,
    *,
    wanted: Callable[[str], object] = lambda name: True,
    progress: bool = True,
    remedy: str = "delete it and download it again",
) -> int:
    """Unpacks the files for which ``wanted(path)`` is true into ``folder``, which must not exist, and counts them.

    Raises:
        ArchiveError: naming archive and remedy; ``folder`` then does not exist.
        DataError: if the disk is full or cannot be written; neither does it then.
    """
    temporary = folder.with_name(f".{folder.name}.unpack.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with Progress(f"unpack {archive.name}", None, "files", show=progress) as bar:
            work = _unpack_zip if _is_zip(archive) else _unpack_tar
            count = work(archive, temporary, wanted, bar)
        temporary.rename(folder)
    except DAMAGE as error:
        raise ArchiveError(f"{archive}: cannot be unpacked ({_reason(error)}); {remedy}") from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}:
            raise DataError(  # the archive is not to blame
                f"{archive}: cannot be unpacked into {folder.parent} ({error.strerror}); make room or fix the "
                "permissions, and run the same command again"
            ) from error
        # gzip raises bare OSErrors without a number for a bad header or checksum
        raise ArchiveError(f"{archive}: cannot be unpacked ({error.strerror or error}); {remedy}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return count


def damage(archive: Path) -> str | None:
    """What is wrong with an archive, read to its end; None if nothing is."""
    try:
        if _is_zip(archive):
            with zipfile.ZipFile(archive) as members:
                bad = members.testzip()
            return None if bad is None else f"is damaged (member {bad})"
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isreg() and (content := tar.extractfile(member)) is not None:
                    while content.read(CHUNK):
                        pass
            _check_end(tar)
    except (*DAMAGE, OSError) as error:
        return f"is damaged or no archive ({_reason(error)})"
    return None


def _is_zip(archive: Path) -> bool:
    with archive.open("rb") as stream:
        return stream.read(4) in {b"PK\3\4", b"PK\5\6"} or archive.suffix == ".zip"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _unpack_zip(archive: Path, folder: Path, wanted: Callable[[str], object], bar: Progress) -> int:
    with zipfile.ZipFile(archive) as members:
        chosen = [info for info in members.infolist() if not info.is_dir() and wanted(info.filename)]
        needed, free = sum(info.file_size for info in chosen), shutil.disk_usage(folder).free
        if needed > free:
            raise DataError(
                f"{archive}: unpacking needs {size_text(needed)}, but {folder.parent} has {size_text(free)} free; "
                "make room and run the same command again"
            )
        for info in chosen:
            parts = info.filename.replace("\\", "/").split("/")
            if ".." in parts or parts[0] == "" or ":" in parts[0]:
                raise zipfile.BadZipFile(f"member {info.filename!r} leads out of the folder")
            members.extract(info, folder)  # checks the member's CRC
            bar.advance()
    return len(chosen)


def _unpack_tar(archive: Path, folder: Path, wanted: Callable[[str], object], bar: Progress) -> int:
    count = 0
    with tarfile.open(archive, "r:*") as members:
        for member in members:
            if not member.isdir() and wanted(member.name.removeprefix("./")):
                members.extract(member, folder, filter="data")
                count += 1
                bar.advance()
        _check_end(members)
    return count


def _check_end(tar: tarfile.TarFile) -> None:
    """A whole tar ends with a block of zeros; tarfile itself takes a cut between two members for the end."""
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")
    while stream.read(CHUNK):  # to the end, where gzip has its checksum
        pass
