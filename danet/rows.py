"""The row: one line of a published results table, with everything needed to reproduce it.

``params.yaml`` holds ``recipes`` (what a source does everywhere), ``rows`` (what one line of its table
adds), ``datasets``, ``weights`` and ``tables``. This module validates them, resolves a row to the complete
:class:`Row` that training and evaluation read, and gives it a stable hash that names its runs.

The published numbers are not here: they are data, in ``benchmarks/published.yaml`` (:mod:`danet.published`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from danet.errors import ConfigError

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
"""Names reach file paths and command lines through DVC, so they are restricted to this."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=80)]
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
"""``(height, width)`` in pixels, everywhere in this project."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """Refuses unknown fields, so that a misspelt setting is an error and not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Strict):
    """The network. Dimensions as in section 0 of the recipes: 2048 -> 512 channels, q/k of 64."""

    method: Literal["danet", "dranet", "clusterdanet"]
    backbone: Literal["resnet50", "resnet101"]
    output_stride: Literal[8, 16]
    stem: Literal["7x7", "deep-32-32-64", "deep-64-64-128"]
    multi_grid: tuple[int, int, int] | None = None
    """Absolute dilations of layer4's three blocks, e.g. ``[4, 8, 16]``; null for ``[d/2, d, d]``."""
    pam_bias: bool = True
    """Whether the query/key/value projections of the position attention have biases."""
    aux_channels: int | None = Field(default=None, gt=0)
    """Width of the auxiliary FCN head on layer3; null for no auxiliary head."""
    align_corners: bool = False
    init: Literal["mmsegmentation", "pytorch"] = "pytorch"

    @model_validator(mode="after")
    def _consistent(self) -> Model:
        if self.multi_grid is not None and self.output_stride == 16:
            raise ValueError(
                "multi_grid with output_stride 16: no source defines it; set output_stride 8 or multi_grid null"
            )
        return self


class Loss(Strict):
    """Weighted sum of cross-entropies on logits resized to the label size."""

    main: NonNegative = 1.0
    pam: NonNegative = 1.0
    cam: NonNegative = 1.0
    aux: NonNegative = 0.0
    average: Literal["all", "valid"] = "valid"
    """Mean over all pixels (mmsegmentation: ignored ones count as zero) or over labelled ones."""


class Optimizer(Strict):
    """SGD with momentum; weight decay on every parameter, as all sources do."""

    lr: Positive
    head_lr_multiplier: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative


