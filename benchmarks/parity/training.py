"""Twenty iterations from the same weights on the same batches: our Trainer against each source's optimiser.

All at the recipes' own learning rates, twice: in float32, where rounding errors grow from step to step, and in float64,
where they hardly have the room to, so that what the two programs compute differently would stand alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.parity import common, compare, reference
from benchmarks.parity.results import Result
from danet.config import rows
from danet.data.loader import Batch
from danet.models import build_model
from danet.results.identity import TrainingIdentity
from danet.training import loop
from danet.training.checkpoint import CheckpointStore

PACKAGE_ROWS = {"mmseg": "mmseg-r50-d8-cityscapes-512x1024-40k", "ssseg": "ssseg-r50-d8-cityscapes"}
UNMOVED = "key.bias"
EPSILON = {"mmseg": float(np.finfo(np.float32).eps), "ssseg": 0.0}
"""mmsegmentation divides by the number of pixels plus this: no float32 shows it, but float64 does."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Trained:
    """Loss and backbone's learning rate of each iteration, and the final state under our names."""

    losses: np.ndarray
    rates: np.ndarray
    state: State


@dataclass(frozen=True)
class Distance:
    """How far two runs ended apart, relative to the second."""

    loss: float
    """Largest relative difference of the losses."""
    weights: float
    """All parameters together: norm of the difference over norm of the weights."""
    learned: float
    """The same over the norm of what was learned: the weights less the initial ones."""
    tensor: float
    """The worst parameter or buffer, norm of the difference over its norm.

    Left out are the bias of the attention's key, which has gradient 0 and only moves by rounding errors, and in float32
    what starts at 0, as its norm is that of a few steps.
    """
    worst: str


def distance(ours: Trained, theirs: Trained, start: State, parameters: set[str]) -> Distance:
    """Compares two runs from ``start``."""
    loss = float(np.max(np.abs(ours.losses - theirs.losses) / np.abs(theirs.losses)))
    tensor, worst = 0.0, ""
    squares = moved = total = 0.0
    for key, value in theirs.state.items():
        if key.endswith("num_batches_tracked"):
            continue
        target = value.double().reshape(start[key].shape)
        apart, norm = float((ours.state[key].double() - target).norm()), float(target.norm())
        counts = value.dtype == torch.float64 or bool((start[key] != 0).any())
        relative = apart / norm if norm else apart and float("inf")  # a classifier without a loss stays at 0
        if counts and not key.endswith(UNMOVED) and not relative <= tensor:
            tensor, worst = relative, key
        if key in parameters:
            squares += apart**2
            total += norm**2
            moved += float((target - start[key].double()).square().sum())
    return Distance(loss, float(np.sqrt(squares / total)), float(np.sqrt(squares / moved)), tensor, worst)


class _Stream:
    """Stands in for the loader: the batches of a case, in order."""

    waited = 0.0

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = iter(batches)

    def __next__(self) -> Batch:
        return next(self._batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Source:
    """A dataset that is never asked for an image."""

    ids: tuple[str, ...] = ()

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def image(self, i: int) -> Any:
        raise NotImplementedError

    def mask(self, i: int) -> Any:
        raise NotImplementedError


def single(value: Tensor) -> Tensor:
    """What ``Tensor.float`` does, except that it leaves float64 as it is."""
    return value if value.dtype == torch.float64 else value.to(torch.float32)


def ours(recipe: rows.Row, classes: int, case: str, run: dict[str, Any], start: State, epsilon: float = 0.0) -> Trained:
    """Our own Trainer, from ``start``, on the case's batches, in the run's precision."""
    model = build_model(recipe.model, classes)
    model.load_state_dict(start)
    compare.no_dropout(model)
    return trained(model.to(getattr(torch, run["dtype"])), recipe, case, run, epsilon)


def trained(model: nn.Module, recipe: rows.Row, case: str, run: dict[str, Any], epsilon: float = 0.0) -> Trained:
    """The Trainer on any model, in place; in float64 losses are divided by the number of pixels plus ``epsilon``."""
    if run["batch"] % recipe.loss.replicas:
        raise ValueError(
            f"{run['batch']} images do not divide over the {recipe.loss.replicas} replicas of {recipe.name}"
        )
    divisors = loop.loss_divisors

    def shifted(*arguments: Any) -> Tensor:
        return divisors(*arguments).double() + epsilon

    total, batch = run["iterations"], run["batch"]
    schedule = recipe.schedule.model_copy(
        update={"iterations": total, "epochs": None, "batch_size": batch, "replicas": 1}
    )
    runtime = recipe.runtime.model_copy(update={"log_interval": 1, "checkpoint_interval": 10**6})
    recipe = recipe.model_copy(update={"schedule": schedule, "runtime": runtime, "val_interval": None})
    batches = []
    for iteration in range(total):
        image, label = common.training_batch(case, iteration, run)
        places = list(range(iteration * batch, (iteration + 1) * batch))
        labels = torch.from_numpy(label.astype(np.uint8))
        batches.append(Batch(torch.from_numpy(image), labels, [str(p) for p in places], places))
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(loop, "BatchStream", return_value=_Stream(batches)),
        # the losses are taken in float32, whatever comes: not in a float64 run
        mock.patch.object(Tensor, "float", single),
        mock.patch.object(loop, "loss_divisors", shifted if run["dtype"] == "float64" else divisors),
    ):
        trainer = loop.Trainer(
            recipe,
            0,
            model,
            _Source(batch * total),
            CheckpointStore(Path(folder), TrainingIdentity.of(recipe, 0, data="", initial_weights=None)),
        )
        history = trainer.run()
    losses = np.array([float(entry["loss"] or 0.0) for entry in history.curve])
    rates = np.array([float(entry["lr"] or 0.0) for entry in history.curve])
    return Trained(losses, rates, {key: value.detach() for key, value in model.state_dict().items()})


