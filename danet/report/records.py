"""A results table as data: what the markdown, the CSV and the JSON of a table are all made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from danet.config.params import Bands, Params
from danet.config.published import NUMBERS, check_published, published, row_record
from danet.core.provenance import device_name
from danet.results.measured import Measurement
from danet.results.verdict import agreement, judge, summarise

ACCURACY = ("miou", "miou_ms_flip", "aacc", "aacc_ms")
"""Metrics with a published number and a difference."""
JUDGED = ("miou", "miou_ms_flip")
"""Metrics with a verdict: the band is declared in points of mIoU."""
CONDITIONS = ("device", "images_per_gpu")
"""Of the published memory and fps."""
SPREAD = ("sd", "low", "high")
"""Standard deviation over seeds, and the ends of the 95 % interval of the mean."""
MEASURED = (*NUMBERS, "fps_batched", "macc", "baseline_miou", "hours", "device_hours", "images_per_second")


def table_record(
    table: str, params: Params, measurements: Sequence[Measurement], path: Path | None = None
) -> dict[str, Any]:
    """The table as JSON-serialisable data (format 1).

    Args:
        table: its name in ``params.yaml``.
        params: where its title, notes and rows are.
        measurements: of its rows, in order.
        path: of the published numbers, if not the repository's.

    Returns:
        ``{format, table, title, banner, published, rows, left_out}``; each row has the keys of
        :func:`.row_record` and ``first_edition, published_classes, seeds, status, measured, spread,
        difference, verdict, iou, best_on_val, provenance, released`` (``None`` where there is nothing). Percentages,
        rounded to 4 decimals.

    Raises:
        ConfigError: if a row of a table with published numbers has no entry for them.
    """
    check_published(table, params, path)
    settings = params.tables[table]
    return {
        "format": 1,
        "table": table,
        "title": settings.title,
        "banner": settings.banner,
        "has_published": settings.published,
        "rows": [
            _row(item, settings.published, params.bands, path)
            | {"released": _released(item, item.row.name in params.released, params.bands.released, path)}
            for item in measurements
        ],
        "left_out": [
            {"row": measurement.row.name, "file": problem.file, "reason": problem.reason}
            for measurement in measurements
            for problem in measurement.problems
        ],
    }


def _row(measurement: Measurement, has_published: bool, bands: Bands, path: Path | None) -> dict[str, Any]:
    row = measurement.row
    record = row_record(row, path)
    record["row_hash"] = row.hash
    if not has_published:
        record["published"] = dict.fromkeys(record["published"])
    source = published(row.name, path)
    record["published"] |= {key: getattr(source, key) if has_published else None for key in CONDITIONS}
    record["first_edition"] = source.first_edition.model_dump() if source.first_edition else None
    record["published_classes"] = source.classes.model_dump() if source.classes and has_published else None
    record["seeds"] = list(row.seeds)
    record["band"] = bands.of(row.dataset) if has_published else None
    record |= {"status": measurement.status, "measured": None, "spread": None}
    record |= {"difference": dict.fromkeys(ACCURACY), "verdict": dict.fromkeys(JUDGED), "iou": None}
    if measurement.status == "measured":
        _fill(record, measurement)
    for metric in JUDGED if has_published else ():
        if record["published"][metric] is not None:
            values = measurement.values(metric) if measurement.status == "measured" else []
            record["verdict"][metric] = judge(values, record["published"][metric], bands.of(row.dataset)).text
    record["best_on_val"] = None
    if row.checkpoint == "best-on-val":
        chosen = {metric: summarise(measurement.best_on_val(metric)) for metric in ACCURACY}
        record["best_on_val"] = {metric: _round(found.mean) if found else None for metric, found in chosen.items()}
    record["provenance"] = _provenance(measurement)
    record["settings"] = row.settings
    return record


def _released(measurement: Measurement, available: bool, band: float, path: Path | None) -> dict[str, Any] | None:
    """The evaluation of the weights that the source released; None if it released none."""
    found = measurement.verification
    if not available and found.status == "not run":
        return None
    source = published(measurement.row.name, path)
    record: dict[str, Any] = {"status": found.status, "band": band}
    values = {metric: found.value(metric) for metric in (*ACCURACY, "macc")}
    record |= {metric: _round(value) for metric, value in values.items()}
    against = {metric: getattr(source, metric) for metric in ACCURACY}
    gaps = {m: None if values[m] is None or against[m] is None else values[m] - against[m] for m in ACCURACY}
    record["difference"] = {metric: _round(gap) for metric, gap in gaps.items()}
    record["agreement"] = {metric: agreement(values[metric], against[metric], band) or None for metric in ACCURACY}
    record["weights"] = found.weights
    record["provenance"] = found.run.provenance if found.run else None
    return record


def _fill(record: dict[str, Any], measurement: Measurement) -> None:
    measured: dict[str, Any] = {"n": len(measurement.runs), "seeds": [run.seed for run in measurement.runs]}
    spread: dict[str, Any] = {}
    for metric in MEASURED:
        values = measurement.values(metric)
        summary = summarise(values)
        measured[metric] = _round(summary.mean) if summary else None
        if summary and metric in (*ACCURACY, "macc"):
            numbers = {"n": summary.n, "sd": summary.sd, "low": summary.low, "high": summary.high}
            spread[metric] = {key: _round(value) for key, value in numbers.items()}
            spread[metric]["values"] = [_round(value) for value in values]
        against = record["published"].get(metric)
        if summary and metric in ACCURACY and against is not None:
            record["difference"][metric] = _round(summary.mean - against)
    trained = measurement.trained[0].provenance if measurement.trained else {}
    measured["device"] = _devices(run.provenance for run in measurement.trained)
    measured["fps_device"] = _devices(run.provenance for run in measurement.runs)
    measured["gpus"] = trained.get("gpus")
    measured["images_per_gpu"] = measurement.row.schedule.batch_size // max(1, trained.get("gpus") or 1)
    measured["baseline_class"] = measurement.runs[0].baseline_class
    record["measured"], record["spread"] = measured, spread
    ious = [_round(value) for value in measurement.class_iou()]
    record["iou"] = dict(zip(measurement.classes, ious, strict=True))


def _provenance(measurement: Measurement) -> list[dict[str, Any]]:
    stages: list[tuple[str, int, Mapping[str, Any]]] = []
    if measurement.status == "measured":
        seeds = {run.seed for run in measurement.runs}
        stages += [("train", run.seed, run.provenance) for run in measurement.trained if run.seed in seeds]
        stages += [("evaluate", run.seed, run.provenance) for run in measurement.runs]
    stages.sort(key=lambda item: (item[1], item[0] == "evaluate"))
    return [
        {"stage": stage, "seed": seed} | {k: v for k, v in facts.items() if k != "seed"}
        for stage, seed, facts in stages
    ]


def _devices(provenances: Iterable[Mapping[str, Any]]) -> str | None:
    """What computed the seeds of a row: one name, or several if they differ."""
    return "; ".join(dict.fromkeys(name for facts in provenances if (name := device_name(facts)))) or None


def csv_rows(record: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Header and lines of the CSV of a table: one line a row, one number a cell."""
    settings = ["row", "source", "dataset", "method", "backbone", "output_stride", "crop_size", "schedule", "status"]
    header = [*settings, "row_hash", "planned_seeds", "seeds", "band"]
    header += [f"published_{name}" for name in (*NUMBERS, *CONDITIONS)]
    header += [f"measured_{name}" for name in (*MEASURED, "device")]
    header += [f"{number}_{name}" for number in SPREAD for name in ACCURACY]
    header += [f"best_on_val_{name}" for name in ACCURACY]
    header += [f"difference_{name}" for name in ACCURACY]
    header += [f"verdict_{name}" for name in JUDGED]
    header += ["released_status", *(f"released_{name}" for name in ACCURACY)]
    header += [f"released_{what}_{name}" for what in ("difference", "agreement") for name in ACCURACY]
    header += ["first_edition_miou"]
    lines = []
    for row in record["rows"]:
        measured, spread = row["measured"] or {}, row["spread"] or {}
        line = [row[name] for name in (*settings, "row_hash")]
        line += [" ".join(map(str, seeds)) for seeds in (row["seeds"], measured.get("seeds", []))] + [row["band"]]
        line += [row["published"][name] for name in (*NUMBERS, *CONDITIONS)]
        line += [measured.get(name) for name in (*MEASURED, "device")]
        line += [spread.get(name, {}).get(number) for number in SPREAD for name in ACCURACY]
        line += [(row["best_on_val"] or {}).get(name) for name in ACCURACY]
        line += [row["difference"][name] for name in ACCURACY] + [row["verdict"][name] for name in JUDGED]
        released = row["released"] or {}
        line += [released.get("status"), *(released.get(name) for name in ACCURACY)]
        line += [released.get(what, {}).get(name) for what in ("difference", "agreement") for name in ACCURACY]
        line += [(row["first_edition"] or {}).get("miou")]
        lines.append(line)
    return header, lines


def _round(value: float | int | None) -> float | int | None:
    return round(value, 4) if isinstance(value, float) else value
