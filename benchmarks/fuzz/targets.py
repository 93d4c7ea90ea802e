"""The readers under test: for each its seeds, its share of the cases and how bytes reach it."""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import itertools
import json
import pickle
import shutil
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save as save_safetensors

from danet import rows
from danet.data import layout
from danet.data.archives import Limits, unpack
from danet.data.drive import page_target
from danet.data.prepared import Entry, PreparedDataset, format_manifest, npy_bytes, png_bytes
from danet.errors import DanetError, DataError
from danet.plain_yaml import load_mapping
from danet.report import measured
from danet.reproduce import reported_row
from danet.training.checkpoint import Checkpoint, CheckpointStore
from danet.weights.ours import config_of, metadata_of, read_model
from danet.weights.reading import check_names, read_tensors
from danet.workspace import Workspace

LIMITS = Limits(total_bytes=64 << 20, members=2000)
"""Small ones, so that bombs are refused in milliseconds."""


@dataclass(frozen=True)
class Target:
    """A reader. ``prepare`` makes, in an empty folder of its own, the function that is given the bytes of each case."""

    name: str
    what: str
    share: float
    """Of all cases."""
    seeds: Callable[[], list[bytes]]
    prepare: Callable[[Path], Callable[[bytes], None]]
    tokens: tuple[bytes, ...] = ()
    """Dictionary for the mutations."""
    max_length: int = 4096


class Escaped(BaseException):
    """A reader did what it must never do (no ``Exception``, since readers catch those)."""


class Guard:
    """Watches what Python does while a case runs, and raises :class:`Escaped` where it leaves its folder."""

    _ACTS = (
        "os.system",
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "subprocess.Popen",
        "socket.connect",
        "ctypes.dlopen",
        "os.chmod",
        "os.symlink",
        "os.link",
    )
    _PATHS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")

    def __init__(self) -> None:
        self.folder: str | None = None
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in self._ACTS:
            self._fail(event, arguments)
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & 0o3 and arguments[0] != "/dev/null"
        )
        if writes or event in self._PATHS:
            path = arguments[0]
            inside = isinstance(path, str | Path) and str(Path(path).absolute()).startswith(self.folder)
            relative_to_a_folder = event in {"os.remove", "os.rmdir"} and arguments[-1] not in {-1, None}
            if not inside and not relative_to_a_folder and not isinstance(path, int):
                self._fail(event, arguments)

    def _fail(self, event: str, arguments: tuple[Any, ...]) -> None:
        self.folder = None
        raise Escaped(f"{event}{arguments[:2]!r}")

    @contextmanager
    def watch(self, folder: Path) -> Iterator[None]:
        """Watches until the block ends."""
        self.folder = str(folder.absolute())
        try:
            yield
        finally:
            self.folder = None


def run_case(function: Callable[[bytes], None], data: bytes, guard: Guard, folder: Path) -> bool:
    """One case; whether the reader refused the bytes. Anything but a ``DanetError`` comes out of it."""
    with guard.watch(folder):
        try:
            function(data)
        except DanetError as error:
            message = str(error)
            if not message or len(message) > 20_000:
                raise AssertionError(f"a message of {len(message)} characters") from error
            message.encode()  # printable as UTF-8
            return True
    return False


_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 255, 256, 2**31, 2**53, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "\n", "../x", "/x", "-rf", "$(x)", "${x}", "\ud800", "\u0430", "a" * 300, "1", "nan", "0:1"),
    *([], {}, [[]], [None], {"": None}, {"x": {}}, ["x", "x"], [0, 0], [1.5, "2"], {"train": {}}, {"format": 1}),
)


