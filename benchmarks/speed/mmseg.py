"""mmsegmentation 1.2.2 as a worker of :mod:`benchmarks.speed.timing`, with its own defaults.

NCHW, explicit attention map; float32 with what PyTorch allows by itself (TF32 in convolutions), or AMP: float16 by its
AmpOptimWrapper in training on a GPU, else plain autocast. In training cuDNN searches for kernels, as its config says.

The networks are the package's own DANet configs, with other strides and depth where a case asks for them, SyncBN
replaced by BN (one process) and no pretrained weights. Inference is ``test_step``: from the 8-bit image to the label
map.
"""

from __future__ import annotations

import functools
import itertools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.parity.peers import mmseg_peer as peer  # registers the package's modules, with stand-ins for CUDA ones

import mmengine  # isort: skip
import mmseg  # isort: skip
import cv2
import numpy as np
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmseg.evaluation import IoUMetric
from mmseg.models.decode_heads.da_head import PAM

from benchmarks.speed import timing
from benchmarks.speed.timing import Case, Run

PAIRS = Path("build/loading/pairs")
"""Images and labels that our worker has made (:mod:`benchmarks.speed.scenes`)."""
CONFIG = "danet_r50-d8_4xb2-80k_cityscapes-512x1024"


def network(case: Case) -> Any:
    """The package's network for a case."""
    settings = peer.config(CONFIG)
    settings.model.backbone.depth = int(case["model"]["backbone"].removeprefix("resnet"))
    if case["model"]["output_stride"] == 16:
        settings.model.backbone.strides, settings.model.backbone.dilations = (1, 2, 2, 1), (1, 1, 1, 2)
    for head in (settings.model.decode_head, settings.model.auxiliary_head):
        head.num_classes, head.align_corners = case["classes"], case["model"]["align_corners"]
    if case["what"] == "infer" and case["test"]["mode"] == "slide":
        window, stride = case["test"]["window"], case["test"]["stride"]
        settings.model.test_cfg = {"mode": "slide", "crop_size": tuple(window), "stride": tuple(stride)}
    return peer.build(settings, None, dropout=True).to(case["device"])


def amp(case: Case) -> AbstractContextManager[object]:
    """Autocast to the case's precision."""
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
    half = dtypes.get(case["amp"])
    return torch.autocast(torch.device(case["device"]).type, half) if half else nullcontext()


def infer(case: Case) -> Run:
    """From the 8-bit image to the label map on the host."""
    model, size, original = network(case).eval(), tuple(case["input"]), tuple(case["size"])
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size)).astype(np.uint8))

    def run() -> object:
        with torch.no_grad(), amp(case):
            result = model.test_step({"inputs": [image], "data_samples": [peer.sample(size, original=original)]})
            return result[0].pred_sem_seg.data.cpu().numpy()

    return run


def train(case: Case) -> Run:
    """One optimizer step on a batch that lies on the device."""
    model, device = network(case).train(), case["device"]
    images, labels = timing.training_batch(case)
    images = images.to(device)
    samples = [peer.sample(label.shape, label).to(device) for label in labels]
    scaled = case["amp"] == "fp16"
    kind = AmpOptimWrapper if scaled else OptimWrapper
    torch.backends.cudnn.benchmark = peer.config(CONFIG).env_cfg.cudnn_benchmark
    wrapper = kind(optimizer=torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4))

    def run() -> None:
        with wrapper.optim_context(model) if scaled else amp(case):
            losses = model(images, samples, mode="loss")
        loss, _ = model.parse_losses(losses)
        wrapper.update_params(loss)

    return run


def attention(case: Case) -> Run:
    """The position attention alone."""
    module = PAM(512, 64).to(case["device"])
    torch.nn.init.ones_(module.gamma.scale if hasattr(module.gamma, "scale") else module.gamma)
    return timing.attention(case, module, functools.partial(amp, case))


def confusion(case: Case) -> Run:
    """The per-image sums of the package's metric."""
    prediction, target = timing.label_maps(case)
    return lambda: IoUMetric.intersect_and_union(prediction, target, case["classes"], 255)


def loading(case: Case) -> Run:
    """The package's training pipeline on images and labels that lie in memory, up to the grey levels of a batch."""
    cv2.setNumThreads(1)
    settings = peer.config(f"danet_r50-d8_4xb2-40k_cityscapes-{case['size'][0]}x{case['size'][1]}")
    steps = settings.train_dataloader.dataset.pipeline
    load, change = (
        peer.Compose([peer.TRANSFORMS.build(s) for s in steps if s["type"].startswith("Load") == first])
        for first in (True, False)
    )
    known = {"label_map": None, "reduce_zero_label": False, "seg_fields": []}
    paths = sorted(PAIRS.glob("*_image.png"))
    labels = [path.with_name(path.name.replace("_image.", "_labels.")) for path in paths]
    loaded = itertools.cycle(
        [load(known | {"img_path": str(a), "seg_map_path": str(b)}) for a, b in zip(paths, labels, strict=True)]
    )

    def run() -> object:
        return [change({**next(loaded), "seg_fields": ["gt_seg_map"]}) for _ in range(case["batch"])]

    return run


BUILDERS = {"infer": infer, "train": train, "attention": attention, "confusion": confusion, "loading": loading}


def build(case: Case) -> Run:
    """The computation of a case."""
    torch.set_num_threads(case["threads"])
    torch.backends.cudnn.benchmark = False  # its tools/analysis_tools/benchmark.py
    torch.manual_seed(0)
    return BUILDERS[case["what"]](case)


if __name__ == "__main__":
    timing.serve(build, {"name": f"mmsegmentation {mmseg.__version__}", "mmengine": mmengine.__version__})
