"""Our side of every comparison: the harness's own models, losses, trainer, transforms, predictor on the peer's inputs.

Each ``check_*`` reads what the peers stored in a folder (or runs ``reference``) and returns :class:`Result` objects; no
assertion is made here. They take the cases that are in the folder: all in the full run, the small stored set in CI.

Networks run in float64 on both sides wherever a result hangs on the sign of an activation or on an argmax. Two correct
float32 programs that add up in different orders (another processor, another version of a library) put a few of a
million activations on different sides of a ReLU's kink, and each of these moves whole entries of the gradient. In
float64 the same happens to activations within 1e-15 of 0, of which there are none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.parity import common, reference
from benchmarks.parity.peers.shared import starts, step_arrays
from benchmarks.parity.results import ASPECTS, Result
from danet.config.params import Params, load_params
from danet.config.row import Augment, Loss, MultiScale, Row, Test
from danet.data import transforms
from danet.data.prefetch import Normaliser
from danet.evaluation import inference, metrics
from danet.models import Segmentor, build_model
from danet.training.losses import segmentation_losses
from danet.training.optim import build_optimizer, learning_rate, set_learning_rates
from danet.weights.released import SOURCES

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
ROWS = {
    "mmseg": "mmseg-r50-d8-cityscapes-512x1024-40k",
    "ssseg": "ssseg-r50-d8-cityscapes",
    "danet": "official-danet-r101-d8-cityscapes",
    "dranet": "official-dranet-r101-d8-cityscapes",
    "clusterdanet": "clusterdanet-r101-d8-voc2012",
}
"""The row that a kind of network is compared by; its source is what the report names."""
SEED = 1000
"""The first of ours, where the peers start at 0."""
REFERENCE = "own float64 reference"
LOOPS = "own plain loops"


@functools.cache
def params() -> Params:
    """The repository's ``params.yaml``, read once."""
    return load_params(PARAMS)


def row(name: str) -> Row:
    """A row by its name or by the short names above."""
    return params().row(ROWS.get(name, name))


def against(source: str, meta: dict[str, Any]) -> str:
    """The peer package and its version."""
    package = row(source).source
    return f"{package} {meta['versions'][package]}"


def stored(folder: Path, aspect: str) -> Iterator[tuple[str, str, dict[str, np.ndarray], dict[str, Any]]]:
    """Of each file of an aspect its source, its case, its arrays and what it says of them.

    Raises:
        FileNotFoundError: if there is none.
    """
    paths = sorted(folder.glob(f"{aspect}-*.npz"))
    if not paths:
        raise FileNotFoundError(f"{folder}: the peers have stored nothing about {aspect}")
    for path in paths:
        _, source, *case = path.stem.split("-", 2)
        yield source, "".join(case), *common.load(path)


def largest(values: Any) -> float:
    """The largest absolute value; infinite if one is not a number, which would get lost in a maximum."""
    return float(np.nan_to_num(np.abs(values), nan=np.inf, posinf=np.inf).max())


def difference(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """Largest absolute difference over the largest absolute value of ``b``."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape:
        raise ValueError(f"shapes {x.shape} and {y.shape} differ")
    return largest(x - y) / (largest(y) or 1.0)


def our_names(kind: str, model: nn.Module) -> dict[str, str]:
    """Our name of each tensor of a source's network, by the table by which its released weights are imported."""
    assert isinstance(model, Segmentor)
    toolbox = SOURCES["official-dranet" if kind == "dranet" else row(kind).source]
    return {toolbox.name(key, model.config.stem): key for key in model.state_dict()}


def give(model: nn.Module, source: str, weights: dict[str, Tensor]) -> dict[str, str]:
    """Loads a source's weights into our model, strict in both directions; returns our name of each of its names."""
    state = model.state_dict()
    known = our_names(source, model)
    mapping = {key: known[key] for key in weights}
    given = {mapping[k]: v.detach().reshape(state[mapping[k]].shape).to(state[mapping[k]]) for k, v in weights.items()}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, torch.zeros_like(value))
    model.load_state_dict(given, strict=True)
    for module in model.modules():
        if isinstance(module, nn.Dropout2d | nn.Dropout):
            module.p = 0.0  # off on both sides: masks cannot be shared between torch versions
    return mapping