def altered(value: Any, data: bytes) -> Any:
    """``value`` with some of its places changed: four bytes of ``data`` choose a place, an act and an odd value."""
    value = copy.deepcopy(value)
    for start in range(0, min(len(data), 40) - 3, 4):
        place, act, odd = int.from_bytes(data[start : start + 2], "big"), data[start + 2], data[start + 3]
        places = [*_places(value)]
        if not places:
            break
        parent, key = places[place % len(places)]
        new = copy.deepcopy(_ODD[odd % len(_ODD)])
        if act % 4 == 0:
            del parent[key]
        elif act % 4 == 1 and isinstance(parent, dict):
            parent[new if isinstance(new, str) else f"extra{odd}"] = parent.pop(key)
        elif act % 4 == 2 and isinstance(parent, list):
            parent.insert(key, parent[key])
        else:
            parent[key] = new
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


# --- manifest of the prepared form


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


_DESCRIPTION = {
    "format": 1,
    "adapter": "camvid",
    "title": "t",
    "classes": ["x", "y"],
    "palette": [[0, 0, 0], [1, 2, 255]],
    "ignore_index": 255,
    "storage": "source",
    "counts": {"train": 1, "val": 0},
    "manifest_sha256": "?",
    "packs": {"train.zip": 0},
}


def _prepared_seeds() -> list[bytes]:
    seeds = []
    pack = _small_zip(
        zipfile.ZIP_STORED, {"images/a.npy": npy_bytes(np.zeros((2, 3, 3), np.uint8)), "masks/a.png": b"PNG"}
    )
    for splits, mask in (("train", "masks/a.png"), ("train;trainaug", ""), ("val", "masks/a.png")):
        entry = Entry("a", splits, "train.zip", "images/a.jpg", mask, 2, 3, "0" * 64, "0" * 64, "0:4 255:2")
        manifest = format_manifest([entry]).encode()
        seeds += [b"\0" + manifest, b"\1\0\0\0\3" + manifest, _json(_DESCRIPTION) + b"\0" + manifest]
        seeds.append(b"\0" + manifest.replace(b"jpg", b"npy") + b"\0" + pack)
    return seeds


def _prepared(folder: Path) -> Callable[[bytes], None]:
    home = folder / "camvid"
    home.mkdir()
    default = _small_zip(zipfile.ZIP_STORED, {"images/a.jpg": b"JPEG", "masks/a.png": b"PNG"})
    (home / "train.zip").write_bytes(default)

    def one(data: bytes) -> None:
        head, _, rest = data.partition(b"\0")
        description: Any = _DESCRIPTION
        if data[:1] == b"\1":
            description, rest = altered(_DESCRIPTION, data[1:13]), data[13:]
        elif head:
            try:
                description = json.loads(head)
            except (ValueError, RecursionError):
                description = None
        manifest, _, pack = rest.partition(b"\0")
        pack = pack or default
        if isinstance(description, dict):  # hash and length are made right, so that mutations get past them
            description = dict(description)
            if description.get("manifest_sha256") == "?":
                description["manifest_sha256"] = hashlib.sha256(manifest).hexdigest()
            if isinstance(packs := description.get("packs"), dict):
                description["packs"] = {key: len(pack) if size == 0 else size for key, size in packs.items()}
        (home / "dataset.json").write_bytes(head if description is None else _json(description))
        (home / "manifest.csv").write_bytes(manifest)
        if pack is not default:
            (home / "train.zip").write_bytes(pack)
        try:
            samples = PreparedDataset(home, "train")
            samples.verify()
            for index in range(min(len(samples), 3)):
                samples.size(index)
                samples.class_pixels(index)
                for read in (samples.image, samples.mask):
                    with suppress(DataError):
                        read(index)
        finally:
            if pack is not default:
                (home / "train.zip").write_bytes(default)

    return one


# --- parameters


