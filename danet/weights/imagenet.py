"""ImageNet weights of the backbones, brought to our names.

Names understood: torchvision's and PyTorch-Encoding's 7x7 stem (``conv1``, ``bn1``), mmsegmentation's deep stem
(``stem.0`` ...) and PyTorch-Encoding's deep stem (``conv1.0`` ... ``conv1.6``, ``bn1``).
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from danet.config.params import Weights
from danet.core.errors import CheckpointError
from danet.core.files import atomic_write, sha256, write_json
from danet.models.resnet import BLOCKS, ResNet, Stem
from danet.models.segmentor import Segmentor
from danet.weights.reading import check_names, read_tensors_and_digests

FORMAT: Final = 1
WEIGHTS_FILE: Final = "weights.safetensors"
SOURCE_FILE: Final = "source.json"
_CLASSIFIER: Final = re.compile(r"(head\.)?fc\.(weight|bias)")
_COUNTER: Final = "num_batches_tracked"


def convert(file: Path, given: dict[str, Tensor], backbone: str, stem: str) -> dict[str, Tensor]:
    """An ImageNet checkpoint's tensors in the names of our :class:`~danet.models.resnet.ResNet`, without prefix.

    The ImageNet classifier (``fc``) is dropped; batch counters, which old files lack, are set to 0. Everything else
    must be there, and nothing more. Floating-point tensors become float32.

    Args:
        file: what messages name.
        given: its tensors; ``backbone.`` prefixes are fine.
        backbone: ``resnet50`` or ``resnet101``.
        stem: as in :class:`danet.config.row.Model`.

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
def _expected(backbone: str, stem: str) -> dict[str, Tensor]:
    if backbone not in BLOCKS:
        raise CheckpointError(f"backbone {backbone!r} is unknown; allowed: {', '.join(BLOCKS)}")
    stems: dict[str, Stem] = {"7x7": "7x7", "deep-32-32-64": "deep-32-32-64", "deep-64-64-128": "deep-64-64-128"}
    if stem not in stems:
        raise CheckpointError(f"stem {stem!r} is unknown; allowed: {', '.join(stems)}")
    with torch.device("meta"):  # names and shapes do not depend on stride and dilation
        return ResNet(backbone, stems[stem], 8).state_dict()


def prepare_weights(name: str, spec: Weights, source_file: Path | None, out: Path) -> None:
    """Writes ``weights.safetensors`` (our names) and ``source.json`` below ``out``.

    For random initialisation (``spec.file`` null) only ``source.json`` is written.

    Args:
        name: the key in ``datasets.yaml``.
        spec: its entry.
        source_file: the downloaded file; None for random initialisation.
        out: folder, made where needed.

    Raises:
        CheckpointError: if the file's checksum differs, or as :func:`convert`. ``out`` is then left as it was.
    """
    source: dict[str, Any] = {"format": FORMAT, "name": name, "title": spec.title}
    if spec.file is None:
        (out / WEIGHTS_FILE).unlink(missing_ok=True)
        write_json(out / SOURCE_FILE, {**source, "random": True, "sha256": None, "tensors": 0})
        return
    if source_file is None or spec.backbone is None or spec.stem is None:
        raise CheckpointError(
            f"weights {name}: file, backbone and stem are needed in datasets.yaml and the file on disk"
        )
    algorithm, _, digest = (spec.checksum or "sha256:").partition(":")
    tensors, digests = read_tensors_and_digests(source_file, (algorithm,))
    if not any(found.startswith(digest.lower()) for found in digests[algorithm]):
        raise CheckpointError(
            f"{source_file}: its {algorithm} is {' / '.join(sorted(digests[algorithm]))}, expected {digest}; "
            f"delete it and run `dvc repro weights@{name}`"
        )
    state = convert(source_file, tensors, spec.backbone, spec.stem)
    with atomic_write(out / WEIGHTS_FILE) as temporary:
        _save(state, temporary)
    write_json(
        out / SOURCE_FILE,
        {
            **source,
            "random": False,
            "url": spec.url,
            "file": source_file.name,
            "checksum": spec.checksum,
            "sha256": sha256(source_file),
            "backbone": spec.backbone,
            "stem": spec.stem,
            "tensors": len(state),
            "weights_sha256": sha256(out / WEIGHTS_FILE),
        },
    )


def _save(state: dict[str, Tensor], path: Path) -> None:
    try:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    except SafetensorError as error:  # a full disk, mostly
        raise CheckpointError(f"{path}: cannot be written ({error}); free space, then run again") from error


def backbone_sha256(folder: Path) -> str | None:
    """SHA-256 of the weights file that :func:`prepare_weights` wrote; None where it says random or is not there.

    :func:`load_backbone` has the messages.
    """
    file = folder / WEIGHTS_FILE
    return sha256(file) if file.is_file() else None


def load_backbone(model: Segmentor, folder: Path) -> str | None:
    """Loads what :func:`prepare_weights` wrote into the model's backbone, strictly.

    Returns:
        The SHA-256 of the weights file, or None for random initialisation (the model is then left as it is).

    Raises:
        CheckpointError: if the folder is incomplete, the file was changed, or it is of another backbone.
    """
    remedy = f"make it again with `dvc repro -f -s weights@{folder.name}`"
    try:
        source = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        random, wanted_sha256 = source["random"], source.get("weights_sha256")
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder / SOURCE_FILE}: does not exist; run `dvc repro weights@{folder.name}`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / SOURCE_FILE}: is damaged ({error}); {remedy}") from error
    if random:
        return None
    file = folder / WEIGHTS_FILE
    tensors, digests = read_tensors_and_digests(file, ("sha256",), remedy)
    (digest,) = digests["sha256"]
    if digest != wanted_sha256:
        raise CheckpointError(f"{file}: was changed since it was made (sha256 {digest}, was {wanted_sha256}); {remedy}")
    config = model.config
    for field in ("backbone", "stem"):
        if source.get(field) != getattr(config, field):
            raise CheckpointError(
                f"{file}: is for {field} {source.get(field)}, the row has {getattr(config, field)}; "
                "correct weights or model of the row in params.yaml"
            )
    check_names(file, tensors, model.backbone.state_dict(), what=f"our {config.backbone}", remedy=remedy)
    model.backbone.load_state_dict(tensors)
    return digest
