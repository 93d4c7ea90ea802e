"""DANet's configuration in sssegmentation 1.7.0: its package holds no configs, so this is that of its repository's."""

from __future__ import annotations

from typing import Any

NORMALISE: list[tuple[str, dict[str, Any]]] = [
    ("Normalize", {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}),
    ("ToTensor", {}),
]


def settings(depth: int, stride: int, classes: int) -> dict[str, Any]:
    """The published configuration, with BatchNorm2d for SyncBatchNorm (one process) and without ImageNet weights."""
    entropy = {"type": "CrossEntropyLoss", "ignore_index": -100, "reduction": "mean"}
    return {
        "type": "DANet",
        "num_classes": classes,
        "align_corners": False,
        "norm_cfg": {"type": "BatchNorm2d"},
        "act_cfg": {"type": "ReLU", "inplace": True},
        "backbone": {
            "type": "ResNet",
            "depth": depth,
            "structure_type": f"resnet{depth}conv3x3stem",
            "pretrained": False,
            "outstride": stride,
            "use_conv3x3_stem": True,
            "selected_indices": (2, 3),
        },
        "head": {"in_channels": 2048, "feats_channels": 512, "transform_channels": 64, "dropout": 0.1},
        "auxiliary": {"in_channels": 1024, "out_channels": 512, "dropout": 0.1},
        "losses": {
            "loss_aux": entropy | {"scale_factor": 0.4},
            **{f"loss_cls_{part}": entropy | {"scale_factor": 1.0} for part in ("pam", "cam", "pamcam")},
        },
        "inference": {
            "forward": {"mode": "whole", "cropsize": None, "stride": None},
            "tta": {"multiscale": [1], "flip": False, "use_probs_before_resize": False},
        },
        "scheduler": {
            "type": "PolyScheduler",
            "max_epochs": 0,
            "power": 0.9,
            "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "params_rules": {}},
        },
    }


def train_pipeline(scale: tuple[int, int], crop: tuple[int, int]) -> list[tuple[str, dict[str, Any]]]:
    """The training pipeline; ``scale`` is (width, height), ``crop`` (height, width)."""
    return [
        ("Resize", {"output_size": scale, "keep_ratio": True, "scale_range": (0.5, 2.0)}),
        ("RandomCrop", {"crop_size": crop, "one_category_max_ratio": 0.75}),
        ("RandomFlip", {"prob": 0.5}),
        ("PhotoMetricDistortion", {}),
        *NORMALISE,
        ("Padding", {"output_size": crop, "data_type": "tensor"}),
    ]


def test_pipeline(scale: tuple[int, int]) -> list[tuple[str, dict[str, Any]]]:
    """The single-scale test pipeline; ``scale`` is (width, height)."""
    return [("Resize", {"output_size": scale, "keep_ratio": True, "scale_range": None}), *NORMALISE]
