"""Checkpoints released by the sources, brought to our names, and ours to theirs.

A table of prefixes for each source is the whole translation. It is applied to the names of our own network, so that
every tensor of a file is either asked for by one of ours or named in the error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from danet.config.row import Model
from danet.core.errors import CheckpointError
from danet.models.segmentor import build_model
from danet.weights.imagenet import describe
from danet.weights.reading import check_names, read_tensors

_COUNTER: Final = ".num_batches_tracked"
_REMEDY: Final = "take the checkpoint that belongs to this row"


@dataclass(frozen=True)
class Toolbox:
    """How one code base names its tensors.

    Attributes:
        method: the network it is.
        marker: the start of a name that no other source has.
        backbone: prefix of the backbone.
        names: our prefix to theirs.
        classifier: prefix of the main classifier, which tells the number of classes.
        scale_shape: of the learned scales, ``()`` or ``(1,)``.
        dropped: prefixes of tensors that the network does not use.
    """

    method: str
    marker: str
    backbone: str
    names: Mapping[str, str]
    classifier: str
    scale_shape: tuple[int, ...] = ()
    dropped: tuple[str, ...] = ()

    def name(self, ours: str, stem: str) -> str:
        """Their name of our tensor."""
        if ours.startswith("backbone."):
            return f"{self.backbone}.{self._stem(ours.removeprefix('backbone.'), stem)}"
        prefix = max((prefix for prefix in self.names if ours.startswith(f"{prefix}.") or ours == prefix), key=len)
        return self.names[prefix] + ours.removeprefix(prefix)

    def _stem(self, key: str, stem: str) -> str:
        if not key.startswith("stem.") or self.backbone != "pretrained":
            return key
        _, index, rest = key.split(".", 2)
        if stem == "7x7":
            return f"{'conv1' if index == '0' else 'bn1'}.{rest}"
        return f"bn1.{rest}" if index == "7" else f"conv1.{index}.{rest}"


def _official_danet(**extra: str) -> dict[str, str]:
    return {
        "head.pam_in": "head.conv5a",
        "head.cam_in": "head.conv5c",
        "head.pam.query": "head.sa.query_conv",
        "head.pam.key": "head.sa.key_conv",
        "head.pam.value": "head.sa.value_conv",
        "head.pam.gamma": "head.sa.gamma",
        "head.cam.gamma": "head.sc.gamma",
        "head.pam_out": "head.conv51",
        "head.cam_out": "head.conv52",
        "head.pam_classifier": "head.conv6.1",
        "head.cam_classifier": "head.conv7.1",
        "head.classifier": "head.conv8.1",
        **extra,
    }


def _mmsegmentation_blocks(*blocks: tuple[str, str]) -> dict[str, str]:
    return {f"{ours}.{i}": f"{theirs}.{part}" for ours, theirs in blocks for i, part in ((0, "conv"), (1, "bn"))}


SOURCES: Final[dict[str, Toolbox]] = {
    "mmsegmentation": Toolbox(
        method="danet",
        marker="decode_head.pam_in_conv.",
        backbone="backbone",
        classifier="decode_head.conv_seg",
        names={
            **_mmsegmentation_blocks(
                ("head.pam_in", "decode_head.pam_in_conv"),
                ("head.pam_out", "decode_head.pam_out_conv"),
                ("head.cam_in", "decode_head.cam_in_conv"),
                ("head.cam_out", "decode_head.cam_out_conv"),
                ("aux_head.conv", "auxiliary_head.convs.0"),
            ),
            "head.pam.query": "decode_head.pam.query_project",
            "head.pam.key": "decode_head.pam.key_project",
            "head.pam.value": "decode_head.pam.value_project",
            "head.pam.gamma": "decode_head.pam.gamma.scale",
            "head.cam.gamma": "decode_head.cam.gamma.scale",
            "head.classifier": "decode_head.conv_seg",
            "head.pam_classifier": "decode_head.pam_conv_seg",
            "head.cam_classifier": "decode_head.cam_conv_seg",
            "aux_head.classifier": "auxiliary_head.conv_seg",
        },
    ),
    "sssegmentation": Toolbox(
        method="danet",
        marker="backbone_net.",
        backbone="backbone_net",
        classifier="decoder_pamcam.1",
        names={
            "head.pam_in": "pam_in_conv",
            "head.pam_out": "pam_out_conv",
            "head.cam_in": "cam_in_conv",
            "head.cam_out": "cam_out_conv",
            "head.pam.query": "pam_net.query_project",
            "head.pam.key": "pam_net.key_project",
            "head.pam.value": "pam_net.value_project",
            "head.pam.gamma": "pam_net.gamma.scale",
            "head.cam.gamma": "cam_net.gamma.scale",
            "head.classifier": "decoder_pamcam.1",
            "head.pam_classifier": "decoder_pam.1",
            "head.cam_classifier": "decoder_cam.1",
            "aux_head.conv": "auxiliary_decoder",
            "aux_head.classifier": "auxiliary_decoder.4",
        },
    ),
    # Before "official", whose marker its files have too.
    "clusterdanet": Toolbox(
        method="clusterdanet",
        marker="head.ca.",
        backbone="pretrained",
        classifier="head.conv8.1",
        names=_official_danet(**{"head.pam_clusters": "head.ca", "head.cam_clusters": "head.cc"}),
        scale_shape=(1,),
        dropped=("pretrained.fc.",),
    ),
    "official": Toolbox(
        method="danet",
        marker="head.conv5a.",
        backbone="pretrained",
        classifier="head.conv8.1",
        names=_official_danet(),
        scale_shape=(1,),
        dropped=("pretrained.fc.",),  # the 2018 code kept the ImageNet classifier
    ),
    "official-dranet": Toolbox(
        method="dranet",
        marker="head.conv_cpam_b.",
        backbone="pretrained",
        classifier="cls_seg.1",
        names={
            "head.cpam_in": "head.conv_cpam_b",
            **{f"head.cpam_encoder.convs.{index}": f"head.cpam_enc.conv{index + 1}" for index in range(4)},
            "head.cpam_decoder.query": "head.cpam_dec.conv_query",
            "head.cpam_decoder.key": "head.cpam_dec.conv_key",
            "head.cpam_decoder.value": "head.cpam_dec.conv_value",
            "head.cpam_decoder.scale": "head.cpam_dec.scale",
            "head.cpam_out": "head.conv_cpam_e",
            "head.ccam_in": "head.conv_ccam_b",
            "head.ccam_encoder": "head.ccam_enc",
            "head.ccam_decoder.scale": "head.ccam_dec.scale",
            "head.ccam_out": "head.conv_ccam_e",
            "head.cat": "head.conv_cat",
            "head.gate.low": "head.clgd.conv_low",
            "head.gate.cat": "head.clgd.conv_cat",
            "head.gate.gate": "head.clgd.conv_att.0",
            "head.gate.out": "head.clgd.conv_out",
            "head.gate.gamma": "head.clgd.gamma",
            "head.classifier": "cls_seg.1",
            "aux_head.conv": "cls_aux",
            "aux_head.classifier": "cls_aux.4",
        },
        scale_shape=(1,),
        dropped=("pretrained.fc.",),
    ),
}


def import_released(file: Path, config: Model, num_classes: int) -> tuple[dict[str, Tensor], str]:
    """Reads a released checkpoint of any source into the state dict of our network.

    Batch counters, which files of old PyTorch lack altogether, are then 0; the ImageNet classifier that the official
    code keeps in its backbone is dropped. Everything else must be there, and nothing more.

    Returns:
        The state dict for ``build_model(config, num_classes)``, and the source, a key of :data:`SOURCES`.

    Raises:
        CheckpointError: if the file is damaged or unsafe, from an unknown source, or of another network.
    """
    tensors = read_tensors(file, _REMEDY)
    source_name = _recognise(file, tensors)
    source = SOURCES[source_name]
    tensors = {key: value for key, value in tensors.items() if not key.startswith(source.dropped)}
    _refuse_other_method(str(file), source, config)
    _refuse_other_size(file, source, tensors, config, num_classes)
    with torch.device("meta"):
        wanted = build_model(config, num_classes).state_dict()
    names = {key: source.name(key, config.stem) for key in wanted}
    expected = {
        names[key]: value.reshape(source.scale_shape) if _is_scale(key) else value for key, value in wanted.items()
    }
    if not any(key.endswith(_COUNTER) for key in tensors):
        tensors.update({key: torch.zeros((), dtype=torch.int64) for key in expected if key.endswith(_COUNTER)})
    check_names(file, tensors, expected, what=f"the {source_name} checkpoint of this row", remedy=_REMEDY)
    state = {key: tensors[names[key]].to(value.dtype).reshape(value.shape) for key, value in wanted.items()}
    return state, source_name


def export_released(state: Mapping[str, Tensor], config: Model, source: str) -> dict[str, Tensor]:
    """The state dict of our network in the names and shapes of a source: the inverse of :func:`import_released`.

    Raises:
        CheckpointError: if that source has no such network.
    """
    if source not in SOURCES:
        raise CheckpointError(f"source {source!r} is unknown; allowed: {', '.join(SOURCES)}")
    target = SOURCES[source]
    _refuse_other_method(f"export to {source}", target, config)
    return {
        target.name(key, config.stem): value.reshape(target.scale_shape) if _is_scale(key) else value
        for key, value in state.items()
    }


def _recognise(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """The source of a checkpoint, a key of :data:`SOURCES`.

    Raises:
        CheckpointError: if it is none of them.
    """
    for name, source in SOURCES.items():
        if any(key.startswith(source.marker) for key in tensors):
            return name
    first = ", ".join(list(tensors)[:3])
    raise CheckpointError(
        f"{file}: comes from an unknown source ({first}, ...); known are DANet checkpoints of {', '.join(SOURCES)}"
    )


def _is_scale(key: str) -> bool:
    return key.endswith((".gamma", ".scale"))


def _refuse_other_method(subject: str, source: Toolbox, config: Model) -> None:
    if config.method != source.method:
        raise CheckpointError(f"{subject}: is a {source.method}, the row has method {config.method}; take another row")
    if source.backbone != "pretrained" and config.stem != "deep-32-32-64":
        raise CheckpointError(
            f"{subject}: its networks have the stem deep-32-32-64, the row has {config.stem}; take another row"
        )
    if config.aux_channels is not None and not any(key.startswith("aux_head") for key in source.names):
        raise CheckpointError(f"{subject}: has no auxiliary head, the row has aux_channels {config.aux_channels}")


def _refuse_other_size(
    file: Path, source: Toolbox, tensors: Mapping[str, Tensor], config: Model, num_classes: int
) -> None:
    """The likely mistakes in words, before the list of names."""
    prefix = f"{source.backbone}."
    backbone = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    for kind, found, wanted in zip(
        ("backbone", "stem"), describe(backbone), (config.backbone, config.stem), strict=True
    ):
        if found is not None and found != wanted:
            raise CheckpointError(f"{file}: has {kind} {found}, the row has {kind} {wanted}; {_REMEDY}")
    classifier = tensors.get(f"{source.classifier}.weight")
    if classifier is not None and classifier.ndim == 4 and len(classifier) != num_classes:
        raise CheckpointError(f"{file}: has {len(classifier)} classes, the row has {num_classes} classes; {_REMEDY}")
