"""The numbers that the sources publish (``benchmarks/published.yaml``): data, kept apart from what is measured."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from danet.config.params import Params
from danet.config.row import Row, Strict
from danet.config.yaml import load_mapping
from danet.core.errors import ConfigError
from danet.core.text import explain

DEFAULT_PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "published.yaml"

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Edition(Strict):
    """A row's cell in another edition of its source's table."""

    miou: Percent | None = None


class Classes(Strict):
    """IoU of every class, as published for a row."""

    of: str
    """What was evaluated, for the head of a column: ``test set, ms+flip``."""
    url: str = Field(pattern=r"^https?://")
    iou: dict[str, Percent]
    """By the class's name in the prepared data set."""


class Published(Strict):
    """What a source publishes for one row; ``None`` where it gives nothing."""

    miou: Percent | None = None
    """mIoU in percent, by the source's "single-scale" protocol."""
    seeds: tuple[Percent, ...] | None = None
    """That mIoU of each of the source's seeds, where it gives them: ``miou`` is their mean, and the released weights
    are those of the first."""
    miou_ms_flip: Percent | None = None
    """mIoU in percent, multi-scale with flip."""
    aacc: Percent | None = None
    """Pixel accuracy in percent, single scale."""
    aacc_ms: Percent | None = None
    memory_gb: PositiveNumber | None = None
    """Peak GPU memory of training, per GPU."""
    fps: PositiveNumber | None = None
    """Images per second of testing: one image at a time, windows one after another."""
    device: str | None = None
    """What memory and fps were measured on."""
    images_per_gpu: int | None = Field(default=None, gt=0)
    """Images on each GPU in the training whose memory is published."""
    log: str | None = None
    """Address of the released training log."""
    first_edition: Edition | None = None
    """The row in the first edition of the source's table; ``None`` where there was none."""
    classes: Classes | None = None
    """``None`` where only means are published, as for most rows."""

    @model_validator(mode="after")
    def _mean_of_seeds(self) -> Published:
        if self.seeds and (self.miou is None or abs(self.miou - sum(self.seeds) / len(self.seeds)) > 0.006):
            raise ValueError(f"miou {self.miou} is not the mean of the seeds {list(self.seeds)}")
        return self

    @property
    def released_miou(self) -> float | None:
        """mIoU of the weights that the source released."""
        return self.seeds[0] if self.seeds else self.miou


@functools.cache
def load_published(path: Path = DEFAULT_PATH) -> Mapping[str, Published]:
    """All published numbers by row name, from ``benchmarks/published.yaml`` of this repository or another file.

    Raises:
        ConfigError: if the file cannot be read, naming the row and field that are wrong.
    """
    result = {}
    for name, value in load_mapping(path).items():
        try:
            result[str(name)] = Published.model_validate(value)
        except ValidationError as error:
            raise ConfigError(f"{path}: {explain(error, str(name))}") from None
    return result


def published(row_name: str) -> Published:
    """What is published for a row; all fields ``None`` if the sources give nothing for it."""
    return load_published().get(row_name) or Published()


def check_published(table: str, params: Params, path: Path = DEFAULT_PATH) -> None:
    """Checks that every row of a table with published numbers has an entry, so that a renamed row cannot lose its own;
    and that a table's notes are of rows.

    Raises:
        ConfigError: naming the rows without an entry, or the note without a row.
    """
    settings = params.tables[table]
    if strangers := [name for name in settings.row_notes if name not in params.rows]:
        raise ConfigError(f"{params.path}: tables.{table}.row_notes.{strangers[0]}: no such row; rename or remove it")
    lost = [row.name for row in params.table_rows(table) if row.name not in load_published(path)]
    if lost and settings.published:
        raise ConfigError(
            f"{path}: no entry for {', '.join(lost)} of {params.path}; add one (all null if the source gives nothing)"
        )


def crop_text(row: Row) -> str:
    """Training crop as ``HEIGHTxWIDTH``, e.g. ``512x1024``."""
    height, width = row.augment.crop_size
    return f"{height}x{width}"