def projection_difference(
    ours: dict[str, Tensor], theirs: dict[str, np.ndarray], mapping: dict[str, str]
) -> tuple[float, str]:
    """The worst tensor, and whose it is: norm of the difference over the norm, by random projections.

    The bias of the attention's key has gradient 0 in exact arithmetic (softmax ignores what is added to a whole row):
    both sides hold rounding errors only, which are measured against the key's weight.
    """
    worst, where = 0.0, ""
    for key, value in theirs.items():
        # a projection on random signs is about as large as the norm, which comes first
        apart = largest(common.projections(key, ours[mapping[key]].numpy()) - value)
        is_key = key.endswith(("key_project.bias", "key_conv.bias", "conv_key.bias"))
        scale = float(theirs[key.replace("bias", "weight") if is_key else key][0])
        relative = apart / scale if scale else apart and float("inf")  # what is 0 there must be 0 here
        if relative > worst:
            worst, where = relative, key
    return worst, where


def check_network(
    title: str,
    case: str,
    peer: str,
    model: nn.Module,
    mapping: dict[str, str],
    theirs: dict[str, np.ndarray],
    image: np.ndarray,
    label: np.ndarray,
    loss: Loss,
    align_corners: bool,
) -> Iterator[Result]:
    """Our network against what a source's computed in float64: in float64 too, and in evaluation also in float32.

    Args:
        mapping: our name of each of the source's parameters and buffers.
        theirs: ``eval_HEAD`` and ``train_HEAD`` (logits), ``loss``, and projections ``gradient/KEY`` and
            ``statistic/KEY`` after a step in training mode.
        image: ``N x 3 x H x W`` float32.
        label: ``N x H x W``, 255 is ignored.
    """
    target = torch.from_numpy(label.astype(np.uint8))
    for precision, mode in (("float32", "eval"), ("float64", "eval"), ("float64", "train")):
        dtype = getattr(torch, precision)
        model.to(dtype).train(mode == "train")
        with torch.set_grad_enabled(mode == "train"):
            outputs = model(torch.from_numpy(image).to(dtype), all_heads=True)
        heads = [head for head in ("main", "pam", "cam", "aux") if f"{mode}_{head}" in theirs]
        worst = max(difference(outputs[head].detach(), theirs[f"{mode}_{head}"]) for head in heads)
        yield Result(title, f"logits in {precision}", f"{case}, {mode}", worst, peer, ", ".join(heads))
    total = segmentation_losses(outputs, target, loss, align_corners=align_corners)["loss"]
    yield Result(title, "loss in float64", case, difference(total.detach(), theirs["loss"]), peer)
    total.backward()  # type: ignore[no-untyped-call]
    ours = {
        "gradient": {key: p.grad for key, p in model.named_parameters() if p.grad is not None},
        "statistic": {key: value.detach() for key, value in model.state_dict().items()},
    }
    for kind, tensors in ours.items():
        stored = {key.removeprefix(f"{kind}/"): value for key, value in theirs.items() if key.startswith(f"{kind}/")}
        worst, where = projection_difference(tensors, stored, mapping)
        if kind == "gradient" and (extra := sorted(set(tensors) - {mapping[key] for key in stored})):
            worst, where = float("inf"), f"{', '.join(extra)} have a gradient here and none in the source"
        yield Result(title, f"{kind}s in float64", case, worst, peer, f"worst: {where}")


# ---------------------------------------------------------------------------------------------- models of the packages


def peer_model(source: str, case: str, meta: dict[str, Any]) -> tuple[Segmentor, dict[str, str]]:
    """Our network of a stored case with the shared weights, and our name of each of the peer's names."""
    names = ("output_stride", "align_corners")
    changes = {"backbone": f"resnet{meta['depth']}"} | {name: meta[name] for name in names}
    model = build_model(row(source).model.model_copy(update=changes), meta["classes"])
    return model, give(model, source, common.weights(case, meta["keys"]))


def check_models(folder: Path) -> Iterator[Result]:
    """Parameters, logits, loss, gradients and statistics of each stored model case."""
    for source, name, arrays, meta in stored(folder, "model"):
        case, title, peer = f"{source}-{name}", row(source).source, against(source, meta)
        model, mapping = peer_model(source, case, meta)
        parameters = sum(p.numel() for p in model.parameters())
        yield Result(title, "parameters", case, abs(parameters - meta["parameters"]), peer, f"{parameters:,}")
        image = common.network_input(case, *meta["shape"])
        label = common.network_label(case, *(*meta["shape"], meta["classes"]))
        loss = row(source).loss.model_copy(update={"replicas": 1})  # the peers are one process
        yield from check_network(title, case, peer, model, mapping, arrays, image, label, loss, meta["align_corners"])


