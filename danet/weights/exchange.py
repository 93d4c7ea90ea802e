"""Weights files in and out: any source's checkpoint to ours, ours to a source's names, and either into a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.markup import escape
from torch import Tensor, nn

from danet.config.params import Params, Released
from danet.config.row import Row
from danet.core.console import console
from danet.core.errors import CheckpointError, ConfigError
from danet.core.files import atomic_write, sha256
from danet.data.registry import ADAPTERS
from danet.models.segmentor import build_model
from danet.weights.ours import config_of, load_model, metadata_of, read_model, save_model, unwrap
from danet.weights.reading import read_tensors
from danet.weights.released import convert, export_released, import_released, recognise

_STRIDE: Final = re.compile(r"(?:os|[_-]d)(8|16)(?=[_.-])")
"""The output stride in the sources' file names: ``danet_resnet50os16_voc.pth``, ``danet_r50-d8_512x512_....pth``."""


@dataclass(frozen=True)
class Imported:
    """What :func:`import_weights` wrote."""

    path: Path
    row: str
    source: str
    sha256: str
    """Of the file that was imported."""
    tensors: int
    checksum: str
    """As :func:`checksum_state`."""

    def __str__(self) -> str:
        sure = {
            "matches": "as published",
            "none": "no checksum is published",
            "differs": "not the released file, whose checksum is another",
        }[self.checksum]
        return (
            f"{self.path}: {self.source} weights for row {self.row}, {self.tensors} tensors, from a file of sha256 "
            f"{self.sha256[:12]}... ({sure})"
        )


def import_weights(
    file: Path, out: Path, params: Params, *, row: str | None = None, incomplete: bool = False
) -> Imported:
    """Writes a released checkpoint of any source as our safetensors; its metadata tell row, source and hash.

    Args:
        file: the checkpoint, as published.
        out: ends in ``.safetensors``.
        params: the rows.
        row: whose weights they are; found by :func:`guess_row` if null.
        incomplete: import also what is not exactly that network; what is wrong is printed and kept in the metadata.

    Raises:
        CheckpointError: if the file is damaged, unsafe or of another network than the row's, or ``out`` has another
            ending.
        ConfigError: if the row is unknown, or none is given and several are possible.
    """
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out}: the name must end in .safetensors")
    if metadata_of(file) is not None:
        raise CheckpointError(f"{file}: is in our format already; use it as it is")
    chosen = params.row(row) if row is not None else guess_row(file, params)
    num_classes = classes_of(chosen, params)
    notes: list[str] = []
    state, source = import_released(
        file, chosen.model, num_classes, incomplete=(lambda text: _note(text, notes)) if incomplete else None
    )
    digest = sha256(file)
    released = params.released.get(chosen.name)
    checksum = checksum_state(digest, released)
    _warn_stride(file, chosen)
    with torch.device("meta"):
        model = build_model(chosen.model, num_classes)
    model.load_state_dict(state, assign=True)
    metadata = {"row": chosen.name, "source": source, "source_file": file.name, "source_sha256": digest}
    metadata["checksum"] = checksum
    if released is not None and released.url is not None and checksum == "matches":
        metadata["url"] = released.url
    if notes:
        metadata["incomplete"] = "; ".join(notes)
    save_model(out, model, metadata)
    return Imported(out, chosen.name, source, digest, len(state), checksum)


def _note(text: str, notes: list[str]) -> None:
    notes.append(text)
    warn(f"{text}; imported all the same")


def checksum_state(digest: str, released: Released | None) -> str:
    """``matches`` the SHA-256 published for the row, ``differs``, or ``none`` is published."""
    if released is None or released.checksum is None:
        return "none"
    return "matches" if digest.startswith(released.checksum.removeprefix("sha256:")) else "differs"


def refuse_other_file(file: Path, digest: str, released: Released | None) -> str:
    """:func:`checksum_state` of what must be the released file.

    Raises:
        CheckpointError: if it differs.
    """
    state = checksum_state(digest, released)
    if state == "differs":
        assert released is not None
        assert released.checksum is not None
        raise CheckpointError(
            f"{file}: its sha256 is {digest}, the released file's begins with {released.checksum[7:]}; fetch "
            f"{released.file} again, or use `danet evaluate ROW --weights FILE` for other weights"
        )
    return state


