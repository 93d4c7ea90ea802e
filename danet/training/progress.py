"""What a training run measures while it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field

LOSSES = ("loss", "loss_main", "loss_pam", "loss_cam", "loss_aux")
STATUS = "progress.json"
"""Beside a seed's resume checkpoint: how far its training is, for whoever looks from outside (`danet sweep`)."""
CURVE_COLUMNS = ("seed", "iteration", *LOSSES, "lr", "images_per_second", "val_miou")
CurveRow = dict[str, float | int | None]


@dataclass
class History:
    """Everything about the past of a run that is not in its weights: plain values, kept in its checkpoint.

    ``curve`` has a row for iteration 1, each log interval, each validation and the last iteration: means over the
    iterations since the row before. ``sums``, ``counted`` and ``interval`` are of those that have no row yet.
    """

    curve: list[CurveRow] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    counted: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    images: int = 0
    interval: tuple[float, float, int] = (0.0, 0.0, 0)
    """``seconds``, ``wait_seconds`` and ``images`` when it began."""
    peak_memory_gib: float = 0.0
    resumed: int = 0
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

    def close(self, iteration: int, lr: float, val_miou: float | None = None) -> CurveRow:
        """Ends the interval with a curve row, which it returns. ``val_miou`` in percent."""
        began, waited, images = self.interval
        seconds = self.seconds - began
        speed = (self.images - images) / seconds if seconds > 0 else 0.0
        row: CurveRow = {"iteration": iteration}
        row |= {name: self.sums[name] / self.counted if name in self.sums else None for name in LOSSES}
        row |= {"lr": lr, "images_per_second": round(speed, 3), "val_miou": val_miou}
        row |= {"data_wait_share": (self.wait_seconds - waited) / seconds if seconds > 0 else 0.0}
        row |= {"peak_memory_gib": self.peak_memory_gib}
        self.curve.append(row)
        self.sums, self.counted = {}, 0
        self.interval = self.seconds, self.wait_seconds, self.images
        return row

    @property
    def data_wait_share(self) -> float:
        """The share of training time spent waiting for data, in [0, 1]."""
        return self.wait_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def images_per_second(self) -> float:
        """Over the whole run, over all processes."""
        return self.images / self.seconds if self.seconds > 0 else 0.0
