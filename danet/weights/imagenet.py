"""ImageNet weights of the backbones, in our names.

Names understood: torchvision's and PyTorch-Encoding's 7x7 stem (``conv1``, ``bn1``), mmsegmentation's deep stem
(``stem.0`` ...) and PyTorch-Encoding's deep stem (``conv1.0`` ... ``conv1.6``, ``bn1``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from danet.config.params import Weights
from danet.core.files import atomic_write, sha256, write_json
from danet.models.resnet import ResNet, Stem
from danet.models.segmentor import Segmentor
from danet.weights.reading import check_names, read_tensors, translated

WEIGHTS_FILE: Final = "weights.safetensors"
SOURCE_FILE: Final = "source.json"
_CLASSIFIER: Final = re.compile(r"(head\.)?fc\.(weight|bias)")


def convert(file: Path, backbone: str, stem: Stem) -> dict[str, Tensor]:
    """An ImageNet checkpoint's tensors in the names of our :class:`~danet.models.resnet.ResNet`, without prefix.

    The ImageNet classifier (``fc``) is dropped.

    Raises:
        CheckpointError: if they are of another depth or stem.
    """
    tensors = {key.removeprefix("backbone."): value for key, value in read_tensors(file).items()}
    given = {key: value for key, value in tensors.items() if not _CLASSIFIER.fullmatch(key)}
    with torch.device("meta"):  # names and shapes do not depend on stride and dilation
        wanted = ResNet(backbone, stem, 8).state_dict()
    as_ours = any(key.startswith("stem.") for key in given)
    return translated(
        file,
        given,
        wanted,
        {key: key if as_ours else encoding_name(key, stem) for key in wanted},
        what=f"an ImageNet {backbone} with the {stem} stem",
        remedy="take the file that weights.* in datasets.yaml names, or correct backbone and stem there",
    )


def encoding_name(key: str, stem: str) -> str:
    """torchvision's and PyTorch-Encoding's name of a tensor of our backbone."""
    if not key.startswith("stem."):
        return key
    _, index, rest = key.split(".", 2)
    if stem == "7x7":
        return f"{'conv1' if index == '0' else 'bn1'}.{rest}"
    return f"bn1.{rest}" if index == "7" else f"conv1.{index}.{rest}"


def prepare_weights(name: str, spec: Weights, file: Path, out: Path) -> None:
    """Writes ``weights.safetensors`` (our names) and ``source.json`` below ``out``.

    Raises:
        CheckpointError: as :func:`convert`. ``out`` is then left as it was.
    """
    assert spec.backbone
    assert spec.stem
    state = convert(file, spec.backbone, spec.stem)
    with atomic_write(out / WEIGHTS_FILE) as temporary:
        save_file({key: value.contiguous() for key, value in state.items()}, temporary)
    source = {"name": name, **spec.model_dump(), "sha256": sha256(file), "weights_sha256": sha256(out / WEIGHTS_FILE)}
    write_json(out / SOURCE_FILE, source)


def backbone_sha256(folder: Path) -> str | None:
    """SHA-256 of the weights file that :func:`prepare_weights` wrote; None for a random start."""
    file = folder / WEIGHTS_FILE
    return sha256(file) if file.is_file() else None


def load_backbone(model: Segmentor, folder: Path) -> None:
    """Loads what :func:`prepare_weights` wrote into the model's backbone, strictly.

    Raises:
        CheckpointError: if it is not there, or of another backbone.
    """
    file = folder / WEIGHTS_FILE
    remedy = f"run `dvc repro -f -s weights@{folder.name}`"
    tensors = read_tensors(file, remedy)
    what = f"our {model.config.backbone} with the {model.config.stem} stem"
    check_names(file, tensors, model.backbone.state_dict(), what=what, remedy=remedy)
    model.backbone.load_state_dict(tensors)
