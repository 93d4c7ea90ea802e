"""The row: one line of a published results table, with everything needed to reproduce it.

``params.yaml`` holds ``rows`` (what one line of a table adds) and ``tables``; ``recipes/`` holds what each source does
everywhere and per dataset; ``datasets.yaml``, ``numerics.yaml`` and ``released.yaml`` hold what their names say. This
module validates them, resolves a row to the complete :class:`Row` that training and evaluation read, and gives it a
stable hash that names its runs.

The published numbers are not here: they are data, in ``benchmarks/published.yaml`` (:mod:`danet.config.published`).
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

from danet.config.plain_yaml import load_mapping
from danet.core.errors import ConfigError
from danet.core.files import write_text

MAX_NAME = 80
SHOWN = 20
"""Problems of one entry in a message."""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
"""Names reach file paths and command lines through DVC, so they are restricted to this."""

RECIPES = "recipes"
"""Folder beside ``params.yaml`` with one file a recipe."""
RELEASED = "released.yaml"
"""File beside ``params.yaml`` with the released weights."""
BESIDE = {"numerics.yaml": ("revisions", "numerics"), "datasets.yaml": ("datasets", "weights"), RELEASED: ("released",)}
"""Files beside ``params.yaml`` and the sections that they hold, so that DVC has less to parse for each stage."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=MAX_NAME)]
_Side = Annotated[int, Field(gt=0, le=1 << 16)]
Size = tuple[_Side, _Side]
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
    replicas: int = Field(default=1, gt=0)
    """The source's processes, where each takes its own mean and the means are averaged (DistributedDataParallel
    averages gradients; the official code's DataParallelCriterion the losses): the batch is divided into so many parts,
    whatever the number of our processes. 1 is one mean over the whole batch. Only ``average: valid`` depends on it."""


class Optimizer(Strict):
    """SGD with momentum; weight decay on every parameter, as all sources do."""

    lr: Positive
    head_lr_multiplier: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative


class Schedule(Strict):
    """Length and learning-rate policy. Exactly one of ``iterations`` and ``epochs`` is given."""

    iterations: int | None = Field(default=None, gt=0, le=10**9)
    epochs: int | None = Field(default=None, gt=0, le=10**6)
    batch_size: int = Field(gt=0, le=1 << 16)
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

    scales: tuple[Annotated[float, Field(gt=0, le=100)], ...] = Field(min_length=1, max_length=100)
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
    placement: Literal["shift", "shift-padded", "pad"] = "shift"
    """Windows over the edge are shifted back (mmsegmentation) or padded with black (official). Where the input is
    smaller than the window, ``shift`` shrinks the window (mmsegmentation since v0.5.1); ``shift-padded`` pads the input
    at the right and bottom with zeros after normalisation, the mean colour (v0.5.0)."""
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
    """``torch.compile``: training, and in prediction the sizes that come again and again."""
    attention: Literal["fused", "reference"] = "fused"
    deterministic: bool = False
    sync_batch_norm: bool = True
    fold_bn: bool = False
    """Prediction: convolutions take over the batch normalisation behind them. Differs by rounding (logits: 1e-5)."""
    accumulate: Annotated[int, Field(gt=0)] | Literal["auto"] = 1
    """Micro-batches per optimizer step; the batch size stays what the recipe says, but batch normalisation sees fewer
    images at a time. ``auto``: 1, and more whenever memory runs out (one process only); ``train.json`` has them."""