_PARAMS = """\
runtime: {workers: 0}
bands: {trained: 0.5, datasets: {camvid: 1.0}}
tables:
  t: {title: T, published: false, notes: ["n"]}
rows:
  r: {table: t, recipe: x, settings: s, dataset: camvid, backbone: resnet50, output_stride: 8, epochs: 5, weights: none}
"""
_RECIPE = """\
source: camvid
protocol: p
val_split: val
test: {mode: whole, logit_resize: once}
train:
  train_split: train
  seeds: [0]
  model: {method: danet, stem: 7x7}
  loss: {main: 1.0}
  optimizer: {lr: 1.0e-2, weight_decay: 5.0e-4}
  schedule: {batch_size: 2}
  augment: {resize: {rule: ratio, scale: [8, 8], range: [0.5, 2.0]}, crop_size: [8, 8], flip: 0.5}
settings:
  s: {train: {}, test: {}}
"""
_RELEASED = "released:\n  r: {table: t, recipe: x, settings: s, dataset: camvid, file: w.pth, url: null}\n"
_NUMERICS = """\
revisions: {convert: 1, train: 1, evaluate: 1}
numerics: {precision: fp32, tf32: false}
"""
_DATASETS = """\
datasets:
  camvid: {adapter: camvid, title: C, archives: [{file: a.zip, url: "https://h/a.zip"}], counts: {train: 2, val: 1}}
weights:
  none: {title: r, url: null, file: null, backbone: null, stem: null}
"""


def _params_seeds() -> list[bytes]:
    whole = "\0".join((_PARAMS, _RECIPE, _NUMERICS, _DATASETS, _RELEASED))
    laughs = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefgh"))
    return [
        whole.encode(),
        "\0".join((_PARAMS, _RECIPE, _NUMERICS, _DATASETS)).encode(),
        (laughs + whole).encode(),
        "\0".join((_PARAMS, _RECIPE, _NUMERICS, _DATASETS, "!!python/object/apply:os.system [id]")).encode(),
        whole.replace("0.5", ".nan").replace("2.0", ".inf").encode(),
    ]


def _params(folder: Path) -> Callable[[bytes], None]:
    (folder / "recipes").mkdir()
    params = folder / "params.yaml"
    files = [params, folder / "recipes" / "x.yaml", *(folder / name for name in rows.BESIDE)]

    def one(data: bytes) -> None:
        parts = data.split(b"\0", len(files) - 1)
        for file, part in itertools.zip_longest(files, parts):
            if part:
                file.write_bytes(part)
            else:
                file.unlink(missing_ok=True)
        loaded = rows.load_params(params)
        for row in loaded.rows.values():
            assert rows.NAME.fullmatch(row.name)
            assert len(row.hash) == 12

    return one


def _raw() -> dict[str, Any]:
    beside = yaml.safe_load(_NUMERICS) | yaml.safe_load(_DATASETS) | yaml.safe_load(_RELEASED)
    return yaml.safe_load(_PARAMS) | {"recipes": {"x": yaml.safe_load(_RECIPE)}} | beside


def _structure(folder: Path) -> Callable[[bytes], None]:
    path, valid = folder / "params.yaml", _raw()

    def one(data: bytes) -> None:
        for row in rows.Params(altered(valid, data), path).rows.values():
            assert len(row.hash) == 12

    return one


def _few_bytes() -> list[bytes]:
    return [b"", bytes(4), bytes(range(40)), b"\xff" * 12]


def _yaml_seeds() -> list[bytes]:
    return [
        b"a: &x {b: 1.5e3}\nc: *x\n",
        b"a: [1, null, true, 'x', \"y\"]\n",
        b"? a\n: |\n  x\n",
        b"a: &a [*a]\n",
        b"a: !!timestamp 2001-13-45\n",
        b"a: {<<: {b: 1}, c: -2}\n",
    ]


def _yaml(folder: Path) -> Callable[[bytes], None]:
    path = folder / "a.yaml"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        text = json.dumps(load_mapping(path), allow_nan=False, default=str)
        assert "${" not in text
        assert len(text) < 100 * len(data) + 1000

    return one


