"""Made-up metrics files in the agreed form, for a temporary workspace only."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from danet.config.params import Params
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.report import TableReport, write_table

NAMES = {
    "cityscapes": "road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky person "
    "rider car truck bus train motorcycle bicycle",
    "camvid": "sky building pole road pavement tree sign fence car pedestrian bicyclist",
}
COUNTS = {"voc2012": 21, "ade20k": 150}


def classes(row: Row) -> list[str]:
    if row.dataset in NAMES:
        return [name.replace("_", " ") for name in NAMES[row.dataset].split()]
    return [f"class {number}" for number in range(COUNTS[row.dataset])]


def provenance(row: Row, seed: int, gpu: str | None = "NVIDIA H200") -> dict[str, Any]:
    return {
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "date": "2026-01-02T03:04:05Z",
        "command": f"python -m pipelines.train {row.name}",
        "python": "3.11.9",
        "torch": "2.15.0+cu130",
        "torchvision": "0.29.0+cu130",
        "cuda": "13.0" if gpu else None,
        "cudnn": "91002" if gpu else None,
        "driver": "580.95.05" if gpu else None,
        "gpu": gpu,
        "gpus": 1 if gpu else 0,
        "cpu": "AMD EPYC 9654 96-Core Processor",
        "cpu_cores": 16,
        "os": "Linux 6.8 x86_64",
        "precision": row.numerics.precision,
        "row_hash": row.hash,
        "train_hash": row.train_hash,
        "seed": seed,
        "manifest_hash": "a1b2c3d4e5f60718",
        "weights_sha256": "f" * 64,
    }


def mode(row: Row, miou: float, random: np.random.Generator) -> dict[str, Any]:
    names = classes(row)
    offsets = random.uniform(-1, 1, len(names))
    offsets -= offsets.mean()
    iou = miou + offsets * min(miou, 100 - miou) * 0.5  # within 0 and 100, of exactly this mean
    values: list[float | None] = [round(float(value), 4) for value in iou]
    return {
        "miou": round(float(np.mean(iou)), 4),
        "aacc": round(min(99.0, miou + 15), 4),
        "macc": round(min(99.0, miou + 6), 4),
        "iou": values,
        "acc": [min(100.0, value + 3) for value in values if value is not None],
        "images": 500,
        "pixels": 1,
        "seconds": 100.0,
        "confusion": f"evaluations/{row.name}/seed0-ss-confusion.npz",
    }


def evaluation(
    row: Row, mious: dict[int, float], *, ms: float | None = None, gpu: str | None = "NVIDIA H200"
) -> dict[str, Any]:
    """``evaluation.json`` with the given single-scale mIoU per seed, and ``ms`` points more for multi-scale."""
    runs = []
    for seed, miou in mious.items():
        random = np.random.default_rng([seed, len(row.name)])
        modes = {"ss": mode(row, miou, random)}
        if ms is not None:
            modes["ms"] = mode(row, miou + ms, random)
        run = {"seed": seed, "modes": modes, "baseline_miou": 3.21, "baseline_class": classes(row)[0], "fps": 12.5}
        run["fps_batched"] = 20.0
        runs.append({**run, "peak_memory_gib": 4.0, "provenance": provenance(row, seed, gpu)})
    return {
        "format": 1,
        "row": row.name,
        "table": row.table,
        "row_hash": row.hash,
        "train_hash": row.train_hash,
        "dataset": row.dataset,
        "split": row.val_split,
        "classes": classes(row),
        "runs": runs,
    }


def verification(measured: Row, miou: float, **over: Any) -> str:
    """``verification.json`` of a row whose multi-scale result is 1.5 points higher."""
    document = evaluation(measured, {0: miou}, ms=1.5)
    document["runs"][0]["seed"] = None
    weights = {"file": "DANet101.pth.tar", "sha256": "ab" * 32, "source": "official", "checksum": "none"}
    return json.dumps({**document, "weights": weights, **over})


def metrics(evaluated: dict[str, Any]) -> dict[str, Any]:
    """``metrics.json`` of an ``evaluation.json``."""
    runs = evaluated["runs"]
    result: dict[str, Any] = {
        name: round(float(np.mean([run["modes"]["ss"][name] for run in runs])), 4) for name in ("miou", "aacc", "macc")
    }
    ms = [run["modes"]["ms"]["miou"] for run in runs if "ms" in run["modes"]]
    return {**result, "miou_ms_flip": float(np.mean(ms)) if ms else None, "seeds": len(runs)}


def training(row: Row, seeds: list[int], gpu: str | None = "NVIDIA H200") -> dict[str, Any]:
    runs = [
        {
            "seed": seed,
            "iterations": row.schedule.iterations or 40_000,
            "final_loss": 0.3,
            "images_per_second": 35.5,
            "hours": 3.25,
            "peak_memory_gib": 14.75,
            "data_wait_share": 0.01,
            "resumed": 0,
            "weights_sha256": "f" * 64,
            "provenance": provenance(row, seed, gpu),
        }
        for seed in seeds
    ]
    return {"format": 1, "row": row.name, "train_hash": row.train_hash, "final_loss": 0.3, "runs": runs}


def curve(row: Row, seeds: list[int], points: int = 200) -> list[dict[str, Any]]:
    total = row.schedule.iterations or 40_000
    lines = []
    for seed in seeds:
        random = np.random.default_rng([seed, len(row.name), 1])
        for number in range(1, points + 1):
            iteration = number * total // points
            loss = 0.4 + 8 * np.exp(-6 * number / points) + 0.15 * abs(random.normal()) + 0.01 * len(row.name)
            line = {"seed": seed, "iteration": iteration, "loss": round(loss, 5), "loss_main": round(loss / 3, 5)}
            line |= {"loss_pam": "", "loss_cam": "", "loss_aux": "", "lr": 0.01, "images_per_second": 35.0}
            lines.append({**line, "val_miou": round(60 * number / points, 3) if number % (points // 5) == 0 else ""})
    return lines


def write(
    row: Row,
    workspace: Workspace,
    mious: dict[int, float],
    *,
    ms: float | None = None,
    gpu: str | None = "NVIDIA H200",
    points: int = 200,
) -> Path:
    """All metrics files of a row (without points: no learning curve); returns their folder."""
    folder = workspace.metrics(row)
    folder.mkdir(parents=True, exist_ok=True)
    evaluated = evaluation(row, mious, ms=ms, gpu=gpu)
    seeds = list(mious)
    for name, value in (
        ("evaluation.json", evaluated),
        ("metrics.json", metrics(evaluated)),
        ("train.json", training(row, seeds, gpu)),
    ):
        (folder / name).write_text(json.dumps(value))
    if not points:
        return folder
    lines = curve(row, seeds, points)
    with (folder / "curve.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return folder


def whole(table: str, params: Params, workspace: Workspace, **options: Any) -> TableReport:
    """Writes a table for which every metrics file must be used."""
    report = write_table(table, params, workspace, **options)
    assert report.problems == ()
    return report