# ------------------------------------------------------------------------------------------------ the official networks

OFFICIAL = {
    # kind: (classes, height, width, parameters of the official modules)
    "danet": (19, 65, 81, 66_454_779),
    "dranet": (19, 65, 81, 73_741_962),
    "clusterdanet": (21, 97, 113, 66_581_633),
}


def official_pair(kind: str, depth: int, case: str) -> tuple[Segmentor, reference.Network, dict[str, str]]:
    """Our network and the slow reference with the same shared weights, and our name of each of the official names.

    The table of released weights gives the official names of our tensors. The reference asks for its own names, and
    :data:`OFFICIAL` counts the parameters, so a name or a tensor too many or too few does not pass.
    """
    config = row(kind).model.model_copy(update={"backbone": f"resnet{depth}"})
    model = build_model(config, OFFICIAL[kind][0])
    shapes = {theirs: model.state_dict()[ours].shape for theirs, ours in our_names(kind, model).items()}
    weights = {
        key: value.double()
        for key, value in common.weights(case, shapes).items()
        if not key.endswith("num_batches_tracked")
    }
    if kind == "clusterdanet":  # centres of unit length, as training starts with
        for key in ("head.ca.V_buffer", "head.cc.V_buffer"):
            # rounded to what our float32 buffer holds, so that both sides start from the same centres
            weights[key] = (weights[key] / weights[key].norm(dim=1, keepdim=True)).float().double()
    for key, value in weights.items():
        if not key.endswith(("running_mean", "running_var", "V_buffer", "V_count_buffer")):
            value.requires_grad_()
    return model, reference.Network(kind, depth, weights, config.multi_grid), give(model, kind, weights)


def check_official_model(kind: str, depth: int = 101, size: tuple[int, int] | None = None) -> Iterator[Result]:
    """Ours against the slow reference: all heads in both modes, loss, gradients and buffers."""
    classes, height, width, parameters = OFFICIAL[kind]
    case, recipe = f"official-{kind}", row(kind)
    model, network, mapping = official_pair(kind, depth, case)
    if depth == 101:
        count = sum(p.numel() for p in model.parameters())
        yield Result(recipe.source, "parameters", case, abs(count - parameters), "the official modules", f"{count:,}")
    shape = (2, *(size or (height, width)))
    image, label = common.network_input(case, *shape), common.network_label(case, *shape, classes)
    loss = recipe.loss.model_copy(update={"replicas": 1})  # two images
    theirs = official_step(network, torch.from_numpy(image).double(), torch.from_numpy(label), loss)
    yield from check_network(recipe.source, case, REFERENCE, model, mapping, theirs, image, label, loss, True)


def official_step(network: reference.Network, image: Tensor, label: Tensor, loss: Loss) -> dict[str, np.ndarray]:
    """What :func:`check_network` compares, of the reference."""
    heads: dict[str, Tensor] = {}
    for mode in ("eval", "train"):
        network.training = mode == "train"
        with torch.set_grad_enabled(network.training):
            outputs = network.forward(image)
        heads |= {f"{mode}_{head}": value for head, value in outputs.items()}
    total = official_loss(outputs, label, loss)
    total.backward()  # type: ignore[no-untyped-call]
    gradients = {key: value.grad for key, value in network.weights.items() if value.grad is not None}
    return step_arrays(heads, total, gradients, network.statistics)


def official_loss(outputs: dict[str, Tensor], label: Tensor, weights: Loss) -> Tensor:
    """Sum of the weighted mean cross-entropies over labelled pixels, align_corners True.

    With replicas each takes the mean over its own images, and the means are averaged.
    """
    total = torch.zeros((), dtype=torch.float64)
    for head in (name for name in outputs if getattr(weights, name)):
        logits = reference.bilinear(outputs[head], (label.shape[1], label.shape[2]))
        for its_logits, its_label in zip(logits.chunk(weights.replicas), label.chunk(weights.replicas), strict=True):
            mean = functional.cross_entropy(its_logits, its_label, ignore_index=255)
            total = total + getattr(weights, head) * mean / weights.replicas
    return total


# ------------------------------------------------------------------------------------------------------- initialisation


