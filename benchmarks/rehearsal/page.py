"""``reports/rehearsal-sources.md``: every seed of the rehearsal, both ways; its figures and the same as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from danet.config.workspace import Workspace
from danet.core.files import write_json, write_text
from danet.core.text import number
from danet.data.camvid import SPEC
from danet.report.figures import COLOURS, STYLE, WIDTH, save
from danet.report.markdown import Page

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
    every = [(source, run) for source, seeds in runs.items() for run in seeds]
    scores = np.array([[run[by]["miou"] for by in ("scores", "here", "ours", "ours_there")] for _, run in every])
    own, here, ours, there = scores.T
    page = Page("Made by `make rehearsal`; do not edit.")
    page.heading(1, "The rehearsal, seed by seed")
    page.text(
        "mmsegmentation and sssegmentation train DANet R-50 at output stride 16 on the 367 training images of CamVid, "
        "each by its own program from its own package, and score the 101 validation images by their own evaluator. The "
        "harness trains the same by `dvc repro`. [rehearsal.md](rehearsal.md) has the means and the verdicts. "
        "mIoU in percent."
    )
    page.heading(2, "Weights both ways")
    page.text(
        "*Source* is trained by the source. Its own evaluator printed the first number; the second is that of "
        "`released@ROW` and `verify@ROW` on the same checkpoint. *Harness* is trained by `train@ROW`; `evaluate@ROW` "
        "gives the first number, the source's evaluator the second, on the exported weights."
    )
    titles = ["", "Seed", "Source: its evaluator", "harness", "Harness: own", "source's evaluator"]
    lines = [[source, str(run["seed"]), *map(number, each)] for (source, run), each in zip(every, scores, strict=True)]
    page.table((titles, lines, "lrrrrr"))
    page.text(
        f"Largest difference on the same weights: source {np.abs(own - here).max():.3f}, "
        f"harness {np.abs(ours - there).max():.3f} points (mmsegmentation prints two decimals)."
    )
    page.heading(2, "IoU of every class")
    page.text("Mean of the seeds.")
    titles, columns = ["Class"], [list(SPEC.classes)]
    for source, seeds in runs.items():
        theirs = 100 * np.mean([run["scores"]["iou"] for run in seeds], axis=0)
        ours = np.mean([run["ours"]["iou"] for run in seeds], axis=0)
        titles += [source, "harness", "difference"]
        columns += [[*map(number, theirs)], [*map(number, ours)], [*map("{:+.2f}".format, ours - theirs)]]
    page.table((titles, list(zip(*columns, strict=True)), "l" + "r" * (len(titles) - 1)))
    page.heading(2, "Learning curves")
    page.text(f"![Training loss of every seed]({NAME}.png)")
    page.text(
        "*Training loss, the mean over four iterations: the sources' as they log it, ours as `curve.csv` has it.*"
    )
    page.heading(2, "Where the sources' numbers come from")
    titles = ["Source", "Seed", "Versions", "Repository", "Date", "Processor", "Wall time, beside other work"]
    lines = [
        [
            source,
            str(run["seed"]),
            ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
            f"`{run['commit'][:10]}`",
            run["date"],
            f"{run['cpu']}, {run['threads']} thread",
            f"{run['seconds'] / 60:.0f} min",
        ]
        for source, run in every
    ]
    page.table((titles, lines, "lrrrrrr"))
    page.text(f"Every setting of both sources, all scores and curves: [{NAME}.json]({NAME}.json).")
    return page.end()