_YAML_TOKENS = (
    b"&a ",
    b"*a",
    b"<<: *a",
    b"!!python/name:os.system ",
    b"!!python/object/apply:os.system [x]",
    b"!!binary ",
    b"!!timestamp ",
    b"!!set ",
    b"!!omap ",
    b"!!int ",
    b"!!float ",
    b"!!bool ",
    b".nan",
    b".inf",
    b"-.inf",
    b"1e999",
    b"0x",
    b"0b",
    b"2001-13-45",
    b"1:2:3",
    b"? ",
    b"- ",
    b"---\n",
    b"%YAML 1.1\n",
    b"'",
    b'"\\ud800"',
    b"${x}",
    b"../",
    b"null",
    b"true",
    b"\n  ",
    b"{",
    b"}",
    b"[",
    b"]",
)


# --- archives


def _small_zip(method: int, members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, method)
    return stream.getvalue()


_FILES = {"a/b.txt": b"text", "a/c.bin": bytes(64), "d": b""}


def _zip_seeds() -> list[bytes]:
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    seeds = [_small_zip(method, _FILES) for method in methods]
    return [*seeds, _small_zip(zipfile.ZIP_STORED, {}), _small_zip(zipfile.ZIP_STORED, {"../x": b"1", "/y": b"2"})]


def _unpacker(folder: Path, name: str, mend: Callable[[bytes], bytes] = bytes) -> Callable[[bytes], None]:
    archive, out = folder / name, folder / "out"

    def one(data: bytes) -> None:
        archive.write_bytes(mend(data))
        try:
            unpack(archive, out, limits=LIMITS, progress=False)
            assert not any(path.is_symlink() for path in out.rglob("*"))
        finally:
            if out.exists():
                shutil.rmtree(out)
        assert [path.name for path in folder.iterdir()] == [name], "something was left behind"

    return one


