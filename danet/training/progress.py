"""What a training run measures and shows while it goes on."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from danet.core.errors import DanetError
from danet.core.files import write_json

LOSSES = ("loss", "loss_main", "loss_pam", "loss_cam", "loss_aux")
STATUS = "progress.json"
"""Beside a seed's resume checkpoints: how far its training is, for whoever looks from outside (`danet sweep`)."""
CURVE_COLUMNS = ("seed", "iteration", *LOSSES, "lr", "images_per_second", "val_miou")


@dataclass
class History:
    """Everything about the past of a run that is not in its weights: plain values, kept in its checkpoints.

    ``curve`` has a row for iteration 1, each log interval, each validation and the last iteration: means over the
    iterations since the row before. ``sums`` and ``counted`` are the interval that is not finished yet.
    """

    curve: list[dict[str, float | int | None]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    counted: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    images: int = 0
    interval_seconds: float = 0.0
    interval_wait: float = 0.0
    interval_images: int = 0
    peak_memory_gib: float = 0.0
    resumed: int = 0
    accumulate: list[list[int]] = field(default_factory=list)
    """Micro-batches per optimizer step: ``[first iteration, number]``, one entry unless memory ran out in mid-run."""
    best: tuple[int, float] | None = None
    """Iteration and score of the best epoch on val, where the row keeps its weights."""
    energy_kj: float | None = None
    """Drawn by the GPUs so far; ``None`` where the driver does not say, or did not in an earlier part of the run."""

    def add(self, losses: dict[str, float]) -> None:
        """Adds one iteration's losses to the interval."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.counted += 1

    def time(self, seconds: float, wait: float, images: int) -> None:
        """Adds training time: all of it, the part spent waiting for data, and the images trained on."""
        self.seconds += seconds
        self.wait_seconds += wait
        self.images += images
        self.interval_seconds += seconds
        self.interval_wait += wait
        self.interval_images += images

    def close(self, iteration: int, lr: float, val_miou: float | None = None) -> dict[str, float | int | None]:
        """Ends the interval with a curve row, which it returns. ``val_miou`` in percent."""
        speed = self.interval_images / self.interval_seconds if self.interval_seconds > 0 else 0.0
        row: dict[str, float | int | None] = {"iteration": iteration}
        row |= {name: self.sums[name] / self.counted if name in self.sums else None for name in LOSSES}
        row |= {"lr": lr, "images_per_second": round(speed, 3), "val_miou": val_miou}
        wait = self.interval_wait / self.interval_seconds if self.interval_seconds > 0 else 0.0
        row |= {"data_wait_share": wait, "peak_memory_gib": self.peak_memory_gib}
        self.curve.append(row)
        self.sums, self.counted = {}, 0
        self.interval_seconds = self.interval_wait = 0.0
        self.interval_images = 0
        return row

    @property
    def data_wait_share(self) -> float:
        """The share of training time spent waiting for data, in [0, 1]."""
        return self.wait_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def images_per_second(self) -> float:
        """Over the whole run, over all processes."""
        return self.images / self.seconds if self.seconds > 0 else 0.0


def write_status(
    folder: Path, *, row: str, seed: int, iteration: int, total: int, loss: float | None, eta_seconds: float
) -> None:
    """Replaces ``progress.json``; readers never see half of one, and a full disk stops no training.

    ``loss`` is the mean over the log interval that has just ended.
    """
    value = {"row": row, "seed": seed, "iteration": iteration, "total": total, "loss": loss}
    value |= {"eta_seconds": round(eta_seconds, 1), "updated": datetime.now(UTC).isoformat(timespec="seconds")}
    with contextlib.suppress(DanetError):
        write_json(folder / STATUS, value)


def clock(seconds: float) -> str:
    """``1:02:03``, or ``1d 2:03:04``."""
    if not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    text = f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}d {text}" if days else text


class Reporter:
    """Prints a run's progress: a live bar on a terminal, one line per log interval elsewhere, or nothing."""

    def __init__(
        self, console: Console, style: Literal["auto", "always", "never"] = "auto", quiet: bool = False
    ) -> None:
        self.console = console
        self.quiet = quiet
        self.live = not quiet and (style == "always" or (style == "auto" and console.is_terminal))
        self._update: Callable[[int, str], None] | None = None
        self._shown = 0.0

    def say(self, message: str) -> None:
        """Prints a line, above the bar where there is one; a log on a full disk or a closed pipe stops no training."""
        if not self.quiet:
            with contextlib.suppress(OSError):
                self.console.print(escape(message))

    @contextmanager
    def run(self, title: str, total: int, start: int) -> Iterator[None]:
        """Around the iterations of one run."""
        if not self.live:
            yield
            return
        # the line gives way to a narrow terminal from its end, where what matters least stands
        columns = (
            BarColumn(bar_width=10),
            TaskProgressColumn(),
            TextColumn("{task.fields[line]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        )
        with RichProgress(*columns, console=self.console, expand=True) as bar:
            task = bar.add_task(escape(title), total=total, completed=start, line="")
            self._update = lambda done, line: bar.update(task, completed=done, line=line)
            try:
                yield
            finally:
                self._update = None

    def step(self, done: int, line: Callable[[], str]) -> None:
        """After an iteration: updates the bar, at most ten times a second."""
        if self._update is not None and time.monotonic() - self._shown > 0.1:
            self._shown = time.monotonic()
            self._update(done, line())

    def interval(self, title: str, done: int, line: str) -> None:
        """After a log interval: a line where there is no bar."""
        if self._update is not None:
            self._update(done, line)
        else:
            self.say(f"{title}  {line}")


def progress_line(
    iteration: int,
    total: int,
    *,
    loss: float | None,
    lr: float,
    speed: float,
    wait: float,
    memory_gib: float,
    eta: float,
) -> str:
    """Time to go, iteration, loss, images/s, data-wait share, peak memory and learning rate, in that order: terminals
    cut the end.
    """
    shown = "-" if loss is None else f"{loss:.4f}"
    return (
        f"{clock(eta)} left  iter {iteration}/{total}  loss {shown}  {speed:.1f} img/s  "
        f"data wait {100 * wait:.0f}%  mem {memory_gib:.1f} GiB  lr {lr:.2e}"
    )