def worst_start(
    ours: dict[str, tuple[float, float, int]], expected: dict[str, tuple[float, float]], draws: int
) -> tuple[float, str]:
    """The parameter furthest from the mean and deviation expected of it, in standard errors, and its name.

    The mean of n values scatters by s/sqrt(n), their standard deviation by at most s/sqrt(2n); a difference of two
    samples (``draws`` 2) by sqrt(2) more. Constants must be equal.
    """
    worst, where = 0.0, ""
    for key, (wanted_mean, wanted_spread) in expected.items():
        mean, spread, count = ours[key]
        error = max(spread, wanted_spread) / np.sqrt(count / draws)
        apart = largest([mean - wanted_mean, np.sqrt(2) * (spread - wanted_spread)])
        score = largest(apart / error) if error else apart and float("inf")
        if score > worst:
            worst, where = score, key
    return worst, where


def check_initialisation(folder: Path) -> Iterator[Result]:
    """Mean and standard deviation of each parameter against those of four seeds of the peers.

    The backbone too, which starts so where a row has no ImageNet weights (the rehearsal's).
    """
    for source, _, arrays, meta in stored(folder, "init"):
        start = {"mmseg": "mmsegmentation", "ssseg": "pytorch"}[source]
        config = row(source).model.model_copy(update={"backbone_init": start})
        ours = starts(functools.partial(build_model, config, 19), SEED)
        mapping = our_names(source, build_model(config, 19))
        expected = {mapping[key]: (values[0], values[1]) for key, values in arrays.items()}
        worst, where = worst_start(ours, expected, draws=2)
        note = f"{len(arrays)} parameters, 4 seeds; worst: {where}"
        yield Result(row(source).source, "initialisation", "backbone and heads", worst, against(source, meta), note)


def check_official_initialisation() -> Iterator[Result]:
    """Heads: PyTorch's default, uniform with standard deviation 1/sqrt(3 fan_in), gates 0.

    ClusterDANet's backbone, which has no ImageNet weights: N(0, sqrt(2 / (k k out))), norms the identity.
    """
    for kind in ("danet", "dranet", "clusterdanet"):
        config = row(kind).model.model_copy(update={"backbone": "resnet50"})
        model, expected = build_model(config, 19), {}
        for key, value in model.named_parameters():
            layer = model.get_submodule(key.rpartition(".")[0])
            if key.startswith("backbone."):
                if kind != "clusterdanet":
                    continue
                spread = float(np.sqrt(2 / (value.shape[0] * value[0, 0].numel()))) if value.dim() == 4 else 0.0
            else:
                weight = layer.weight if isinstance(layer, nn.Conv2d | nn.Linear) else None
                spread = 0.0 if weight is None else float(1 / np.sqrt(3 * weight[0].numel()))
            constant = key.endswith((".weight", "gate.gamma")) and not spread
            expected[key] = (float(constant), spread)
        worst, where = worst_start(starts(functools.partial(build_model, config, 19), SEED), expected, draws=1)
        case = f"{kind}, {'backbone and heads' if kind == 'clusterdanet' else 'heads'}"
        yield Result(row(kind).source, "initialisation", case, worst, "closed form", f"worst: {where}")


# -------------------------------------------------------------------------------------------------------- learning rate


def check_schedule(folder: Path) -> Iterator[Result]:
    """The packages' schedulers at every iteration (mmengine's by denominator T-1), every row by its closed form."""
    for source, _, arrays, meta in stored(folder, "schedule"):
        for name, values in arrays.items():
            if source == "mmseg":
                schedule = row(source).schedule.model_copy(update={"denominator": "T-1"})
                total, case = int(name), f"{name} iterations, denominator T-1"
            else:
                recipe = row(f"ssseg-r50-d8-{name}")
                schedule, case = recipe.schedule, recipe.name
                total = schedule.total_iterations(params().dataset(name).counts[recipe.train_split])
            ours = np.array([learning_rate(schedule, 0.01, i, total) for i in range(total)])
            worst = largest(ours - values) if total == len(values) else float("inf")
            note = f"{total} iterations here, {len(values)} there"
            yield Result(row(source).source, "learning rate", case, worst, against(source, meta), note)


