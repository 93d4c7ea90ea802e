"""Checkpoints released by the sources, brought to our names, and ours to theirs.

A table of prefixes for each source is the whole translation. It is applied to the names of our own network, so that
every tensor of a file is either asked for by one of ours or named in the error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from danet.config.row import Model
from danet.core.errors import CheckpointError
from danet.models.segmentor import build_model
from danet.weights.imagenet import encoding_name
from danet.weights.reading import read_tensors, translated

_REMEDY: Final = "take the checkpoint that belongs to this row"
_IMAGENET_CLASSIFIER: Final = "pretrained.fc."
"""The official code of 2018 kept it in its backbone."""
_PAM_BIAS: Final = re.compile(r"decode_head\.pam\.(query|key|value)_project\.bias")


@dataclass(frozen=True)
class Toolbox:
    """How one code base names its tensors.

    Attributes:
        method: the network it is.
        marker: the start of a name that no other source has.
        backbone: prefix of the backbone.
        names: our prefix to theirs.
    """

    method: str
    marker: str
    backbone: str
    names: Mapping[str, str]

    @property
    def encoding(self) -> bool:
        """Whether it is built on PyTorch-Encoding, whose backbone has other names, and scales the shape (1,)."""
        return self.backbone == "pretrained"

    def name(self, ours: str, stem: str) -> str:
        """Their name of our tensor."""
        if ours.startswith("backbone."):
            key = ours.removeprefix("backbone.")
            return f"{self.backbone}.{encoding_name(key, stem) if self.encoding else key}"
        prefix = max((prefix for prefix in self.names if ours.startswith(f"{prefix}.") or ours == prefix), key=len)
        return self.names[prefix] + ours.removeprefix(prefix)


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
        names=_official_danet(**{"head.pam_clusters": "head.ca", "head.cam_clusters": "head.cc"}),
    ),
    "official": Toolbox(
        method="danet",
        marker="head.conv5a.",
        backbone="pretrained",
        names=_official_danet(),
    ),
    "official-dranet": Toolbox(
        method="dranet",
        marker="head.conv_cpam_b.",
        backbone="pretrained",
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
    ),
}


def import_released(file: Path, config: Model, num_classes: int) -> tuple[dict[str, Tensor], str]:
    """Reads a released checkpoint of any source into the state dict of our network.

    Returns:
        The state dict for ``build_model(config, num_classes)``, and the source, a key of :data:`SOURCES`.

    Raises:
        CheckpointError: if the file is damaged or unsafe, from an unknown source, or of another network.
    """
    tensors = read_tensors(file, _REMEDY)
    name = _recognise(file, tensors)
    source = _source_of(name, config, str(file))
    if name == "mmsegmentation" and not config.pam_bias:
        # zeros there are those that `export_weights` adds; any other bias belongs to another network
        tensors = {key: value for key, value in tensors.items() if not _PAM_BIAS.fullmatch(key) or value.any()}
    with torch.device("meta"):
        wanted = build_model(config, num_classes).state_dict()
    state = translated(
        file,
        {key: value for key, value in tensors.items() if not key.startswith(_IMAGENET_CLASSIFIER)},
        wanted,
        {key: source.name(key, config.stem) for key in wanted},
        what=f"the {name} checkpoint of this row ({config.backbone}, {num_classes} classes)",
        remedy=_REMEDY,
    )
    return state, name


def export_released(state: Mapping[str, Tensor], config: Model, source: str) -> dict[str, Tensor]:
    """The state dict of our network in the names and shapes of a source: the inverse of :func:`import_released`.

    Raises:
        CheckpointError: if that source has no such network.
    """
    if source not in SOURCES:
        raise CheckpointError(f"source {source!r} is unknown; allowed: {', '.join(SOURCES)}")
    target = _source_of(source, config, "export")
    return {
        target.name(key, config.stem): value.reshape(1)
        if target.encoding and key.endswith((".gamma", ".scale"))
        else value
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


def _source_of(name: str, config: Model, subject: str) -> Toolbox:
    """The toolbox, if it has networks as the row's: other names than its own could not be told."""
    source = SOURCES[name]
    stem = source.encoding or config.stem == "deep-32-32-64"
    auxiliary = config.aux_channels is None or "aux_head.conv" in source.names or "aux_head.classifier" in source.names
    if config.method != source.method or not stem or not auxiliary:
        raise CheckpointError(
            f"{subject}: {name} has no {config.method} with the stem {config.stem} and aux_channels "
            f"{config.aux_channels}, as the row has; take another row"
        )
    return source
