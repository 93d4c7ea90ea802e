"""Iterations from the same weights on the same batches, in float64: our Trainer against each source's optimiser.

All at the recipes' own learning rates. In float64 rounding errors hardly have the room to grow from step to step, so
that what the two programs compute differently stands alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.parity import common, compare, reference
from benchmarks.parity.results import Result
from danet.config.row import Loss, Row
from danet.results.identity import TrainingIdentity
from danet.training import loop
from danet.training.checkpoint import CheckpointStore
from danet.training.losses import loss_divisors

EPSILON = {"mmseg": float(np.finfo(np.float32).eps), "ssseg": 0.0}
"""mmsegmentation divides by the number of pixels plus this: no float32 shows it, but float64 does."""


@dataclass(frozen=True)
class Trained:
    """Loss and backbone's learning rate of each iteration, and the final state."""

    losses: np.ndarray
    rates: np.ndarray
    state: dict[str, Tensor]

    def projected(self) -> dict[str, np.ndarray]:
        """As a peer's run is stored."""
        return common.training_arrays(self.losses, self.rates, self.state)


def compared(
    title: str, case: str, peer: str, ours: Trained, theirs: dict[str, np.ndarray], mapping: dict[str, str]
) -> Iterator[Result]:
    """Two runs, theirs as stored; ``mapping`` has our name of each entry of their state."""
    losses = theirs["loss"]
    worst = float(np.max(np.abs(ours.losses - losses) / losses))
    note = f"{len(losses)} iterations, loss {losses[0]:.2f} to {losses[-1]:.2f}"
    yield Result(title, "training, loss curve", case, worst, peer, note)
    rates = theirs["lr"]
    note = f"{rates[0]:g} to {rates[-1]:.2g}"
    yield Result(title, "training, learning rate", case, float(np.abs(ours.rates - rates).max()), peer, note)
    stored = {
        key.removeprefix("state/"): value
        for key, value in theirs.items()
        if key.startswith("state/") and not key.endswith("num_batches_tracked")
    }
    worst, where = compare.projection_difference(ours.state, stored, mapping)
    yield Result(title, "training, weights", case, worst, peer, f"{len(stored)} tensors; worst: {where}")


def trained(model: nn.Module, recipe: Row, case: str, run: dict[str, int], epsilon: float = 0.0) -> Trained:
    """The Trainer on any model, in place and in float64; losses are divided by the count of pixels plus ``epsilon``."""

    def shifted(*arguments: Any) -> Tensor:
        return loss_divisors(*arguments).double() + epsilon

    total, batch = run["iterations"], run["batch"]
    schedule = recipe.schedule.model_copy(
        update={"iterations": total, "epochs": None, "batch_size": batch, "replicas": 1}
    )
    runtime = recipe.runtime.model_copy(update={"log_interval": 1, "checkpoint_interval": 10**6})
    recipe = recipe.model_copy(update={"schedule": schedule, "runtime": runtime, "val_interval": None})
    batches = []
    for iteration in range(total):
        image, label = common.training_batch(case, iteration, run)
        batches.append((torch.from_numpy(image), torch.from_numpy(label.astype(np.uint8))))
    stream = mock.MagicMock(waited=0.0)  # stands in for the loader
    stream.__enter__.return_value, stream.__next__.side_effect = stream, batches
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(loop, "batch_stream", return_value=stream),
        mock.patch.object(loop, "loss_divisors", shifted),
    ):
        identity = TrainingIdentity.of(recipe, 0, data="", initial_weights=None)
        store = CheckpointStore(Path(folder), identity)
        samples: Any = range(batch * total)  # the trainer asks for their number alone
        history = loop.Trainer(recipe, 0, model.double(), samples, store).run()
    losses = np.array([float(entry["loss"] or 0.0) for entry in history.curve])
    rates = np.array([float(entry["lr"] or 0.0) for entry in history.curve])
    return Trained(losses, rates, {key: value.detach() for key, value in model.state_dict().items()})


def package_recipe(source: str) -> Row:
    """The row that a package is compared by."""
    recipe = compare.row(source)
    update: dict[str, Any] = {"loss": recipe.loss.model_copy(update={"replicas": 1})}  # the peers are one process
    if source == "mmseg":  # the package is 1.x
        update["schedule"] = recipe.schedule.model_copy(update={"denominator": "T-1"})
    return recipe.model_copy(update=update)


def check_training(folder: Path) -> Iterator[Result]:
    """The packages' own optimisers and schedulers: the runs that the peers stored in ``folder``."""
    for source, name, theirs, meta in compare.stored(folder, "training"):
        recipe, case = package_recipe(source), f"{source}-training"
        model, mapping = compare.peer_model(source, case, meta)
        mine = trained(model, recipe, case, common.TRAININGS[name], EPSILON[source])
        yield from compared(recipe.source, name, compare.against(source, meta), mine, theirs, mapping)


def check_official_training(kind: str) -> Iterator[Result]:
    """The reference with SGD written out: two groups, poly over T."""
    recipe, case, run = compare.row(kind), f"official-training-{kind}", common.TRAININGS["full"]
    model, network, mapping = compare.official_pair(kind, 50, case)
    network.training = True
    recipe = recipe.model_copy(update={"model": model.config})
    mine = trained(model, recipe, case, run)
    theirs = reference_training(network, recipe.loss, case, run).projected()
    yield from compared(recipe.source, kind, compare.REFERENCE, mine, theirs, mapping)


def reference_training(network: reference.Network, loss: Loss, case: str, run: dict[str, int]) -> Trained:
    """SGD by its formula: v = 0.9 v + g + 1e-4 w, w = w - lr v, lr = 0.003 (1 - i/T)^0.9, ten times that in the head.

    Updates ``network`` in place.
    """
    momentum: dict[str, Tensor] = {}
    losses, rates = [], []
    total = run["iterations"]
    for iteration in range(total):
        image, label = (torch.from_numpy(array) for array in common.training_batch(case, iteration, run))
        rate = 0.003 * (1 - iteration / total) ** 0.9
        for value in network.weights.values():
            value.grad = None
        value = compare.official_loss(network.forward(image), label, loss)
        value.backward()  # type: ignore[no-untyped-call]
        losses.append(value.item())
        rates.append(rate)
        with torch.no_grad():
            for key, weight in network.weights.items():
                if weight.grad is None:
                    continue
                step = weight.grad + 1e-4 * weight
                momentum[key] = 0.9 * momentum[key] + step if key in momentum else step
                weight.sub_(rate * (1 if key.startswith("pretrained.") else 10) * momentum[key])
            for key, statistic in network.statistics.items():
                network.weights[key] = statistic
    return Trained(np.array(losses), np.array(rates), {key: w.detach() for key, w in network.weights.items()})
