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
from danet.report.figures import STYLE, WIDTH, save, short_labels
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
    """Two columns, so that it can be read on a phone: image | truth, then prediction | errors of each row."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Patch

    from danet.evaluation import visualise

    height, width = truth.shape
    valid = truth != visualise.IGNORE
    pictures: list[tuple[_Image, str, _Image | None]] = [
        (np.ascontiguousarray(image_bgr[..., ::-1]), "image", None),
        (visualise.colourise(truth, palette), "truth", truth),
    ]
    present = set(np.unique(truth[valid]).tolist())
    for label, prediction in predictions:
        right = 100 * float((prediction == truth)[valid].mean()) if valid.any() else 100.0
        pictures.append((visualise.colourise(prediction, palette), label, prediction))
        pictures.append((visualise.error_map(prediction, truth), f"{right:.1f} % right (dark: wrong)", None))
        present |= set(np.unique(prediction).tolist())
    lines = len(pictures) // 2
    panel = WIDTH / 2 * height / width
    legend = [label for label in sorted(present) if label < len(classes)][:24]
    legend_lines = -(-len(legend) // 3)
    inches = lines * (panel + 0.3) + 0.21 * legend_lines + 0.15
    with rc_context({**STYLE, "axes.grid": False}):
        layout = ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02, hspace=0.0, wspace=0.0)
        figure = Figure(figsize=(WIDTH, inches), layout=layout)
        for axes, (picture, title, mask) in zip(figure.subplots(lines, 2, squeeze=False).flat, pictures, strict=True):
            axes.imshow(picture, interpolation="auto" if title == "image" else "nearest")
            axes.set_title(title, fontsize=10, pad=3)
            axes.set_axis_off()
            if mask is not None:
                visualise.name_regions(axes, mask, classes, width / (72 * WIDTH / 2))
        colours = visualise.palette_table(palette) / 255
        handles = [Patch(facecolor=colours[c], edgecolor="black", linewidth=0.5, label=classes[c]) for c in legend]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=3, fontsize=9, handlelength=1.2, columnspacing=1.0
        )
        save(figure, path, photographs=True)
