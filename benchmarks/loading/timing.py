"""The clock of both sides of the comparison. Imported in the peer's environment too: standard library only."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Rate:
    """Images per second over the repetitions of one case."""

    wall: float
    """Median, by the wall clock."""
    slowest: float
    fastest: float
    cpu: float
    """Median, by the process's CPU time: what a core gives that no other program interrupts."""

    @property
    def values(self) -> dict[str, float]:
        """By name of field."""
        return asdict(self)


def one_core() -> int:
    """Binds this process, and all that it starts, to one of its cores; returns which."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def rates(cases: Mapping[str, Callable[[int], Any]], images: int, repetitions: int, warm_up: int) -> dict[str, Rate]:
    """Times every case once in each repetition, so that a busy minute of the machine falls on all of them.

    Args:
        cases: each prepares the images of a repetition from a position on; the same ones in every repetition.
        images: that a case prepares when it is called.
        repetitions: that count.
        warm_up: repetitions before them that do not.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for repetition in range(warm_up + repetitions):
        for name, case in cases.items():
            wall, cpu = time.perf_counter(), time.process_time()
            case(images)
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if repetition >= warm_up:
                seconds[name].append(spent)
    found = {}
    for name, pairs in seconds.items():
        walls, cpus = ([images / value for value in column] for column in zip(*pairs, strict=True))
        found[name] = Rate(statistics.median(walls), min(walls), max(walls), statistics.median(cpus))
    return found
