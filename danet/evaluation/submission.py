"""The zip that the Cityscapes test server takes: one PNG of label ids per image of the test split.

The server, like the official evaluation script, finds the prediction of ``<city>_<seq>_<frame>`` by the name
``<city>_<seq>_<frame>*.png`` and reads label ids (7 = road), not train ids.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import ConfigError
from danet.core.files import atomic_write, zip_entry
from danet.core.progress import Progress
from danet.data.cityscapes import TRAIN_TO_LABEL
from danet.data.prepared import PreparedDataset, png_bytes
from danet.data.registry import ADAPTERS
from danet.evaluation.inference import Mode
from danet.evaluation.predict import load_predictor
from danet.models.numerics import configured

SPLIT: Final = "test"


def write_submission(
    row: Row,
    workspace: Workspace,
    *,
    weights: Path,
    out: Path,
    mode: Mode | None = None,
    device: str | torch.device | None = None,
) -> int:
    """Predicts the test split by the row's protocol and writes the zip. The same input gives the same bytes.

    The weights are trained, imported or raw released. By default the mode is multi-scale + flip where the row defines
    it.

    Returns:
        The number of images in it.

    Raises:
        ConfigError: if the row is of another data set or has no such mode.
        DataError: if the test split is missing or damaged.
        CheckpointError: if the weights are damaged or of another network.
    """
    dataset_settings = workspace.params().dataset(row.dataset)
    if dataset_settings.adapter != "cityscapes":
        raise ConfigError(f"row {row.name} is of {dataset_settings.title}; the test server is for Cityscapes rows")
    if out.suffix != ".zip":
        raise ConfigError(f"{out}: the name must end in .zip")
    mode = mode or ("ms" if row.test.multi_scale is not None else "ss")
    dataset = PreparedDataset(workspace.prepared(row.dataset), SPLIT)

    predictor = load_predictor(row, weights, ADAPTERS["cityscapes"].num_classes, mode=mode, device=device)
    with (
        atomic_write(out) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        configured(row.numerics, training=False),
        Progress(f"predict {SPLIT} ({mode})", len(dataset)) as progress,
    ):
        for index in sorted(range(len(dataset)), key=lambda i: dataset.ids[i]):
            train_ids = predictor.labels(predictor.prepare(np.array(dataset.image(index)))).cpu().numpy()
            predictor.check(f"{weights}, on {dataset.ids[index]}")
            archive.writestr(zip_entry(f"{dataset.ids[index]}_pred.png"), png_bytes(label_ids(train_ids)))
            progress.advance()
    return len(dataset)


def label_ids(train_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The official label ids (7 = road, ...) of train ids (0 = road, ...)."""
    table = np.zeros(256, np.uint8)
    for train, label in TRAIN_TO_LABEL.items():
        table[train] = label
    return table[train_ids]
