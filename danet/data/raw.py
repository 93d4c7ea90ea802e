"""The archives of a dataset in ``data/raw/DATASET``.

Either the official archives (:mod:`danet.acquire.sources` says where they come from), or ``tree.zip``, packed from the
unpacked official folder that ``DANET_<DATASET>`` (as ``DANET_CAMVID``) names.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from danet.acquire.sources import Wanted, folder_variable, obtain, sources, unpacked_folder, wrong
from danet.config.params import Archive, Dataset
from danet.core import files
from danet.core.errors import DataError, DownloadError
from danet.core.progress import Progress
from danet.data.layout import DatasetSpec
from danet.data.registry import ADAPTERS

TREE = "tree.zip"


def download_dataset(
    name: str, spec: Dataset, out: Path, archives: Path, *, tree: Path | None = None, progress: bool = True
) -> None:
    """Brings the archives of a dataset into the folder ``out``.

    One that is there and right stays. Without a checksum one that a folder of archives holds is taken instead.

    Args:
        name: key in ``datasets.yaml``.
        spec: its entry.
        out: ``data/raw/DATASET``.
        archives: ``data/archives``.
        tree: the unpacked official folder to pack instead; by default the one that the environment names.
        progress: whether to show it.

    Raises:
        DownloadError: saying for each source why it did not serve, and what to do.
        DataError: if ``tree`` is not the dataset's official folder.
    """
    tree = tree or unpacked_folder(name)
    out.mkdir(parents=True, exist_ok=True)
    problems = []
    if tree is not None:
        if not tree.is_dir():
            raise DownloadError(f"{tree}: no such folder; correct or unset {folder_variable(name)}")
        pack_tree(ADAPTERS[spec.adapter], tree, out / TREE, progress=progress)
    for archive in spec.archives if tree is None else ():
        try:
            _take(wanted_of(name, archive), out / archive.file, archives, progress)
        except DownloadError as error:
            problems.append(str(error))
    if problems:
        raise DownloadError(f"{name}: " + "\n".join(problems))
    expected = {archive.file for archive in spec.archives} if tree is None else {TREE}
    for path in out.iterdir():
        if path.name not in expected:
            path.unlink()


def taken(spec: Dataset, raw: Path) -> list[Path]:
    """What there is to convert in ``data/raw/DATASET``: ``tree.zip``, or all archives; nothing if one is missing."""
    if (raw / TREE).is_file():
        return [raw / TREE]
    paths = [raw / archive.file for archive in spec.archives]
    return paths if all(path.is_file() for path in paths) else []


def wanted_of(name: str, archive: Archive) -> Wanted:
    """An archive, for :mod:`danet.acquire.sources`."""
    return Wanted(archive.file, name, archive.url, archive.checksum, archive.package)


def _take(wanted: Wanted, target: Path, archives: Path, progress: bool) -> None:
    placed = any(source.path for source in sources(wanted, archives))
    if target.is_file() and (wanted.checksum or not placed) and wrong(target, wanted) is None:
        return
    path, _ = obtain(wanted, target, archives, progress=progress)
    if path != target:
        target.unlink(missing_ok=True)
        try:
            os.link(path.resolve(), target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, target)


def pack_tree(adapter: DatasetSpec, tree: Path, path: Path, *, progress: bool = True) -> None:
    """Writes the files that ``adapter`` needs of an unpacked official folder into a zip in official layout.

    Stored, sorted, with fixed time stamps: the same tree gives the same bytes. Links to files are followed. What is
    missing is convert's to report.

    Raises:
        DataError: if the tree has not the dataset's layout or none of its files.
    """
    located = adapter.locate(tree)
    found = adapter.layout(located)
    needed = [*found.lists, *(item.image for item in found.items), *(item.mask for item in found.items if item.mask)]
    members: dict[str, Path] = {}
    for file in filter(Path.is_file, needed):
        prefix, folder = next((prefix, folder) for prefix, folder in located.items() if file.is_relative_to(folder))
        members[f"{prefix}/{file.relative_to(folder).as_posix()}"] = file
    if not members:
        raise DataError(f"{tree}: has none of the files of {adapter.name}")
    with (
        files.atomic_write(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        Progress(f"pack {tree.name}", len(members), "files", show=progress) as bar,
    ):
        for name in sorted(members):
            archive.writestr(files.zip_entry(name), members[name].read_bytes())
            bar.advance()
