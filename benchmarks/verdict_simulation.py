"""How often is a verdict of the tables wrong, and how often does it decide? Measured on synthetic rows.

    .venv/bin/python -m benchmarks.verdict_simulation          # under a minute; writes reports/verdict-simulation.md

Each case is 10,000 rows whose true mean lies at a known distance from the published number and whose seeds scatter
normally with a known spread; :func:`danet.results.verdict.judge` sees the seeds alone. The first part is the procedure
with a number of seeds fixed beforehand, for which the rate is claimed. The second is the same where the source gives
seeds of its own, whose mean lies at the published number (:func:`danet.results.verdict.judge_means`). The others look
at the data more than once: three seeds and then, if undecided, as many more as the table asks for (two looks); a seed
at a time (up to nine looks).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import scipy

from danet.config.params import Bands
from danet.core.console import report_errors
from danet.core.files import write_text
from danet.core.provenance import code_version
from danet.report.markdown import Page
from danet.results.verdict import ALPHA, judge, judge_means

SEED = 20260101
ROWS = 10_000
PUBLISHED = 80.0
BAND = Bands().trained
SEEDS = (2, 3, 5, 10)
SPREADS = (0.1, 0.3, 0.6, 5.0)
"""Standard deviation over seeds: SeMask's three Cityscapes runs; between; two runs 0.7 apart and more; far wider than
the band, where "lower" and "higher" can both be false."""
PAIRS = ((0.3, 0.3), (0.1, 0.6), (0.6, 0.1), (5.0, 5.0))
"""Spreads of the source's seeds and of ours, where the source gives seeds."""
OFFSETS = (0.0, 0.5, 1.0, 1.5, 2.0)
"""True mean below the published number, in bands: 1 is the edge, where a false "reproduced" is likeliest."""
MOST_SEEDS = 10

Labels = Counter[str]
Found = dict[tuple[float, ...], Labels]
"""Verdicts by offset (first), spreads and number of seeds."""


def draw(case: tuple[int, ...], offset: float, spread: float, seeds: int, rows: int) -> list[list[float]]:
    """Results of ``rows`` synthetic rows, the same for the same case."""
    random = np.random.default_rng([SEED, *case])
    values = PUBLISHED - offset * BAND + spread * random.standard_normal((rows, seeds))
    drawn: list[list[float]] = values.tolist()
    return drawn


def fixed(rows: int) -> Found:
    """Verdicts on a number of seeds."""
    return {
        (offset, spread, seeds): Counter(
            judge(values, PUBLISHED, BAND).label for values in draw((o, s, seeds), offset, spread, seeds, rows)
        )
        for o, offset in enumerate(OFFSETS)
        for s, spread in enumerate(SPREADS)
        for seeds in SEEDS
    }


def two_means(rows: int) -> Found:
    """Verdicts where the source has seeds too, as many as here; by offset, the source's spread, ours, and seeds."""
    found: Found = {}
    for o, offset in enumerate(OFFSETS):
        for p, pair in enumerate(PAIRS):
            for seeds in SEEDS:
                theirs = draw((200 + o, p, seeds, 0), 0.0, pair[0], seeds, rows)
                ours = draw((200 + o, p, seeds, 1), offset, pair[1], seeds, rows)
                labels: Iterable[str] = (judge_means(*each, BAND).label for each in zip(ours, theirs, strict=True))
                found[offset, *pair, seeds] = Counter(labels)
    return found


def one_by_one(values: list[float]) -> str:
    """The first verdict while seeds are added from 2 to ten."""
    verdicts = (judge(values[:n], PUBLISHED, BAND).label for n in range(2, MOST_SEEDS + 1))
    return next((label for label in verdicts if label != "undecided"), "undecided")


def as_advised(values: list[float]) -> str:
    """The verdict on three seeds, or, if undecided, on as many more as it asks for (ten in all at most)."""
    first = judge(values[:3], PUBLISHED, BAND)
    if first.label != "undecided":
        return first.label
    return judge(values[: 3 + (first.more_seeds or MOST_SEEDS)], PUBLISHED, BAND).label