def nudged(start: State) -> State:
    """Every weight one unit in its last place up or down: the smallest change that float32 can hold."""
    generator = torch.Generator().manual_seed(0)
    result = {}
    for key, value in start.items():
        if not value.is_floating_point():
            result[key] = value
            continue
        up = torch.randint(0, 2, value.shape, generator=generator, dtype=torch.bool)
        infinity = torch.where(up, torch.inf, -torch.inf).to(value.dtype)
        result[key] = torch.where(value == 0, value, torch.nextafter(value, infinity))
    return result


def package_recipe(source: str) -> rows.Row:
    """The row that a package is compared by."""
    recipe = compare.row(PACKAGE_ROWS[source])
    update: dict[str, Any] = {"loss": recipe.loss.model_copy(update={"replicas": 1})}  # the peers are one process
    if source == "mmseg":  # the package is 1.x
        update["schedule"] = recipe.schedule.model_copy(update={"denominator": "T-1"})
    return recipe.model_copy(update=update)


def package_start(source: str, recipe: rows.Row, case: str, meta: dict[str, Any]) -> tuple[nn.Module, dict[str, str]]:
    """Our model with the weights that a package's training starts from, and our name of each of its names."""
    model = build_model(recipe.model, meta["classes"])
    return model, compare.load_shared(model, source, case, meta["keys"])


def check_training(folder: Path, source: str) -> Iterator[Result]:
    """A package's own optimiser and scheduler: the runs that its peer stored in ``folder``."""
    recipe, case = package_recipe(source), f"{source}-training"
    pairs = {}
    for name in ("float32", "float64"):
        arrays, meta = common.load(folder / f"training-{source}-{name}.npz")
        model, mapping = package_start(source, recipe, case, meta)
        start, parameters = model.state_dict(), {key for key, _ in model.named_parameters()}
        with np.load(folder / f"weights-{source}-{name}.npz") as file:
            state = {mapping[key]: torch.from_numpy(value) for key, value in file.items()}
        mine = ours(recipe, meta["classes"], case, common.TRAININGS[name], start, EPSILON[source])
        pairs[name] = (mine, Trained(arrays["loss"], arrays["lr"], state))
    again = ours(recipe, meta["classes"], case, common.TRAININGS["float32"], nudged(start))
    peer = compare.against(source, meta)
    yield from results(compare.PEERS[source], recipe, source, peer, pairs, again, start, parameters)


def check_small_training(folder: Path) -> Iterator[Result]:
    """CI's: few iterations in float64 against what the peers stored, the weights by projections."""
    run = common.TRAININGS["small"]
    for source in PACKAGE_ROWS:
        path = folder / f"training-{source}-small.npz"
        if not path.exists():
            continue
        arrays, meta = common.load(path)
        recipe, case, peer = package_recipe(source), f"{source}-training", compare.against(source, meta)
        model, mapping = package_start(source, recipe, case, meta)
        mine = trained(model.double(), recipe, case, run, EPSILON[source])
        worst = float(np.max(np.abs(mine.losses - arrays["loss"]) / arrays["loss"]))
        yield Result(compare.PEERS[source], "training in float64, loss curve", "small", worst, peer)
        rates = float(np.abs(mine.rates - arrays["lr"]).max())
        yield Result(compare.PEERS[source], "training, learning rate", "small", rates, peer)
        worst, where = 0.0, ""
        for key, name in mapping.items():
            if name.endswith((UNMOVED, "num_batches_tracked")):
                continue
            stored = arrays[f"projection/{key}"]
            apart = np.abs(common.projections(key, mine.state[name].numpy()) - stored).max()
            relative = float(apart / stored[0])
            if not relative <= worst:
                worst, where = relative, name
        title, note = compare.PEERS[source], f"by projections; worst: {where}"
        yield Result(title, "training in float64, single tensors", "small", worst, peer, note)


