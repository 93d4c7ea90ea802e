"""What tells rows apart, in few characters."""

from __future__ import annotations

import re
from collections.abc import Sequence

from danet.config.published import crop_text
from danet.config.row import Row

METHODS = {"danet": "DANet", "dranet": "DRANet", "clusterdanet": "ClusterDANet"}


def short_schedule(row: Row) -> str:
    """``40k it``, ``500 it`` or ``60 epochs``."""
    iterations = row.schedule.iterations
    if iterations is None:
        return row.schedule.text
    return f"{iterations / 1000:g}k it" if iterations >= 1000 else f"{iterations} it"


def backbone_text(row: Row) -> str:
    """``R-50-D8``: backbone and output stride as the tables of mmsegmentation write them."""
    return f"R-{row.model.backbone.removeprefix('resnet')}-D{row.model.output_stride}"


def short_labels(rows: Sequence[Row]) -> dict[str, str]:
    """A label for each row as short as keeps the rows of one figure or table apart: ``R-50-D8 769x769 40k it``.

    Where the rows are of several sources it begins with the source.
    """
    shared = in_common(rows)
    several = len({row.source for row in rows}) > 1
    labels = {}
    for row in rows:
        method, crop, schedule = ("" if part in shared else part for part in _parts(row))
        source = row.source if several else ""
        labels[row.name] = " ".join(filter(None, (source, method, backbone_text(row), crop, schedule)))
    return labels if len(set(labels.values())) == len(labels) else {row.name: row.name for row in rows}


def unbroken(label: str) -> str:
    """A label in Markdown that takes fewer lines of a narrow column; with plain hyphens, so that a search finds it."""
    return re.sub(r" (?=\d+x\d|it\b|epochs)", "&nbsp;", label)


def label_head(rows: Sequence[Row]) -> str:
    """What a column of :func:`short_labels` names: ``Network, crop, schedule``."""
    varies = [len(set(values)) > 1 for values in zip(*map(_parts, rows), strict=True)][1:]
    more = [name for name, wanted in zip(("crop", "schedule"), varies, strict=True) if wanted]
    return ", ".join(["Network", *more])


def in_common(rows: Sequence[Row]) -> list[str]:
    """Method, crop and schedule as far as all rows have the same."""
    return [values[0] for values in zip(*map(_parts, rows), strict=True) if len(set(values)) == 1]


def _parts(row: Row) -> tuple[str, str, str]:
    return METHODS[row.model.method], crop_text(row), short_schedule(row)
