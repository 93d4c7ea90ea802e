"""DANet R-50 on CamVid at stride 16, from scratch, as a configuration file of sssegmentation 1.7.0.

Its repository's DANet configs with what the data set, the size and one process ask for. Sizes are (width, height) in
``output_size`` of ``Resize``, else (height, width).
"""

from __future__ import annotations

import os

SCALE = (120, 90)
CROP = (48, 64)
WORK = os.environ["REHEARSAL_WORK"]
ENTROPY = {"type": "CrossEntropyLoss", "ignore_index": -100, "reduction": "mean"}
NORMALISE = [
    ("Normalize", {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}),
    ("ToTensor", {}),
]

SEGMENTOR_CFG = {
    "type": "DANet",
    "num_classes": 11,
    "benchmark": True,
    "align_corners": False,
    "norm_cfg": {"type": "BatchNorm2d"},  # SyncBatchNorm needs a GPU; the same with one process
    "act_cfg": {"type": "ReLU", "inplace": True},
    "backbone": {
        "type": "ResNet",
        "depth": 50,
        "structure_type": "resnet50conv3x3stem",
        "pretrained": False,
        "outstride": 16,
        "use_conv3x3_stem": True,
        "selected_indices": (2, 3),
    },
    "head": {"in_channels": 2048, "feats_channels": 512, "transform_channels": 64, "dropout": 0.1},
    "auxiliary": {"in_channels": 1024, "out_channels": 512, "dropout": 0.1},
    "losses": {
        "loss_aux": ENTROPY | {"scale_factor": 0.4},
        **{f"loss_cls_{part}": ENTROPY | {"scale_factor": 1.0} for part in ("pam", "cam", "pamcam")},
    },
    "inference": {
        "forward": {"mode": "whole", "cropsize": None, "stride": None},
        "tta": {"multiscale": [1], "flip": False, "use_probs_before_resize": False},
        "evaluate": {"metric_list": ["iou", "miou", "accuracy", "all_accuracy"]},
    },
    "scheduler": {
        "type": "PolyScheduler",
        "max_epochs": 3,
        "power": 0.9,
        "optimizer": {
            "type": "SGD",
            "lr": 0.01,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "params_rules": {},
        },
    },
    "dataset": {
        "type": "CamVidDataset",
        "rootdir": os.environ["CAMVID"],
        "train": {
            "set": "train",
            "data_pipelines": [
                ("Resize", {"output_size": SCALE, "keep_ratio": True, "scale_range": (0.5, 2.0)}),
                ("RandomCrop", {"crop_size": CROP, "one_category_max_ratio": 0.75}),
                ("RandomFlip", {"prob": 0.5}),
                ("PhotoMetricDistortion", {}),
                *NORMALISE,
                ("Padding", {"output_size": CROP, "data_type": "tensor"}),
            ],
        },
        "test": {
            "set": "val",
            "data_pipelines": [
                ("Resize", {"output_size": SCALE, "keep_ratio": True, "scale_range": None}),
                *NORMALISE,
            ],
        },
    },
    "dataloader": {
        "expected_total_train_bs_for_assert": 16,
        "auto_adapt_to_expected_train_bs": False,
        "train": {"batch_size_per_gpu": 16, "num_workers_per_gpu": 0, "shuffle": True, "drop_last": True},
        "test": {"batch_size_per_gpu": 1, "num_workers_per_gpu": 0, "shuffle": False},
    },
    "eval_interval_epochs": 1000,
    "save_interval_epochs": 1000,
    "init_process_group_cfg": {
        "backend": "gloo",
        "init_method": f"file://{WORK}/rendezvous",
        "rank": 0,
        "world_size": 1,
    },
    "work_dir": WORK,
    "logger_handle_cfg": {"type": "LocalLoggerHandle", "logfilepath": f"{WORK}/train.log"},
    "training_logging_manager_cfg": {"log_interval_iters": 4},
}
