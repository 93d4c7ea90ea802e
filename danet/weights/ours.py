"""Our own weights files: safetensors with the names of :class:`Segmentor`, and what they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from danet.config.row import Model
from danet.core.errors import CheckpointError
from danet.core.files import atomic_write
from danet.models.segmentor import Segmentor
from danet.weights.reading import check_names

FORMAT: Final = "danet-1"
METADATA_KEY: Final = "danet"
"""The one entry of the safetensors metadata: a JSON object of strings."""
_FIELDS: Final = (
    *("method", "backbone", "stem", "pam_bias", "aux_channels"),
    *("output_stride", "multi_grid", "align_corners"),
)
"""Settings that change the tensors or what they compute, written with the weights and compared when they are read."""


def save_model(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Writes the weights and buffers of a model, atomically.

    ``metadata`` says what the weights are of (row, train_hash, seed, ...); the model's own settings and the number of
    classes are added. The bytes written depend on nothing else.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    assert isinstance(model, Segmentor)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # One entry, because safetensors writes several in random order and equal weights must be equal files.
    text = {METADATA_KEY: json.dumps({**metadata, **_settings(model), "format": FORMAT}, sort_keys=True)}
    with atomic_write(path) as temporary:
        try:
            save_file(state, temporary, text)
        except SafetensorError as error:  # a full disk, mostly
            raise CheckpointError(f"{path}: cannot be written ({error}); free space, then run again") from error


def load_model(path: Path, model: Segmentor) -> None:
    """Loads a file of :func:`save_model` into a model of the same settings.

    Raises:
        CheckpointError: if the file is missing, damaged or not ours, or of another model; the model is then unchanged.
    """
    metadata, tensors = read_model(path)
    remedy = "train the row again, or take the file that belongs to it"
    for field, wanted in _settings(model).items():
        if (given := metadata.get(field)) != wanted:
            raise CheckpointError(
                f"{path}: has {_phrase(field, given)}, the row has {_phrase(field, wanted)}; {remedy}"
            )
    check_names(path, tensors, model.state_dict(), what="a model of this row", remedy=remedy)
    model.load_state_dict(tensors)


def metadata_of(path: Path) -> dict[str, str] | None:
    """What :func:`save_model` wrote beside the tensors, without reading these; None for any other file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            text = (stream.metadata() or {}).get(METADATA_KEY)
        return None if text is None else dict(json.loads(text))
    except (SafetensorError, OSError, ValueError):
        return None


def config_of(path: Path, metadata: Mapping[str, str]) -> tuple[Model, int]:
    """Model settings and number of classes that :func:`save_model` wrote.

    Raises:
        CheckpointError: if one is missing or none of those allowed.
    """
    values = {field: metadata.get(field, "") for field in _FIELDS}
    settings: dict[str, Any] = {key: None if value == "none" else value for key, value in values.items()}
    if settings["multi_grid"] is not None:
        settings["multi_grid"] = settings["multi_grid"].split(",")
    try:
        settings["output_stride"] = int(values["output_stride"])
        return Model.model_validate(settings), int(metadata["num_classes"])
    except (ValidationError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata do not describe a model; make the file again") from error


def read_model(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file of :func:`save_model`.

    Raises:
        CheckpointError: if it is missing, damaged or not ours.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: does not exist; train the row first, with `dvc repro train@ROW`")
    metadata = metadata_of(path) or {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is no weights file of ours (format {FORMAT}) or is cut off; train the row again, or bring a "
            "source's checkpoint to our format with `danet import-weights`"
        )
    return metadata, load_file(path)


def _settings(model: Segmentor) -> dict[str, str]:
    settings = {field: _text(getattr(model.config, field)) for field in _FIELDS}
    return {"num_classes": str(model.num_classes), **settings}


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return "none" if value is None else str(value).lower()


def _phrase(field: str, value: str | None) -> str:
    return f"{value} classes" if field == "num_classes" else f"{field} {value}"
