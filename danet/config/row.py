"""The row: one line of a published results table, with all settings that reproduce it and a stable hash of them.

Whoever reads these classes has a row that is complete: :mod:`danet.config.params` has laid recipe, settings and the
row's own fields over each other. The published numbers are not here: they are data (:mod:`danet.config.published`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,79}$")]
"""Names reach file paths and command lines through DVC, so they are restricted to this."""
_Side = Annotated[int, Field(gt=0, le=1 << 16)]
Size = tuple[_Side, _Side]
"""``(height, width)`` in pixels, everywhere in this project."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


BackboneInit = Literal["kaiming", "mmsegmentation", "pytorch"]
"""``kaiming``: normal over fan-out, as the official code; ``mmsegmentation``: the same with a last norm of 0 in each
residual branch; ``pytorch``: its default, as sssegmentation leaves it."""


class Strict(BaseModel):
    """Refuses unknown fields, so that a misspelt setting is an error and not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Strict):
    """The network. Dimensions as in all sources: 2048 -> 512 channels, q/k of 64."""

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
    """Of the heads."""
    backbone_init: BackboneInit = "kaiming"
    """Of a backbone without ImageNet weights."""


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
    """For convolutions alone; products of matrices stay float32."""
    channels_last: bool = False
    compile: bool = False
    """``torch.compile``: training, and in prediction the sizes that come again and again."""
    memory_budget: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of compiled training: the share of the activations that is kept for backward; the cheapest are computed again."""
    attention: Literal["fused", "reference"] = "fused"
    deterministic: bool = False
    sync_batch_norm: bool = True
    fold_bn: bool = False
    """Prediction: convolutions take over the batch normalisation behind them. Differs by rounding (logits: 1e-5)."""
    accumulate: Annotated[int, Field(gt=0)] = 1
    """Micro-batches per optimizer step; the batch size stays what the recipe says, but batch normalisation sees fewer
    images at a time."""


PREDICTION_ONLY = ("fold_bn",)
"""Fields of :class:`Numerics` that leave training as it is."""
TRAINED = (
    *("dataset", "train_split", "weights", "checkpoint"),
    *("model", "loss", "optimizer", "schedule", "augment", "numerics"),
)
"""Fields of :class:`Row` that the trained weights follow from."""
NEUTRAL: Mapping[str, Any] = {
    "checkpoint": "last",
    "model.multi_grid": None,
    "model.pam_bias": True,
    "model.aux_channels": None,
    "model.align_corners": False,
    "model.init": "pytorch",
    "model.backbone_init": "kaiming",
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
    "numerics.memory_budget": 1.0,
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
    source: Name
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
    profile: str = ""
    """The name of ``numerics``, for the reader: a profile, and the fields that the row itself sets."""
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
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What moves results, complete and JSON-serialisable: no runtime, no seeds, nothing for the reader."""
        return self.model_dump(
            mode="json", exclude={"runtime", "seeds", "protocol", "notes", "val_interval", "table", "profile"}
        )

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
    def modes(self) -> tuple[str, ...]:
        """Testing modes: single scale (``ss``) and, where the row defines it, multi-scale + flip (``ms``)."""
        return ("ss", "ms") if self.test.multi_scale else ("ss",)


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
