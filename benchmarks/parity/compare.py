"""Our side of every comparison: the harness's own models, losses, trainer, transforms, predictor on the peer's inputs.

Each ``check_*`` reads what a peer stored in a folder (or runs ``reference``) and returns :class:`Result` objects; no
assertion is made here. A case whose files are not in the folder is skipped, so that the same functions serve the
small stored set of CI and the full run.

Networks run in float64 on both sides wherever a result hangs on the sign of an activation or on an argmax. Two correct
float32 programs that add up in different orders (another processor, another version of a library) put a few of a
million activations on different sides of a ReLU's kink, and each of these moves whole entries of the gradient. In
float64 the same happens to activations within 1e-15 of 0, of which there are none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.parity import common, reference
from benchmarks.parity.results import ASPECTS, Result
from danet.config.params import Params, load_params
from danet.config.row import Augment, Loss, Model, MultiScale, Row, Test
from danet.data import transforms
from danet.evaluation import inference, metrics
from danet.models import Segmentor, build_model
from danet.training.losses import segmentation_losses
from danet.training.optim import build_optimizer, set_learning_rates
from danet.training.schedule import learning_rate
from danet.weights.released import SOURCES

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
PEERS = {"mmseg": "mmsegmentation", "ssseg": "sssegmentation"}
ROWS = {
    "mmseg": "mmseg-r50-d8-cityscapes-512x1024-40k",
    "ssseg": "ssseg-r50-d8-voc2012",
    "danet": "official-danet-r101-d8-cityscapes",
    "dranet": "official-dranet-r101-d8-cityscapes",
    "clusterdanet": "clusterdanet-r101-d8-voc2012",
}
TABLES = {
    "mmseg": "mmsegmentation",
    "ssseg": "sssegmentation",
    "danet": "official",
    "dranet": "official-dranet",
    "clusterdanet": "clusterdanet",
}
REFERENCE = "own float64 reference"


@functools.cache
def params() -> Params:
    """The repository's ``params.yaml``, read once."""
    return load_params(PARAMS)


def row(name: str) -> Row:
    """A row by its name or by the short names above."""
    return params().row(ROWS.get(name, name))


def title_of(kind: str) -> str:
    """The source of an official network in the report."""
    return "clusterdanet" if kind == "clusterdanet" else "official"


def against(source: str, meta: dict[str, Any]) -> str:
    """The peer package and its version."""
    package = PEERS[source]
    return f"{package} {meta['versions'][package]}"


