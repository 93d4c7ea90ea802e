"""``make rehearsal``: the sources train, the harness reproduces them by its own stages, both are set side by side.

Every training is kept with what it was made of, and a call goes on where the last one stopped. Scoring weights takes
minutes, and every call does it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.parity.environment import prepare_environment
from benchmarks.rehearsal import page
from benchmarks.rehearsal.sources import OUT, SOURCES, Run, call, images, train
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.console import console, report_errors
from danet.core.files import write_text
from danet.core.provenance import PACKAGE_ROOT, cpu_cores
from danet.data.camvid import SPEC
from danet.results.measured import read
from danet.weights.exchange import export_weights
from pipelines import dvc_environment

PUBLISHED = PACKAGE_ROOT / "benchmarks" / "published.yaml"
MARK = "# Made by the sources' own programs: `make rehearsal` writes what follows (reports/rehearsal-sources.md).\n"
ADDRESS = {
    "mmsegmentation": "https://github.com/open-mmlab/mmsegmentation/tree/v1.2.2",
    "sssegmentation": "https://github.com/SegmentationBLWX/sssegmentation/tree/v1.7.0",
}


def dvc(*arguments: str) -> None:
    """``dvc repro`` with arguments; what fails has said why."""
    command = [sys.executable, "-m", "dvc", "repro", *arguments]
    if code := subprocess.run(command, cwd=PACKAGE_ROOT, env=dvc_environment(), check=False).returncode:
        sys.exit(code)


def verified(run: Run, row: Row) -> dict[str, float | None]:
    """The source's weights through ``released@ROW`` and ``verify@ROW``: mIoU, mAcc and aAcc in percent.

    The last run to come here stays: its result is the one in the table.
    """
    workspace = Workspace(PACKAGE_ROOT)
    placed = workspace.archives() / workspace.params().released[row.name].file
    placed.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.folder / "released.pth", placed)
    dvc("-f", "-s", f"released@{row.name}")  # DVC does not see the file
    dvc("-s", f"verify@{row.name}")
    result = read(row, workspace.params(), workspace).released
    assert result is not None
    return {name: result.accuracies[name].mean for name in ("miou", "macc", "aacc")}


def returned(run: Run, row: Row, python: Path, root: Path) -> dict[str, Any]:
    """Weights trained here, exported and scored by the source's own program."""
    exported = OUT / run.source / f"ours{run.seed}" / "exported.pth"
    export_weights(Workspace(PACKAGE_ROOT).model(row) / f"seed{run.seed}.safetensors", exported, target=run.source)
    scores: dict[str, Any] = call(run, python, root, exported.with_name("log.txt"), exported)["scores"]
    return scores


def publish(scores: dict[str, list[dict[str, Any]]]) -> None:
    """Writes the sources' numbers behind the mark in ``benchmarks/published.yaml``."""
    entries = {}
    for source, runs in scores.items():
        of = [run["scores"] for run in runs]
        iou = zip(SPEC.classes, zip(*(one["iou"] for one in of), strict=True), strict=True)
        entries[f"rehearsal-{source}"] = {
            "miou": round(statistics.fmean(one["miou"] for one in of), 2),
            "seeds": [round(one["miou"], 2) for one in of],
            "aacc": round(statistics.fmean(one["aacc"] for one in of), 2),
            "classes": {
                "of": f"mean of {len(of)} seeds",
                "url": ADDRESS[source],
                "iou": {name: round(100 * statistics.fmean(values), 2) for name, values in iou},
            },
        }
    before = PUBLISHED.read_text(encoding="utf-8").partition(MARK)[0]
    write_text(PUBLISHED, before + MARK + yaml.safe_dump(entries, sort_keys=False))


def main() -> None:
    """All of it, in order."""
    workspace = Workspace(PACKAGE_ROOT)
    params = workspace.params()
    rows = {source: params.row(f"rehearsal-{source}") for source in SOURCES}
    root, files = images(os.environ.get("CAMVID"))
    os.environ["DANET_CAMVID"] = str(root)
    python = prepare_environment()
    runs = {source: [Run(source, seed) for seed in rows[source].seeds] for source in SOURCES}
    # a seed of each source in turn, so that what is there after a while can be compared
    turns = [run for pair in zip(*runs.values(), strict=True) for run in pair]
    trained = train(turns, python, root, files, jobs=min(2, cpu_cores()))
    done = {source: [trained[run] for run in runs[source]] for source in SOURCES}
    dvc("-f", "-s", "download@camvid")
    dvc(*(f"evaluate@{row.name}" for row in rows.values()))
    for source, row in rows.items():
        found = read(row, params, workspace)
        measured = {run.seed: run.modes.ss.scores for run in found.runs}
        for run, scores in reversed(list(zip(runs[source], done[source], strict=True))):  # so that the first one stays
            scores["here"] = verified(run, row)
            scores["ours"] = {name: getattr(measured[run.seed], name) for name in ("miou", "macc", "aacc", "iou")}
            scores["ours_there"] = returned(run, row, python, root)
            scores["ours_curve"] = found.curves[run.seed][["iteration", "loss"]].to_numpy().tolist()
    publish(done)
    for arguments in (["report@rehearsal"], ["index"]):
        dvc("-s", *arguments)
    page.write(done, workspace)
    console.print("reports/rehearsal.md has the verdicts, reports/rehearsal-sources.md each seed")


if __name__ == "__main__":
    with report_errors():
        main()
