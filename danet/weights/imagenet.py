"""ImageNet weights of the backbones, in our names.

Names understood: torchvision's and PyTorch-Encoding's 7x7 stem (``conv1``, ``bn1``), mmsegmentation's deep stem
(``stem.0`` ...) and PyTorch-Encoding's deep stem (``conv1.0`` ... ``conv1.6``, ``bn1``).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from danet.config.params import Weights
from danet.core.errors import CheckpointError
from danet.core.files import atomic_write, sha256, write_json
from danet.models.resnet import BLOCKS, ResNet, Stem
from danet.models.segmentor import Segmentor
from danet.weights.reading import check_names, read_tensors

WEIGHTS_FILE: Final = "weights.safetensors"
SOURCE_FILE: Final = "source.json"
_CLASSIFIER: Final = re.compile(r"(head\.)?fc\.(weight|bias)")
_COUNTER: Final = "num_batches_tracked"


def convert(file: Path, given: dict[str, Tensor], backbone: str, stem: Stem) -> dict[str, Tensor]:
    """An ImageNet checkpoint's tensors in the names of our :class:`~danet.models.resnet.ResNet`, without prefix.

    The ImageNet classifier (``fc``) is dropped; batch counters, which old files lack, are set to 0. Everything else
    must be there, and nothing more. Floating-point tensors become float32.

    Raises:
        CheckpointError: if they are of another depth or stem.
    """
    if any(key.startswith("backbone.") for key in given):
        given = {key.removeprefix("backbone."): value for key, value in given.items()}
    given = {key: value for key, value in given.items() if not _CLASSIFIER.fullmatch(key)}
    found_backbone, found_stem = describe(given)
    for kind, found, wanted in (("backbone", found_backbone, backbone), ("stem", found_stem, stem)):
        if found is not None and found != wanted:
            raise CheckpointError(
                f"{file}: holds a {found} {kind}, expected {wanted}; take the file that weights.* in datasets.yaml "
                f"names, or correct its {kind} there"
            )
    result: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for key, value in given.items():
        name = _our_name(key, stem)
        if name in result:
            raise CheckpointError(
                f"{file}: {names[name]} and {key} are the same tensor of the stem; fetch the file again"
            )
        result[name] = value.float() if value.is_floating_point() else value
        names[name] = key
    expected = _expected(backbone, stem)
    for key in expected:
        if key.endswith(_COUNTER):
            result.setdefault(key, torch.zeros((), dtype=torch.int64))
    check_names(
        file,
        result,
        expected,
        what=f"an ImageNet {backbone} with the {stem} stem",
        remedy="take the file that weights.* in datasets.yaml names",
        names=names,
    )
    return {key: result[key] for key in expected}


def describe(state: dict[str, Tensor]) -> tuple[str | None, str | None]:
    """Backbone and stem of a ResNet's tensors in any source's names, None where they do not tell."""
    blocks: tuple[int, ...] = tuple(
        len({match[1] for key in state if (match := re.match(rf"layer{stage}\.(\d+)\.conv3\.weight$", key))})
        for stage in (1, 2, 3, 4)
    )
    depths: dict[tuple[int, ...], str] = {**{value: key for key, value in BLOCKS.items()}, (3, 8, 36, 3): "resnet152"}
    backbone = depths.get(blocks)
    if blocks == (0, 0, 0, 0) and "layer4.0.conv2.weight" in state:
        backbone = "resnet18 or resnet34"
    first = next((state[key] for key in ("conv1.weight", "conv1.0.weight", "stem.0.weight") if key in state), None)
    stems: dict[tuple[int, ...], str] = {
        (64, 3, 7, 7): "7x7",
        (32, 3, 3, 3): "deep-32-32-64",
        (64, 3, 3, 3): "deep-64-64-128",
    }
    return backbone, None if first is None else stems.get(tuple(first.shape))


def _our_name(key: str, stem: str) -> str:
    if stem == "7x7":
        return re.sub(r"^bn1\.", "stem.1.", re.sub(r"^conv1\.weight$", "stem.0.weight", key))
    return re.sub(r"^bn1\.", "stem.7.", re.sub(r"^conv1\.(?=\d)", "stem.", key))


@cache
def _expected(backbone: str, stem: Stem) -> dict[str, Tensor]:
    with torch.device("meta"):  # names and shapes do not depend on stride and dilation
        return ResNet(backbone, stem, 8).state_dict()


def prepare_weights(name: str, spec: Weights, file: Path, out: Path) -> None:
    """Writes ``weights.safetensors`` (our names) and ``source.json`` below ``out``.

    Raises:
        CheckpointError: as :func:`convert`. ``out`` is then left as it was.
    """
    assert spec.backbone
    assert spec.stem
    state = convert(file, read_tensors(file), spec.backbone, spec.stem)
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
