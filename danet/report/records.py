"""A results table as data: what the markdown, the CSV and the JSON of a table are all made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from danet.config.params import Params
from danet.config.published import NUMBERS, Published, check_published, published, row_record
from danet.results.measured import Measurement
from danet.results.schema import (
    LeftOut,
    MeasuredNumbers,
    Provenance,
    ReleasedNumbers,
    Spread,
    Stage,
    TableFile,
    TableRow,
)
from danet.results.verdict import agreement, judge, judge_means, summarise

ACCURACY = ("miou", "miou_ms_flip", "aacc", "aacc_ms")
"""Metrics with a published number and a difference."""
JUDGED = ("miou", "miou_ms_flip")
"""Metrics with a verdict: the band is declared in points of mIoU."""
CONDITIONS = ("device", "images_per_gpu")
"""Of the published memory and fps."""
MEASURED = (*NUMBERS, "fps_batched", "macc", "baseline_miou", "hours", "device_hours", "images_per_second")


def table_record(
    table: str, params: Params, measurements: Sequence[Measurement], path: Path | None = None
) -> TableFile:
    """The table as data.

    Args:
        table: its name in ``params.yaml``.
        params: where its title, notes and rows are.
        measurements: of its rows, in order.
        path: of the published numbers, if not the repository's.

    Raises:
        ConfigError: if a row of a table with published numbers has no entry for them.
    """
    check_published(table, params, path)
    settings = params.tables[table]
    return TableFile(
        table=table,
        title=settings.title,
        banner=settings.banner,
        has_published=settings.published,
        rows=tuple(row_as_data(item, params, path) for item in measurements),
        left_out=tuple(
            LeftOut(row=item.row.name, file=problem.file, reason=problem.reason)
            for item in measurements
            for problem in item.problems
        ),
    )


def row_as_data(item: Measurement, params: Params, path: Path | None = None) -> TableRow:
    """A row of the table as data; its published numbers are all ``None`` where there is no entry for them yet."""
    row, source = item.row, published(item.row.name, path)
    shown = params.tables[row.table].published
    band = params.bands.of(row.dataset)
    against = source if shown else Published()
    measured = _measured(item) if item.status == "measured" else None
    values = {metric: item.values(metric) if measured else [] for metric in (*ACCURACY, "macc")}
    means = {metric: summary.mean for metric, each in values.items() if (summary := summarise(each))}
    verdict: dict[str, str | None] = dict.fromkeys(JUDGED)
    for metric in JUDGED:
        if (number := getattr(against, metric)) is not None:
            verdict[metric] = judge(values[metric], number, band).text
    if against.seeds:
        verdict["miou"] = judge_means(values["miou"], against.seeds, band).text
    ious = zip(item.classes, map(_round, item.class_iou()), strict=True) if measured else None
    best = {metric: summarise(item.best_on_val(metric)) for metric in ACCURACY}
    return TableRow(
        **(row_record(row, path) | {"published": against}),
        row_hash=row.hash,
        seeds=row.seeds,
        band=band if shown else None,
        status=item.status,
        measured=measured,
        spread={metric: _spread(each) for metric, each in values.items() if each},
        difference={metric: _gap(means.get(metric), getattr(against, metric)) for metric in ACCURACY},
        verdict=verdict,
        iou=dict(ious) if ious else None,
        best_on_val={metric: _round(found.mean) if found else None for metric, found in best.items()}
        if row.checkpoint == "best-on-val"
        else None,
        provenance=_stages(item) if measured else (),
        settings=row.settings,
        released=_released(item, params, source),
    )


def _measured(item: Measurement) -> MeasuredNumbers:
    means = {metric: summarise(item.values(metric)) for metric in MEASURED}
    gpus = item.trained[0].provenance.gpus if item.trained else None
    return MeasuredNumbers(
        n=len(item.runs),
        seeds=tuple(run.seed for run in item.runs if run.seed is not None),
        **{metric: _round(found.mean) if found else None for metric, found in means.items()},
        baseline_class=item.classes[item.runs[0].modes.ss.baseline[1]],
        device=_devices(run.provenance for run in item.trained),
        fps_device=_devices(run.provenance for run in item.runs),
        gpus=gpus,
        images_per_gpu=item.row.schedule.batch_size // max(1, gpus or 1),
    )


def _spread(values: Sequence[float]) -> Spread:
    found = summarise(values)
    assert found is not None
    return Spread(
        n=found.n, sd=_round(found.sd), low=_round(found.low), high=_round(found.high),
        values=tuple(round(value, 4) for value in values),
    )  # fmt: skip


def _released(item: Measurement, params: Params, source: Published) -> ReleasedNumbers | None:
    """The evaluation of the weights that the source released; None if it released none."""
    found, band = item.verification, params.bands.released
    if item.row.name not in params.released and found.status == "not run":
        return None
    values = {metric: found.value(metric) for metric in (*ACCURACY, "macc")}
    against = {metric: getattr(source, metric) for metric in ACCURACY} | {"miou": source.released_miou}
    if source.seeds:  # whose pixel accuracy is a mean as well
        against["aacc"] = None
    return ReleasedNumbers(
        status=found.status,
        band=band,
        **{metric: _round(value) for metric, value in values.items()},
        difference={metric: _gap(values[metric], against[metric]) for metric in ACCURACY},
        agreement={metric: agreement(values[metric], against[metric], band) or None for metric in ACCURACY},
        weights=found.file.weights if found.file else None,
        provenance=found.run.provenance if found.run else None,
    )


def _stages(item: Measurement) -> tuple[Stage, ...]:
    """Training and evaluation of each seed."""
    trained = {run.seed: run for run in item.trained}
    stages = []
    for run in item.runs:
        assert run.seed is not None
        common = {"seed": run.seed, "weights_sha256": run.weights_sha256}
        if training := trained.get(run.seed):
            more = {"imagenet_sha256": training.initial_weights, "peak_memory_gib": training.peak_memory_gib}
            facts = {"provenance": training.provenance, "data": training.data, "more": more}
            stages.append(Stage.model_validate(common | facts | {"stage": "train"}))
        facts = {"provenance": run.provenance, "data": run.data}
        stages.append(Stage.model_validate(common | facts | {"stage": "evaluate"}))
    return tuple(stages)


def _devices(provenances: Iterable[Provenance]) -> str | None:
    """What computed the seeds of a row: one name, or several if they differ."""
    return "; ".join(dict.fromkeys(facts.hardware for facts in provenances if facts.hardware)) or None


def csv_rows(record: TableFile) -> tuple[list[str], list[list[Any]]]:
    """Header and lines of the CSV of a table: one line a row, one number a cell."""
    settings = ["row", "source", "dataset", "method", "backbone", "output_stride", "crop_size", "schedule", "status"]
    cells = [_csv_row(row, settings) for row in record.rows]
    return list(cells[0]) if cells else [], [list(line.values()) for line in cells]


def _csv_row(row: TableRow, settings: Sequence[str]) -> dict[str, Any]:
    cells = {name: getattr(row, name) for name in (*settings, "row_hash")}
    cells["planned_seeds"] = " ".join(map(str, row.seeds))
    cells["seeds"] = " ".join(map(str, row.measured.seeds)) if row.measured else ""
    cells["band"] = row.band
    cells |= {f"published_{name}": getattr(row.published, name) for name in (*NUMBERS, *CONDITIONS)}
    cells |= {f"measured_{name}": getattr(row.measured, name, None) for name in (*MEASURED, "device")}
    for number in ("sd", "low", "high"):
        cells |= {f"{number}_{name}": getattr(row.spread.get(name), number, None) for name in ACCURACY}
    cells |= {f"best_on_val_{name}": (row.best_on_val or {}).get(name) for name in ACCURACY}
    cells |= {f"difference_{name}": row.difference[name] for name in ACCURACY}
    cells |= {f"verdict_{name}": row.verdict[name] for name in JUDGED}
    cells |= {f"released_{name}": getattr(row.released, name, None) for name in ("status", *ACCURACY)}
    for what in ("difference", "agreement"):
        cells |= {f"released_{what}_{name}": getattr(row.released, what, {}).get(name) for name in ACCURACY}
    return cells | {"first_edition_miou": row.published.first_edition and row.published.first_edition.miou}


def _gap(measured: float | None, against: float | None) -> float | None:
    return None if measured is None or against is None else round(measured - against, 4)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
