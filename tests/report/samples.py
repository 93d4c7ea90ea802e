"""Made-up metrics files in the agreed form, for a temporary workspace only."""

import contextlib
import csv
import json

import numpy as np

from danet.data.registry import ADAPTERS
from danet.report import write_table
from danet.results.identity import TrainingIdentity
from danet.results.schema import (
    EvaluatedSeed,
    EvaluationFile,
    ModeResult,
    Modes,
    Provenance,
    TrainedSeed,
    TrainingFile,
    save,
)

DATA = "a1b2c3d4e5f60718"


def classes(row):
    return ADAPTERS[row.dataset].classes


def provenance(row, gpu="NVIDIA H200"):
    return Provenance(
        commit="0123456789abcdef0123456789abcdef01234567",
        date="2026-01-02T03:04:05Z",
        torch="2.15.0+cu130",
        driver="580.95.05" if gpu else None,
        gpu=gpu,
        gpus=1 if gpu else 0,
        cpu="AMD EPYC 9654 96-Core Processor",
        precision=row.numerics.precision,
    )


PIXELS = 10_000_000
"""Of each class: so many that an IoU is right to five decimals of a percent."""


def matrix(classes, miou):
    """Classes that are taken for each other in pairs of one IoU (and the last three in turn), with exactly this mean.

    With ``m`` of ``n`` pixels taken for another class, and as many the other way, the IoU is ``(n - m) / (n + m)``.
    """
    spread = min(miou, 100 - miou) / 2
    ious = np.full(classes, miou) / 100
    ious[:2] += spread / 100
    ious[2:4] -= spread / 100
    wrong = np.rint(PIXELS * (1 - ious) / (1 + ious)).astype(np.int64)
    partner = np.arange(classes) ^ 1
    if classes % 2:
        partner[-3:] = np.roll(np.arange(classes)[-3:], 1)
    found = np.diag(PIXELS - wrong)
    found[np.arange(classes), partner] += wrong
    return found


def mode(row, miou):
    return ModeResult.of(matrix(len(classes(row)), miou), "skip", 500, 100.0)


def evaluation(row, mious, *, ms=None, gpu="NVIDIA H200"):
    """``evaluation.json`` with the given single-scale mIoU per seed, and ``ms`` points more for multi-scale."""
    return EvaluationFile(
        row=row.name,
        table=row.table,
        row_hash=row.hash,
        train_hash=row.train_hash,
        dataset=row.dataset,
        split=row.val_split,
        classes=classes(row),
        settings=row.settings,
        runs=tuple(
            EvaluatedSeed(
                seed=seed,
                training=identity(row, seed),
                weights_sha256="f" * 64,
                data=DATA,
                modes=Modes(ss=mode(row, miou), ms=None if ms is None else mode(row, miou + ms)),
                fps=12.5,
                peak_memory_gib=4.0,
                provenance=provenance(row, gpu),
            )
            for seed, miou in mious.items()
        ),
    )


def identity(row, seed):
    return TrainingIdentity.of(row, seed, data=DATA, initial_weights=None).digest


def verify(row, workspace, miou, **over):
    """Writes ``verification.json`` of a row whose multi-scale result is 1.5 points higher."""
    document = evaluation(row, {0: miou}, ms=1.5).model_dump(mode="json")
    document["runs"][0] |= {"seed": None, "training": None}
    weights = {"file": "DANet101.pth.tar", "sha256": "ab" * 32, "source": "official", "checksum": "none"}
    path = workspace.metrics(row) / "verification.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**document, "weights": weights, **over}))


def training(row, seeds, gpu="NVIDIA H200"):
    runs = tuple(
        TrainedSeed(
            seed=seed,
            identity=identity(row, seed),
            data=DATA,
            initial_weights=None,
            weights_sha256="f" * 64,
            iterations=row.schedule.iterations or 40_000,
            final_loss=0.3,
            images_per_second=35.5,
            hours=3.25,
            peak_memory_gib=14.75,
            provenance=provenance(row, gpu),
        )
        for seed in seeds
    )
    return TrainingFile(row=row.name, train_hash=row.train_hash, runs=runs)


def curve(row, seeds, points=200):
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


def write(row, workspace, mious, *, ms=None, gpu="NVIDIA H200", points=200):
    """All metrics files of a row (without points: no learning curve); returns their folder."""
    folder = workspace.metrics(row)
    folder.mkdir(parents=True, exist_ok=True)
    evaluated = evaluation(row, mious, ms=ms, gpu=gpu)
    seeds = list(mious)
    for name, document in (
        ("evaluation.json", evaluated),
        ("train.json", training(row, seeds, gpu)),
    ):
        save(folder / name, document)
    if not points:
        return folder
    lines = curve(row, seeds, points)
    with (folder / "curve.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return folder


@contextlib.contextmanager
def edited(path):
    """What a JSON file holds, to be changed; it is then written back."""
    data = json.loads(path.read_text())
    yield data
    path.write_text(json.dumps(data))


def whole(table, params, workspace, **options):
    """Writes a table for which every metrics file must be used."""
    report = write_table(table, params, workspace, **options)
    assert report.problems == ()
    return report