def _tar(members: list[tuple[str, bytes, bytes, str]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for name, typ, data, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = typ, link, len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()[: 512 * (4 + 3 * len(members))]


def _tar_seeds() -> list[bytes]:
    plain = [
        ("a/b", tarfile.REGTYPE, b"text", ""),
        ("a/l", tarfile.SYMTYPE, b"", "b"),
        ("h", tarfile.LNKTYPE, b"", "a/b"),
    ]
    odd = [("p" * 120, tarfile.REGTYPE, b"x", ""), ("dev", tarfile.CHRTYPE, b"", ""), ("é", tarfile.DIRTYPE, b"", "")]
    kinds = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    seeds = [_tar(plain, kind) for kind in kinds] + [_tar(odd, kind) for kind in kinds[:2]]
    sparse = bytearray(_tar([("s", tarfile.GNUTYPE_SPARSE, bytes(16), "")], tarfile.GNU_FORMAT))
    sparse[386:398], sparse[398:410] = b"00000000000\0", b"00000000020\0"
    return [*(b"\1" + seed for seed in seeds), b"\0" + seeds[0], b"\2" + seeds[0], b"\1" + bytes(sparse)]


def _mend_tar(data: bytes) -> bytes:
    """By the first byte: headers' checksums made right (mutations then get past them), packed by gzip, or as it is."""
    how, blocks = data[:1], bytearray(data[1:])
    if how != b"\0":
        for start in range(0, len(blocks) - 511, 512):
            block = blocks[start : start + 512]
            if block[257:262] == b"ustar":
                block[148:156] = b" " * 8
                blocks[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return gzip.compress(bytes(blocks), 1) if how == b"\2" else bytes(blocks)


# --- weights and checkpoints


_STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}


def _saved(value: Any, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def _pickle_of(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


class _Hostile:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


def _torch_seeds() -> list[bytes]:
    values = (_STATE, {"state_dict": _STATE, "meta": {"x": 1}}, {"best": np.float64(1), "model": _STATE}, [_Hostile()])
    return [_saved(value, legacy) for value in values for legacy in (False, True)]


def _pickle_seeds() -> list[bytes]:
    values = (_STATE, {"model": {"module.x": torch.zeros(1).to(torch.bfloat16)}}, {"w": torch.ones(2).to_sparse()})
    seeds = [_pickle_of(_saved(value)) for value in values]
    return seeds + [pickle.dumps({"a": _Hostile()}, protocol) for protocol in range(6)]


def _read_weights(path: Path, write: Callable[[bytes], bytes]) -> Callable[[bytes], None]:
    def one(data: bytes) -> None:
        path.write_bytes(write(data))
        tensors = read_tensors(path)
        check_names(path, tensors, tensors, what="itself", remedy="")

    return one


def _around_pickle(data: bytes) -> bytes:
    records = {"x/data.pkl": data, "x/byteorder": b"little", "x/data/0": bytes(24), "x/data/1": bytes(8)}
    return _small_zip(zipfile.ZIP_STORED, {**records, "x/version": b"3\n"})


def _ours_seeds() -> list[bytes]:
    fields = {
        "format": "danet-1",
        "method": "danet",
        "backbone": "resnet50",
        "stem": "7x7",
        "pam_bias": "true",
        "aux_channels": "none",
        "output_stride": "8",
        "multi_grid": "4,8,16",
        "align_corners": "false",
        "num_classes": "19",
    }
    return [
        save_safetensors(_STATE),
        save_safetensors(_STATE, {"danet": json.dumps(fields)}),
        struct.pack("<Q", 2) + b"{}",
    ]


def _ours(folder: Path) -> Callable[[bytes], None]:
    path = folder / "w.safetensors"
    generic = _read_weights(path, bytes)

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            metadata_of(path)
            metadata, _ = read_model(path)
            config_of(path, metadata)
        except DanetError:
            pass
        generic(data)

    return one


def _tiny_row() -> rows.Row:
    raw = _raw()
    return rows.Params(raw, Path("params.yaml")).row("r")


def _payload(row: rows.Row, **over: Any) -> dict[str, Any]:
    tensors = {"model": {"w": torch.zeros(2)}, "optimizer": {"state": {}}, "scaler": {}, "progress": {"curve": []}}
    return {"format": 1, "row": row.name, "train_hash": row.train_hash, "seed": 0, "iteration": 1} | tensors | over


def _store_seeds() -> list[bytes]:
    row = _tiny_row()
    whole = _saved(_payload(row))
    return [
        b"\0" + whole,
        b"\1" + _pickle_of(whole),
        b"\1" + _pickle_of(_saved(_payload(row, seed=1))),
        b"\0" + _saved([1]),
    ]


def _store(folder: Path) -> Callable[[bytes], None]:
    store = CheckpointStore(folder / "seed0", _tiny_row(), 0)
    store.folder.mkdir()
    path = store.path(1)

    def one(data: bytes) -> None:
        content = _around_pickle(data[1:]) if data[:1] == b"\1" else data[1:]
        path.write_bytes(content)
        path.with_name(f"{path.name}.sha256").write_text(hashlib.sha256(content).hexdigest())
        loaded, notes = store.load()
        assert (loaded is None) == bool(notes)
        assert loaded is None or (isinstance(loaded, Checkpoint) and isinstance(loaded.iteration, int))

    return one


# --- metrics and reports


def _metrics_files() -> list[bytes]:
    row = _tiny_row()
    mode = {"miou": 50.0, "aacc": 60.0, "macc": 70.0, "iou": [50.0, None], "confusion_rows": ["1 1", "0 0"]}
    run = {"seed": 0, "modes": {"ss": mode}, "provenance": {"weights_sha256": "x"}}
    head = {"format": 1, "row": "r", "row_hash": row.hash, "classes": ["a", "b"]}
    trained = {"format": 1, "row": "r", "train_hash": row.train_hash}
    of_training = {"seed": 0, "iterations": 5, "final_loss": 1.0, "weights_sha256": "x"}
    table = {"format": 1, "rows": [{"row": "r", "status": "measured", "measured": {"miou": 1.0, "seeds": [0]}}]}
    return [
        _json({**head, "runs": [run]}),
        _json({**trained, "runs": [of_training]}),
        b"iteration,seed,loss,val_miou\n1,0,0.5,\n2,0,0.25,30\n",
        _json({"miou": 50.0, "aacc": 60.0, "macc": 70.0}),
        _json({**head, "weights": {"file": "w"}, "runs": [{"modes": {"ss": mode}}]}),
        _json(table),
    ]


def _metrics_seeds() -> list[bytes]:
    texts = [bytes([kind]) + content for kind, content in enumerate(_metrics_files())]
    return texts + [bytes([128 + kind]) + data for kind in range(6) for data in _few_bytes()]


def _metrics(folder: Path) -> Callable[[bytes], None]:
    row, workspace = _tiny_row(), Workspace(folder)
    home = workspace.metrics(row)
    home.mkdir(parents=True)
    names = ("evaluation.json", "train.json", "curve.csv", "metrics.json", "verification.json")
    files = _metrics_files()
    values = [None if kind == 2 else json.loads(content) for kind, content in enumerate(files)]
    for name, content in zip(names, files, strict=False):
        (home / name).write_bytes(content)
    report = folder / "table.json"

    def one(data: bytes) -> None:
        which = data[0] % 128 % 6 if data else 0
        content = data[1:]
        if data[:1] > b"\x7f" and which != 2:
            content = _json(altered(values[which], content))
        if which == 5:
            report.write_bytes(content)
            reported_row(report, "r")
            return
        (home / names[which]).write_bytes(content)
        try:
            found = measured.read(row, workspace)
            for metric in ("miou", "miou_ms_flip", "hours", "fps"):
                found.values(metric)
            found.class_iou()
            found.confusion()
            for problem in found.problems:
                problem.reason.encode()
        finally:
            (home / names[which]).write_bytes(files[which])

    return one


# --- images, masks, lists, pages


def _image(mode: str, kind: str, **save: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (5, 4)).save(stream, kind, **save)
    return stream.getvalue()


def _mask_seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [_image(mode, "PNG") for mode in ("L", "P", "RGB", "RGBA", "1", "LA", "I;16")]
    seeds += [
        _image("RGB", "JPEG"),
        _image("CMYK", "JPEG"),
        _image("L", "PNG", exif=exif),
        _image("RGB", "JPEG", exif=exif),
    ]
    seeds += [png_bytes(np.zeros((3, 4), np.uint8)), npy_bytes(np.zeros((3, 4), np.uint8))]
    return seeds


def _masks(folder: Path) -> Callable[[bytes], None]:
    from danet.data.convert import check_image

    path = folder / "mask.png"

    def one(data: bytes) -> None:
        problems: list[str] = []
        check_image(data, "image", False, problems)
        assert all(text.encode() and "\n" not in text and len(text) < 1000 for text in problems)
        path.write_bytes(data)
        ids = layout.read_index_png(path)
        assert ids.ndim == 2
        layout.LabelMap({0: 0, 255: 255}).apply(ids, path)

    return one


def _mat_seeds() -> list[bytes]:
    from scipy.io import savemat

    seeds = []
    for compressed in (False, True):
        stream = io.BytesIO()
        savemat(stream, {"GTcls": {"Segmentation": np.zeros((2, 3), np.uint8)}}, do_compression=compressed)
        seeds.append(stream.getvalue())
    return seeds


def _mats(folder: Path) -> Callable[[bytes], None]:
    path = folder / "mask.mat"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        assert layout.read_mat(path).ndim == 2

    return one


def _text_seeds() -> list[bytes]:
    form = b'<form id="download-form" action="/x"><input name="confirm" value="t"><input name="id" value="1"></form>'
    return [b"\0a\nb 1\n\nc\n", b"\1/d/a.png x\nb.png y\n", b"\2" + form, b"\2<title>Quota exceeded</title>"]


def _texts(folder: Path) -> Callable[[bytes], None]:
    path = folder / "list.txt"

    def one(data: bytes) -> None:
        if data[:1] == b"\2":
            target = page_target("https://drive.google.com/uc?id=0123456789", data[1:].decode("latin-1"), 200, "do x")
            assert target.startswith("https://")
            return
        path.write_bytes(data[1:])
        for name in layout.read_list(path, paths=data[:1] == b"\1"):
            assert layout.SAFE_ID.fullmatch(name.rpartition("/")[2])

    return one


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "prepared",
            "description, manifest and packs of the prepared form",
            0.22,
            _prepared_seeds,
            _prepared,
            (
                b"train.zip",
                b"../",
                b"-1",
                b"99999999999999999999",
                b"255:1",
                b'"counts"',
                b"\0",
                b"1e999",
                b"NaN",
                b"[",
                b"{",
            ),
        ),
        Target(
            "params", "params.yaml, a recipe and released.yaml, as text", 0.02, _params_seeds, _params, _YAML_TOKENS
        ),
        Target(
            "yaml",
            "any YAML file of ours",
            0.03,
            _yaml_seeds,
            _yaml,
            _YAML_TOKENS,
            max_length=400,
        ),
        Target(
            "structure",
            "the same, with odd values anywhere",
            0.12,
            _few_bytes,
            _structure,
            max_length=40,
        ),
        Target(
            "zip",
            "zip archives",
            0.1,
            _zip_seeds,
            lambda folder: _unpacker(folder, "a.zip"),
            (b"../", b"/etc"),
        ),
        Target(
            "tar",
            "tar and tgz archives",
            0.06,
            _tar_seeds,
            lambda folder: _unpacker(folder, "a.tgz", _mend_tar),
            (b"../", b"/etc", b"ustar", b"GNU.sparse.map", b"size=-1", b"path=../x", b"linkpath="),
            max_length=8192,
        ),
        Target(
            "torch",
            "PyTorch files, zip and legacy",
            0.05,
            _torch_seeds,
            lambda folder: _read_weights(folder / "w.pth", bytes),
            (b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch._utils\n_rebuild_tensor_v2\n"),
        ),
        Target(
            "pickle",
            "the pickle inside a PyTorch file",
            0.05,
            _pickle_seeds,
            lambda folder: _read_weights(folder / "w.pth", _around_pickle),
            (
                b"cos\nsystem\n",
                b"ctorch\nFloatStorage\n",
                b"ctorch._utils\n_rebuild_tensor_v2\n",
                b"R",
                b"b",
                b"Q",
                b"\x81",
                b"\x92",
            ),
        ),
        Target(
            "safetensors",
            "safetensors, and our own metadata in them",
            0.15,
            _ours_seeds,
            _ours,
            (b'"dtype":"F32"', b'"F8_E4M3"', b'"BF16"', b'"shape":[', b'"data_offsets":[0,', b"__metadata__", b"null"),
        ),
        Target(
            "store",
            "resume checkpoints with a fitting checksum",
            0.03,
            _store_seeds,
            _store,
            (b"cos\nsystem\n", b"train_hash", b"iteration", b"N", b"]", b"}"),
        ),
        Target(
            "metrics",
            "metrics files, curves and tables' JSON",
            0.04,
            _metrics_seeds,
            _metrics,
            (b"NaN", b"Infinity", b"-1", b"null", b"1e400", b"[", b"{", b'"seed"', b"101"),
        ),
        Target(
            "images",
            "images and masks",
            0.07,
            _mask_seeds,
            _masks,
            (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"),
        ),
        Target("mat", "SBD annotations", 0.02, _mat_seeds, _mats, (b"GTcls", b"Segmentation")),
        Target(
            "text",
            "list files and Google Drive's pages",
            0.04,
            _text_seeds,
            _texts,
            (b"..", b"/", b"http://", b"confirm"),
        ),
    )
}
