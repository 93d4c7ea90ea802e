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
import math
import zipfile
import zlib
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from danet.core.errors import DataError
from danet.core.text import explain
from danet.data.layout import IGNORE, Array8, Colour

MANIFEST = "manifest.csv"
DESCRIPTION = "dataset.json"

_LOCAL_HEADER = 30
"""Bytes of a zip member's local header before its name; :mod:`danet.data.convert` writes nothing after that."""


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


def format_manifest(entries: list[Entry]) -> str:
    """The text of ``manifest.csv``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Entry))
    writer.writerows(astuple(entry) for entry in entries)
    return text.getvalue()


def format_class_pixels(mask: Array8) -> str:
    """Array8 of each id present, e.g. ``0:1234 255:12``."""
    counts = np.bincount(mask.ravel(), minlength=256)
    return " ".join(f"{value}:{counts[value]}" for value in np.flatnonzero(counts))


def npy_bytes(array: Array8) -> bytes:
    """An array as the bytes of an ``.npy`` file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def png_bytes(mask: Array8) -> bytes:
    """A mask (H, W) as a single-channel 8-bit PNG."""
    ok, data = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    assert ok, "cv2 encodes every 8-bit map"
    return bytes(data.tobytes())


def decode(data: bytes, *, colour: bool) -> Array8 | None:
    """A mask (H, W), or an image (H, W, 3) in BGR as stored, whatever EXIF says; None if it cannot be decoded."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if colour else cv2.IMREAD_UNCHANGED
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None


class Description(BaseModel):
    """``dataset.json``: written by :mod:`danet.data.convert`, read by :class:`PreparedDataset`."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    adapter: str
    title: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignore_index: int = IGNORE
    storage: Literal["source", "raw"]
    counts: dict[str, int]
    manifest_sha256: str
    packs: dict[str, int]


class PreparedDataset:
    """One split of a prepared dataset. Picklable, and safe to use in threads and in forked workers.

    Raises:
        DataError: if the folder is missing or damaged, or has no such split, with the command that makes it.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        description = self._describe()
        self.title, self.classes, self.palette = description.title, description.classes, description.palette
        self.num_classes = len(self.classes)
        if split not in description.counts:
            raise DataError(f"{self.folder}: has no split {split!r}; it has {', '.join(description.counts)}")
        manifest = self._read_manifest(description.manifest_sha256)
        self._entries = [entry for entry in manifest if split in entry.splits.split(";")]
        self.ids: list[str] = [entry.id for entry in self._entries]
        self._places: dict[str, tuple[int, int, int]] = {}
        for pack in {entry.pack for entry in self._entries}:
            self._places |= self._read_pack(pack, description.packs[pack])
        self._maps: dict[str, Array8] = {}

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

    def image(self, index: int) -> Array8:
        """An image: (h, w, 3) uint8 BGR, to be read only: with storage ``raw`` the mapped file itself, nothing copied.

        Raises:
            DataError: if the pack is damaged there.
        """
        entry = self._entries[index]
        return self._pixels(entry.pack, entry.image, (entry.height, entry.width, 3))

    def mask(self, index: int) -> Array8 | None:
        """Train ids (h, w) uint8 with 255 = ignore, to be read only; None for an image without labels.

        Raises:
            DataError: if the pack is damaged there.
        """
        entry = self._entries[index]
        return self._pixels(entry.pack, entry.mask, (entry.height, entry.width)) if entry.mask else None

    def _pixels(self, pack: str, member: str, shape: tuple[int, ...]) -> Array8:
        if member.endswith(".npy"):
            return self._mapped(pack, member, shape)
        decoded = decode(self._bytes(pack, member), colour=len(shape) == 3)
        if decoded is None or decoded.shape != shape:
            raise self._damaged(f"{pack}/{member} does not decode to {shape}")
        return decoded

    def _bytes(self, pack: str, member: str) -> bytes:
        """A member's bytes, checked by its CRC."""
        start, size, crc = self._places[member]
        with (self.folder / pack).open("rb") as stream:
            stream.seek(start)
            data = stream.read(size)
        if zlib.crc32(data) != crc:
            raise self._damaged(f"{pack}/{member} is damaged")
        return data

    def _mapped(self, pack: str, member: str, shape: tuple[int, ...]) -> Array8:
        """A view of an ``.npy`` member in the mapped pack: its pixels are what follows NumPy's header."""
        start, size, _ = self._places[member]
        if pack not in self._maps:
            self._maps[pack] = np.memmap(self.folder / pack, np.uint8, mode="r")
        end = start + size
        return self._maps[pack][end - math.prod(shape) : end].reshape(shape)

    def _describe(self) -> Description:
        try:
            return Description.model_validate_json((self.folder / DESCRIPTION).read_bytes())
        except FileNotFoundError:
            raise DataError(
                f"{self.folder}: is not a prepared dataset; run `dvc repro convert@{self.folder.name}`"
            ) from None
        except ValidationError as error:
            raise self._damaged(f"{DESCRIPTION} cannot be read ({explain(error)})") from error

    def _read_manifest(self, wanted: str) -> list[Entry]:
        try:
            data = (self.folder / MANIFEST).read_bytes()
        except OSError as error:
            raise self._damaged(f"{MANIFEST} cannot be read ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != wanted:
            raise self._damaged(f"{MANIFEST} was changed since it was written")
        return [
            Entry(**{**line, "height": int(line["height"]), "width": int(line["width"])})  # type: ignore[arg-type]
            for line in csv.DictReader(io.StringIO(data.decode()))
        ]

    def _read_pack(self, pack: str, size: int) -> dict[str, tuple[int, int, int]]:
        """Member -> (where its bytes begin, their number, their CRC)."""
        path = self.folder / pack
        try:
            if path.stat().st_size != size:
                raise self._damaged(f"{pack} has {path.stat().st_size:,} of {size:,} bytes")
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except (OSError, zipfile.BadZipFile) as error:
            raise self._damaged(f"{pack} cannot be read ({error})") from error
        return {
            info.filename: (info.header_offset + _LOCAL_HEADER + len(info.filename), info.file_size, info.CRC)
            for info in infos
        }

    def _damaged(self, problem: str) -> DataError:
        name = self.folder.name
        return DataError(f"{self.folder}: {problem}; run `dvc repro -f -s convert@{name}` to make it again")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}