def check_official_training(kind: str) -> Iterator[Result]:
    """The reference with SGD written out: two groups, poly over T."""
    recipe = compare.row(kind)
    config = recipe.model.model_copy(update={"backbone": "resnet50"})
    recipe = recipe.model_copy(update={"model": config})
    classes, case, pairs = (21 if kind == "clusterdanet" else 19), f"official-training-{kind}", {}
    for name in ("float32", "float64"):
        run = common.TRAININGS[name]
        network = compare.official_network(kind, 50, classes, case, config, getattr(torch, run["dtype"]))
        network.training = True
        model = build_model(config, classes)
        mapping = compare.give(model, network.weights)
        start, parameters = model.state_dict(), {key for key, _ in model.named_parameters()}
        with torch.no_grad():  # the same float32 numbers in both precisions
            for key, value in network.weights.items():
                value.copy_(start[mapping[key]].reshape(value.shape))
        losses, rates = reference_training(network, recipe.loss, case, run)
        state = {mapping[key]: value.detach() for key, value in network.weights.items()}
        pairs[name] = (ours(recipe, classes, case, run, start), Trained(losses, rates, state))
    again = ours(recipe, classes, case, common.TRAININGS["float32"], nudged(start))
    title = "clusterdanet" if kind == "clusterdanet" else "official"
    yield from results(title, recipe, kind, "own reference", pairs, again, start, parameters)


def reference_training(
    network: reference.Network, loss: rows.Loss, case: str, run: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """SGD by its formula: v = 0.9 v + g + 1e-4 w, w = w - lr v, lr = 0.003 (1 - i/T)^0.9, ten times that in the head.

    Updates ``network`` in place; returns losses and the backbone's rates.
    """
    momentum: State = {}
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
    return np.array(losses), np.array(rates)


def results(
    title: str,
    recipe: rows.Row,
    kind: str,
    peer: str,
    pairs: dict[str, tuple[Trained, Trained]],
    again: Trained,
    start: State,
    parameters: set[str],
) -> Iterator[Result]:
    """Both precisions; beside each float32 difference how far rounding alone takes our own program.

    ``again`` is our float32 run from weights one unit in the last place apart. Single tensors have a bound in float64
    only: in float32 the statistics of a single norm follow the rounding errors of all layers below.
    """
    noise = distance(again, pairs["float32"][0], start, parameters)
    optimizer = recipe.optimizer
    rates = f"lr {optimizer.lr:g}"
    if optimizer.head_lr_multiplier != 1:
        rates = f"lr {optimizer.lr:g} and {optimizer.lr * optimizer.head_lr_multiplier:g}"
    if recipe.schedule.denominator == "T-1":
        rates += ", denominator T-1"
    for name, (mine, theirs) in pairs.items():
        apart = distance(mine, theirs, start, parameters)
        run = common.TRAININGS[name]
        setting = f"R-50, {run['batch']} x {run['height']} x {run['width']}, {rates}"
        curve = f"{setting}; loss {theirs.losses[0]:.2f} to {theirs.losses[-1]:.2f}"
        learned = f"of what was learned: {apart.learned:.1e}"
        if name == "float64":
            yield Result(title, "training in float64, loss curve", kind, apart.loss, peer, curve)
            yield Result(title, "training in float64, weights", kind, apart.weights, peer, learned)
            yield Result(
                title, "training in float64, single tensors", kind, apart.tensor, peer, f"worst: {apart.worst}"
            )
            continue
        learned += f"; worst tensor: {apart.worst}, {apart.tensor:.1e} (ours, one ulp apart: {noise.tensor:.1e})"
        yield Result(title, "training, loss curve", kind, apart.loss, peer, curve, noise=noise.loss)
        yield Result(title, "training, weights", kind, apart.weights, peer, learned, noise=noise.weights)
    mine, theirs = pairs["float64"]
    worst = float(np.abs(mine.rates - theirs.rates).max())
    yield Result(title, "training, learning rate", kind, worst, peer, rates)
