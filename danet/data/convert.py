"""Archives of a dataset -> its prepared form, checking every file on the way.

A file that cannot be used does not stop the conversion: the rest is looked at, all offenders are listed at once, and
then it fails. The result appears only when everything is right, and the same archives give the same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from danet.acquire.unpack import unpack
from danet.config.params import Dataset
from danet.core import files
from danet.core.errors import DataError
from danet.core.parallel import ahead
from danet.core.progress import Progress
from danet.core.provenance import cpu_cores
from danet.data.layout import DatasetSpec, Item, check_image
from danet.data.prepared import (
    DESCRIPTION,
    MANIFEST,
    Description,
    Entry,
    decode,
    format_class_pixels,
    format_manifest,
    npy_bytes,
    png_bytes,
)
from danet.data.raw import taken
from danet.data.registry import ADAPTERS

LISTED = 200
"""Offenders in a message."""

_Converted = tuple[Entry, bytes, bytes]
"""The line of the manifest, and the bytes of image and mask."""


def convert_dataset(name: str, spec: Dataset, raw: Path, out: Path) -> dict[str, int]:
    """Converts the archives in the folder ``raw`` (of :func:`danet.data.raw.download_dataset`) into ``out``.

    Returns the number of images per split.

    Raises:
        DataError: if archives are missing, files are unusable (all are listed) or counts differ from ``spec.counts``.
        ArchiveError: if an archive is damaged or hostile. In all cases ``out`` is as it was.
    """
    again = f"run `dvc repro -f -s download@{name}` to take it again, then `dvc repro convert@{name}`"
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
            wanted_member = ADAPTERS[spec.adapter].wanted.search
            unpack(archive, scratch / archive.name, wanted=wanted_member, remedy=again)
        try:
            counts = _write(name, spec, scratch, new)
        except DataError as error:  # the scratch folder is gone when this is read
            text = str(error).replace(f"{scratch}/", "").replace(str(scratch), str(raw))
            raise DataError(
                f"{text}\nfix the folder or archive that {name} was taken from, {again}; if datasets.{name} in "
                "datasets.yaml is wrong, correct it and run the last"
            ) from error
        files.replace_folder(new, out)
        return counts
    except OSError as error:
        problem = error.strerror or error
        raise DataError(f"{out}: cannot be written ({problem}); fix that and run `dvc repro convert@{name}`") from error
    finally:
        for folder in (scratch, new):
            shutil.rmtree(folder, ignore_errors=True)


def _write(name: str, spec: Dataset, tree: Path, new: Path) -> dict[str, int]:
    """Writes packs, manifest and description of an unpacked dataset into ``new``; returns the counts."""
    adapter = ADAPTERS[spec.adapter]
    items = adapter.layout(adapter.locate(tree))
    problems = _twice(items)
    entries: list[Entry] = []
    packs: dict[str, zipfile.ZipFile] = {}
    with ExitStack() as stack, Progress(f"convert {name}", len(items)) as bar:
        for converted in ahead(partial(_convert, adapter, spec.storage), items, min(cpu_cores(), 8)):
            bar.advance()
            if isinstance(converted, list):
                problems += converted
                continue
            entry, image, mask = converted
            if entry.pack not in packs:
                pack = zipfile.ZipFile(new / entry.pack, "w", zipfile.ZIP_STORED)
                packs[entry.pack] = stack.enter_context(pack)
            packs[entry.pack].writestr(files.zip_entry(entry.image), image)
            if entry.mask:
                packs[entry.pack].writestr(files.zip_entry(entry.mask), mask)
            entries.append(entry)
    splits = dict.fromkeys([*spec.counts, *(split for item in items for split in item.splits)])
    counts = {split: sum(split in entry.splits.split(";") for entry in entries) for split in splits}
    _refuse(name, problems, counts, spec.counts)
    manifest = format_manifest(entries).encode()
    (new / MANIFEST).write_bytes(manifest)
    description = Description(
        adapter=adapter.name,
        title=spec.title,
        classes=adapter.classes,
        palette=adapter.palette,
        storage=spec.storage,
        counts=counts,
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        packs={pack: (new / pack).stat().st_size for pack in sorted(packs)},
    )
    files.write_json(new / DESCRIPTION, description.model_dump(mode="json"))
    return counts


def _twice(items: Sequence[Item]) -> list[str]:
    first = {item.id: item for item in reversed(items)}
    return [
        f"{item.image}: the id {item.id!r} is also that of {first[item.id].image}"
        for item in items
        if first[item.id] is not item
    ]


def _refuse(name: str, problems: Sequence[str], counts: dict[str, int], wanted: dict[str, int]) -> None:
    """Fails with everything that was found wrong, and with the counts that differ."""
    lines = []
    if problems:
        title = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        lines.append(title + (f", the first {LISTED} of them" if len(problems) > LISTED else ""))
        lines += [f"  {problem}" for problem in problems[:LISTED]]
    for split, count in wanted.items():
        if counts[split] != count:
            lines.append(f"split {split}: {counts[split]} usable images, expected {count}")
    if lines:
        raise DataError(f"{name}: " + "\n".join(lines))


def _convert(adapter: DatasetSpec, storage: str, item: Item) -> _Converted | list[str]:
    """Checks and converts one image and mask; every problem is named, none raised."""
    problems: list[str] = []
    data, size, mask = b"", None, None
    try:
        data = item.image.read_bytes()
        size = check_image(data, str(item.image), grey=adapter.grey_images)
    except FileNotFoundError:
        problems.append(f"{item.image}: missing")
    except DataError as error:
        problems.append(str(error))
    if item.mask is not None and not item.mask.is_file():
        problems.append(f"{item.mask}: missing, for the image {item.id}")
    elif item.mask is not None:
        try:
            mask = adapter.read_mask(item.mask)
        except DataError as error:
            problems.append(str(error))
    if mask is not None and size is not None and mask.shape != size:
        problems.append(
            f"{item.image}: is {size[0]}x{size[1]}, but its mask {mask.shape[0]}x{mask.shape[1]} (height x width)"
        )
    if problems or size is None:
        return problems
    raw = storage == "raw"
    suffix = ".npy" if raw else ".png" if data.startswith(b"\x89PNG") else ".jpg"
    if raw:
        pixels = decode(data, colour=True)
        if pixels is None or pixels.shape != (*size, 3):
            return [f"{item.image}: OpenCV cannot decode it"]
        data = npy_bytes(pixels)
    encoded = b"" if mask is None else npy_bytes(mask) if raw else png_bytes(mask)
    entry = Entry(
        item.id,
        ";".join(item.splits),
        f"{item.splits[0]}.zip",
        f"images/{item.id}{suffix}",
        "" if mask is None else f"masks/{item.id}{'.npy' if raw else '.png'}",
        *size,
        hashlib.sha256(data).hexdigest(),
        "" if mask is None else hashlib.sha256(encoded).hexdigest(),
        "" if mask is None else format_class_pixels(mask),
    )
    return entry, data, encoded
