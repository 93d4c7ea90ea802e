"""``reports/rehearsal-sources.md``: every seed of the rehearsal, both ways; its figures and the same as data."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danet.config.workspace import Workspace
from danet.core.files import write_json, write_text
from danet.data.camvid import SPEC
from danet.report.figures import COLOURS, STYLE, WIDTH, save

NAME = "rehearsal-sources"
Runs = dict[str, list[dict[str, Any]]]
"""By source, one entry a seed: its own scores and curve, and those of the harness."""


def write(runs: Runs, workspace: Workspace) -> None:
    """Writes the page, its figure and ``reports/rehearsal-sources.json``, from which the page can be made again."""
    reports = workspace.reports()
    write_json(reports / f"{NAME}.json", runs)
    draw(runs, reports / f"{NAME}.png")
    write_text(reports / f"{NAME}.md", text(runs))


def draw(runs: Runs, path: Path) -> None:
    """Loss of every seed, of the source and of the harness, a panel a source."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(len(runs), 1, figsize=(WIDTH, 2.6 * len(runs)), layout="constrained", sharex=True)
        for axes, (source, seeds) in zip(panels, runs.items(), strict=True):
            for key, line, colour in (("curve", "--", COLOURS[1]), ("ours_curve", "-", COLOURS[0])):
                label = f"{source}, {len(seeds)} seeds" if key == "curve" else f"retrained here, {len(seeds)} seeds"
                for place, seed in enumerate(seeds):
                    axes.plot(*zip(*seed[key], strict=True), line, color=colour, lw=1, label=None if place else label)
            axes.set_ylabel("loss")
            axes.legend()
        panels[-1].set_xlabel("iteration")
        save(figure, path)
        plt.close(figure)


def text(runs: Runs) -> str:
    """The page."""
    lines = [
        "<!-- Made by `make rehearsal`; do not edit. -->",
        "# The rehearsal, seed by seed",
        "mmsegmentation and sssegmentation train DANet R-50 at output stride 16 on the 367 training images of CamVid, "
        "each by its own program from its own package, and score the 101 validation images by their own evaluator. The "
        "harness trains the same by `dvc repro`. [rehearsal.md](rehearsal.md) has the means and the verdicts. "
        "mIoU in percent.",
        "## Weights both ways",
        "*Source* is trained by the source. Its own evaluator printed the first number; the second is that of "
        "`released@ROW` and `verify@ROW` on the same checkpoint. *Harness* is trained by `train@ROW`; `evaluate@ROW` "
        "gives the first number, the source's evaluator the second, on the exported weights.",
        _table(
            ["", "Seed", "Source: its evaluator", "harness", "Harness: own", "source's evaluator"],
            [
                [source, str(run["seed"]), *map(_two, (_own(run), _here(run), _ours(run), _there(run)))]
                for source, seeds in runs.items()
                for run in seeds
            ],
        ),
        f"Largest difference on the same weights: source {_largest(runs, _own, _here):.3f}, "
        f"harness {_largest(runs, _ours, _there):.3f} points"
        " (mmsegmentation prints two decimals).",
        "## IoU of every class",
        "Mean of the seeds.",
        _table(
            ["Class", *(cell for source in runs for cell in (source, "harness", "difference"))],
            [[name, *_classes(runs, place)] for place, name in enumerate(SPEC.classes)],
        ),
        "## Learning curves",
        f"![Training loss of every seed]({NAME}.png)",
        "*Training loss, the mean over four iterations: the sources' as they log it, ours as `curve.csv` has it.*",
        "## Where the sources' numbers come from",
        _table(
            ["Source", "Seed", "Versions", "Repository", "Date", "Processor", "Wall time, beside other work"],
            [
                [
                    source,
                    str(run["seed"]),
                    ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
                    f"`{run['commit'][:10]}`",
                    run["date"],
                    f"{run['cpu']}, {run['threads']} thread",
                    f"{run['seconds'] / 60:.0f} min",
                ]
                for source, seeds in runs.items()
                for run in seeds
            ],
        ),
        f"Every setting of both sources, all scores and curves: [{NAME}.json]({NAME}.json).",
    ]
    return "\n\n".join(lines) + "\n"


def _own(run: dict[str, Any]) -> float:
    return float(run["scores"]["miou"])


def _here(run: dict[str, Any]) -> float:
    return float(run["here"]["miou"])


def _ours(run: dict[str, Any]) -> float:
    return float(run["ours"]["miou"])


def _there(run: dict[str, Any]) -> float:
    return float(run["ours_there"]["miou"])


def _largest(runs: Runs, one: Any, other: Any) -> float:
    return max(abs(one(run) - other(run)) for seeds in runs.values() for run in seeds)


def _classes(runs: Runs, place: int) -> list[str]:
    cells = []
    for seeds in runs.values():
        source = 100 * statistics.fmean(run["scores"]["iou"][place] for run in seeds)
        ours = statistics.fmean(run["ours"]["iou"][place] for run in seeds)
        cells += [_two(source), _two(ours), f"{ours - source:+.2f}"]
    return cells


def _two(value: float) -> str:
    return f"{value:.2f}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))