def export_weights(file: Path, out: Path, *, target: str = "mmsegmentation") -> int:
    """Writes one of our files as a ``.pth`` of a source, ``{"state_dict", "meta"}`` (sssegmentation: ``{"model"}``).

    mmsegmentation's position attention always has biases: those that a row has none of are written as zeros, which
    computes the same.

    Args:
        file: of training or of :func:`import_weights`.
        out: the ``.pth``.
        target: a key of ``SOURCES``.

    Returns:
        The number of tensors.

    Raises:
        CheckpointError: if the file is not ours, or that source has no such network.
    """
    if out.suffix == ".safetensors":
        raise CheckpointError(f"{out}: is written as PyTorch's own format; give a name that ends in .pth")
    metadata, state = read_model(file)
    config, num_classes = config_of(file, metadata)
    if target == "mmsegmentation" and config.method == "danet" and not config.pam_bias:
        zeros = {f"head.pam.{part}": state[f"head.pam.{part}.weight"] for part in ("query", "key", "value")}
        state = {**state, **{f"{name}.bias": torch.zeros(len(weight)) for name, weight in zeros.items()}}
    theirs = {key: value.contiguous() for key, value in export_released(state, config, target).items()}
    content: dict[str, Any] = {"model": theirs}
    if target != "sssegmentation":
        content = {"state_dict": theirs, "meta": _meta(metadata, num_classes)}
    with atomic_write(out) as temporary:
        torch.save(content, temporary)
    return len(theirs)


def _meta(metadata: Mapping[str, str], num_classes: int) -> dict[str, Any]:
    """What mmsegmentation looks for: CLASSES and PALETTE in 0.x, ``dataset_meta`` in 1.x."""
    meta: dict[str, Any] = {"danet": dict(metadata)}
    for spec in ADAPTERS.values():
        if spec.num_classes == num_classes:  # the data sets all differ in it
            palette = [list(colour) for colour in spec.palette]
            meta |= {"CLASSES": spec.classes, "PALETTE": palette}
            meta["dataset_meta"] = {"classes": spec.classes, "palette": palette}
    return meta


def load_any(path: Path, model: nn.Module, row: Row) -> dict[str, str]:
    """Loads trained, imported or raw released weights into a model of the row.

    Weights of another output stride, multi-grid or corner alignment are the same tensors: imported and released files
    of such rows are taken, with a warning; trained ones are refused.

    Returns:
        The file's metadata; for a raw released file ``source``, ``source_file`` and ``source_sha256``.

    Raises:
        CheckpointError: if the file is damaged, unsafe or of another network; the model is then unchanged.
    """
    metadata = metadata_of(path)
    if metadata is not None:
        load_model(path, model, differs=warn if is_imported(metadata) else None)
        if "incomplete" in metadata:
            warn(f"{path}: was imported although incomplete ({metadata['incomplete']})")
        return metadata
    segmentor = unwrap(model)
    state, source = import_released(path, segmentor.config, segmentor.num_classes)
    _warn_stride(path, row)
    segmentor.load_state_dict(state)
    return {"source": source, "source_file": path.name, "source_sha256": sha256(path)}


def guess_row(file: Path, params: Params) -> Row:
    """The row that a released file is for: by its name, by its hash, else by its tensors.

    Raises:
        CheckpointError: if the file cannot be read, or fits no row.
        ConfigError: if it fits several, naming them.
    """
    by_name = [name for name, entry in params.released.items() if entry.file == file.name]
    tensors = read_tensors(file, "take another file")
    if len(by_name) == 1:
        return params.row(by_name[0])
    digest = f"sha256:{sha256(file)}"
    by_hash = [name for name, entry in params.released.items() if entry.checksum and digest.startswith(entry.checksum)]
    if len(by_hash) == 1:
        return params.row(by_hash[0])
    source = recognise(file, tensors)
    tried: dict[str, bool] = {}
    fitting = []
    for row in params.rows.values():
        layout = row.model.model_dump_json(exclude={"output_stride", "multi_grid", "align_corners", "init"})
        key = f"{layout} {row.dataset}"
        if key not in tried:
            tried[key] = _fits(file, tensors, row, params)
        if tried[key]:
            fitting.append(row)
    fitting = [row for row in fitting if row.source == source.removesuffix("-dranet")] or fitting
    stride = _STRIDE.search(file.name)
    if stride:
        fitting = [row for row in fitting if row.model.output_stride == int(stride[1])] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(
            f"{file}: these {source} weights fit {len(fitting)} rows; say which with --row: "
            + ", ".join(row.name for row in fitting)
        )
    raise CheckpointError(
        f"{file}: these {source} weights fit no row; give the nearest one with --row to see what differs"
    )


def _fits(file: Path, tensors: Mapping[str, Tensor], row: Row, params: Params) -> bool:
    try:
        convert(file, tensors, row.model, classes_of(row, params))
    except CheckpointError:
        return False
    return True


def is_imported(metadata: Mapping[str, str]) -> bool:
    """Whether a file of ours holds weights of a source (trained ones have no file that they come from)."""
    return "source_sha256" in metadata


def classes_of(row: Row, params: Params) -> int:
    """Number of classes of a row's data set."""
    return ADAPTERS[params.dataset(row.dataset).adapter].num_classes


def _warn_stride(file: Path, row: Row) -> None:
    found = _STRIDE.search(file.name)
    if found and int(found[1]) != row.model.output_stride:
        warn(
            f"{file}: by its name of output stride {found[1]}, row {row.name} has {row.model.output_stride}; the "
            "tensors are the same, the result is not the published one"
        )


def warn(text: str) -> None:
    """A line on standard error."""
    console.print(f"[yellow]warning:[/] {escape(text)}")