def check_row_schedules(every: int = 1) -> Iterator[Result]:
    """Every published row, each ``every``-th iteration, both groups: as the optimizer is told, by closed form."""
    apart: dict[str, list[float]] = {}
    known = set()
    for recipe in params().published_rows():
        total = recipe.schedule.total_iterations(params().dataset(recipe.dataset).counts[recipe.train_split])
        key = (recipe.source, total, recipe.optimizer, recipe.schedule.batch_size)
        if key in known:
            continue
        known.add(key)
        model = nn.ModuleDict({"backbone": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
        optimizer = build_optimizer(model, recipe.optimizer)
        toolbox = recipe.source in ("mmsegmentation", "sssegmentation")
        bases, floor = ({"backbone": 0.01, "head": 0.01}, 1e-4) if toolbox else ({"backbone": 0.003, "head": 0.03}, 0.0)
        for iteration in range(0, total, every):
            set_learning_rates(optimizer, recipe.schedule, iteration, total)
            fraction = (1 - iteration / total) ** 0.9
            rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
            differences = [rates[name] - (fraction * (base - floor) + floor) for name, base in bases.items()]
            apart.setdefault(recipe.source, []).append(largest(differences))
    for source, each in apart.items():
        note = f"{len(each):,} iterations of all different lengths, backbone and head"
        yield Result(source, "learning rate", "all rows", max(each), "closed form, 0.x: (1 - it/T)^0.9", note)


# --------------------------------------------------------------------------------------------------------- augmentation


class Replay:
    """A generator that hands out a peer's draws in the order in which ours asks, and refuses any other question."""

    def __init__(self, augment: Augment, draws: dict[str, Any]) -> None:
        low, high = augment.resize.range
        flip = 0.0 if draws["flip"] else 1.0
        self._random = [(draws["ratio"] - low) / (high - low), flip] if "ratio" in draws else [flip]
        self._queue: list[Any] = [draws["side"]] if "side" in draws else []
        self._uniform: list[float] = []
        if colour := draws.get("photometric"):
            given = {name: value for name, value in colour.items() if value is not None}
            self._queue += ["brightness" in given, colour["contrast_first"]]
            self._queue += [name in given for name in ("contrast", "saturation", "hue")]
            self._queue += [given["hue"]] if "hue" in given else []
            self._uniform = [given[name] for name in ("brightness", "contrast", "saturation") if name in given]
        self._queue += [place for crop in draws["crops"] for place in crop]

    def random(self) -> float:
        """As numpy's."""
        return self._random.pop(0)

    def uniform(self, low: float, high: float) -> float:
        """As numpy's."""
        value = self._uniform.pop(0)
        assert low <= value <= high, (low, value, high)
        return value

    def integers(self, low: int, high: int | None = None, endpoint: bool = False) -> int:
        """As numpy's."""
        value = int(self._queue.pop(0))
        first, last = (0, low) if high is None else (low, high)
        assert first <= value < last + endpoint, (first, value, last, endpoint)
        return value

    @property
    def left(self) -> int:
        """Draws that were not asked for: redraws that ours did not make."""
        return len(self._random) + len(self._queue) + len(self._uniform)


def grey_levels(final: np.ndarray) -> np.ndarray:
    """The BGR levels of a normalised RGB image, ``3 x H x W``."""
    mean, std = (np.array(values)[:, None, None] for values in (transforms.MEAN_RGB, transforms.STD_RGB))
    levels: np.ndarray = np.round(final.astype(np.float64) * std + mean)[::-1]
    return levels


def replayed(
    augment: Augment, key: str, size: tuple[int, int], classes: int, draws: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The picture and label map of a sample, and what our pipeline makes of them with given draws.

    Raises:
        AssertionError: if ours asks for other draws, or leaves some.
    """
    image, mask = common.photograph(key, *size), common.annotation(key, *size, classes)
    replay = Replay(augment, draws)
    levels, label, box = transforms.augmented(augment, image, mask, replay)  # type: ignore[arg-type]
    final = Normaliser(augment, torch.device("cpu"))(torch.from_numpy(levels[None].copy()), [box])[0].numpy()
    assert not replay.left, f"{key}: {replay.left} of the peer's draws were not used"
    return image, mask, final, label


def check_augmentation(folder: Path) -> Iterator[Result]:
    """Our pipeline on the peer's images and draws."""
    for source, name, arrays, meta in stored(folder, "augment"):
        base = row(source).augment
        scale = (min(meta["scale"]), max(meta["scale"]))
        update: dict[str, Any] = {
            "resize": base.resize.model_copy(update={"scale": scale}),
            "crop_size": tuple(meta["crop"]),
        }
        if meta.get("pads_before_normalising"):
            update["pad"] = base.pad.model_copy(update={"image": "black"})  # 1.x's VOC-aug config
        augment = base.model_copy(update=update)
        pixels = labels = normalised = 0.0
        redraws = 0
        for case in meta["cases"]:
            seed, draws = case["seed"], case["draws"]
            _, _, final, label = replayed(
                augment, f"{source}-augment-{name}-{seed}", case["size"], meta["classes"], draws
            )
            redraws += len(draws["crops"]) - 1
            expected = arrays[f"{seed}/label"]
            labels += float("inf") if expected.shape != label.shape else int((expected != label).sum())
            theirs = arrays[f"{seed}/image"]
            height, width = theirs.shape[1:]
            top, left = 0, 0
            if augment.pad.position == "centre":
                top, left = (label.shape[0] - height) // 2, (label.shape[1] - width) // 2
            shown = grey_levels(final[:, top : top + height, left : left + width])
            pixels = max(pixels, largest(shown - theirs))
            projection = common.projections("final", final)
            normalised = max(normalised, difference(final[:, -2:, -2:], arrays[f"{seed}/corner"]))
            normalised = max(normalised, largest((projection - arrays[f"{seed}/projection"]) / projection[0]))
        note = f"{len(meta['cases'])} samples, {redraws} redrawn crops"
        case_name = f"{name}{', 1.x padding' if meta.get('pads_before_normalising') else ''}"
        for what, worst in (("pixels", pixels), ("labels", labels), ("normalised", normalised)):
            yield Result(row(source).source, f"augmentation, {what}", case_name, worst, against(source, meta), note)


def check_official_augmentation() -> Iterator[Result]:
    """The official order with PIL, both rules (2018: short side; HEAD and fork: long side, labels padded with 0)."""
    samples = 12
    for kind, rule, base, crop in (("danet", "short", 96, 72), ("clusterdanet", "long", 78, 72)):
        recipe, title = row(kind).augment, row(kind).source
        augment = recipe.model_copy(
            update={"resize": recipe.resize.model_copy(update={"base": base}), "crop_size": (crop, crop)}
        )
        assert augment.resize.rule == rule
        pixels = labels = 0.0
        for index in range(samples):
            key = f"official-augment-{rule}-{index}"
            rng, size = common.generator(key), [(96, 192), (75, 100), (100, 67)][index % 3]
            low, high = (int(base * limit) for limit in augment.resize.range)
            side = int(rng.integers(low, high + 1))
            height, width = transforms.side_size(size, rule, side)
            top = int(rng.integers(0, max(height, crop) - crop + 1))
            left = int(rng.integers(0, max(width, crop) - crop + 1))
            draws = {"side": side, "flip": bool(index % 2), "left": left, "top": top, "crops": [[top, left]]}
            image, mask, final, label = replayed(augment, key, size, 19, draws)
            expected_image, expected_label = reference.official_augmentation(image, mask, rule, crop, draws)
            pixels = max(pixels, largest(grey_levels(final).transpose(1, 2, 0) - expected_image))
            labels += int((label != expected_label).sum())
        note = f"{samples} samples, rule {rule}"
        yield Result(title, "augmentation, pixels", rule, pixels, "own PIL reference", note)
        yield Result(title, "augmentation, labels", rule, labels, "own PIL reference", note)


# ------------------------------------------------------------------------------------------------------------ inference


def misplaced(labels: np.ndarray, theirs: np.ndarray, scores: np.ndarray) -> float:
    """Share of pixels with another class than theirs, but for ties: scores closer than their bound lets them differ.

    Args:
        labels: ours, ``H x W``.
        scores: theirs, ``C x H x W``.
    """
    tie = 2 * ASPECTS["inference, scores"][1] * np.abs(scores).max()
    ours, best = (np.take_along_axis(scores, x[None].astype(np.int64), 0)[0] for x in (labels, theirs))
    return float(((labels != theirs) & ~(best - ours <= tie)).mean())


def check_inference(folder: Path) -> Iterator[Result]:
    """Scores and labels of whole, slide and multi-scale + flip testing."""
    for source, name, arrays, meta in stored(folder, "inference"):
        case = f"{source}-{name}"
        model, _ = peer_model(source, case, meta)
        model.double().eval().register_forward_pre_hook(lambda _, inputs: inputs[0].double())
        image = common.photograph(case, *meta["size"])
        update: dict[str, Any] = {"scale": (meta["scale"][1], meta["scale"][0])}
        if meta["window"]:
            update |= {"mode": "slide", "window": tuple(meta["window"]), "stride": tuple(meta["stride"])}
        for key in (key for key in arrays if not key.endswith("_class")):
            multi = None
            if key != "single":  # multi_test-scale of 0.x, multi_image of 1.x
                rule = key.removeprefix("multi_")
                settings = {"scales": tuple(meta["ratios"]), "relative_to": rule, "flip": True}
                multi = MultiScale.model_validate(settings)
            test = row(source).test.model_copy(update=update | {"multi_scale": multi})
            ours = predicted(model, image, test, meta["align_corners"], "ms" if multi else "ss")
            title = f"{name.removeprefix('inference-')}, {key.replace('_', ', ')}"
            theirs = arrays[key], arrays[f"{key}_class"]
            yield from inference_results(row(source).source, title, against(source, meta), ours, theirs)


def inference_results(
    title: str, case: str, peer: str, ours: tuple[Tensor, np.ndarray], theirs: tuple[np.ndarray, np.ndarray]
) -> Iterator[Result]:
    """Scores (``C x H x W``) and labels (``H x W``), ours and theirs."""
    yield Result(title, "inference, scores", case, difference(ours[0], theirs[0]), peer)
    yield Result(title, "inference, argmax", case, misplaced(ours[1], theirs[1], theirs[0]), peer)


def predicted(
    model: nn.Module, image: np.ndarray, test: Test, align_corners: bool, mode: Any
) -> tuple[Tensor, np.ndarray]:
    """Our scores and labels of an image.

    Only where no scores are summed are labels computed otherwise than from them (``tests/evaluation/test_inference.py``
    compares the two for every protocol), so the network is not asked again elsewhere.
    """
    predictor = inference.Predictor(model, test, align_corners, mode=mode)
    inputs = predictor.prepare(image)
    scores = predictor.scores(inputs)
    return scores, predictor.labels(inputs).numpy() if predictor.plain else scores.argmax(0).numpy()


class Thumb(nn.Module):
    """A tiny network with the interface of a Segmentor: the official evaluator's windows do not depend on which."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 7, 8, 3), nn.Conv2d(8, 5, 3, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits at an eighth of the size."""
        return {"main": 4 * self.second(torch.tanh(self.first(image)))}


def normalised(image: np.ndarray) -> Tensor:
    """``1 x 3 x H x W`` of a BGR image, in float64."""
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (transforms.MEAN_RGB, transforms.STD_RGB))
    return (torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None].double() - mean) / std


def check_official_inference() -> Iterator[Result]:
    """Windows padded with black, flip always on, exp of the sum, sum over scales: by plain loops."""
    model = Thumb().double().eval()
    model.register_forward_pre_hook(lambda _, inputs: inputs[0].double())
    black = normalised(np.zeros((1, 1, 3), np.uint8))
    for kind in ("danet", "clusterdanet"):
        recipe = row(kind)
        for size in ((64, 128), (75, 100), (100, 70), (30, 150)):
            image = common.photograph(f"official-inference-{size[0]}x{size[1]}", *size)
            base, crop, stride = 128, 48, 32
            for mode in recipe.modes:
                multi = recipe.test.multi_scale
                scales: tuple[float, ...] = (1.0,)
                if mode == "ms":
                    assert multi is not None
                    scales = multi.scales
                    if multi.window is not None:  # the 2018 code has larger windows at many scales, the fork the same
                        crop, stride = 64, 32
                        multi = multi.model_copy(update={"window": (crop, crop), "stride": (stride, stride)})
                test = recipe.test.model_copy(
                    update={"scale": (64, base), "window": (48, 48), "stride": (32, 32), "multi_scale": multi}
                )
                with torch.no_grad():
                    expected = reference.official_scores(
                        lambda x: model(x)["main"], normalised(image), base, crop, stride, scales, black
                    )
                ours, theirs = predicted(model, image, test, True, mode), expected.log().numpy()
                name = f"{size[0]}x{size[1]}, {mode}"
                yield from inference_results(recipe.source, name, LOOPS, ours, (theirs, theirs.argmax(0)))


def check_padded_windows() -> Iterator[Result]:
    """The 769x769 rows at an eighth of their size: at ratios 0.5 and 0.75 the input is smaller than the window."""
    model = Thumb().eval()
    recipe = row("mmseg-r50-d8-cityscapes-769x769-40k")
    small = {"scale": (129, 257), "window": (97, 97), "stride": (65, 65)}
    test = recipe.test.model_copy(update=small)
    assert test.multi_scale is not None
    for size in ((128, 256), (100, 90)):
        image = common.photograph(f"padded-windows-{size[0]}x{size[1]}", *size)
        views = []
        for ratio in test.multi_scale.scales:
            fits = min(int(257 * ratio) / max(size), int(129 * ratio) / min(size))
            height, width = (int(side * fits + 0.5) for side in size)
            views.append(normalised(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)).float())
        with torch.no_grad():
            theirs = reference.padded_window_scores(lambda x: model(x)["main"], views, size, 97, 65).numpy()
        ours = predicted(model, image, test, recipe.model.align_corners, "ms")
        case = f"zero-padded windows, {size[0]}x{size[1]}, ms"
        yield from inference_results(recipe.source, case, LOOPS, ours, (theirs, theirs.argmax(0)))