class Schedule(Strict):
    """Length and learning-rate policy. Exactly one of ``iterations`` and ``epochs`` is given."""

    iterations: int | None = Field(default=None, gt=0)
    epochs: int | None = Field(default=None, gt=0)
    batch_size: int = Field(gt=0)
    """Images per optimizer step over all processes."""
    power: NonNegative = 0.9
    min_lr: NonNegative = 0.0
    denominator: Literal["T", "T-1"] = "T"
    """``(1 - it/T)^power``; ``T-1`` is mmengine's, which reaches ``min_lr`` at the last iteration."""
    warmup_iterations: int = Field(default=0, ge=0)
    """Linear warm-up from 0; no published recipe has one (the small from-scratch runs do)."""
    replicas: int = Field(default=1, gt=0)
    """The source's number of GPUs, which decides the length of an epoch: the samples are padded to a multiple of it by
    repeating the first ones (as DistributedSampler does), and each replica drops its incomplete last batch."""

    @model_validator(mode="after")
    def _one_length(self) -> Schedule:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("give exactly one of iterations and epochs (a positive number)")
        if self.batch_size % self.replicas:
            raise ValueError(f"batch_size {self.batch_size} does not divide over {self.replicas} replicas")
        return self

    @property
    def text(self) -> str:
        """The length in words, for tables."""
        return f"{self.iterations} iterations" if self.iterations else f"{self.epochs} epochs"

    def iterations_per_epoch(self, samples: int) -> int:
        """Optimizer steps in one epoch (2975 Cityscapes images, batch 8: 371 on one replica, 372 on 8)."""
        per_replica = -(-samples // self.replicas)
        return max(1, per_replica // max(1, self.batch_size // self.replicas))

    def total_iterations(self, samples: int) -> int:
        """Optimizer steps of the whole training over ``samples`` images."""
        if self.iterations is not None:
            return self.iterations
        assert self.epochs is not None
        return self.epochs * self.iterations_per_epoch(samples)


class Resize(Strict):
    """Random resize of training images.

    ``ratio``: a ratio r from ``range`` (uniform), image fitted into ``scale * r`` keeping its shape (mmsegmentation).
    ``short``/``long``: that side becomes a random integer in ``range * base`` (official 2018 / HEAD).
    """

    rule: Literal["ratio", "short", "long"]
    scale: Size | None = None
    """For ``ratio``: e.g. [1024, 2048]; fitted by long and short side, whatever the orientation."""
    base: int | None = Field(default=None, gt=0)
    range: tuple[Positive, Positive]

    @model_validator(mode="after")
    def _fields_of_rule(self) -> Resize:
        if self.rule == "ratio" and (self.scale is None or self.base is not None):
            raise ValueError("rule 'ratio' takes scale and no base")
        if self.rule != "ratio" and (self.base is None or self.scale is not None):
            raise ValueError(f"rule '{self.rule}' takes base and no scale")
        if self.range[0] > self.range[1]:
            raise ValueError(f"range {list(self.range)} is empty")
        return self


class Pad(Strict):
    """Padding of crops that reach over the image."""

    position: Literal["right-bottom", "centre"] = "right-bottom"
    image: Literal["mean", "black"] = "mean"
    """``mean`` = zero after normalisation; ``black`` = zero before it."""
    label: Literal["ignore", "zero"] = "ignore"
    """``zero``: the official HEAD and the fork pad labels with 0, which on VOC is background."""
    swap_for_portrait: bool = False
    """sssegmentation swaps a non-square target size for crops higher than wide."""


class Augment(Strict):
    """Training augmentation, in the order resize, crop, flip, photometric, pad (official: pad before crop)."""

    resize: Resize
    crop_size: Size
    order: Literal["crop-then-pad", "pad-then-crop"] = "crop-then-pad"
    """The official code mirrors first, pads the resized image, then crops without retries."""
    cat_max_ratio: float | None = Field(default=None, gt=0, le=1)
    cat_redraws: int = Field(default=10, ge=0)
    """How often an unbalanced crop is drawn again (mmsegmentation: 1 + 10 draws; sssegmentation: 10 in all)."""
    flip: float = Field(default=0.5, ge=0, le=1)
    photometric: Literal["mmsegmentation", "sssegmentation"] | None = None
    interpolation: Literal["cv2", "pil"] = "cv2"
    pad: Pad = Pad()


class MultiScale(Strict):
    """Multi-scale testing, on top of the single-scale settings that it does not name."""

    scales: tuple[Positive, ...] = Field(min_length=1)
    relative_to: Literal["test-scale", "image"] = "test-scale"
    """mmsegmentation 0.x multiplies the test scale; 1.x the image's own size."""
    flip: bool = True
    window: Size | None = None
    stride: Size | None = None

    @model_validator(mode="after")
    def _window_and_stride(self) -> MultiScale:
        if (self.window is None) != (self.stride is None):
            raise ValueError("give window and stride together, or neither (then single scale's hold)")
        return self


class Test(Strict):
    """The testing protocol."""

    __test__: ClassVar[bool] = False  # not a test case, whatever pytest thinks of the name

    resize: Literal["fit", "long", "none"] = "none"
    """``fit``: into ``scale`` keeping the shape; ``long``: long side to ``scale``'s width; ``none``: as is."""
    scale: Size | None = None
    mode: Literal["whole", "slide"] = "whole"
    window: Size | None = None
    stride: Size | None = None
    placement: Literal["shift", "pad"] = "shift"
    """Windows over the edge are shifted back (mmsegmentation) or padded with black (official)."""
    flip: bool = False
    """Whether even single-scale testing adds the mirrored image (official: yes)."""
    score: Literal["logits", "softmax", "exp"] = "softmax"
    """What is averaged over scales and flips: ``exp`` = exp(logit + flipped logit) per window (official)."""
    logit_resize: Literal["once", "twice"] = "twice"
    """Head output straight to the image's size, or first to the network input's size."""
    absent_class: Literal["skip", "zero"] = "skip"
    """A class neither present nor predicted is left out of the mean, or counts 0."""
    multi_scale: MultiScale | None = None

    @model_validator(mode="after")
    def _slide_has_window(self) -> Test:
        if self.mode == "slide" and (self.window is None or self.stride is None):
            raise ValueError("mode 'slide' needs window and stride")
        if self.mode == "slide":
            assert self.window is not None
            assert self.stride is not None
            if self.stride[0] > self.window[0] or self.stride[1] > self.window[1]:
                raise ValueError(f"stride {list(self.stride)} larger than window {list(self.window)} leaves gaps")
        if self.resize != "none" and self.scale is None:
            raise ValueError(f"resize '{self.resize}' needs scale")
        return self


class Numerics(Strict):
    """How it is computed. Part of a row's identity: it can move results."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    attention: Literal["fused", "reference"] = "fused"
    deterministic: bool = False
    sync_batch_norm: bool = True


class Runtime(Strict):
    """How it is run. Never moves results, so it is neither hashed nor a reason to run again."""

    workers: int = Field(default=4, ge=0, le=256)
    log_interval: int = Field(default=50, gt=0)
    checkpoint_interval: int = Field(default=1000, gt=0)
    accumulate: int = Field(default=1, gt=0)
    """Micro-batches per optimizer step; the batch size stays what the recipe says."""
    overlays: int = Field(default=4, ge=0, le=64)
    progress: Literal["auto", "always", "never"] = "auto"
    benchmark_images: int = Field(default=200, gt=0)
    """Images timed for fps (mmsegmentation: 200 after 5 skipped)."""


class Row(Strict):
    """A fully resolved row: read by training, evaluation, tracking and the report."""

    name: Name
    table: Name
    source: Literal["mmsegmentation", "sssegmentation", "official", "clusterdanet", "camvid", "demo"]
    dataset: Name
    train_split: Name
    val_split: Name
    weights: Name
    """ImageNet initialisation, a key of ``weights``; ``none`` for random."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1)
    protocol: str
    """One sentence for the reader of a table."""
    notes: tuple[str, ...] = ()
    """Footnotes: where the source's documentation and code differ."""
    val_interval: int | None = Field(default=None, gt=0)
    """Iterations between validations during training; null for none."""
    model: Model
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    augment: Augment
    test: Test
    numerics: Numerics
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _consistent(self) -> Row:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: no two runs of a row may share a seed")
        if self.loss.aux > 0 and self.model.aux_channels is None:
            raise ValueError("loss.aux is set but model.aux_channels is null: give the auxiliary head a width")
        if self.test.mode == "slide":
            assert self.test.window is not None
            crop, window = self.augment.crop_size, self.test.window
            if crop[0] > window[0] or crop[1] > window[1]:
                raise ValueError(
                    f"augment.crop_size {list(crop)} is larger than test.window {list(window)}; "
                    "allowed: up to the window"
                )
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What moves results, JSON-serialisable: all but the runtime, the seeds and what is said to the reader."""
        return self.model_dump(mode="json", exclude={"runtime", "seeds", "protocol", "notes", "val_interval", "table"})

    @property
    def train_hash(self) -> str:
        """12 hex digits that change when, and only when, the training of this row would."""
        keys = ("dataset", "train_split", "weights", "model", "loss", "optimizer", "schedule", "augment", "numerics")
        dump = self.model_dump(
            mode="json", exclude_defaults=True
        )  # a setting added later leaves old rows' hashes alone
        return _digest({key: dump[key] for key in keys if key in dump})

    @property
    def hash(self) -> str:
        """12 hex digits over training and testing: identifies what a metrics file measured."""
        return _digest(
            {
                "train": self.train_hash,
                "val": self.val_split,
                "test": self.test.model_dump(mode="json", exclude_defaults=True),
            }
        )

    @property
    def modes(self) -> tuple[str, ...]:
        """Testing modes: single scale (``ss``) and, where the row defines it, multi-scale + flip (``ms``)."""
        return ("ss", "ms") if self.test.multi_scale else ("ss",)


class Archive(Strict):
    """One file to download."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    url: str | None = None
    """Null where only a login or a local folder can provide it."""
    checksum: str | None = Field(default=None, pattern=r"^(md5|sha1|sha256):[0-9a-f]{32,64}$")
    package: int | None = None
    """Cityscapes: the number of the package behind the login."""
    optional: bool = False


class Dataset(Strict):
    """Where a dataset comes from and how large it must be."""

    adapter: Literal["voc2012", "ade20k", "cityscapes", "camvid"]
    title: str
    archives: tuple[Archive, ...]
    counts: dict[Name, Annotated[int, Field(gt=0)]]
    """Images per split; conversion stops when they differ."""
    storage: Literal["source", "raw"] = "source"
    """``source``: images as they came (small); ``raw``: decoded pixels (large; crops are read without decoding)."""


class Weights(Strict):
    """An ImageNet initialisation."""

    url: str | None
    file: str | None
    checksum: str | None = None
    """``sha1:``/``sha256:`` and the digits known; a prefix is allowed where only that is published."""
    backbone: Literal["resnet50", "resnet101"] | None
    stem: Literal["7x7", "deep-32-32-64", "deep-64-64-128"] | None
    title: str


class Released(Strict):
    """Weights that a source released for a row; ``table``, ``recipe``, ``dataset`` are the row's (for ``dvc.yaml``)."""

    table: Name
    recipe: str
    dataset: Name
    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the file; a copy placed by hand is looked for under it."""
    url: str | None = Field(default=None, pattern=r"^https?://")
    """Null where it can only be placed by hand."""
    checksum: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{8,64}$")
    """The digits that are published, often only the first; null where none are."""


class Table(Strict):
    """A results table of the report."""

    title: str
    source_url: str | None = None
    intro: str = ""
    notes: tuple[str, ...] = ()
    published: bool = True
    """False where the source gives no numbers (demo, CamVid): the table then has no such columns."""
    banner: str = ""
    pictures: bool = False
    """Whether pages may show the dataset's images; most datasets must not be redistributed."""


class Bands(Strict):
    """Points of mIoU within which a result counts as equal to the published one (``docs/verdicts.md`` says why)."""

    trained: Positive = 0.5
    """Of rows trained here, where their dataset has no band of its own."""
    released: Positive = 0.05
    """Of released weights, where only the arithmetic can differ."""
    datasets: dict[Name, Positive] = {}
    """Of rows trained on these datasets."""

    def of(self, dataset: str) -> float:
        """The band of rows trained on a dataset."""
        return self.datasets.get(dataset, self.trained)


class Revisions(Strict):
    """Bumped by hand when code changes what a stage computes; DVC then runs that stage again."""

    convert: int = Field(gt=0)
    train: int = Field(gt=0)
    evaluate: int = Field(gt=0)


T = TypeVar("T", bound=Strict)


class Params:
    """A validated ``params.yaml``."""

    def __init__(self, raw: Mapping[str, Any], path: Path) -> None:
        self.path = path
        self._raw = raw
        known = {
            "revisions",
            "bands",
            "recipes",
            "settings",
            "datasets",
            "weights",
            "tables",
            "rows",
            "released",
            "submissions",
            "numerics",
            "runtime",
        }
        unknown = sorted(set(raw) - known)
        if unknown:
            raise ConfigError(f"{path}: unknown section {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
        self.revisions = _validate(Revisions, raw.get("revisions", {}), path, "revisions")
        self.bands = _validate(Bands, raw.get("bands") or {}, path, "bands")
        self.datasets = {
            key: _validate(Dataset, value, path, f"datasets.{key}") for key, value in self._section("datasets").items()
        }
        self.weights = {
            key: _validate(Weights, value, path, f"weights.{key}") for key, value in self._section("weights").items()
        }
        self.tables = {
            key: _validate(Table, value, path, f"tables.{key}") for key, value in self._section("tables").items()
        }
        self.rows = {key: self._resolve(key, value) for key, value in self._section("rows").items()}
        self.submissions = self._submissions()
        self.released = {key: self._released(key, value) for key, value in self._section("released").items()}

    def _section(self, name: str) -> Mapping[str, Any]:
        section = self._raw.get(name) or {}
        if not isinstance(section, Mapping):
            raise ConfigError(f"{self.path}: section {name!r} must be a mapping of names")
        for key in section:
            if not isinstance(key, str) or not NAME.fullmatch(key):
                raise ConfigError(
                    f"{self.path}: {name}.{key}: names reach file paths and command lines, so only lower-case letters, "
                    "digits, '-' and '_' are allowed"
                )
        return section

    def _resolve(self, name: str, row: Any) -> Row:
        where = f"rows.{name}"
        if not isinstance(row, Mapping):
            raise ConfigError(f"{self.path}: {where} must be a mapping")
        recipes = self._section("recipes")
        recipe_name = row.get("recipe")
        if not isinstance(recipe_name, str) or recipe_name not in recipes:
            raise ConfigError(
                f"{self.path}: {where}.recipe: {recipe_name!r} is unknown; allowed: {', '.join(sorted(recipes))}"
            )
        settings = row.get("settings") or {}
        for part, value in ((f"recipes.{recipe_name}", recipes[recipe_name]), (f"{where}.settings", settings)):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{self.path}: {part} must be a mapping, not {value!r}")
        for shared in ("revisions", "numerics"):
            if recipes[recipe_name].get(shared) != self._raw.get(shared):
                raise ConfigError(
                    f"{self.path}: recipes.{recipe_name}.{shared} must be `*{shared}`, by which DVC sees a change of "
                    "that section; override single fields of numerics in a row or its settings"
                )
        recipe = {key: value for key, value in recipes[recipe_name].items() if key != "revisions"}
        data = merge(recipe, settings)
        row_fields = {
            key: value
            for key, value in row.items()
            if key not in {"recipe", "settings", "method", "backbone", "output_stride", "iterations", "epochs"}
        }
        data = merge(data, row_fields)
        model = {key: row[key] for key in ("method", "backbone", "output_stride") if key in row}
        length = {key: row[key] for key in ("iterations", "epochs") if key in row}
        data = merge(data, {"model": model, "schedule": length})
        data["numerics"] = merge(self._raw.get("numerics") or {}, data.get("numerics") or {})
        data["runtime"] = merge(self._raw.get("runtime") or {}, data.get("runtime") or {})
        data["name"] = name
        resolved = _validate(Row, data, self.path, where)
        for field, allowed in (("dataset", self.datasets), ("weights", self.weights), ("table", self.tables)):
            value = getattr(resolved, field)
            if value not in allowed:
                raise ConfigError(
                    f"{self.path}: {where}.{field}: {value!r} is unknown; allowed: {', '.join(sorted(allowed))}"
                )
        for field in ("train_split", "val_split"):
            counts = self.datasets[resolved.dataset].counts
            if getattr(resolved, field) not in counts:
                raise ConfigError(
                    f"{self.path}: {where}.{field}: {getattr(resolved, field)!r} is no split of {resolved.dataset}; "
                    f"allowed: {', '.join(sorted(counts))}"
                )
        weights = self.weights[resolved.weights]
        for field in ("backbone", "stem"):
            wanted, given = getattr(resolved.model, field), getattr(weights, field)
            if given is not None and given != wanted:
                raise ConfigError(
                    f"{self.path}: {where}.weights: {resolved.weights!r} is for {field} {given}, the row has {wanted}"
                )
        return resolved

    def _submissions(self) -> tuple[str, ...]:
        names = self._raw.get("submissions") or []
        if not isinstance(names, list):
            raise ConfigError(f"{self.path}: submissions must be a list of rows")
        for name in names:
            if (
                not isinstance(name, str)
                or name not in self.rows
                or self.datasets[self.rows[name].dataset].adapter != "cityscapes"
            ):
                raise ConfigError(
                    f"{self.path}: submissions: {name!r} is no row on Cityscapes, which has the test server"
                )
        return tuple(names)

    def _released(self, name: str, value: Any) -> Released:
        where, path = f"released.{name}", self.path.with_name("released.yaml")
        found = _validate(Released, value, path, where)
        if name not in self.rows:
            raise ConfigError(f"{path}: {where}: no such row; rename or remove the entry")
        row = self._section("rows")[name]
        for field in ("table", "recipe", "dataset"):
            if getattr(found, field) != row.get(field):
                raise ConfigError(
                    f"{path}: {where}.{field}: is {getattr(found, field)!r}, rows.{name} has {row.get(field)!r}"
                )
        return found

    def row(self, name: str) -> Row:
        """The row called ``name``.

        Raises:
            ConfigError: with the closest names, if there is none.
        """
        return self.rows[self._known("row", name, self.rows)]

    def dataset(self, name: str) -> Dataset:
        """The dataset called ``name``; raises ``ConfigError`` like :meth:`row`."""
        return self.datasets[self._known("dataset", name, self.datasets)]

    def imagenet(self, name: str) -> Weights:
        """The ImageNet weights called ``name``; raises ``ConfigError`` like :meth:`row`."""
        return self.weights[self._known("weights", name, self.weights)]

    def table_rows(self, table: str) -> list[Row]:
        """The rows of a table, in the order of ``params.yaml``."""
        self._known("table", table, self.tables)
        return [row for row in self.rows.values() if row.table == table]

    def _known(self, kind: str, name: str, known: Mapping[str, Any]) -> str:
        if name in known:
            return name
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"unknown {kind} {name!r} ({self.path}); {hint}")


def load_params(path: Path | str = "params.yaml") -> Params:
    """Reads and validates ``params.yaml``, and ``released.yaml`` beside it where there is one.

    Raises:
        ConfigError: naming the row, the field and the allowed values.
    """
    path = Path(path)
    raw = dict(_load(path))
    released = path.with_name("released.yaml")
    if released.exists():
        raw["released"] = _load(released).get("released")
    return Params(raw, path)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); run this in the repository root") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path}: must hold a mapping of sections")
    return raw


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid on it, mappings merged at every depth, anything else replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _validate(kind: type[T], data: Any, path: Path, where: str) -> T:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            field = ".".join(str(part) for part in (where, *item["loc"]))
            given = item.get("input")
            shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
            problems.append(f"{field}: {item['msg'].removeprefix('Value error, ')}{shown}")
        raise ConfigError(f"{path}: " + "; ".join(problems)) from None


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
