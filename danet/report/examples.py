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
from danet.report.figures import STYLE, save
from danet.report.labels import short_labels
from danet.results.measured import Measurement

MAX_EXAMPLES = 4
SUFFIX = "-prediction.png"

PANEL = 2.5
"""Inches: the width of a picture on a sheet."""
COLUMNS = 5

_Image = NDArray[np.uint8]
_Panel = tuple[_Image, str, _Image | None]
"""Pixels, title, and the label map whose regions are named in it."""


def draw_examples(measurements: Sequence[Measurement], workspace: Workspace, folder: Path) -> list[tuple[str, Path]]:
    """Draws up to four images that every measured row of one dataset and split has predictions of.

    Args:
        measurements: of the rows of one dataset.
        workspace: where the prepared data and the predictions are.
        folder: for the PNGs.

    Returns:
        A caption and the path of each picture.
    """
    rows = [item for item in measurements if item.status == "measured"]
    kept = {item.row.name: found for item in rows if (found := _predictions(item, workspace))}
    rows = [item for item in rows if item.row.name in kept and item.row.val_split == rows[0].row.val_split]
    if not rows:
        return []
    try:
        dataset = PreparedDataset(workspace.prepared(rows[0].row.dataset), rows[0].row.val_split)
    except (DanetError, OSError):
        return []
    if not dataset.labelled:
        return []
    common = set.intersection(*(set(kept[item.row.name]) for item in rows))
    drawn: list[tuple[str, Path]] = []
    for name in [name for name in dataset.ids if name in common][:MAX_EXAMPLES]:
        index = dataset.ids.index(name)
        truth = dataset.mask(index)
        assert truth is not None
        predictions = {item.row.name: _read(kept[item.row.name][name]) for item in rows}
        shown = [item for item in rows if predictions[item.row.name].shape == truth.shape]
        if not shown:
            continue
        path = folder / f"examples-{rows[0].row.dataset}-{len(drawn)}.png"
        labels = short_labels([item.row for item in shown])
        _draw(
            path,
            dataset.image(index),
            truth,
            [(labels[item.row.name], predictions[item.row.name]) for item in shown],
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


def _draw(
    path: Path,
    image_bgr: _Image,
    truth: _Image,
    predictions: Sequence[tuple[str, _Image]],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> None:
    """Lies across: image over truth, then prediction over errors of each row; from ``COLUMNS`` on, a second band."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from danet.evaluation import visualise

    height, width = truth.shape
    valid = truth != visualise.IGNORE
    image = np.ascontiguousarray(image_bgr[..., ::-1])
    columns: list[tuple[_Panel, _Panel]] = [
        ((image, "image", None), (visualise.truth_picture(truth, palette), "truth", truth))
    ]
    for label, prediction in predictions:
        right = f"{100 * float((prediction == truth)[valid].mean()):.1f} % right" if valid.any() else "no labels"
        errors = visualise.error_map(prediction, truth)
        columns.append(((visualise.colourise(prediction, palette), label, prediction), (errors, right, None)))
    across = min(len(columns), COLUMNS)
    bands = -(-len(columns) // across)
    handles = visualise.legend(truth, [prediction for _, prediction in predictions], classes, palette)
    legend_columns = max(3, across + 2)
    inches = 2 * bands * (PANEL * height / width + 0.3) + 0.22 * -(-len(handles) // legend_columns) + 0.15
    with rc_context({**STYLE, "axes.grid": False}):
        layout = ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02, hspace=0.0, wspace=0.0)
        figure = Figure(figsize=(across * PANEL, inches), layout=layout)
        grid = figure.subplots(2 * bands, across, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for place, column in enumerate(columns):
            for line, (picture, title, mask) in enumerate(column):
                axes = grid[2 * (place // across) + line, place % across]
                axes.imshow(picture, interpolation="auto" if title == "image" else "nearest")
                axes.set_title(title, fontsize=10, pad=3)
                if mask is not None:
                    visualise.name_regions(axes, mask, classes, width / (72 * PANEL))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=legend_columns, fontsize=9, handlelength=1.2,
            columnspacing=1.0,
        )  # fmt: skip
        save(figure, path, photographs=True)
