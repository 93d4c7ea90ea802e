"""Weights files in and out: any source's checkpoint to ours, ours to a source's names, and either into a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from danet.config.params import Params, Released
from danet.config.row import Row
from danet.core.errors import CheckpointError, ConfigError
from danet.core.files import atomic_write, sha256
from danet.data.registry import ADAPTERS
from danet.models.segmentor import Segmentor, build_model
from danet.weights.ours import config_of, load_model, metadata_of, read_model, save_model
from danet.weights.released import export_released, import_released


def import_weights(file: Path, out: Path, params: Params, *, row: str | None = None) -> dict[str, str]:
    """Writes a released checkpoint of any source as our safetensors.

    Without ``row``, whose weights they are is found by the name of the file under ``released``.

    Returns:
        What the metadata tell of them: ``row``, ``source``, ``source_file``, ``source_sha256`` and ``checksum``
        (:func:`checksum_state`).

    Raises:
        CheckpointError: if the file is damaged, unsafe or of another network than the row's, or ``out`` has another
            ending.
        ConfigError: if the row is unknown, or none is given and the file has another name than those released.
    """
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out}: the name must end in .safetensors")
    if metadata_of(file) is not None:
        raise CheckpointError(f"{file}: is in our format already; use it as it is")
    name = row or next((name for name, entry in params.released.items() if entry.file == file.name), None)
    if name is None:
        raise ConfigError(f"{file}: is none of the released files by its name; say whose weights it holds with --row")
    chosen = params.row(name)
    num_classes = classes_of(chosen, params)
    state, source = import_released(file, chosen.model, num_classes)
    digest = sha256(file)
    checksum = checksum_state(digest, params.released.get(name))
    with torch.device("meta"):
        model = build_model(chosen.model, num_classes)
    model.load_state_dict(state, assign=True)
    facts = {"row": name, "source": source, "source_file": file.name, "source_sha256": digest, "checksum": checksum}
    save_model(out, model, facts)
    return facts


def checksum_state(digest: str, released: Released | None) -> str:
    """``matches`` the SHA-256 published for the row, ``differs``, or ``none`` is published."""
    if released is None or released.checksum is None:
        return "none"
    return "matches" if digest.startswith(released.checksum.removeprefix("sha256:")) else "differs"


def export_weights(file: Path, out: Path, *, target: str = "mmsegmentation") -> int:
    """Writes one of our files as a ``.pth`` of a source, ``{"state_dict", "meta"}`` (sssegmentation: ``{"model"}``).

    The file is one of training or of :func:`import_weights`, ``target`` a key of ``SOURCES``.

    mmsegmentation's position attention always has biases: those that a row has none of are written as zeros, which
    computes the same.

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


def load_any(path: Path, model: Segmentor) -> None:
    """Loads trained, imported or raw released weights into a row's model.

    Raises:
        CheckpointError: if the file is damaged, unsafe or of another network; the model is then unchanged.
    """
    if metadata_of(path) is not None:
        load_model(path, model)
    else:
        model.load_state_dict(import_released(path, model.config, model.num_classes)[0])


def classes_of(row: Row, params: Params) -> int:
    """Number of classes of a row's data set."""
    return ADAPTERS[params.dataset(row.dataset).adapter].num_classes