# -------------------------------------------------------------------------------------------------------------- metrics


def check_metrics(folder: Path) -> Iterator[Result]:
    """Absent classes, ignored pixels and an empty image, in both conventions."""
    peers = {source: (arrays, meta) for source, _, arrays, meta in stored(folder, "metrics")}
    confusion = metrics.Confusion(common.METRIC_CLASSES)
    truth: np.ndarray = np.zeros((common.METRIC_CLASSES, common.METRIC_CLASSES), np.int64)
    for prediction, label in common.metric_pairs():
        confusion.update(prediction, label)
        for t, p in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if t != 255:
                truth[t, p] += 1
    exact = largest(confusion.matrix - truth)
    yield Result("all", "metrics", "confusion matrix", exact, "pixel by pixel in Python")

    def plain(values: tuple[float | None, ...]) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in values])

    def apart(*pairs: tuple[Any, Any]) -> float:
        """The largest difference of ours, percent, from theirs; what one side alone does not define is infinite."""
        differences = [
            (np.asarray(mine) / 100 - theirs)[~(np.isnan(mine) & np.isnan(theirs))] for mine, theirs in pairs
        ]
        return max(map(largest, differences))

    arrays, meta = peers["mmseg"]
    peer = against("mmseg", meta)
    skip, zero = confusion.scores("skip"), confusion.scores("zero")
    for convention, scores, absent in (("skip", skip, np.nan), ("zero", zero, 0.0)):
        iou, acc = (np.nan_to_num(plain(values), nan=absent) for values in (scores.iou, scores.acc))
        theirs = (arrays[f"{convention}_{key}"] for key in ("iou", "acc", "aacc"))
        worst = apart(*zip((iou, acc, scores.aacc), theirs, strict=True))
        note = "per class; the peer divides in float32"
        yield Result("mmsegmentation", "metrics", f"absent: {convention}", worst, peer, note, bound=1e-7)
        rounded = np.round([scores.miou, scores.aacc, scores.macc], 2)
        worst = largest(rounded - arrays[f"{convention}_rounded"])
        case, note = f"absent: {convention}, mIoU, aAcc, mAcc as printed", "percent, two decimals (stored in float32)"
        yield Result("mmsegmentation", "metrics", case, worst, peer, note, bound=1e-5)
    iou = plain(skip.iou)
    present = ~np.isnan(iou)
    worst = apart((iou[present], arrays["torchmetrics_iou"][present]))
    package = f"torchmetrics {meta['versions']['torchmetrics']}"
    yield Result("all", "metrics", "IoU of present classes", worst, package, "in float32", bound=1e-7)
    arrays, meta = peers["ssseg"]
    worst = apart((skip.miou, arrays["miou"]), (skip.aacc, arrays["aacc"]), (iou, arrays["iou"]))
    yield Result("sssegmentation", "metrics", "absent: skip", worst, against("ssseg", meta), "float64 sums")
    eps = np.spacing(1, dtype=np.float64)
    inter = np.diag(truth).astype(np.float64)
    union = truth.sum(0) + truth.sum(1) - np.diag(truth)
    worst = apart((zero.miou, (inter / (eps + union)).mean()), (zero.aacc, inter.sum() / (eps + truth.sum())))
    yield Result("official", "metrics", "absent: zero", worst, "closed form (+ 2.2e-16)")
    yield Result("clusterdanet", "metrics", "absent: zero", worst, "closed form (+ 2.2e-16)")