def sequential(rows: int, rule: Callable[[list[float]], str]) -> Found:
    """Verdicts by offset and spread if seeds are added by a rule."""
    return {
        (offset, spread): Counter(map(rule, draw((100 + o, s), offset, spread, MOST_SEEDS, rows)))
        for o, offset in enumerate(OFFSETS)
        for s, spread in enumerate(SPREADS)
    }


def false_rate(labels: Labels, offset: float) -> float:
    """Share of verdicts that are wrong, given the true distance in bands (the mean lies below the published number)."""
    wrong = {"higher", "reproduced" if offset >= 1 else "lower"}
    return sum(labels[label] for label in wrong) / labels.total()


def worst(found: Found) -> tuple[float, tuple[float, ...]]:
    """The largest share of false verdicts, and its case."""
    return max((false_rate(labels, case[0]), case) for case, labels in found.items())


def table(page: Page, columns: Iterable[str], found: Found) -> None:
    """Adds the shares of all verdicts to a page."""
    names = ("reproduced", "lower", "higher", "undecided")
    head = [*columns, *names, "false"]
    lines = [
        [*(f"{part:g}" for part in case), *(f"{labels[name] / labels.total():.1%}" for name in names),
         f"{false_rate(labels, case[0]):.2%}"]
        for case, labels in found.items()
    ]  # fmt: skip
    page.table((head, lines, "r" * len(head)))


def page(rows: int) -> str:
    """The results as markdown."""
    started = time.perf_counter()
    out = Page("Made by `python -m benchmarks.verdict_simulation`; do not edit.")
    error = math.sqrt(ALPHA * (1 - ALPHA) / rows)
    commit, dirty = code_version()
    commit = "commit unknown" if commit == "unknown" else f"commit `{commit[:10]}`"
    found = fixed(rows)
    most, (distance, spread, seeds) = worst(found)
    out.heading(1, "Error rates of the verdicts, by simulation")
    out.text(
        f"{rows:,} synthetic rows a case; published number {PUBLISHED:g}, band {BAND:g}; at most {ALPHA:.0%} of the "
        "verdicts may be false. The true mean lies *distance* bands below the published number. At 1 it is on the edge "
        "of the band, where false verdicts are likeliest: there every *reproduced* is counted as false (*lower* "
        "instead would give half of that). Spread is the standard deviation over seeds, in points."
    )
    out.text(
        f"**Largest share of false verdicts: {most:.2%}** (distance {distance:g}, spread {spread:g}, {seeds:g} seeds); "
        f"claimed: at most {ALPHA:.0%}, and the simulation itself is good to ±{3 * error:.2%} (three standard errors)."
    )
    out.heading(2, "A fixed number of seeds")
    table(out, ("Distance", "Spread", "Seeds"), found)
    found = two_means(rows // 5)  # each verdict takes longer
    most, (distance, theirs, ours, seeds) = worst(found)
    out.heading(2, "A source with seeds of its own")
    out.text(
        f"As many seeds as here, {rows // 5:,} rows a case; distance is that between the two true means, and the tests "
        f"are Welch's. **Largest share of false verdicts: {most:.2%}** (distance {distance:g}, spreads {theirs:g} and "
        f"{ours:g}, {seeds:g} seeds each); good to ±{3 * error * math.sqrt(5):.2%}."
    )
    table(out, ("Distance", "Spread, source", "here", "Seeds"), found)
    out.heading(2, "Three seeds, then as many more as the table asks for")
    out.text(f"Two looks at the data, so at most twice {ALPHA:.0%} can be claimed.")
    table(out, ("Distance", "Spread"), sequential(rows, as_advised))
    out.heading(2, "A seed at a time until there is a verdict")
    out.text(
        f"From 2 seeds up to {MOST_SEEDS}: up to {MOST_SEEDS - 1} looks. This is how not to do it: the share of false "
        "verdicts grows with every look."
    )
    table(out, ("Distance", "Spread"), sequential(rows, one_by_one))
    out.text(
        f"Random seed {SEED}; NumPy {np.__version__}, SciPy {scipy.__version__}; "
        f"{commit}{' with changes' if dirty else ''}; took {time.perf_counter() - started:.0f} s."
    )
    return out.end()


if __name__ == "__main__":
    with report_errors():
        path = Path("reports/verdict-simulation.md")
        write_text(path, page(ROWS))
        print(path)
