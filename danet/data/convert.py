"""Archives of a dataset -> its prepared form, checking every file on the way.

A file that cannot be used does not stop the conversion: the rest is looked at, all offenders are listed at once, and
then it fails. The result appears only when everything is right, and the same archives give the same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from danet.acquire.unpack import unpack
from danet.config.params import Dataset
from danet.core import files
from danet.core.errors import DataError
from danet.core.parallel import ahead
from danet.core.progress import Progress
from danet.core.provenance import cpu_cores
from danet.data.layout import SAFE_ID, DatasetSpec, Item, bit_depth, check_image
from danet.data.prepared import (
    DESCRIPTION,
    FORMAT,
    MANIFEST,
    Entry,
    decode_image,
    format_class_pixels,
    format_manifest,
    npy_bytes,
    png_bytes,
)
from danet.data.raw import taken
from danet.data.registry import ADAPTERS

SHOWN = 20
"""Ids in one line of a message."""
LISTED = 200
"""Offenders in a message."""


@dataclass(frozen=True)
class _Converted:
    """One image in prepared form; ``problems`` not empty means that it has none."""

    problems: tuple[str, ...] = ()
    note: str | None = None
    suffix: str = ""
    image: bytes = b""
    mask: bytes = b""
    size: tuple[int, int] = (0, 0)
    class_pixels: str = ""


def convert_dataset(
    name: str,
    spec: Dataset,
    raw: Path,
    out: Path,
    *,
    progress: bool = True,
    workers: int | None = None,
) -> dict[str, int]:
    """Converts the archives in the folder ``raw`` (of :func:`danet.data.raw.download_dataset`) into ``out``.

    Returns the number of images per split.

    Raises:
        DataError: if archives are missing, files are unusable (all are listed) or counts differ from ``spec.counts``.
        ArchiveError: if an archive is damaged or hostile. In all cases ``out`` is as it was.
    """
    adapter = ADAPTERS[spec.adapter]
    archives = taken(spec, raw)
    if not archives:
        wanted = ", ".join(archive.file for archive in spec.archives) or "tree.zip"
        raise DataError(f"{raw}: lacks {wanted}; run `dvc repro download@{name}`")
    scratch, new = out.with_name(f".{out.name}.scratch.tmp"), out.with_name(f".{out.name}.new.tmp")
    try:
        for folder in (scratch, new):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for archive in archives:
            unpack(
                archive,
                scratch / archive.name,
                wanted=adapter.wanted.search,
                progress=progress,
                remedy=f"run `dvc repro -f -s download@{name}` to take it again, then `dvc repro convert@{name}`",
            )
        try:
            conversion = _Conversion(name, spec, adapter, scratch, new)
            counts = conversion.run(progress, workers or min(cpu_cores(), 8))
        except DataError as error:  # the scratch folder is gone when this is read
            text = str(error).replace(f"{scratch}/", "").replace(str(scratch), str(raw))
            raise DataError(f"{text}\n{remedy_for(name)}") from error
        files.replace_folder(new, out)
        return counts
    except OSError as error:
        problem = error.strerror or error
        raise DataError(f"{out}: cannot be written ({problem}); fix that and run `dvc repro convert@{name}`") from error
    finally:
        for folder in (scratch, new):
            shutil.rmtree(folder, ignore_errors=True)


def remedy_for(name: str) -> str:
    """What to do about files that cannot be used."""
    return (
        f"fix the folder or archive that {name} was taken from, take it again by `dvc repro -f -s download@{name}`, "
        f"then `dvc repro convert@{name}`; if datasets.{name} in datasets.yaml is wrong, correct it and run the last"
    )


class _Conversion:
    """The conversion of one unpacked dataset."""

    def __init__(self, name: str, spec: Dataset, adapter: DatasetSpec, scratch: Path, new: Path) -> None:
        self.name, self.spec, self.adapter, self.scratch, self.new = name, spec, adapter, scratch, new
        self.items = adapter.discover(scratch).items
        self.problems: list[str] = []
        self.notes: list[str] = []

    def run(self, progress: bool, workers: int) -> dict[str, int]:
        """Writes packs, manifest and description; returns the counts."""
        self._check_ids()
        entries: list[Entry] = []
        packs: dict[str, zipfile.ZipFile] = {}
        try:
            with Progress(f"convert {self.name}", len(self.items), show=progress) as bar:
                for item, converted in zip(self.items, ahead(self._convert, self.items, workers), strict=True):
                    if converted.problems:
                        self.problems += converted.problems
                    else:
                        entries.append(self._write(packs, item, converted))
                        self.notes += [converted.note] if converted.note else []
                    bar.advance()
        finally:
            for pack in packs.values():
                pack.close()
        counts = {split: sum(split in entry.splits.split(";") for entry in entries) for split in self._splits()}
        self._check(counts)
        if self.notes:
            shown = ", ".join(self.notes[:3]) + (", ..." if len(self.notes) > 3 else "")
            print(f"{self.name}: {len(self.notes)} greyscale images, read as grey RGB: {shown}", file=sys.stderr)
        manifest = format_manifest(entries).encode()
        (self.new / MANIFEST).write_bytes(manifest)
        description = {
            "format": FORMAT,
            "adapter": self.adapter.name,
            "title": self.spec.title,
            "classes": list(self.adapter.classes),
            "palette": [list(colour) for colour in self.adapter.palette],
            "ignore_index": self.adapter.ignore_index,
            "storage": self.spec.storage,
            "counts": counts,
            "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
            "packs": {pack: (self.new / pack).stat().st_size for pack in sorted(packs)},
        }
        files.write_json(self.new / DESCRIPTION, description)
        return counts

    def _splits(self) -> list[str]:
        """Splits in the order of datasets.yaml, then what the tree has besides."""
        return list(dict.fromkeys([*self.spec.counts, *(split for item in self.items for split in item.splits)]))

    def _check_ids(self) -> None:
        seen: dict[str, Item] = {}
        for item in self.items:
            other = seen.setdefault(item.id.casefold(), item)
            if other is not item:
                self.problems.append(
                    f"{self._relative(item.image)}: the id {item.id!r} is also that of {self._relative(other.image)}"
                )
            if not SAFE_ID.fullmatch(item.id):
                self.problems.append(f"{self._relative(item.image)}: {item.id!r} is not an image id")

    def _check(self, counts: dict[str, int]) -> None:
        """Fails with everything that was found wrong, or with the counts that differ."""
        wrong = {split: count for split, count in self.spec.counts.items() if counts[split] != count}
        lines = []
        if self.problems:
            title = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
            lines.append(title + (f", the first {LISTED} of them" if len(self.problems) > LISTED else ""))
            lines += [f"  {problem}" for problem in self.problems[:LISTED]]
        for split, count in wrong.items():
            line = f"split {split}: {counts[split]} usable images, expected {count}"
            missing = self._missing(split, count)
            if missing:
                line += f"; missing {len(missing)}: {', '.join(missing[:SHOWN])}" + (
                    ", ..." if len(missing) > SHOWN else ""
                )
            lines.append(line)
        if lines:
            raise DataError(f"{self.name}: " + "\n".join(lines))

    def _missing(self, split: str, count: int) -> list[str]:
        if self.adapter.expected_ids is None:
            return []
        present = {item.id for item in self.items if split in item.splits}
        return [key for key in self.adapter.expected_ids(split, count) if key not in present]

    def _write(self, packs: dict[str, zipfile.ZipFile], item: Item, converted: _Converted) -> Entry:
        pack = f"{item.splits[0]}.zip"
        if pack not in packs:
            packs[pack] = zipfile.ZipFile(self.new / pack, "w", zipfile.ZIP_STORED)
        raw = self.spec.storage == "raw"
        image = f"images/{item.id}{converted.suffix}"
        mask = f"masks/{item.id}{'.npy' if raw else '.png'}" if item.mask is not None else ""
        packs[pack].writestr(files.zip_entry(image), converted.image)
        if mask:
            packs[pack].writestr(files.zip_entry(mask), converted.mask)
        return Entry(
            item.id,
            ";".join(item.splits),
            pack,
            image,
            mask,
            *converted.size,
            hashlib.sha256(converted.image).hexdigest(),
            hashlib.sha256(converted.mask).hexdigest() if mask else "",
            converted.class_pixels,
        )

    def _convert(self, item: Item) -> _Converted:
        """Checks and converts one image and mask; every problem is named, none raised."""
        name = self._relative(item.image)
        problems: list[str] = []
        data, size, note, mask = b"", None, None, None
        if item.image.is_file():
            data = item.image.read_bytes()
            size, mode = check_image(data, name, problems, grey=self.adapter.grey_images)
            note = name if mode == "L" else None
        else:
            problems.append(f"{name}: missing")
        if item.mask is not None and not item.mask.is_file():
            problems.append(f"{self._relative(item.mask)}: missing, for the image {item.id}")
        elif item.mask is not None:
            try:
                mask = self.adapter.read_mask(item.mask)
            except DataError as error:
                problems.append(str(error).replace(f"{self.scratch}/", ""))
        if mask is not None and size is not None and mask.shape != size:
            problems.append(
                f"{name}: is {size[0]}x{size[1]}, but its mask {mask.shape[0]}x{mask.shape[1]} (height x width)"
            )
        if problems or size is None:
            return _Converted(tuple(problems))
        raw = self.spec.storage == "raw"
        suffix = ".npy" if raw else ".png" if bit_depth(data) else ".jpg"
        if raw:
            pixels = decode_image(data)
            if pixels is None or pixels.shape != (*size, 3):
                return _Converted((f"{name}: OpenCV cannot decode it",))
            data = npy_bytes(pixels)
        encoded = b"" if mask is None else npy_bytes(mask) if raw else png_bytes(mask)
        return _Converted((), note, suffix, data, encoded, size, "" if mask is None else format_class_pixels(mask))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.scratch).as_posix() if path.is_relative_to(self.scratch) else str(path)
