"""The archives of a dataset in ``data/raw/DATASET``: taken, checked, and compared with where they were taken from.

Either the official archives (:mod:`danet.acquire.sources` says where they come from), or ``tree.zip``, packed from the
unpacked official folder that ``DANET_<DATASET>`` (as ``DANET_CAMVID``) names. ``SOURCE.json`` beside them says which.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

from danet.acquire.http import checksum_matches, public
from danet.acquire.sources import Places, Wanted, folder_variable, obtain, sources, unpacked_folder
from danet.acquire.unpack import damage
from danet.config.params import Archive, Dataset
from danet.config.workspace import Workspace
from danet.core import files
from danet.core.errors import DataError, DownloadError
from danet.core.progress import Progress
from danet.data.layout import DatasetSpec
from danet.data.registry import ADAPTERS

SOURCE = "SOURCE.json"
TREE = "tree.zip"


def download_dataset(
    name: str,
    spec: Dataset,
    out: Path,
    *,
    places: Places | None = None,
    tree: Path | None = None,
    progress: bool = True,
) -> None:
    """Brings the archives of a dataset into the folder ``out``, with ``out/SOURCE.json`` saying where each came from.

    ``out`` appears, or changes, only when all are there and right. An archive that ``out`` has already stays, unless a
    folder has another one. Files are looked for in ``places``, or ``tree`` (the unpacked official folder) is packed; by
    default as the environment says.

    Raises:
        DownloadError: saying for each source why it did not serve, and what to do.
        DataError: if ``tree`` is not the dataset's official folder.
    """
    if places is None and tree is None:
        tree = unpacked_folder(name)
    staging = out.with_name(f".{out.name}.download")
    staging.mkdir(parents=True, exist_ok=True)
    old = _recorded(out)
    records, problems = [], []
    if tree is not None:
        if not tree.is_dir():
            raise DownloadError(f"{tree}: no such folder; correct or unset {folder_variable(name)}")
        pack_tree(ADAPTERS[spec.adapter], tree, staging / TREE, progress=progress)
        records.append(_record(staging / TREE, "tree", None))
    else:
        for archive in spec.archives:
            wanted = wanted_of(name, archive)
            where = places or Places.here(out.parent.parent / "archives")
            try:
                records.append(_take(wanted, where, out / archive.file, old.get(archive.file), staging, progress))
            except DownloadError as error:
                problems.append(str(error))
    if problems:
        packed = f"; {out} was packed from a folder and stays" if TREE in old else ""
        raise DownloadError(f"{name}: " + "\n".join(problems) + packed)
    expected = {str(record["file"]) for record in records}
    for path in staging.iterdir():
        if path.name not in expected:
            path.unlink()
    files.write_json(staging / SOURCE, {"format": 1, "dataset": name, "archives": records})
    files.replace_folder(staging, out)


def _take(
    wanted: Wanted, places: Places, present: Path, old: dict[str, Any] | None, staging: Path, progress: bool
) -> dict[str, Any]:
    """Puts one archive into ``staging``: what ``data/raw`` has already, what a folder has, or a download."""
    target = staging / wanted.file
    local = next((source for source in sources(wanted, places) if source.path is not None), None)
    if old and present.is_file() and (wanted.checksum or local is None):
        same = old["url"] in (None, wanted.url) or old["from"] != "url"
        if same and checksum_matches(present, wanted.checksum or f"sha256:{old['sha256']}"):
            _link_or_copy(present.resolve(), target)
            return old
    if wanted.checksum is None:
        target.unlink(missing_ok=True)
    path, source = obtain(wanted, target, places, check=damage, progress=progress)
    if path != target:
        _link_or_copy(path.resolve(), target)
    return _record(target, source.kind, source.url)


def _record(path: Path, kind: str, url: str | None) -> dict[str, Any]:
    """The entry of SOURCE.json. Nothing in it depends on the time, so that the same archives give the same folder."""
    size, address = path.stat().st_size, public(url) if url is not None else None
    return {"file": path.name, "from": kind, "url": address, "sha256": files.sha256(path), "bytes": size}


def wanted_of(name: str, archive: Archive) -> Wanted:
    """An archive, for :mod:`danet.acquire.sources`."""
    return Wanted(archive.file, name, archive.url, archive.checksum, archive.package)


def refuse_changed_source(workspace: Workspace, name: str) -> None:
    """Stops where a folder or archive that the environment names is not what ``data/raw/NAME`` was made from.

    DVC does not see the environment, so without this a change would be taken for "up to date". Contents are compared.

    Raises:
        DataError: naming the difference and the commands.
    """
    difference = changed_source(workspace, name)
    if difference is not None:
        raise DataError(
            f"{name}: {difference}; to use it run `dvc repro -f -s download@{name}` and then this again, to go on with "
            f"what {workspace.raw(name)} holds, unset {folder_variable(name)} or remove that file"
        )


def changed_source(workspace: Workspace, name: str, *, contents: bool = True) -> str | None:
    """How what the environment names differs from ``data/raw/NAME``; None if it does not, or names nothing.

    Without ``contents`` names and sizes alone are compared.
    """
    raw = workspace.raw(name)
    recorded = _recorded(raw)
    tree = unpacked_folder(name)
    if not recorded or (tree is not None and not tree.is_dir()):
        return None
    spec = workspace.params().dataset(name)
    if tree is not None:
        if TREE not in recorded:
            return f"{folder_variable(name)} names {tree}, but {raw} was not taken from a folder"
        difference = _compare_tree(ADAPTERS[spec.adapter], tree, raw / TREE, contents)
        return f"{tree} differs from what was taken of it: {difference}" if difference else None
    for archive in spec.archives:
        if archive.checksum is not None or archive.file not in recorded:
            continue  # there is only one such file
        local = next(sources(wanted_of(name, archive), Places.here(workspace.archives())), None)
        if local is None or local.path is None:
            continue
        old = recorded[archive.file]
        same = local.path.stat().st_size == old["bytes"]
        if not same or (contents and files.sha256(local.path) != old["sha256"]):
            return f"{local.path} is not the archive that was taken"
    return None


def _compare_tree(adapter: DatasetSpec, tree: Path, packed: Path, contents: bool) -> str | None:
    members = _members(adapter, tree)
    with zipfile.ZipFile(packed) as archive:
        known = {info.filename: info for info in archive.infolist()}
    different = sorted(members.keys() ^ known.keys())
    for member, file in members.items():
        info = known.get(member)
        same = info is None or file.stat().st_size == info.file_size
        if not same or (info is not None and contents and zlib.crc32(file.read_bytes()) != info.CRC):
            different.append(member)
    return f"{len(different)} files, as {different[0]}" if different else None


def _recorded(raw: Path) -> dict[str, dict[str, Any]]:
    try:
        recorded = json.loads((raw / SOURCE).read_text(encoding="utf-8"))["archives"]
        return {entry["file"]: entry for entry in recorded}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def pack_tree(adapter: DatasetSpec, tree: Path, path: Path, *, progress: bool = True) -> None:
    """Writes the files that ``adapter`` needs of an unpacked official folder into a zip in official layout.

    Stored, sorted, with fixed time stamps: the same tree gives the same bytes. Links to files are followed.

    Raises:
        DataError: if the tree has not the dataset's layout or none of its files.
    """
    members = _members(adapter, tree)
    if not members:
        raise DataError(f"{tree}: has none of the files of {adapter.name}")
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        Progress(f"pack {tree.name}", len(members), "files", show=progress) as bar,
    ):
        for name in sorted(members):
            archive.writestr(files.zip_entry(name), members[name].read_bytes())
            bar.advance()


def _members(adapter: DatasetSpec, tree: Path) -> dict[str, Path]:
    """Official name -> file, of what is needed and there; what is missing is convert's to report."""
    located = adapter.locate(tree)
    found = adapter.layout(located)
    needed = [*found.lists, *(item.image for item in found.items), *(item.mask for item in found.items if item.mask)]
    members: dict[str, Path] = {}
    for file in needed:
        prefix, folder = next((prefix, folder) for prefix, folder in located.items() if file.is_relative_to(folder))
        if file.is_file():
            members[f"{prefix}/{file.relative_to(folder).as_posix()}"] = file
    return members
