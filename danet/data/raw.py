"""The archives of a dataset in ``data/raw/DATASET``: taken, and compared with where they were taken from.

Either the official archives (:mod:`danet.acquire.sources` says where they come from), or ``tree.zip``, packed from the
unpacked official folder that ``DANET_<DATASET>`` (as ``DANET_CAMVID``) names.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import zipfile
import zlib
from pathlib import Path

from danet.acquire.http import wrong
from danet.acquire.sources import Wanted, folder_variable, obtain, sources, unpacked_folder
from danet.config.params import Archive, Dataset
from danet.config.workspace import Workspace
from danet.core import files
from danet.core.errors import DataError, DownloadError
from danet.core.progress import Progress
from danet.data.layout import DatasetSpec
from danet.data.registry import ADAPTERS

TREE = "tree.zip"


def download_dataset(name: str, spec: Dataset, out: Path, archives: Path, *, tree: Path | None = None) -> None:
    """Brings the archives of a dataset into the folder ``out``.

    One that is there and right stays. Without a checksum one that a folder of ``archives`` holds is taken instead. An
    unpacked official folder ``tree``, by default the one that the environment names, is packed instead of them.

    Raises:
        DownloadError: saying for each source why it did not serve, and what to do.
        DataError: if ``tree`` is not the dataset's official folder.
    """
    tree = tree or unpacked_folder(name)
    problems = []
    if tree is not None:
        if not tree.is_dir():
            raise DownloadError(f"{tree}: no such folder; correct or unset {folder_variable(name)}")
        pack_tree(ADAPTERS[spec.adapter], tree, out / TREE)
    for archive in spec.archives if tree is None else ():
        try:
            _take(wanted_of(name, archive), out / archive.file, archives)
        except DownloadError as error:
            problems.append(str(error))
    if problems:
        raise DownloadError(f"{name}: " + "\n".join(problems))
    expected = {archive.file for archive in spec.archives} if tree is None else {TREE}
    for path in out.glob("*"):
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


def _take(wanted: Wanted, target: Path, archives: Path) -> None:
    placed = any(source.path for source in sources(wanted, archives))
    if target.is_file() and (wanted.checksum or not placed) and wrong(target, wanted.checksum) is None:
        return
    path, _ = obtain(wanted, target, archives)
    if path != target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(path.resolve(), target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, target)


def pack_tree(adapter: DatasetSpec, tree: Path, path: Path) -> None:
    """Writes the files that ``adapter`` needs of an unpacked official folder into a zip in official layout.

    Stored, sorted, with fixed time stamps: the same tree gives the same bytes. Links to files are followed. What is
    missing is convert's to report.

    Raises:
        DataError: if the tree has not the dataset's layout or none of its files.
    """
    members = _members(adapter, tree)
    if not members:
        raise DataError(f"{tree}: has none of the files of {adapter.name}")
    with (
        files.atomic_write(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        Progress(f"pack {tree.name}", len(members), "files") as bar,
    ):
        for name in sorted(members):
            archive.writestr(files.zip_entry(name), members[name].read_bytes())
            bar.advance()


def _members(adapter: DatasetSpec, tree: Path) -> dict[str, Path]:
    """Official name -> file, of what is needed and there."""
    located = adapter.locate(tree)
    needed = [folder / name for folder in located.values() for name in adapter.lists]
    needed += [path for item in adapter.layout(located) for path in (item.image, item.mask) if path]
    members: dict[str, Path] = {}
    for file in filter(Path.is_file, needed):
        prefix, folder = next((prefix, folder) for prefix, folder in located.items() if file.is_relative_to(folder))
        members[f"{prefix}/{file.relative_to(folder).as_posix()}"] = file
    return members


def refuse_changed_source(workspace: Workspace, name: str) -> None:
    """Stops where a folder or archive that is named is not what ``data/raw/NAME`` was made from.

    DVC does not see the environment and ``data/archives``, so a change would be taken for "up to date".

    Raises:
        DataError: naming the difference and the commands.
    """
    spec, raw, tree = workspace.params().dataset(name), workspace.raw(name), unpacked_folder(name)
    difference = None
    if tree is not None and tree.is_dir() and taken(spec, raw):
        difference = _changed_tree(name, ADAPTERS[spec.adapter], tree, raw / TREE)
    elif tree is None and not (raw / TREE).is_file():
        difference = _changed_archive(name, spec, raw, workspace.archives())
    if difference:
        raise DataError(
            f"{name}: {difference}; to use it run `dvc repro -f -s download@{name}` and then this again, to go on with "
            f"what {raw} holds, unset {folder_variable(name)} or remove that file"
        )


def _changed_tree(name: str, adapter: DatasetSpec, tree: Path, packed: Path) -> str | None:
    if not packed.is_file():
        return f"{folder_variable(name)} names {tree}, but {packed.parent} was not taken from a folder"
    members = _members(adapter, tree)
    with zipfile.ZipFile(packed) as archive:
        known = {info.filename: (info.file_size, info.CRC) for info in archive.infolist()}
    different = sorted(members.keys() ^ known.keys())
    for member in members.keys() & known.keys():
        data = members[member].read_bytes()
        if (len(data), zlib.crc32(data)) != known[member]:
            different.append(member)
    count = len(different)
    return f"{tree} differs from what was taken of it in {count} files, as {different[0]}" if count else None


def _changed_archive(name: str, spec: Dataset, raw: Path, archives: Path) -> str | None:
    for archive in spec.archives:
        local = next((source.path for source in sources(wanted_of(name, archive), archives) if source.path), None)
        present = raw / archive.file
        if archive.checksum is None and local and present.is_file() and not filecmp.cmp(local, present, shallow=False):
            return f"{local} is not the archive that was taken"
    return None