def difference(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """Largest absolute difference over the largest absolute value of ``b``."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape:
        raise ValueError(f"shapes {x.shape} and {y.shape} differ")
    scale = np.abs(y).max() if y.size else 1.0
    return float(np.abs(x - y).max() / (scale or 1.0)) if y.size else 0.0


def our_names(source: str, model: nn.Module) -> dict[str, str]:
    """Our name of each tensor of a source's network, by the table by which its released weights are imported."""
    assert isinstance(model, Segmentor)
    toolbox = SOURCES[TABLES[source]]
    return {toolbox.name(key, model.config.stem): key for key in model.state_dict()}


def load_shared(model: nn.Module, source: str, case: str, keys: dict[str, list[int]]) -> dict[str, str]:
    """Gives our model the shared weights; returns our name of each of the peer's names."""
    weights = {key: torch.from_numpy(np.asarray(common.weight(case, key, tuple(shape)))) for key, shape in keys.items()}
    return give(model, source, weights)


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
    no_dropout(model)
    return mapping


def no_dropout(model: nn.Module) -> None:
    """Masks cannot be shared between torch versions, so dropout is off on both sides."""
    for module in model.modules():
        if isinstance(module, nn.Dropout2d | nn.Dropout):
            module.p = 0.0


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
        apart = float(np.abs(common.projections(key, ours[mapping[key]].numpy()) - value).max())
        is_key = key.endswith(("key_project.bias", "key_conv.bias", "conv_key.bias"))
        scale = float(theirs[key.replace("bias", "weight") if is_key else key][0])
        relative = apart / scale if scale else apart and float("inf")  # what is 0 there must be 0 here
        if not relative <= worst:
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


def peer_model_config(source: str, meta: dict[str, Any]) -> Model:
    """The row's model section, with what the case varies."""
    base = row(source).model
    if source == "mmseg":
        depth = "resnet101" if "r101" in meta["config"] else "resnet50"
        return base.model_copy(update={"backbone": depth, "align_corners": bool(meta["align_corners"])})
    return base.model_copy(
        update={"backbone": f"resnet{meta['depth']}", "output_stride": meta["output_stride"], "align_corners": False}
    )


def check_models(folder: Path, only: str | None = None) -> Iterator[Result]:
    """Parameters, logits, loss, gradients and statistics of each stored model case."""
    for path in sorted(folder.glob("model-*.npz")):
        case = path.stem.removeprefix("model-")
        if only is not None and case != only:
            continue
        source = case.split("-")[0]
        yield from check_model(source, case, *common.load(path))


def check_model(source: str, case: str, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Iterator[Result]:
    """One case."""
    peer, title = against(source, meta), PEERS[source]
    config = peer_model_config(source, meta)
    model = build_model(config, meta["classes"], "fused")
    parameters = sum(p.numel() for p in model.parameters())
    yield Result(title, "parameters", case, abs(parameters - meta["parameters"]), peer, f"{parameters:,}")
    mapping = load_shared(model, source, case, meta["keys"])
    image = common.network_input(case, *meta["shape"])
    label = common.network_label(case, *meta["shape"], meta["classes"])
    loss = row(source).loss.model_copy(update={"replicas": 1})  # the peers are one process
    yield from check_network(title, case, peer, model, mapping, arrays, image, label, loss, config.align_corners)


# ------------------------------------------------------------------------------------------------ the official networks

OFFICIAL_CASES = {
    # case: (row, backbone, classes, batch, height, width)
    "official-danet": ("danet", 101, 19, 2, 65, 81),
    "official-dranet": ("dranet", 101, 19, 2, 65, 81),
    "official-clusterdanet": ("clusterdanet", 101, 21, 2, 97, 113),
}


def official_network(kind: str, depth: int, classes: int, case: str, config: Model) -> reference.Network:
    """The slow reference with the shared weights."""
    weights = {
        key: torch.from_numpy(common.weight(case, key, shape)).double()
        for key, shape in reference.weight_shapes(kind, depth, classes, config.stem)
    }
    if kind == "clusterdanet":  # centres of unit length, as training starts with
        for key in ("head.ca.V_buffer", "head.cc.V_buffer"):
            # rounded to what our float32 buffer holds, so that both sides start from the same centres
            weights[key] = (weights[key] / weights[key].norm(dim=1, keepdim=True)).float().double()
    for key, value in weights.items():
        if not key.endswith(("running_mean", "running_var", "V_buffer", "V_count_buffer")):
            value.requires_grad_()
    return reference.Network(kind, depth, weights, config.multi_grid)


PARAMETERS = {"official-danet": 66_454_779, "official-dranet": 73_741_962, "official-clusterdanet": 66_581_633}
"""Of the official modules (ClusterDANet's with its count of classes, 21)."""


def check_official_models(
    depth: int | None = None, only: str | None = None, size: tuple[int, int] | None = None
) -> Iterator[Result]:
    """Ours against the slow reference: all heads in both modes, loss, gradients and buffers."""
    for case, (kind, published_depth, classes, batch, height, width) in OFFICIAL_CASES.items():
        if only is not None and case != only:
            continue
        shape = (batch, *(size or (height, width)))
        recipe, title = row(kind), title_of(kind)
        backbone = depth or published_depth
        config = recipe.model.model_copy(update={"backbone": f"resnet{backbone}"})
        model = build_model(config, classes, "fused")
        if backbone == published_depth:
            count = sum(p.numel() for p in model.parameters())
            yield Result(title, "parameters", case, abs(count - PARAMETERS[case]), "the official modules", f"{count:,}")
        network = official_network(kind, backbone, classes, case, config)
        mapping = give(model, kind, network.weights)
        image, label = common.network_input(case, *shape), common.network_label(case, *shape, classes)
        loss = recipe.loss.model_copy(update={"replicas": 1})  # two images
        theirs = official_step(network, torch.from_numpy(image).double(), torch.from_numpy(label), loss)
        yield from check_network(title, case, REFERENCE, model, mapping, theirs, image, label, loss, True)


def official_step(network: reference.Network, image: Tensor, label: Tensor, loss: Loss) -> dict[str, np.ndarray]:
    """What :func:`check_network` compares, of the reference."""
    arrays: dict[str, np.ndarray] = {}
    for mode in ("eval", "train"):
        network.training = mode == "train"
        with torch.set_grad_enabled(network.training):
            outputs = network.forward(image)
        arrays |= {f"{mode}_{head}": value.detach().numpy() for head, value in outputs.items()}
    total = official_loss(outputs, label, loss)
    total.backward()  # type: ignore[no-untyped-call]
    gradients = {f"gradient/{key}": value.grad for key, value in network.weights.items() if value.grad is not None}
    statistics = {f"statistic/{key}": value for key, value in network.statistics.items()}
    projected = {k: common.projections(k.partition("/")[2], v.numpy()) for k, v in (gradients | statistics).items()}
    return {**arrays, "loss": total.detach().numpy(), **projected}


def official_loss(outputs: dict[str, Tensor], label: Tensor, weights: Loss) -> Tensor:
    """Sum of the weighted mean cross-entropies over labelled pixels, align_corners True.

    With replicas each takes the mean over its own images, and the means are averaged.
    """
    parts = [
        getattr(weights, head) * reference.cross_entropy(value, its_label, True, "valid") / weights.replicas
        for head, values in outputs.items()
        for value, its_label in zip(values.chunk(weights.replicas), label.chunk(weights.replicas), strict=True)
        if getattr(weights, head)
    ]
    return torch.stack(parts).sum()


# ------------------------------------------------------------------------------------------------------- initialisation


def check_initialisation(folder: Path) -> Iterator[Result]:
    """Mean and standard deviation of each parameter, 4 seeds of ours against 4 of the peer, in standard errors.

    The backbone too, which starts so where a row has no ImageNet weights (the rehearsal's). The mean of n values
    scatters by s/sqrt(n), their standard deviation by at most s/sqrt(2n); a difference of two by sqrt(2) more.
    """
    for source, start in (("mmseg", "mmsegmentation"), ("ssseg", "pytorch")):
        path = folder / f"init-{source}.npz"
        if not path.exists():
            continue
        arrays, meta = common.load(path)
        mapping: dict[str, str] = {}
        ours: dict[str, list[tuple[float, float]]] = {}
        for seed in range(4):
            torch.manual_seed(1000 + seed)
            model = build_model(row(source).model.model_copy(update={"backbone_init": start}), 19)
            mapping = our_names(source, model)
            for key, value in model.named_parameters():
                ours.setdefault(key, []).append((value.double().mean().item(), value.double().std(correction=0).item()))
        worst, where = 0.0, ""
        for key, values in arrays.items():
            theirs, mine = values.mean(0), np.array(ours[mapping[key]]).mean(0)
            count = meta["sizes"][key] * len(values)
            spread = max(float(theirs[1]), float(mine[1]))
            if count == len(values) or spread == 0.0:  # constants: exact
                score = 0.0 if np.array_equal(theirs, mine) else float("inf")
            else:
                score = max(
                    abs(float(theirs[0] - mine[0])) / (spread * np.sqrt(2 / count)),
                    abs(float(theirs[1] - mine[1])) / (spread * np.sqrt(1 / count)),
                )
            if score > worst:
                worst, where = score, key
        note = f"{len(arrays)} parameters, 4 seeds; worst: {where}"
        yield Result(PEERS[source], "initialisation", "backbone and heads", worst, against(source, meta), note)


def worst_initialisation(
    values: dict[str, list[Tensor]], expected: Callable[[str], float | Constant]
) -> tuple[float, str]:
    """The parameter furthest from its closed form, in standard errors of mean and standard deviation, and its name."""
    worst, where = 0.0, ""
    for key, seeds in values.items():
        flat, wanted = torch.cat(seeds), expected(key)
        if isinstance(wanted, Constant):
            score = 0.0 if bool((flat == wanted.value).all()) else float("inf")
        else:
            score = max(
                abs(flat.mean().item()) / (wanted / np.sqrt(flat.numel())),
                abs(flat.std(correction=0).item() - wanted) / (wanted / np.sqrt(2 * flat.numel())),
            )
        if score > worst:
            worst, where = score, key
    return worst, where


@dataclass(frozen=True)
class Constant:
    """All entries of a parameter."""

    value: float


def check_official_initialisation() -> Iterator[Result]:
    """Heads against the closed form of PyTorch's default: uniform, standard deviation 1/sqrt(3 fan_in), 0 gates."""
    for kind in ("danet", "dranet", "clusterdanet"):
        values: dict[str, list[Tensor]] = {}
        for seed in range(4):
            torch.manual_seed(seed)
            model = build_model(row(kind).model.model_copy(update={"backbone": "resnet50"}), 19)
            for key, value in model.named_parameters():
                if not key.startswith("backbone."):
                    values.setdefault(key, []).append(value.detach().double().flatten())
        modules = dict(model.named_modules())

        def expected(key: str, modules: dict[str, nn.Module] = modules) -> float | Constant:
            module = modules[key.rpartition(".")[0]]
            if isinstance(module, nn.Conv2d | nn.Linear):
                return float(1 / np.sqrt(3 * module.weight[0].numel()))
            return Constant(1.0 if key.endswith((".weight", "gate.gamma")) else 0.0)

        worst, where = worst_initialisation(values, expected)
        yield Result(title_of(kind), "initialisation", f"{kind}, heads", worst, "closed form", f"worst: {where}")


def check_backbone_initialisation() -> Iterator[Result]:
    """Backbone from scratch (ClusterDANet: no ImageNet weights): N(0, sqrt(2 / (k k out))), norms the identity."""
    torch.manual_seed(0)
    shapes = {}
    values = {}
    for key, value in build_model(row("clusterdanet").model, 21).backbone.named_parameters():
        shapes[key], values[key] = value.shape, [value.detach().double().flatten()]

    def expected(key: str) -> float | Constant:
        shape = shapes[key]
        if len(shape) == 4:
            return float(np.sqrt(2 / (shape[0] * shape[2] * shape[3])))
        return Constant(1.0 if key.endswith("weight") else 0.0)

    worst, where = worst_initialisation(values, expected)
    yield Result("clusterdanet", "initialisation", "backbone", worst, "closed form", f"worst: {where}")


# -------------------------------------------------------------------------------------------------------- learning rate


def check_schedule(folder: Path) -> Iterator[Result]:
    """The packages' schedulers at every iteration (mmengine's by denominator T-1), every row by its closed form."""
    path = folder / "schedule-mmseg.npz"
    if path.exists():
        arrays, meta = common.load(path)
        variant = row("mmseg").schedule.model_copy(update={"denominator": "T-1"})
        for total, values in arrays.items():
            ours = [learning_rate(variant, 0.01, i, int(total)) for i in range(int(total))]
            yield Result(
                "mmsegmentation",
                "learning rate",
                f"{total} iterations, denominator T-1",
                float(np.abs(np.array(ours) - values).max()),
                f"{against('mmseg', meta)} (mmengine PolyLR)",
            )
    path = folder / "schedule-ssseg.npz"
    if path.exists():
        arrays, meta = common.load(path)
        for dataset, values in arrays.items():
            recipe = row(f"ssseg-r50-d8-{dataset}")
            samples = params().dataset(dataset).counts[recipe.train_split]
            length = recipe.schedule.total_iterations(samples)
            if length != len(values):
                measured, note = float("inf"), f"{length} iterations here, {len(values)} there"
            else:
                ours = [learning_rate(recipe.schedule, 0.01, i, length) for i in range(length)]
                measured, note = float(np.abs(np.array(ours) - values).max()), f"{length} iterations in both"
            yield Result("sssegmentation", "learning rate", f"{recipe.name}", measured, against("ssseg", meta), note)


def check_row_schedules(every: int = 1) -> Iterator[Result]:
    """Every published row, each ``every``-th iteration, both groups: as the optimizer is told, by closed form."""
    worst: dict[str, tuple[float, int]] = {}
    known = set()
    for recipe in params().published_rows():
        total = recipe.schedule.total_iterations(params().dataset(recipe.dataset).counts[recipe.train_split])
        key = (recipe.source, total, recipe.optimizer, recipe.schedule.batch_size)
        if key in known:
            continue
        known.add(key)
        model = nn.ModuleDict({"backbone": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
        optimizer = build_optimizer(model, recipe.optimizer)
        head_base, floor = (0.01, 1e-4) if recipe.source in ("mmsegmentation", "sssegmentation") else (0.03, 0.0)
        base = 0.01 if recipe.source in ("mmsegmentation", "sssegmentation") else 0.003
        largest = 0.0
        for iteration in range(0, total, every):
            set_learning_rates(optimizer, recipe.schedule, iteration, total)
            fraction = (1 - iteration / total) ** 0.9
            rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
            for name, rate in (("backbone", base), ("head", head_base)):
                largest = max(largest, abs(rates[name] - (fraction * (rate - floor) + floor)))
        before = worst.get(recipe.source, (0.0, 0))
        worst[recipe.source] = (max(before[0], largest), before[1] + len(range(0, total, every)))
    for source, (largest, iterations) in worst.items():
        note = f"{iterations:,} iterations of all different lengths, backbone and head"
        yield Result(source, "learning rate", "all rows", largest, "closed form, 0.x: (1 - it/T)^0.9", note)


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
            for name in ("brightness", "first", "contrast", "saturation", "hue"):
                if name == "first":
                    self._queue.append(int(colour["contrast_first"]))
                    continue
                value = colour[name]
                self._queue.append(int(value is not None))
                if value is not None:
                    (self._queue if name == "hue" else self._uniform).append(value)
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


def check_augmentation(folder: Path) -> Iterator[Result]:
    """Our pipeline on the peer's images and draws."""
    for path in sorted(folder.glob("augment-*.npz")):
        _, source, name = path.stem.split("-", 2)
        arrays, meta = common.load(path)
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
            key = f"{source}-augment-{name}-{case['seed']}"
            seed, draws = case["seed"], case["draws"]
            image = common.photograph(key, *case["size"])
            height, width = case["size"]
            mask = common.annotation(key, height, width, meta["classes"])
            replay = Replay(augment, draws)
            final, label = transforms.augmented(augment, image, mask, replay)  # type: ignore[arg-type]
            redraws += len(draws["crops"]) - 1
            if replay.left:
                raise AssertionError(f"{path.name}, seed {seed}: {replay.left} of the peer's draws were not used")
            expected = arrays[f"{seed}/label"]
            labels += float("inf") if expected.shape != label.shape else int((expected != label).sum())
            theirs = arrays[f"{seed}/image"]
            height, width = theirs.shape[1:]
            top, left = 0, 0
            if augment.pad.position == "centre":
                top, left = (label.shape[0] - height) // 2, (label.shape[1] - width) // 2
            levels = grey_levels(final[:, top : top + height, left : left + width])
            pixels = max(pixels, float(np.abs(levels - theirs).max()))
            projection = common.projections("final", final)
            normalised = max(normalised, difference(final[:, -2:, -2:], arrays[f"{seed}/corner"]))
            normalised = max(normalised, float(np.abs(projection - arrays[f"{seed}/projection"]).max() / projection[0]))
        note = f"{len(meta['cases'])} samples, {redraws} redrawn crops"
        peer = against(source, meta)
        case_name = f"{name}{', 1.x padding' if meta.get('pads_before_normalising') else ''}"
        yield Result(PEERS[source], "augmentation, pixels", case_name, pixels, peer, f"{note}; HSV included")
        yield Result(PEERS[source], "augmentation, labels", case_name, labels, peer, note)
        yield Result(PEERS[source], "augmentation, normalised", case_name, normalised, peer, note)


def check_official_augmentation(samples: int = 12) -> Iterator[Result]:
    """The official order with PIL, both rules (2018: short side; HEAD and fork: long side, labels padded with 0)."""
    for kind, rule, base, crop in (("danet", "short", 96, 72), ("clusterdanet", "long", 78, 72)):
        recipe, title = row(kind).augment, title_of(kind)
        augment = recipe.model_copy(
            update={"resize": recipe.resize.model_copy(update={"base": base}), "crop_size": (crop, crop)}
        )
        assert augment.resize.rule == rule
        pixels = labels = 0.0
        for index in range(samples):
            key = f"official-augment-{rule}-{index}"
            rng = common.generator(key)
            size = [(96, 192), (75, 100), (100, 67)][index % 3]
            image, mask = common.photograph(key, *size), common.annotation(key, *size, 19)
            low, high = (int(base * limit) for limit in augment.resize.range)
            side = int(rng.integers(low, high + 1))
            height, width = transforms.side_size(size, rule, side)
            top = int(rng.integers(0, max(height, crop) - crop + 1))
            left = int(rng.integers(0, max(width, crop) - crop + 1))
            draws = {"side": side, "flip": bool(index % 2), "left": left, "top": top, "crops": [[top, left]]}
            expected_image, expected_label = reference.official_augmentation(image, mask, rule, crop, draws)
            replay = Replay(augment, draws)
            final, label = transforms.augmented(augment, image, mask, replay)  # type: ignore[arg-type]
            assert not replay.left
            pixels = max(pixels, float(np.abs(grey_levels(final).transpose(1, 2, 0) - expected_image).max()))
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
    for path in sorted(folder.glob("inference-*.npz")):
        case = path.stem.removeprefix("inference-")
        source = case.split("-")[0]
        arrays, meta = common.load(path)
        base = row(source)
        config = base.model
        if source == "ssseg":
            config = config.model_copy(update={"output_stride": meta["output_stride"]})
        config = config.model_copy(update={"align_corners": meta["align_corners"]})
        model = build_model(config, meta["classes"]).eval()
        load_shared(model, source, case, meta["keys"])
        model.double().register_forward_pre_hook(lambda _, inputs: inputs[0].double())
        size = tuple(meta["size"])
        image = common.photograph(case, *size)
        update: dict[str, Any] = {"scale": (meta["scale"][1], meta["scale"][0])}
        if meta["window"]:
            update |= {"mode": "slide", "window": tuple(meta["window"]), "stride": tuple(meta["stride"])}
        modes: list[tuple[str, str, MultiScale | None]] = [("single", "ss", None)]
        if "ratios" in meta:
            for rule in ("test-scale", "image"):  # 0.x, 1.x
                scales = tuple(meta["ratios"])
                multi = MultiScale.model_validate({"scales": scales, "relative_to": rule, "flip": True})
                if f"multi_{rule}" in arrays:
                    modes.append((f"multi_{rule}", "ms", multi))
        for key, mode, multi_scale in modes:
            test = base.test.model_copy(update=update | {"multi_scale": multi_scale})
            scores, labels = predicted(model, image, test, meta["align_corners"], mode)
            scores, labels = common.thinned(scores, meta), common.thinned(labels, meta)
            title = f"{case.split('-', 2)[2]}, {key.replace('_', ', ')}"
            yield Result(
                PEERS[source], "inference, scores", title, difference(scores, arrays[key]), against(source, meta)
            )
            wrong = misplaced(labels, arrays[f"{key}_class"], arrays[key])
            yield Result(PEERS[source], "inference, argmax", title, wrong, against(source, meta))


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


def check_official_inference() -> Iterator[Result]:
    """Windows padded with black, flip always on, exp of the sum, sum over scales: by plain loops."""
    model = Thumb().double().eval()
    model.register_forward_pre_hook(lambda _, inputs: inputs[0].double())
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (transforms.MEAN_RGB, transforms.STD_RGB))
    black = (-mean / std).double()
    for kind in ("danet", "clusterdanet"):
        recipe, title = row(kind), title_of(kind)
        for size in ((64, 128), (75, 100), (100, 70), (30, 150)):
            case = f"official-inference-{size[0]}x{size[1]}"
            image = common.photograph(case, *size)
            tensor = (torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None].double() - mean) / std
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
                        lambda x: model(x)["main"], tensor, base, crop, stride, scales, black
                    )
                scores, labels = predicted(model, image, test, True, mode)
                name = f"{size[0]}x{size[1]}, {mode}"
                yield Result(title, "inference, scores", name, difference(scores, expected.log()), "own plain loops")
                wrong = misplaced(labels, expected.argmax(0).numpy(), expected.log().numpy())
                yield Result(title, "inference, argmax", name, wrong, "own plain loops")


def check_padded_windows() -> Iterator[Result]:
    """The 769x769 rows at an eighth of their size: at ratios 0.5 and 0.75 the input is smaller than the window."""
    model = Thumb().eval()
    recipe = row("mmseg-r50-d8-cityscapes-769x769-40k")
    small = {"scale": (129, 257), "window": (97, 97), "stride": (65, 65)}
    test = recipe.test.model_copy(update=small)
    assert test.multi_scale is not None
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (transforms.MEAN_RGB, transforms.STD_RGB))
    for size in ((128, 256), (100, 90)):
        image = common.photograph(f"padded-windows-{size[0]}x{size[1]}", *size)
        views = []
        for ratio in test.multi_scale.scales:
            fits = min(int(257 * ratio) / max(size), int(129 * ratio) / min(size))
            height, width = (int(side * fits + 0.5) for side in size)
            seen = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
            views.append((torch.from_numpy(seen[:, :, ::-1].copy()).permute(2, 0, 1)[None].float() - mean) / std)
        with torch.no_grad():
            expected = reference.padded_window_scores(lambda x: model(x)["main"], views, size, 97, 65)
        title = f"zero-padded windows, {size[0]}x{size[1]}, ms"
        scores, labels = predicted(model, image, test, recipe.model.align_corners, "ms")
        yield Result("mmsegmentation", "inference, scores", title, difference(scores, expected), "own plain loops")
        wrong = float((torch.from_numpy(labels.astype(np.int64)) != expected.argmax(0)).float().mean())
        yield Result("mmsegmentation", "inference, argmax", title, wrong, "own plain loops")


