"""Pictures of fixed images across the rows of a table: image and truth once, then each row's prediction and errors.

They show the dataset's images, so they stay beside the evaluations, outside Git, unless the table allows pictures.
Nothing here is needed for a number: what is missing on this machine (data, predictions) is left out of the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from danet.config.workspace import Workspace
from danet.core.errors import DanetError
from danet.data.prepared import PreparedDataset
from danet.report.labels import short_labels
from danet.results.measured import Measurement

MAX_EXAMPLES = 4
SUFFIX = "-prediction.png"

_Image = NDArray[np.uint8]


def draw_examples(measurements: Sequence[Measurement], workspace: Workspace, folder: Path) -> list[tuple[str, Path]]:
    """Draws up to four images that every measured row of one dataset and split has predictions of.

    Args:
        measurements: of the rows of one dataset.
        workspace: where the prepared data and the predictions are.
        folder: for the PNGs.

    Returns:
        A caption and the path of each picture.
    """
    from danet.evaluation.visualise import save_panels

    rows = [item for item in measurements if item.measured]
    kept = {item.name: found for item in rows if (found := _predictions(item, workspace))}
    rows = [item for item in rows if item.name in kept and item.row.val_split == rows[0].row.val_split]
    if not rows:
        return []
    try:
        dataset = PreparedDataset(workspace.prepared(rows[0].row.dataset), rows[0].row.val_split)
    except (DanetError, OSError):
        return []
    common = set.intersection(*(set(kept[item.name]) for item in rows))
    labels = short_labels([item.row for item in rows])
    drawn: list[tuple[str, Path]] = []
    for name in [name for name in dataset.ids if name in common][:MAX_EXAMPLES]:
        index = dataset.ids.index(name)
        truth = dataset.mask(index)
        assert truth is not None
        path = folder / f"examples-{rows[0].row.dataset}-{len(drawn)}.png"
        predictions = [(labels[item.name], _read(kept[item.name][name])) for item in rows]
        save_panels(
            path,
            dataset.image(index),
            truth,
            [each for each in predictions if each[1].shape == truth.shape],  # else they are of other data
            dataset.classes,
            dataset.palette,
        )
        drawn.append((f"{name}: image and truth, then prediction and errors of every row", path))
    return drawn


def _predictions(item: Measurement, workspace: Workspace) -> dict[str, Path]:
    """The predictions of a row's first seed, by the name of the image."""
    prefix = f"seed{item.runs[0].seed}-"
    files = sorted(workspace.evaluation(item.row).glob(f"{prefix}*{SUFFIX}"))
    return {path.name.removeprefix(prefix).removesuffix(SUFFIX): path for path in files}


def _read(path: Path) -> _Image:
    from PIL import Image

    with Image.open(path) as picture:  # an indexed PNG: the values are the classes
        return np.asarray(picture, dtype=np.uint8)
