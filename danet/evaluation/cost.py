"""What a row costs on a device whose throughput was measured: hours of training and of testing.

``hours = FLOP of the row / measured FLOP/s / 3600``. A row's training is ``3 x forward FLOP at its crop x images
seen``, its test ``FLOP of an image x images`` (single scale). The rate is that of a profile of ``numerics.yaml`` at
shapes like the row's: linear between benchmarked numbers of FLOP per image, the nearest beyond them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from danet.config.params import Params
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core import provenance
from danet.core.errors import ConfigError
from danet.evaluation import flops
from danet.results.speed import device_name, read

IMPLEMENTATIONS = {
    "published": "published",
    "fast": "fast",
    "fast, not compiled": "fast",  # on a CPU, where compiled training is not measured
}
"""The profile of ``numerics.yaml`` that an implementation of the benchmark stands for; the first that was measured."""

ASIDE = {"fold_bn", "sync_batch_norm", "accumulate"}
"""The numerics that change a row's speed on one GPU by a few percent at most."""


@dataclass(frozen=True)
class Rates:
    """Measured throughput of a device under a profile: FLOP of a forward pass over one image, and FLOP/s, ascending."""

    device: str
    profile: str
    train: tuple[tuple[float, float], ...]
    infer: tuple[tuple[float, float], ...]
    threads: int
    date: str

    def at(self, subject: str, flop: float) -> float | None:
        """FLOP/s at a number of FLOP per image; None if this was not measured."""
        points = self.train if subject == "train" else self.infer
        if not points:
            return None
        return float(np.interp(flop, [x for x, _ in points], [y for _, y in points]))


@dataclass(frozen=True)
class Cost:
    """Of one row with all its seeds."""

    row: str
    train_flop: float
    test_flop: float
    train_hours: float | None
    test_hours: float | None

    @property
    def hours(self) -> float | None:
        """Both; None where a rate is missing."""
        if self.train_hours is None or self.test_hours is None:
            return None
        return self.train_hours + self.test_hours


def rates(folder: Path) -> list[Rates]:
    """The devices of the benchmark files in a folder, once for each profile that was measured there."""
    found: dict[tuple[str, str], dict[str, dict[str, dict[float, float]]]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for document, lines in read(folder):
        facts[document["device"]] = document["facts"]
        for line in lines:
            subject, profile = line["what"], IMPLEMENTATIONS.get(line["implementation"])
            if subject not in ("train", "infer") or not line["tflop_per_s"] or profile is None:
                continue
            passes = flops.TRAINING_PASSES if subject == "train" else 1
            per_image = float(line["tflop"]) * 1e12 / passes / int(line["batch"])
            points = found.setdefault((document["device"], profile), {}).setdefault(subject, {})
            known = points.setdefault(line["implementation"], {})
            known[per_image] = max(float(line["tflop_per_s"]) * 1e12, known.get(per_image, 0.0))
    profiles = list(dict.fromkeys(IMPLEMENTATIONS.values()))

    def best(subject: dict[str, dict[float, float]]) -> tuple[tuple[float, float], ...]:
        return next((tuple(sorted(subject[name].items())) for name in IMPLEMENTATIONS if name in subject), ())

    return [
        Rates(
            device=device,
            profile=profile,
            train=best(points.get("train", {})),
            infer=best(points.get("infer", {})),
            threads=facts[device]["threads"],
            date=str(facts[device]["date"])[:10],
        )
        for (device, profile), points in sorted(found.items(), key=lambda it: (it[0][0], profiles.index(it[0][1])))
    ]


def own_profile(row: Row, params: Params) -> str:
    """The profile whose rates a row has, the one equal but for :data:`ASIDE`; empty if there is none."""
    wanted = row.numerics.model_dump(exclude=ASIDE)
    return next((name for name, each in params.profiles.items() if each.model_dump(exclude=ASIDE) == wanted), "")


def row_cost(row: Row, params: Params, measured: Rates | None) -> Cost:
    """The cost of a row on a device; without one, its operations alone."""
    counted = flops.count_row(row, params)
    counts = params.dataset(row.dataset).counts
    seen = row.schedule.total_iterations(counts[row.train_split]) * row.schedule.batch_size * len(row.seeds)
    train = float(flops.TRAINING_PASSES * counted.crop_flop * seen)
    test = float(counted.test_flop * counts[row.val_split] * len(row.seeds))

    def hours(subject: str, work: float, per_image: float) -> float | None:
        rate = measured.at(subject, per_image) if measured else None
        return work / rate / 3600 if rate else None

    per_pass = counted.test_flop / counted.passes
    return Cost(row.name, train, test, hours("train", train, counted.crop_flop), hours("infer", test, per_pass))


def here(workspace: Workspace) -> list[Rates]:
    """The rates of the device of this process, if benchmark files of it are in ``reports/benchmarks``."""
    facts = provenance.collect()
    device = "cpu" if not facts["gpu"] else "cuda"
    name = device_name(facts | {"device": device, "threads": facts["cpu_cores"]})
    return [each for each in rates(workspace.reports() / "benchmarks") if each.device == name]


def hours_here(workspace: Workspace, params: Params, chosen: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Hours of rows on the device found here: by the row's name and the profile, and as ``own`` under its own numerics.

    Empty if the device was never benchmarked or its files are damaged.
    """
    try:
        measured = here(workspace)
    except ConfigError:
        return {}
    found: dict[str, dict[str, float]] = {}
    for row in chosen:
        own = own_profile(row, params)
        for each in measured:
            if (hours := row_cost(row, params, each).hours) is not None:
                found.setdefault(row.name, {})[each.profile] = hours
                if each.profile == own:
                    found[row.name]["own"] = hours
    return found