# -------------------------------------------------------------------------------------------------------------- metrics


def check_metrics(folder: Path) -> Iterator[Result]:
    """Absent classes, ignored pixels and an empty image, in both conventions."""
    path = folder / "metrics-mmseg.npz"
    if not path.exists():
        return
    arrays, meta = common.load(path)
    confusion = metrics.Confusion(meta["classes"])
    truth: np.ndarray = np.zeros((meta["classes"], meta["classes"]), np.int64)
    for index in range(meta["pairs"]):
        prediction, label = arrays[f"prediction{index}"], arrays[f"label{index}"]
        confusion.update(prediction, label)
        for t, p in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if t != 255:
                truth[t, p] += 1
    exact = float(np.abs(confusion.matrix - truth).max())
    yield Result("all", "metrics", "confusion matrix", exact, "pixel by pixel in Python")
    peer = against("mmseg", meta)

    def plain(values: tuple[float | None, ...]) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in values])

    ours = confusion.scores("skip")
    # the peer's sums and quotients are float32
    for convention in ("skip", "zero"):
        scores = confusion.scores(convention)
        pairs = [(plain(scores.iou), "iou"), (plain(scores.acc), "acc"), (np.array(scores.aacc), "aacc")]
        worst = 0.0
        for mine, key in pairs:
            filled = np.nan_to_num(mine) if convention == "zero" else mine
            theirs = arrays[f"{convention}_{key}"]
            if not np.array_equal(np.isnan(filled), np.isnan(theirs)):
                worst = float("inf")
            worst = max(worst, float(np.nanmax(np.abs(filled - theirs))))
        rounded = np.round(100 * np.array([scores.miou, scores.aacc, scores.macc]), 2)
        worst_rounded = float(np.abs(rounded - arrays[f"{convention}_rounded"].astype(np.float64)).max())
        note = "per class; the peer divides in float32"
        yield Result("mmsegmentation", "metrics", f"absent: {convention}", worst, peer, note, bound=1e-7)
        yield Result(
            "mmsegmentation",
            "metrics",
            f"absent: {convention}, mIoU, aAcc, mAcc as printed",
            worst_rounded,
            peer,
            "percent, two decimals (stored in float32)",
            bound=1e-5,
        )
    present = ~np.isnan(plain(ours.iou))
    theirs = arrays["torchmetrics_iou"]
    package = f"torchmetrics {meta['versions']['torchmetrics']}"
    worst = float(np.abs(plain(ours.iou)[present] - theirs[present]).max())
    yield Result("all", "metrics", "IoU of present classes", worst, package, "in float32", bound=1e-7)
    path = folder / "metrics-ssseg.npz"
    if path.exists():
        stored, peer_meta = common.load(path)
        worst = max(
            abs(ours.miou - float(stored["miou"])),
            abs(ours.aacc - float(stored["aacc"])),
            float(np.nanmax(np.abs(plain(ours.iou) - stored["iou"]))),
        )
        yield Result("sssegmentation", "metrics", "absent: skip", worst, against("ssseg", peer_meta), "float64 sums")
    eps = np.spacing(1, dtype=np.float64)
    inter = np.diag(truth).astype(np.float64)
    union = truth.sum(0) + truth.sum(1) - np.diag(truth)
    official = confusion.scores("zero")
    worst = max(
        abs(official.miou - float((inter / (eps + union)).mean())),
        abs(official.aacc - float(inter.sum() / (eps + truth.sum()))),
    )
    yield Result("official", "metrics", "absent: zero", worst, "closed form (+ 2.2e-16)")
    yield Result("clusterdanet", "metrics", "absent: zero", worst, "closed form (+ 2.2e-16)")