PREDICTION_ONLY = ("fold_bn",)
"""Fields of :class:`Numerics` that leave training as it is."""
TRAINED = (
    *(
        "dataset",
        "train_split",
        "weights",
        "checkpoint",
        "model",
        "loss",
        "optimizer",
        "schedule",
        "augment",
        "numerics",
    ),
)
"""Fields of :class:`Row` that the trained weights follow from."""
NEUTRAL: Mapping[str, Any] = {
    "checkpoint": "last",
    "model.multi_grid": None,
    "model.pam_bias": True,
    "model.aux_channels": None,
    "model.align_corners": False,
    "model.init": "pytorch",
    "loss.main": 1.0,
    "loss.pam": 1.0,
    "loss.cam": 1.0,
    "loss.aux": 0.0,
    "loss.average": "valid",
    "loss.replicas": 1,
    "optimizer.head_lr_multiplier": 1.0,
    "optimizer.momentum": 0.9,
    "schedule.iterations": None,
    "schedule.epochs": None,
    "schedule.power": 0.9,
    "schedule.min_lr": 0.0,
    "schedule.denominator": "T",
    "schedule.warmup_iterations": 0,
    "schedule.replicas": 1,
    "augment.resize.scale": None,
    "augment.resize.base": None,
    "augment.order": "crop-then-pad",
    "augment.cat_max_ratio": None,
    "augment.cat_redraws": 10,
    "augment.flip": 0.5,
    "augment.photometric": None,
    "augment.interpolation": "cv2",
    "augment.pad.position": "right-bottom",
    "augment.pad.image": "mean",
    "augment.pad.label": "ignore",
    "augment.pad.swap_for_portrait": False,
    "augment.pad": {},
    "test.resize": "none",
    "test.scale": None,
    "test.mode": "whole",
    "test.window": None,
    "test.stride": None,
    "test.placement": "shift",
    "test.flip": False,
    "test.score": "softmax",
    "test.logit_resize": "twice",
    "test.absent_class": "skip",
    "test.multi_scale": None,
    "test.multi_scale.relative_to": "test-scale",
    "test.multi_scale.flip": True,
    "test.multi_scale.window": None,
    "test.multi_scale.stride": None,
    "numerics.precision": "fp32",
    "numerics.tf32": False,
    "numerics.channels_last": False,
    "numerics.compile": False,
    "numerics.attention": "fused",
    "numerics.deterministic": False,
    "numerics.sync_batch_norm": True,
    "numerics.winograd": False,
    "numerics.accumulate": 1,
    "fold_bn": False,
    "revision": 1,
}
"""Values that the hashes leave out, frozen: what was computed before the setting existed. A setting that is added gets
an entry, so that older rows keep their hashes. An entry never changes, whatever becomes of the default: a
changed default then changes the hashes of the rows that it reaches, as it must (``tests/config/golden_rows.json``)."""


class Runtime(Strict):
    """How it is run. Never moves results, so it is neither hashed nor a reason to run again."""

    workers: int = Field(default=4, ge=0, le=256)
    log_interval: int = Field(default=50, gt=0)
    checkpoint_interval: int = Field(default=1000, gt=0)
    overlays: int = Field(default=4, ge=0, le=64)
    progress: Literal["auto", "always", "never"] = "auto"
    lazy_crop: bool = True
    """Training images are resized where the crop needs it, instead of whole and then cropped: to the same bits."""
    benchmark_images: int = Field(default=200, gt=0)
    """Images timed for fps (mmsegmentation: 200 after 5 skipped)."""


class RowRevisions(Strict):
    """Of the code that computes a row's stages; bumped by hand when a change of it changes what they compute."""

    train: int = Field(default=1, gt=0)
    evaluate: int = Field(default=1, gt=0)


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
    checkpoint: Literal["last", "best-on-val"] = "last"
    """The weights that training keeps: those of the last iteration, or beside them also those of the epoch that was
    best on centre crops of the validation images (:mod:`danet.training.selection`), as the official code chose them."""
    model: Model
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    augment: Augment
    test: Test
    numerics: Numerics
    revisions: RowRevisions = RowRevisions()
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _consistent(self) -> Row:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: no two runs of a row may share a seed")
        if self.schedule.batch_size % self.loss.replicas:
            size, parts = self.schedule.batch_size, self.loss.replicas
            raise ValueError(f"schedule.batch_size {size} does not divide over loss.replicas {parts}")
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
        """What moves results, complete and JSON-serialisable: no runtime, no seeds, nothing for the reader."""
        return self.model_dump(mode="json", exclude={"runtime", "seeds", "protocol", "notes", "val_interval", "table"})

    @property
    def training_settings(self) -> dict[str, Any]:
        """The part of :attr:`settings` that the trained weights follow from, with the revision of the code."""
        settings = self.settings
        numerics = {key: value for key, value in settings["numerics"].items() if key not in PREDICTION_ONLY}
        return {key: settings[key] for key in TRAINED} | {"numerics": numerics, "revision": self.revisions.train}

    @property
    def train_hash(self) -> str:
        """12 hex digits that change when, and only when, :attr:`training_settings` do."""
        return _digest(identifying(self.training_settings))

    @property
    def hash(self) -> str:
        """12 hex digits over training and testing: identifies what a metrics file measured."""
        parts = {
            "train": self.train_hash,
            "val": self.val_split,
            "test": self.test.model_dump(mode="json"),
            "revision": self.revisions.evaluate,
        }
        numerics = self.numerics.model_dump(mode="json")
        return _digest(identifying(parts | {name: numerics[name] for name in PREDICTION_ONLY}))

    @property
    def facts(self) -> dict[str, str]:
        """What the provenance of a number says of its row."""
        return {"row_hash": self.hash, "train_hash": self.train_hash, "precision": self.numerics.precision}

    @property
    def modes(self) -> tuple[str, ...]:
        """Testing modes: single scale (``ss``) and, where the row defines it, multi-scale + flip (``ms``)."""
        return ("ss", "ms") if self.test.multi_scale else ("ss",)


