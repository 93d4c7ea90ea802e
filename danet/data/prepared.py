"""The prepared form: what training and evaluation read, the same for every dataset.

A folder with

* ``manifest.csv``: one line per image: id, splits (joined by ``;``), pack, image member, mask member, height, width,
  image_sha256, mask_sha256 (of the members' bytes), class_pixels (``0:1234 15:99 255:12``);
* ``dataset.json``: format, adapter, title, classes, palette, ignore_index, storage, counts per split, SHA-256 of the
  manifest, bytes of each pack;
* ``<pack>.zip``: stored, not compressed, so that a member is a range of bytes. A dataset of 20,000 images is a
  handful of files, which keeps DVC, its remotes and network file systems fast.

Storage ``source`` keeps the images' own JPEG or PNG bytes and masks as PNG; ``raw`` keeps both as ``.npy`` members
which are mapped into memory, so that a crop reads its own rows and no more.

The order of a split is the order of its lines in the manifest, which is the adapter's fixed order.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from danet.core.errors import DataError
from danet.data.layout import IGNORE

_Value = Annotated[int, Field(ge=0, le=255)]
_Colour = Annotated[tuple[_Value, _Value, _Value], Field(strict=False)]

FORMAT = 1
MANIFEST = "manifest.csv"
DESCRIPTION = "dataset.json"

Pixels = NDArray[np.uint8]

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_NPY_MAX_HEADER = 256


@dataclass(frozen=True)
class Entry:
    """One line of the manifest."""

    id: str
    splits: str
    pack: str
    image: str
    mask: str
    height: int
    width: int
    image_sha256: str
    mask_sha256: str
    class_pixels: str


COLUMNS = tuple(field.name for field in fields(Entry))


def format_manifest(entries: list[Entry]) -> str:
    """The text of ``manifest.csv``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(entry) for entry in entries)
    return text.getvalue()


def format_class_pixels(mask: Pixels) -> str:
    """Pixels of each id present, e.g. ``0:1234 255:12``."""
    counts = np.bincount(mask.ravel(), minlength=256)
    return " ".join(f"{value}:{counts[value]}" for value in np.flatnonzero(counts))


def npy_bytes(array: Pixels) -> bytes:
    """An array as the bytes of an ``.npy`` file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def png_bytes(mask: Pixels) -> bytes:
    """A mask (H, W) as a single-channel 8-bit PNG."""
    ok, data = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    assert ok, "cv2 encodes every 8-bit map"
    return bytes(data.tobytes())


def decode_image(data: bytes) -> Pixels | None:
    """(H, W, 3) uint8 BGR of JPEG or PNG bytes as stored, whatever EXIF says; None if they cannot be decoded."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None


