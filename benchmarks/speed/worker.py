"""Our half: a worker of :mod:`benchmarks.speed.timing` that computes as a case's ``numerics`` say."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks import null
from benchmarks.speed import timing
from benchmarks.speed.cases import repository
from benchmarks.speed.timing import Build, Case, Run
from danet.config.row import Loss, Model, Numerics, Optimizer, Test
from danet.data.loader import TrainingSet, collate
from danet.data.prepared import PreparedDataset
from danet.evaluation.inference import Predictor
from danet.evaluation.metrics import Confusion
from danet.models import build_model
from danet.models.attention import PositionAttention
from danet.models.numerics import autocast, configured, gradient_scaler, seed_step
from danet.training.losses import segmentation_losses
from danet.training.optim import build_optimizer


def build(case: Case) -> Run:
    """The computation of a case.

    Raises:
        KeyError: for a case that names no builder.
    """
    torch.compiler.reset()  # a case is compiled for its own size, as a row is
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    return BUILDERS[case["what"]](case)


def _network(case: Case) -> tuple[torch.nn.Module, Numerics, torch.device]:
    numerics, device = Numerics.model_validate(case["numerics"]), torch.device(case["device"])
    model = build_model(Model.model_validate(case["model"]), case["classes"], numerics.attention).to(device)
    if numerics.channels_last:
        model.to(memory_format=torch.channels_last)
    return model, numerics, device


def infer(case: Case) -> Run:
    """From the 8-bit image at the network's input size to the label map on the host: normalised, network, resized,
    argmax; by the case's protocol at a single scale. As published, the image's own resize is not timed."""
    model, numerics, device = _network(case)
    predictor = Predictor(
        model.eval(),
        Test.model_validate(case["test"]),
        case["model"]["align_corners"],
        device=device,
        numerics=numerics,
        max_batch=1 if case["one_by_one"] else None,
    )
    if case["graph"]:
        predictor.model = Graphed(predictor.model)
    inputs = predictor.prepare(np.random.default_rng(0).integers(0, 256, (*case["size"], 3)).astype(np.uint8))

    def run() -> object:
        with configured(numerics, training=False):
            return predictor.labels(inputs).cpu().numpy()

    return run


class Graphed(torch.nn.Module):
    """A network for one size as a CUDA graph: its kernels are launched by one call."""

    WARM_UP = 10
    """Calls before the capture, in which the network is compiled and kernels are chosen."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x: torch.Tensor) -> Any:
        """The logits, in memory that the next call writes to."""
        self.calls += 1
        if self.calls <= self.WARM_UP:
            return self.model(x)
        if self.calls == self.WARM_UP + 1:
            self.input, self.graph = x.clone(), torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(self.graph):
                self.output = self.model(self.input)
        self.input.copy_(x)
        self.graph.replay()
        return self.output


def train(case: Case) -> Run:
    """One optimizer step on a batch that lies on the device, as :class:`danet.training.loop.Trainer` makes it."""
    model, numerics, device = _network(case)
    images, labels = timing.training_batch(case)
    images, labels = images.to(device), labels.to(device, torch.uint8)
    if numerics.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = build_optimizer(model.train(), Optimizer(lr=1e-4, weight_decay=5e-4))
    scaler = gradient_scaler(numerics, device)
    weights = Loss.model_validate(case["loss"])
    network = torch.compile(model) if numerics.compile else model

    def run() -> None:
        with configured(numerics):
            seed_step(model, 0, range(case["batch"]), device)
            with autocast(numerics, device):
                outputs = network(images)
            losses = segmentation_losses(outputs, labels, weights, align_corners=case["model"]["align_corners"])
            torch.autograd.backward(scaler.scale(losses["loss"]))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

    return run


def attention(case: Case) -> Run:
    """The position attention alone."""
    numerics, device = Numerics.model_validate(case["numerics"]), torch.device(case["device"])
    module = PositionAttention(512, 64, attention=numerics.attention).to(device)
    torch.nn.init.ones_(module.gamma)
    return timing.attention(case, module, functools.partial(autocast, numerics, device))


def loading(case: Case) -> Run:
    """What a loading process does: reads, augments and stacks a batch of the row's samples, from raw pixels to the grey
    levels that a GPU normalises. ``reference`` resizes whole images before it crops."""
    from benchmarks.speed import scenes  # needs DVC, which `make gpu` does without

    cv2.setNumThreads(1)
    row = repository().row(case["network"])
    lazy = Numerics.model_validate(case["numerics"]).attention == "fused"
    dataset = PreparedDataset(scenes.prepare(), "train")
    samples = TrainingSet(dataset, row.augment, seed=0, lazy=lazy)
    positions = itertools.count()
    return lambda: collate([samples[next(positions)] for _ in range(case["batch"])])


def confusion(case: Case) -> Run:
    """Adds one image to the confusion matrix."""
    prediction, target = timing.label_maps(case).to(case["device"], torch.uint8)
    matrix = Confusion(case["classes"], case["device"])
    return lambda: matrix.update(prediction, target)


def peak(case: Case) -> Run:
    """What the device can do at best: a matrix product, a convolution, or a copy of float32 numbers."""
    numerics = Numerics.model_validate(case["numerics"])
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[numerics.precision]
    a, b = (torch.randn(shape, dtype=dtype, device=case["device"]) for shape in case["shapes"])
    if case["kind"] == "convolution":
        a, b = (x.contiguous(memory_format=torch.channels_last) for x in (a, b))
    compute: Run = {
        "product": lambda: a @ b,
        "convolution": lambda: torch.nn.functional.conv2d(a, b, padding=1),
        "copy": lambda: b.copy_(a),
    }[case["kind"]]

    def run() -> object:
        with torch.inference_mode(), configured(numerics):
            return compute()

    return run


BUILDERS: Mapping[str, Build] = {
    "infer": infer,
    "train": train,
    "attention": attention,
    "confusion": confusion,
    "loading": loading,
    "peak": peak,
}

if __name__ == "__main__":
    if null.running():
        null.blind()
    timing.serve(build, {"name": "ours"})