class Archive(Strict):
    """One file to download."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
    url: str | None = Field(default=None, pattern=r"^https?://")
    """Null where only a login or a local folder can provide it."""
    checksum: str | None = Field(default=None, pattern=r"^(md5|sha1|sha256):[0-9a-f]{32,64}$")
    package: int | None = None
    """Cityscapes: the number of the package behind the login."""
    optional: bool = False


class Dataset(Strict):
    """Where a dataset comes from and how large it must be."""

    adapter: Literal["voc2012", "ade20k", "cityscapes", "camvid"]
    title: str = ""
    """For the reader, from ``titles`` in ``params.yaml``."""
    archives: tuple[Archive, ...]
    counts: dict[Name, Annotated[int, Field(gt=0)]]
    """Images per split; conversion stops when they differ."""
    storage: Literal["source", "raw"] = "source"
    """``source``: images as they came (small); ``raw``: decoded pixels (large; crops are read without decoding)."""


class Weights(Strict):
    """An ImageNet initialisation."""

    url: str | None = Field(pattern=r"^https?://")
    file: str | None = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
    checksum: str | None = Field(default=None, pattern=r"^(md5|sha1|sha256):[0-9a-f]{6,64}$")
    """``sha1:``/``sha256:`` and the digits known; a prefix is allowed where only that is published."""
    backbone: Literal["resnet50", "resnet101"] | None
    stem: Literal["7x7", "deep-32-32-64", "deep-64-64-128"] | None
    title: str


class Released(Strict):
    """Weights that a source released for a row; the first four fields are the row's (for ``dvc.yaml``)."""

    table: Name
    recipe: str
    settings: str
    dataset: Name
    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
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
    row_notes: dict[Name, tuple[str, ...]] = {}
    """Footnotes of single rows; not with the rows, for text must never train them again."""
    published: bool = True
    """False where the source gives no numbers (demo, CamVid): the table then has no such columns."""
    banner: str = ""
    pictures: bool = False
    """Whether pages may show the dataset's images; most datasets must not be redistributed."""
    command: str = ""
    """What makes the table, where that is more than its stages; by default ``dvc repro evaluate@ROW`` makes a row."""


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