class _Description(BaseModel):
    """``dataset.json``, as :mod:`danet.data.convert` writes it."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    adapter: str
    title: str
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=IGNORE)]
    palette: Annotated[tuple[_Colour, ...], Field(strict=False)]
    storage: Literal["source", "raw"]
    counts: dict[str, Annotated[int, Field(ge=0)]]
    manifest_sha256: str
    packs: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")], int]


class PreparedDataset:
    """One split of a prepared dataset. Picklable and safe to use in forked workers: every process opens its own files.

    Raises:
        DataError: if the folder is missing or damaged, or has no such split, with the command that makes it.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        description = self._describe()
        self.adapter = description.adapter
        self.title = description.title
        self.classes = description.classes
        self.palette = description.palette
        self.storage: str = description.storage
        self.counts = description.counts
        self.num_classes = len(self.classes)
        self.ignore_index = IGNORE
        if split not in self.counts:
            raise DataError(f"{self.folder}: has no split {split!r}; it has {', '.join(self.counts)}")
        self._entries = [
            entry for entry in self._read_manifest(description.manifest_sha256) if split in entry.splits.split(";")
        ]
        if len(self._entries) != self.counts[split]:
            raise self._damaged(f"{MANIFEST} has {len(self._entries)} of {self.counts[split]} images of {split}")
        self._members: dict[str, dict[str, tuple[int, int, int]]] = {}
        for pack, size in description.packs.items():
            if any(entry.pack == pack for entry in self._entries):
                self._members[pack] = self._read_pack(pack, size)
        for entry in self._entries:
            for member in (entry.image, entry.mask):
                if member and member not in self._members.get(entry.pack, {}):
                    raise self._damaged(f"{entry.pack} lacks {member}")
        self.ids: list[str] = [entry.id for entry in self._entries]
        self._open: dict[str, int] = {}
        self._maps: dict[str, Pixels] = {}
        self._pid = os.getpid()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def labelled(self) -> bool:
        """Whether every image of the split has a mask."""
        return all(entry.mask for entry in self._entries)

    @property
    def labels(self) -> set[int]:
        """The train ids that the split's masks have, without the ignored one."""
        pairs = (pair for entry in self._entries for pair in entry.class_pixels.split())
        return {int(pair.partition(":")[0]) for pair in pairs} - {IGNORE}

    @functools.cached_property
    def manifest_hash(self) -> str:
        """SHA-256 over ids, images and labels of the split in their order: other data have another one."""
        lines = [f"{entry.id},{entry.image_sha256},{entry.mask_sha256}\n" for entry in self._entries]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image."""
        entry = self._entries[index]
        return entry.height, entry.width

    def image(self, index: int) -> Pixels:
        """An image: (h, w, 3) uint8 BGR, to be read only: with storage ``raw`` the mapped file itself, nothing copied.

        Raises:
            DataError: if the pack is damaged there.
        """
        entry = self._entries[index]
        return self._pixels(entry, entry.image, (entry.height, entry.width, 3))

    def mask(self, index: int) -> Pixels | None:
        """Train ids (h, w) uint8 with 255 = ignore, to be read only; None for an image without labels.

        Raises:
            DataError: if the pack is damaged there.
        """
        entry = self._entries[index]
        return self._pixels(entry, entry.mask, (entry.height, entry.width)) if entry.mask else None

    def _pixels(self, entry: Entry, member: str, shape: tuple[int, ...]) -> Pixels:
        if member.endswith(".npy"):
            return self._mapped(entry.pack, member, shape)
        data = self._bytes(entry.pack, member)
        if len(shape) == 3:
            decoded = decode_image(data)
        else:
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is None or decoded.shape != shape:
            raise self._damaged(f"{entry.pack}/{member} does not decode to {shape}")
        return decoded

    def _bytes(self, pack: str, member: str) -> bytes:
        """A member's bytes, checked by its CRC."""
        offset, size, crc = self._members[pack][member]
        descriptor = self._descriptor(pack)
        data = os.pread(descriptor, size, self._data_offset(descriptor, pack, member, offset))
        if len(data) != size or zlib.crc32(data) != crc:
            raise self._damaged(f"{pack}/{member} is damaged")
        return data

    def _mapped(self, pack: str, member: str, shape: tuple[int, ...]) -> Pixels:
        """A view of an ``.npy`` member in the mapped pack."""
        offset, size, _ = self._members[pack][member]
        descriptor = self._descriptor(pack)
        start = self._data_offset(descriptor, pack, member, offset)
        head = io.BytesIO(os.pread(descriptor, _NPY_MAX_HEADER, start))
        try:
            np.lib.format.read_magic(head)
            stored, fortran, dtype = np.lib.format.read_array_header_1_0(head)
        except Exception as error:  # NumPy reads the header as Python source, and raises what its tokenizer does
            raise self._damaged(f"{pack}/{member} is not an array ({error})") from error
        if stored != shape or fortran or dtype != np.uint8 or head.tell() + int(np.prod(shape)) != size:
            raise self._damaged(f"{pack}/{member} is {dtype} {stored}, not uint8 {shape}")
        if pack not in self._maps:
            self._maps[pack] = np.memmap(self.folder / pack, np.uint8, mode="r")
        start += head.tell()
        return self._maps[pack][start : start + int(np.prod(shape))].reshape(shape)

    def _descriptor(self, pack: str) -> int:
        if self._pid != os.getpid():  # forked: the parent's descriptors stay the parent's to close
            self._open, self._maps, self._pid = {}, {}, os.getpid()
        if pack not in self._open:
            try:
                self._open[pack] = os.open(self.folder / pack, os.O_RDONLY)
            except OSError as error:
                raise self._damaged(f"{pack} cannot be opened ({error.strerror})") from error
        return self._open[pack]

    def _data_offset(self, descriptor: int, pack: str, member: str, offset: int) -> int:
        """Where a member's bytes begin: behind its local header, whose variable parts only itself knows."""
        head = os.pread(descriptor, _LOCAL_HEADER.size, offset)
        if len(head) != _LOCAL_HEADER.size or head[:4] != b"PK\3\4":
            raise self._damaged(f"{pack}/{member} is damaged")
        *_, name, extra = _LOCAL_HEADER.unpack(head)
        return offset + _LOCAL_HEADER.size + int(name) + int(extra)

    def _describe(self) -> _Description:
        path = self.folder / DESCRIPTION
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(
                f"{self.folder}: is not a prepared dataset; run `dvc repro convert@{self.folder.name}`"
            ) from None
        except (OSError, ValueError) as error:
            raise self._damaged(f"{DESCRIPTION} cannot be read ({error})") from error
        if not isinstance(description, dict) or description.get("format") != FORMAT:
            raise self._damaged(f"{DESCRIPTION} is not of format {FORMAT}")
        try:
            return _Description.model_validate(description)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise self._damaged(f"{DESCRIPTION} lacks or misstates {field[:200]!r}: {first['msg']}") from None

    def _read_manifest(self, wanted: str) -> list[Entry]:
        try:
            data = (self.folder / MANIFEST).read_bytes()
        except OSError as error:
            raise self._damaged(f"{MANIFEST} cannot be read ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != wanted:
            raise self._damaged(f"{MANIFEST} was changed since it was written")
        try:
            return list(_parse_manifest(data.decode()))
        except (ValueError, TypeError, csv.Error) as error:
            raise self._damaged(f"{MANIFEST}: {error}") from error

    def _read_pack(self, pack: str, size: int) -> dict[str, tuple[int, int, int]]:
        """Member -> (offset of its header, bytes, CRC)."""
        path = self.folder / pack
        try:
            if path.stat().st_size != size:
                raise self._damaged(f"{pack} has {path.stat().st_size:,} of {size:,} bytes")
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except (OSError, zipfile.BadZipFile) as error:
            raise self._damaged(f"{pack} cannot be read ({error})") from error
        return {info.filename: (info.header_offset, info.file_size, info.CRC) for info in infos}

    def _damaged(self, problem: str) -> DataError:
        name = self.folder.name
        return DataError(f"{self.folder}: {problem}; run `dvc repro -f -s convert@{name}` to make it again")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_maps": {}, "_pid": -1}

    def __del__(self) -> None:
        if self.__dict__.get("_pid") == os.getpid():
            for descriptor in self._open.values():
                os.close(descriptor)


def _parse_manifest(text: str) -> Iterator[Entry]:
    """Of a text whose hash is that of what was written."""
    reader = csv.reader(io.StringIO(text))
    if tuple(next(reader, ())) != COLUMNS:
        raise ValueError("has other columns than this version writes")
    for key, splits, pack, image, mask, height, width, *rest in reader:
        yield Entry(key, splits, pack, image, mask, int(height), int(width), *rest)
