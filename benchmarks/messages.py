"""Every kind of error, provoked: writes ``docs/messages.md`` with the message and the exit code of each.

    make messages                                # or: .venv/bin/python -m benchmarks.messages

Each example below brings about the real failure in an empty folder and keeps what was raised; nothing is typed in by
hand but the headings. ``tests/test_messages.py`` fails if the page and the messages differ. The stand-ins (a server
that fails in every way, a network of a few hundred parameters) are those of the tests.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import json
import math
import os
import pickle
import re
import shutil
import struct
import sys
import tarfile
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file

from danet.data import archives, download, drive
from danet.data.archives import Limits, unpack
from danet.data.convert import convert_dataset
from danet.data.download import Patience, check_redirect, download_dataset, fetch_file
from danet.data.prepared import PreparedDataset
from danet.errors import DanetError
from danet.evaluation.predict import read_image
from danet.files import write_text
from danet.models.segmentor import build_model
from danet.published import check_published
from danet.reproduce import reported_row
from danet.rows import BESIDE, load_params
from danet.runs import load_run
from danet.training.checkpoint import CheckpointStore
from danet.training.stop import StopRequest
from danet.training.train import train_row
from danet.weights.exchange import import_weights
from danet.weights.imagenet import load_imagenet
from danet.weights.ours import load_model, save_model
from danet.weights.reading import check_names, read_tensors
from danet.workspace import Workspace
from tests.data.samples import camvid_spec, camvid_tree, prepare, tar_of, zip_of
from tests.data.test_download import Handler, Server, Site
from tests.training import fakes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "messages.md"
HASTY = Patience(connect_s=2, read_s=0.2, window_s=0.2, window_bytes=1000, retries=1, backoff_s=0.01)
DATA = bytes(range(256)) * 4000
STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2)}

Example = Callable[[Path], object]
EXAMPLES: dict[str, dict[str, Example]] = {}
"""By stage, then by what is wrong; in the order of the page."""

STAGES = {
    "Settings": "`params.yaml`, `recipes/*.yaml` and the files beside them, read by every stage and command.",
    "Download": "The stage `download@DATASET`, and what `weights@NAME` and `released@ROW` fetch.",
    "Archives": "Unpacking, in the stage `convert@DATASET`.",
    "Images and masks": "The stage `convert@DATASET`: all offenders are in one message.",
    "Prepared data": "What training and evaluation read.",
    "Weights": "The stages `weights@NAME` and `released@ROW`, and the commands that take a weights file.",
    "Training": "The stage `train@ROW`.",
    "Results": "The stage `report@TABLE` and the commands that compare runs.",
}


def example(stage: str, title: str) -> Callable[[Example], Example]:
    """Registers a function that must raise a ``DanetError`` in the empty folder that it is given."""

    def register(function: Example) -> Example:
        EXAMPLES.setdefault(stage, {})[title] = function
        return function

    return register


# --- settings


def _settings(title: str, old: str, new: str, file: str = "params.yaml") -> None:
    """An example: the repository's own settings with one text replaced by another."""

    def provoke(folder: Path) -> object:
        for name in ("params.yaml", *BESIDE):
            shutil.copy(ROOT / name, folder / name)
        shutil.copytree(ROOT / "recipes", folder / "recipes")
        text = (folder / file).read_text(encoding="utf-8")
        assert old in text, f"{file} has no {old!r}"
        (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
        return load_params(folder / "params.yaml")

    example("Settings", title)(provoke)


@example("Settings", "Not in the repository's root")
def _(folder: Path) -> object:
    return load_params(folder / "params.yaml")


_settings("No YAML", "numerics:\n", "numerics: [\n", "numerics.yaml")
_settings("A key twice", "  tf32: false\n", "  tf32: false\n  tf32: true\n", "numerics.yaml")
_settings("A tag", "  tf32: false\n", "  tf32: !!python/object/apply:os.system [id]\n", "numerics.yaml")
_settings("A date where text is meant", "title: CamVid\n", "title: 2008-10-01\n", "datasets.yaml")
_settings("A number that is not finite", "trained: 0.5", "trained: .nan")
_settings("A number that is too large", "log_interval: 50", "log_interval: 99999999999999999999")
_settings("DVC's templating in a value", "title: CamVid\n", "title: ${rows}\n", "datasets.yaml")
_settings(
    "Aliases that multiply",
    "revisions:",
    "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcde", "bcdef", strict=True))
    + "revisions:",
    "numerics.yaml",
)
_settings("An unknown section", "bands:\n", "hands:\n")
_settings("A name that could reach a shell", "  camvid-r50-d8: ", '  "x; rm -rf ~": ')
_settings("A look-alike letter in a name", "  camvid-r50-d8: ", "  \u0441amvid-r50-d8: ")
_settings(
    "A file outside its folder",
    "file: resnet50_v1c-2cccc1ad.pth",
    "file: ../resnet50_v1c-2cccc1ad.pth",
    "datasets.yaml",
)
_settings("A misspelt setting", "  tf32: false\n", "  tf23: false\n", "numerics.yaml")
_settings("A value that is not allowed", "  precision: fp32\n", "  precision: int8\n", "numerics.yaml")
_settings("An unknown recipe", "recipe: clusterdanet", "recipe: clustredanet")
_settings(
    "Released weights of no row",
    "released:\n",
    "released:\n  no-row: {table: official, recipe: x, settings: y, dataset: camvid, file: w.pth}\n",
    "released.yaml",
)