class Revisions(RowRevisions):
    """As :class:`RowRevisions`, with that of ``convert``; DVC runs a stage again when its revision changes."""

    convert: int = Field(gt=0)


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
            "datasets",
            "weights",
            "titles",
            "tables",
            "rows",
            "released",
            "submissions",
            "numerics",
            "runtime",
        }
        unknown = sorted(map(str, set(raw) - known))
        if unknown:
            raise ConfigError(f"{path}: unknown section {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
        self.revisions = _validate(Revisions, raw.get("revisions", {}), path, "revisions")
        self.bands = _validate(Bands, raw.get("bands") or {}, path, "bands")
        titles = self._section("titles")
        self.datasets = {
            key: _validate(Dataset, value, path, f"datasets.{key}").model_copy(update={"title": titles.get(key, key)})
            for key, value in self._section("datasets").items()
        }
        self.weights = {
            key: _validate(Weights, value, path, f"weights.{key}") for key, value in self._section("weights").items()
        }
        self.tables = {
            key: _validate(Table, value, path, f"tables.{key}") for key, value in self._section("tables").items()
        }
        for name, kind in (("numerics", Numerics), ("runtime", Runtime)):  # else the first row would be blamed
            _validate(kind, self._defaults(name), path, name)
        self.rows = {key: self._resolve(key, value) for key, value in self._section("rows").items()}
        self.submissions = self._submissions()
        self.released = {key: self._released(key, value) for key, value in self._section("released").items()}

    def _section(self, name: str) -> Mapping[str, Any]:
        section, file = self._raw.get(name) or {}, _file(self.path, name)
        if not isinstance(section, Mapping):
            raise ConfigError(f"{file}: section {name!r} must be a mapping of names")
        for key in section:
            if not isinstance(key, str) or len(key) > MAX_NAME or not NAME.fullmatch(key):
                raise ConfigError(
                    f"{file}: {name}: {_shown(key)}: names reach file paths and command lines, so only up to "
                    f"{MAX_NAME} lower-case letters, digits, '-' and '_' are allowed, beginning with one of the former"
                )
        return section

    def _defaults(self, name: str) -> Mapping[str, Any]:
        """A section that rows may override."""
        section = self._raw.get(name) or {}
        if not isinstance(section, Mapping):
            file = _file(self.path, name)
            raise ConfigError(f"{file}: section {name!r} must be a mapping of settings, not {_shown(section)}")
        return section

    def _resolve(self, name: str, row: Any) -> Row:
        where = f"rows.{name}"
        if not isinstance(row, Mapping):
            raise ConfigError(f"{self.path}: {where} must be a mapping")
        data = self._recipe(where, row)
        row_fields = {
            key: value
            for key, value in row.items()
            if key not in {"recipe", "settings", "method", "backbone", "output_stride", "iterations", "epochs"}
        }
        data = merge(data, row_fields)
        model = {key: row[key] for key in ("method", "backbone", "output_stride") if key in row}
        length = {key: row[key] for key in ("iterations", "epochs") if key in row}
        data = merge(data, {"model": model, "schedule": length})
        for shared in ("numerics", "runtime"):
            over = data.get(shared) or {}
            if not isinstance(over, Mapping):
                raise ConfigError(f"{self.path}: {where}.{shared} must be a mapping of settings, not {_shown(over)}")
            data[shared] = merge(self._defaults(shared), over)
        data["revisions"] = self.revisions.model_dump(include={"train", "evaluate"})
        data["name"] = name
        if "notes" in data:
            raise ConfigError(f"{self.path}: {where}.notes: belongs in tables.{data.get('table')}.row_notes.{name}")
        if isinstance(data.get("table"), str) and data["table"] in self.tables:
            data["notes"] = self.tables[data["table"]].row_notes.get(name, ())
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

    def _recipe(self, where: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row's recipe with its settings laid over it; what is under ``train`` moves up to the row's own fields."""
        recipes = self._section("recipes")
        name = row.get("recipe")
        if not isinstance(name, str) or name not in recipes:
            raise ConfigError(
                f"{self.path}: {where}.recipe: {_shown(name)} is unknown; allowed: {', '.join(sorted(recipes))}"
            )
        file = self.path.parent / RECIPES / f"{name}.yaml"
        recipe = recipes[name]
        settings = recipe.get("settings") if isinstance(recipe, Mapping) else None
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{file}: must be a mapping that has `settings`, by name")
        wanted = row.get("settings")
        if not isinstance(wanted, str) or wanted not in settings or not NAME.fullmatch(wanted):
            raise ConfigError(
                f"{self.path}: {where}.settings: {_shown(wanted)} is unknown; {file} has: "
                f"{', '.join(map(str, settings))}"
            )
        data: dict[str, Any] = {}
        for part, fields in (("", recipe), (f"settings.{wanted}: ", settings[wanted])):
            if not isinstance(fields, Mapping):
                raise ConfigError(f"{file}: {part}must be a mapping, not {_shown(fields)}")
            for half in ("train", "test"):  # each is a parameter of its stage in dvc.yaml, so it must be there
                if not isinstance(fields.get(half), Mapping):
                    raise ConfigError(f"{file}: {part}{half} must be a mapping ({{}} if it has nothing to say)")
            own = {key: value for key, value in fields.items() if key not in {"train", "settings", "protocols"}}
            allowed = ("val_split", "test") if part else ("source", "protocol", "val_split", "test")
            unknown = sorted(set(map(str, own)) - set(allowed))
            if unknown:
                more = "" if part else ", protocols, settings"
                raise ConfigError(
                    f"{file}: {part}unknown field {unknown[0]!r}; allowed: {', '.join(allowed)}, train{more}"
                )
            misplaced = sorted(set(map(str, fields["train"])) & {"source", "protocol", "val_split", "test"})
            if misplaced:
                raise ConfigError(f"{file}: {part}train.{misplaced[0]}: not under train, but beside it")
            data = merge(merge(data, own), fields["train"])
        protocols = recipe.get("protocols") or {}
        if not isinstance(protocols, Mapping) or not set(protocols) <= set(settings):
            raise ConfigError(f"{file}: protocols must map names of settings to a sentence each")
        if wanted in protocols:
            data["protocol"] = protocols[wanted]
        return data

    def _submissions(self) -> tuple[str, ...]:
        entries = self._section("submissions")
        for name, entry in entries.items():
            if name not in self.rows or self.datasets[self.rows[name].dataset].adapter != "cityscapes":
                raise ConfigError(
                    f"{self.path}: submissions: {name!r} is no row on Cityscapes, which has the test server"
                )
            row = self._section("rows")[name]
            wanted = {field: row.get(field) for field in ("recipe", "settings")}
            if entry != wanted:
                raise ConfigError(f"{self.path}: submissions.{name}: is {entry!r}, rows.{name} has {wanted!r}")
        return tuple(entries)

    def _released(self, name: str, value: Any) -> Released:
        where, path = f"released.{name}", self.path.with_name(RELEASED)
        found = _validate(Released, value, path, where)
        if name not in self.rows:
            raise ConfigError(f"{path}: {where}: no such row; rename or remove the entry")
        row = self._section("rows")[name]
        for field in ("table", "recipe", "settings", "dataset"):
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
        demo = self.path.parent / "build" / "demo"
        if kind == "row" and name.startswith("demo-") and demo.is_dir():
            raise ConfigError(f"unknown row {name!r} ({self.path}); the demo's rows are in {demo}: add -C {demo}")
        # of many names the three nearest, however far
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4 if len(known) < 10 else 0)
        hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"unknown {kind} {name!r} ({self.path}); {hint}")


def load_params(path: Path | str = "params.yaml") -> Params:
    """Reads and validates ``params.yaml``, with the recipes and the files beside it.

    Raises:
        ConfigError: naming the row, the field and the allowed values.
    """
    path = Path(path)
    return Params(read_raw(path), path)


def read_raw(path: Path) -> dict[str, Any]:
    """``params.yaml`` as it is written, with ``recipes`` (by name of file) and the sections of the files beside it.

    They are files of their own because DVC parses the whole file anew for each stage and parameter.

    Raises:
        ConfigError: if a file cannot be read, is not valid YAML, or holds a section that belongs elsewhere.
    """
    raw = load_mapping(path)
    places = {section: file for file, sections in BESIDE.items() for section in sections}
    for section, place in {"recipes": f"{RECIPES}/*.yaml", **places}.items():
        if section in raw:
            raise ConfigError(f"{path}: section {section!r} belongs in {place} beside it")
    raw["recipes"] = {file.stem: load_mapping(file) for file in sorted((path.parent / RECIPES).glob("*.yaml"))}
    for name, sections in BESIDE.items():
        file = path.with_name(name)
        found = load_mapping(file) if file.exists() else {}
        if extra := sorted(str(key) for key in set(found) - set(sections)):
            raise ConfigError(f"{file}: section {extra[0]!r} does not belong here; it has: {', '.join(sections)}")
        raw |= found
    return raw


def write_raw(raw: Mapping[str, Any], folder: Path, note: str = "") -> None:
    """Writes what :func:`read_raw` gave, changed or not, to the same files below ``folder``.

    Args:
        raw: all sections.
        folder: for ``params.yaml``, recipes and the files beside it; files that would not change are left alone.
        note: a comment for the head of each file.
    """
    elsewhere = {"recipes"}.union(*BESIDE.values())
    files = {"params.yaml": {key: value for key, value in raw.items() if key not in elsewhere}}
    files |= {
        name: {key: raw[key] for key in sections if key in raw} or {sections[0]: {}}
        for name, sections in BESIDE.items()
    }
    files |= {f"{RECIPES}/{name}.yaml": recipe for name, recipe in raw["recipes"].items()}
    for name, content in files.items():
        text = (f"# {note}\n" if note else "") + yaml.safe_dump(content, sort_keys=False)
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)


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
            shown = f" (given: {_shown(given)})" if isinstance(given, str | int | float | bool) else ""
            what = "is no setting" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
            problems.append(f"{field}: {what}{shown}")
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        text = "; ".join(problems[:SHOWN] + more).encode("utf-8", "backslashreplace").decode()
        raise ConfigError(f"{_file(path, where)}: {text}") from None


def _file(path: Path, where: str) -> Path:
    """The file beside ``params.yaml`` that holds the section with which ``where`` begins."""
    section = where.split(".", 1)[0]
    return next((path.with_name(name) for name, sections in BESIDE.items() if section in sections), path)


def _shown(value: object) -> str:
    """A value of any size for a message; a few bytes of aliases can stand for a text of gigabytes."""
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value)
        return text if len(text) <= 120 else f"{text[:117]}..."
    return f"a {type(value).__name__}"


def identifying(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings without those that are as in :data:`NEUTRAL`: what the hashes are taken over."""
    kept = {}
    for key, value in settings.items():
        place = prefix + key
        part = identifying(value, f"{place}.") if isinstance(value, Mapping) else value
        if place not in NEUTRAL or part != NEUTRAL[place]:
            kept[key] = part
    return kept


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
