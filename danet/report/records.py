"""A results table as CSV: a line a row, a number a cell."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from danet.config.published import crop_text
from danet.results.measured import JUDGED, Measurement, hardware
from danet.results.schema import ACCURACIES, Accuracy, Fact

COSTS = ("peak_memory_gib", "fps", "hours", "device_hours", "images_per_second")


def csv_table(items: Sequence[Measurement]) -> pd.DataFrame:
    """A column for each published and each measured number."""
    return pd.DataFrame([_csv_line(item) for item in items], dtype=object)


def _csv_line(item: Measurement) -> dict[str, Fact]:
    row, costs = item.row, item.costs
    model = row.model
    cells: dict[str, Fact] = {"row": row.name, "source": row.source, "dataset": row.dataset, "method": model.method}
    cells |= {"backbone": model.backbone, "output_stride": model.output_stride}
    cells |= {"crop_size": crop_text(row), "schedule": row.schedule.text}
    cells |= {"status": item.status, "row_hash": row.hash, "planned_seeds": " ".join(map(str, row.seeds))}
    cells["seeds"] = " ".join(str(run.seed) for run in item.runs)
    for name in ACCURACIES:
        found = item.accuracy(name)
        cells |= {f"{name}_{key}": value for key, value in found if key not in {"values", "verdict", "band"}}
        if name in JUDGED:
            cells |= {f"{name}_verdict": found.verdict, f"{name}_band": found.band}
        cells[f"{name}_best_on_val"] = item.best_on_val.get(name)
        released = item.released.accuracies.get(name, Accuracy()) if item.released else Accuracy()
        cells |= {f"{name}_released": released.mean, f"{name}_released_verdict": released.verdict}
    cells["baseline_miou"] = item.baseline[0] if item.measured else None
    cells |= {f"published_{name}": getattr(item.published, name) for name in ("memory_gb", "fps", "device")}
    cells |= {name: costs.get(name) for name in COSTS}
    cells |= {"trained_on": hardware(item.trained), "tested_on": hardware(item.runs)}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in cells.items()}