@example("Settings", "An unknown row")
def _(folder: Path) -> object:
    return load_params(ROOT / "params.yaml").row("ssseg-r50-d8-voc2021")


# --- download


@contextmanager
def serving(**settings: Any) -> Iterator[Site]:
    """A local server with one file, ``/a.zip``, that fails as told."""
    site = Site(files={"/a.zip": DATA})
    for name, value in settings.items():
        setattr(site, name, value)
    server = Server(("127.0.0.1", 0), type("ThisHandler", (Handler,), {"site": site}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


def _served(title: str, checksum: str | None = None, **settings: Any) -> None:
    """An example: a download from :func:`serving`."""

    def provoke(folder: Path) -> None:
        with serving(**settings) as site:
            fetch_file(f"{site.url}/a.zip", checksum, folder / "a.zip", progress=False, patience=HASTY)

    example("Download", title)(provoke)


_served("Not there", status={"/a.zip": 404})
_served("Not allowed", status={"/a.zip": 403})
_served("The server is out of order", status={"/a.zip": 503})
_served("A login page with status 200", files={"/a.zip": b"<!DOCTYPE html><html>Please log in</html>"})
_served("An empty file", files={"/a.zip": b""})
_served("A body that is too short", cut=[700_000, 0])
_served("A length that does not come", forced={"Content-Length": "2000000"})
_served("No length and no checksum", forced={"Content-Length": None})
_served("Silence", hang=True)
_served("A slow drip", drip=0.01)
_served("A changed or damaged file", "sha256:" + "0" * 64)
_served("The same, where only the first digits are published", "sha256:00000000")
_served("Redirects in a circle", redirects={"/a.zip": "/a.zip"})
_served("A redirect to no address", redirects={"/a.zip": "http://[half"})
_served("A redirect to something else than http", redirects={"/a.zip": "file:///etc/passwd"})


@example("Download", "A redirect from https to http")
def _(folder: Path) -> None:
    check_redirect("https://user:secret@host/a.zip", "http://other/a.zip")


@example("Download", "No server")
def _(folder: Path) -> None:
    fetch_file("http://127.0.0.1:9/a.zip", None, folder / "a.zip", progress=False, patience=HASTY)


@example("Download", "No URL")
def _(folder: Path) -> None:
    fetch_file("nonsense", None, folder / "a.zip", progress=False, patience=HASTY)


@example("Download", "No space, seen before")
def _(folder: Path) -> None:
    usage = shutil.disk_usage(folder)._replace(free=100_000)
    with serving() as site, mock.patch.object(download.shutil, "disk_usage", return_value=usage):
        fetch_file(f"{site.url}/a.zip", None, folder / "a.zip", progress=False, patience=HASTY)


class _FullDisk(io.FileIO):
    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 300_000:
            super().write(bytes(data)[: 300_000 - self.tell()])
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@example("Download", "No space, while writing")
def _(folder: Path) -> None:
    original = Path.open

    def limited(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        return (
            _FullDisk(self, mode)
            if self.name.endswith(".part") and "b" in mode and "r" not in mode
            else original(self, mode, *rest, **named)
        )

    with serving() as site, mock.patch.object(Path, "open", limited):
        fetch_file(f"{site.url}/a.zip", None, folder / "a.zip", progress=False, patience=HASTY)


@example("Download", "Another process downloads the same")
def _(folder: Path) -> None:
    with FileLock(folder / ".camvid.lock"):
        download_dataset("camvid", camvid_spec(), folder / "camvid", archives=folder, progress=False)


@example("Download", "A wrong file placed by hand")
def _(folder: Path) -> None:
    (folder / "data" / "archives").mkdir(parents=True)
    (folder / "data" / "archives" / "archive.zip").write_bytes(b"<html>Please log in</html>")
    download_dataset("camvid", camvid_spec(), folder / "data/raw/camvid", archives=folder, progress=False)


@example("Download", "Cityscapes without credentials")
def _(folder: Path) -> None:
    spec = load_params(ROOT / "params.yaml").dataset("cityscapes")
    download_dataset("cityscapes", spec, folder / "data/raw/cityscapes", archives=folder, progress=False)


@example("Download", "A page of Google Drive")
def _(folder: Path) -> None:
    drive.page_target("https://drive.google.com/uc?id=1Xmp", "<title>Quota exceeded</title>", 200, "place it by hand")


# --- archives


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


def _archive(title: str, make: Callable[[Path], Path], **options: Any) -> None:
    """An example: unpacking what ``make`` writes into a folder."""
    example("Archives", title)(lambda folder: unpack(make(folder), folder / "out", progress=False, **options))


def _tar(title: str, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w", **options: Any) -> None:
    _archive(title, lambda folder: tar_of(folder / "a.tar", list(members), mode), **options)


def _changed(path: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def _encrypted(folder: Path) -> Path:
    def mark(data: bytearray) -> None:
        data[data.index(b"PK\1\2") + 8] |= 1

    return _changed(zip_of(folder / "a.zip", {"images/1.jpg": b"1"}), mark)


def _packed(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images/1.jpg", bytes(1000))
    return folder / "a.zip"


def _cut(folder: Path) -> Path:
    return _changed(zip_of(folder / "a.zip", {"images/1.jpg": DATA}), lambda data: data.__delitem__(slice(-100, None)))


def _backwards(folder: Path) -> Path:
    header = bytearray(_member("a").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (folder / "a.tar").write_bytes(bytes(header) + bytes(1024))
    return folder / "a.tar"


_archive("No archive", lambda folder: (folder / "a.zip").write_bytes(b"rubbish") and folder / "a.zip")
_archive("A cut archive", _cut)
_archive("An encrypted member", _encrypted)
_archive("A packer that official archives do not use", _packed)
_tar("A path that leads out", (_member("../../.bashrc"), b"1"))
_tar("An absolute path", (_member("/etc/passwd"), b"1"))
_tar("A name that no disk can hold", (_member("n" * 256), b"1"))
_tar("A link out of the tree", (_member("images/1.jpg", tarfile.SYMTYPE, "../../etc/passwd"), b""))
_tar("A hard link to nothing", (_member("images/1.jpg", tarfile.LNKTYPE, "images/0.jpg"), b""))
_tar("A device", (_member("images/1.jpg", tarfile.CHRTYPE), b""))
_tar("Two members of one name", (_member("a.jpg"), b"1"), (_member("a.jpg"), b"2"))
_tar("Two names that differ in case alone", (_member("a.jpg"), b"1"), (_member("A.jpg"), b"2"))
_tar("A bomb, by its ratio", (_member("zeros"), bytes(4 << 20)), mode="w:gz")
_tar("A bomb, by its size", (_member("a.jpg"), DATA), limits=Limits(total_bytes=1_000_000))
_tar("A bomb, by its members", *((_member(f"{index}.jpg"), b"") for index in range(5)), limits=Limits(members=4))
_archive("Headers that lead backwards", _backwards)


@example("Archives", "No room")
def _(folder: Path) -> None:
    usage = shutil.disk_usage(folder)._replace(free=100_000)
    with mock.patch.object(archives.shutil, "disk_usage", return_value=usage):
        unpack(zip_of(folder / "a.zip", {"images/1.jpg": DATA * 20}), folder / "out", progress=False)


# --- images and masks


def _conversion(title: str, damage: Callable[[Path], object], count: int = 3) -> None:
    """An example: the conversion of a CamVid folder of ``count`` images in each split after ``damage``."""

    def provoke(folder: Path) -> None:
        tree = camvid_tree(folder / "tree")
        damage(tree)
        prepare(tree, camvid_spec(count), folder)

    example("Images and masks", title)(provoke)


def _offenders(tree: Path) -> None:
    """One of each kind."""
    images = [tree / split / f"{split}_{index}.png" for split in ("train", "val") for index in range(3)]
    masks = [tree / "testannot" / f"test_{index}.png" for index in range(3)]
    images[0].write_bytes(b"")
    images[1].write_bytes(images[1].read_bytes()[:300])
    Image.new("CMYK", (16, 12)).save(images[2], "JPEG")
    Image.new("I;16", (16, 12)).save(images[3])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 12)).save(images[4], exif=exif)
    images[5].unlink()
    Image.fromarray(np.full((12, 16), 37, np.uint8)).save(masks[0])
    Image.fromarray(np.zeros((16, 12), np.uint8)).save(masks[1])
    Image.new("RGB", (16, 12)).save(masks[2])


_conversion("Nine offenders of nine kinds, at once", _offenders)
_conversion("Images missing", lambda tree: None, count=4)
_conversion("Another folder than the official one", lambda tree: (tree / "trainannot").rename(tree / "masks"))
_conversion(
    "An id that is no name",
    lambda tree: [(tree / part / "val_1.png").rename(tree / part / "$(x).png") for part in ("val", "valannot")],
)


@example("Images and masks", "Archives missing")
def _(folder: Path) -> None:
    convert_dataset(
        "camvid", camvid_spec(), folder / "data/raw/camvid", folder / "data/prepared/camvid", progress=False
    )


@example("Images and masks", "Names in the wrong case")
def _(folder: Path) -> None:
    tree = camvid_tree(folder / "CamVid")
    raw = folder / "data" / "raw" / "camvid"
    raw.mkdir(parents=True)
    with zipfile.ZipFile(raw / "archive.zip", "w") as archive:
        for path in sorted(path for path in tree.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder).as_posix().replace("val/val_1.png", "val/VAL_1.PNG"))
    convert_dataset("camvid", camvid_spec(), raw, folder / "data/prepared/camvid", progress=False)


# --- prepared data


def _opened(title: str, damage: Callable[[Path], object], split: str = "train") -> None:
    """An example: opening a prepared folder after ``damage``."""

    def provoke(folder: Path) -> None:
        prepared = prepare(camvid_tree(folder / "tree"), camvid_spec(), folder / "data")
        damage(prepared)
        samples = PreparedDataset(prepared, split)
        samples.image(0)

    example("Prepared data", title)(provoke)


def _manifest(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / "manifest.csv").read_text().replace(old, new, 1)
        (folder / "manifest.csv").write_text(text)
        facts = json.loads((folder / "dataset.json").read_text())
        facts["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        (folder / "dataset.json").write_text(json.dumps(facts))

    return change


def _flip(path: Path, place: int) -> Path:
    def flip(data: bytearray) -> None:
        data[place] ^= 0xFF

    return _changed(path, flip)


_opened("Not converted yet", shutil.rmtree)
_opened("No such split", lambda folder: None, "trainaug")
_opened("A changed manifest", lambda folder: (folder / "manifest.csv").write_text("rubbish"))
_opened("A size that cannot be", _manifest(",12,16,", ",0,16,"))
_opened("A description that is damaged", lambda folder: (folder / "dataset.json").write_text("{"))
_opened(
    "A pack that is cut", lambda folder: _changed(folder / "train.zip", lambda data: data.__delitem__(slice(-9, None)))
)
_opened("A member that is damaged", lambda folder: _flip(folder / "train.zip", 300))


# --- weights


class _Runs:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def _weights(title: str, value: object, name: str = "w.pth") -> None:
    """An example: reading a file with ``value`` in it, or these bytes."""

    def provoke(folder: Path) -> None:
        if isinstance(value, bytes):
            (folder / name).write_bytes(value)
        else:
            torch.save(value, folder / name)
        tensors = read_tensors(folder / name)
        check_names(folder / name, tensors, STATE, what="the network of this row", remedy="take another file")

    example("Weights", title)(provoke)


def _saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _safetensors(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


def _old_tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return stream.getvalue()


_weights("Code in a checkpoint", {"a.weight": _Runs()})
_weights("Code in a bare pickle", pickle.dumps(_Runs()))
_weights("The tar format of before 2017", _old_tar())
_weights("A cut file", _saved(STATE)[:700])
_weights("A web page", b"<!DOCTYPE html><html>Sign in</html>")
_weights("An empty file", b"")
_weights("No state dict", [1, 2])
_weights("The state of an optimizer", {"state": {}, "param_groups": []})
_weights("A view of terabytes", {"a.weight": torch.ones(1).expand(2**40)})
_weights("A sparse tensor", {"a.weight": torch.ones(2).to_sparse()})
_weights("Values that are not finite", {**STATE, "a.bias": torch.tensor([1.0, math.nan])})
_weights("Wrong shapes and names", {"a.weight": torch.ones(9, 9), "b.bias": torch.ones(2)})
_weights(
    "A safetensors header that lies",
    _safetensors(
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        }
    ),
    "w.safetensors",
)


@example("Weights", "A zip with a path that leads out")
def _(folder: Path) -> object:
    return read_tensors(zip_of(folder / "w.zip", {"../w.pth": b"1"}))


@example("Weights", "ImageNet weights of another depth")
def _(folder: Path) -> None:
    names = [
        f"layer{stage}.{block}.conv3.weight" for stage, blocks in enumerate((3, 4, 23, 3), 1) for block in range(blocks)
    ]
    torch.save({name: torch.zeros(1) for name in names}, folder / "w.pth")
    load_imagenet(folder / "w.pth", "resnet50", "7x7")


@example("Weights", "Trained weights of another row")
def _(folder: Path) -> None:
    params = load_params(ROOT / "params.yaml")
    config = params.row("ssseg-r50-d8-voc2012").model
    small = {key: torch.zeros(1) for key in ("x",)}
    facts = {"format": "danet-1", "num_classes": "21", "backbone": "resnet101", "method": "danet"}
    save_file(small, folder / "seed0.safetensors", {"danet": json.dumps(facts)})
    with torch.device("meta"):
        model = build_model(config, 21)
    load_model(folder / "seed0.safetensors", model)


@example("Weights", "A checkpoint of no known source")
def _(folder: Path) -> None:
    torch.save(STATE, folder / "w.pth")
    import_weights(
        folder / "w.pth", folder / "out.safetensors", load_params(ROOT / "params.yaml"), row="ssseg-r50-d8-voc2012"
    )


@example("Weights", "Weights of a training that diverged are not written")
def _(folder: Path) -> None:
    model = build_model(load_params(ROOT / "params.yaml").row("ssseg-r50-d8-voc2012").model, 21)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    save_model(folder / "seed0.safetensors", model, {})


# --- training


def _trained(title: str, network: Callable[[], torch.nn.Module] = fakes.TinyNet, **sections: Any) -> None:
    """An example: a training of a few hundred parameters."""
    example("Training", title)(
        lambda folder: fakes.trainer(fakes.tiny_row(**sections), folder / "checkpoints", model=network()).run()
    )


class _Huge(fakes.TinyNet):  # type: ignore[misc]
    def forward(self, images: torch.Tensor) -> Any:
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().forward(images)  # type: ignore[no-untyped-call]


_trained("Out of memory", _Huge)
_trained("A loss that is not finite", optimizer={"lr": 1e30})


@example("Training", "Stopped by a signal")
def _(folder: Path) -> None:
    stop = StopRequest()
    stop.reason = "SIGTERM"
    fakes.trainer(fakes.tiny_row(), folder / "checkpoints", stop=stop).run()


@example("Training", "A checkpoint of another run")
def _(folder: Path) -> None:
    with suppress(DanetError):
        EXAMPLES["Training"]["Stopped by a signal"](folder)
    CheckpointStore(folder / "checkpoints", fakes.tiny_row(optimizer={"lr": 0.07}), 0).load()


@example("Training", "No room for a checkpoint")
def _(folder: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    usage = shutil.disk_usage(folder)._replace(free=100_000)
    with mock.patch.object(torch, "save", full), mock.patch.object(shutil, "disk_usage", return_value=usage):
        EXAMPLES["Training"]["Stopped by a signal"](folder)


@example("Training", "An unknown device")
def _(folder: Path) -> None:
    train_row(fakes.tiny_row(), Workspace(folder), device="gpu7")


@example("Training", "A GPU that is not there")
def _(folder: Path) -> None:
    train_row(fakes.tiny_row(), Workspace(folder), device="cuda:99")


# --- evaluation and reports


@example("Results", "A report that is no report")
def _(folder: Path) -> None:
    (folder / "table.json").write_text("[]")
    reported_row(folder / "table.json", "camvid-r50-d8")


@example("Results", "A number in a report that cannot be")
def _(folder: Path) -> None:
    row = {"row": "camvid-r50-d8", "status": "measured", "measured": {"miou": 101, "seeds": [0]}}
    (folder / "table.json").write_text(json.dumps({"format": 1, "rows": [row]}))
    reported_row(folder / "table.json", "camvid-r50-d8")


@example("Results", "A published number without its row")
def _(folder: Path) -> None:
    (folder / "published.yaml").write_text("no-such-row: {miou: 80.0}\n")
    check_published(load_params(ROOT / "params.yaml"), folder / "published.yaml")


@example("Results", "A run that was not evaluated")
def _(folder: Path) -> None:
    load_run(str(folder / "evaluation.json"), Workspace(folder))


@example("Results", "A photograph for `danet predict` that is cut off")
def _(folder: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "a.jpg")
    _changed(folder / "a.jpg", lambda data: data.__delitem__(slice(-900, None)))
    read_image(folder / "a.jpg")


# --- the page


def provoke(function: Example) -> DanetError:
    """What an example raises; fails if it raises nothing, or anything else."""
    hidden = {name: value for name, value in os.environ.items() if not name.startswith(("DANET_", "CITYSCAPES_"))}
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, hidden, clear=True):
        folder = Path(name).resolve()
        try:
            function(folder)
        except DanetError as error:
            error.args = (_stable(str(error), folder),)
            return error
    raise AssertionError("the example raised nothing")


def _stable(text: str, folder: Path) -> str:
    """Without what differs from run to run, or with every setting that is added: folders, ports, lines, hashes."""
    text = text.replace(f"{folder}/", "").replace(str(folder), ".").replace(f"{ROOT}/", "")
    text = re.sub(r"http://127\.0\.0\.1:(?!9/)\d+", "http://server", text)
    text = re.sub(r"stalled: \d+ bytes", "stalled: 200 bytes", text)
    text = (
        re.sub(r"\(\d attempts, \d+ bytes so far\)", "(2 attempts, 400 bytes so far)", text)
        if "stalled: 200" in text
        else text
    )
    text = re.sub(r"\(\d+ GPUs found\)", "(0 GPUs found)", text)
    text = re.sub(r"(params\.yaml\"?[:,] line) \d+", r"\1 12", text)  # a row more in that file is no other message
    text = re.sub(r"'[0-9a-f]{12}'", "'0123456789ab'", text)
    return re.sub(r"[\d,]+ free;", "100,000 free;", text)


def page() -> str:
    """``docs/messages.md``."""
    lines = [
        "# Messages",
        "",
        "What is refused, in the words that appear. Written by `make messages`, which provokes each error and keeps",
        "what was said; do not edit. Paths are shown without the folder of the example.",
        "",
        "| exit code | class | meaning |",
        "|-:|-|-|",
        *(f"| {kind.exit_code} | `{kind.__name__}` | {(kind.__doc__ or '').splitlines()[0]} |" for kind in _kinds()),
        "",
        "Every message is one error of `danet.errors`, printed behind `error:` (`stopped:` for exit code 75) on",
        "standard error. `DANET_DEBUG=1` adds the traceback. A traceback without it is a bug: please report it.",
    ]
    for stage, what in STAGES.items():
        lines += ["", f"## {stage}", "", what]
        for title, function in EXAMPLES[stage].items():
            try:
                error = provoke(function)
            except Exception as failure:
                raise RuntimeError(f"example {stage!r}, {title!r}: {type(failure).__name__}: {failure}") from failure
            lines += ["", f"**{title}** (`{type(error).__name__}`, exit code {error.exit_code})", "", "```text"]
            lines += [*str(error).splitlines(), "```"]
    return "\n".join(lines) + "\n"


def _kinds() -> list[type[DanetError]]:
    found, queue = [], [DanetError]
    while queue:
        kind = queue.pop(0)
        found.append(kind)
        queue += kind.__subclasses__()
    return sorted(found, key=lambda kind: (kind.exit_code, kind.__name__))


def main() -> int:
    """Writes the page; with ``--check`` only says whether it is what it should be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.messages", description="Provoke every error.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    arguments = parser.parse_args()
    with warnings.catch_warnings(action="ignore"):
        text = page()
    if arguments.check:
        return 0 if PAGE.read_text(encoding="utf-8") == text else 1
    write_text(PAGE, text)
    print(f"messages: {sum(map(len, EXAMPLES.values()))} examples; {PAGE.relative_to(ROOT)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
