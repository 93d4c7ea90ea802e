"""Segmenting image files by a row's own testing protocol."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from danet.config.row import Row
from danet.core.errors import DanetError, DataError, out_of_memory
from danet.core.files import refuse_existing
from danet.core.process import select_device
from danet.core.progress import Progress
from danet.data.layout import check_image
from danet.data.registry import ADAPTERS
from danet.evaluation.inference import Mode, Predictor
from danet.evaluation.visualise import save_overlay, save_palette_png
from danet.models.numerics import configured
from danet.models.segmentor import build_model
from danet.weights.exchange import load_any


def predict_files(
    row: Row,
    *,
    weights: Path,
    images: Sequence[Path],
    out: Path,
    adapter: str,
    mode: Mode = "ss",
    device: str | torch.device | None = None,
    force: bool = False,
) -> list[Path]:
    """Writes, for each image ``<stem>.*``, into ``out``:

    - ``<stem>.png``: class ids as an indexed PNG in the dataset's palette, of the image's size;
    - ``<stem>-overlay.png``: the image with the colours laid over it, and a legend of the classes that occur.

    Of images that share a stem, ``<stem>`` is the whole name: ``a.jpg`` gives ``a.jpg.png``. Every image is checked
    before the first is segmented, and every file is complete or not there.
    Images are JPEG or PNG of 8-bit RGB or grey, or folders of them; an EXIF orientation is applied.

    Returns:
        the files written, in the order of ``images``.

    Raises:
        DataError: if an image is missing, empty, damaged or cut off, a folder has none, or two results would have the
            same name.
        DanetError: if a result is there already and ``force`` is not given, or the memory does not suffice.
        CheckpointError: if the weights are of another model.
        ConfigError: if the row has no such mode.
    """
    dataset = ADAPTERS[adapter]
    images = _files(images)
    names = _outputs(images, out)
    refuse_existing([path for paths in names for path in paths], force=force)
    for path in images:
        read_image(path)

    predictor = load_predictor(row, weights, dataset.num_classes, mode=mode, device=device)
    written: list[Path] = []
    show = len(images) > 1
    with configured(row.numerics, training=False), Progress("predict", len(images), show=show) as progress:
        for path, (mask_path, overlay_path) in zip(images, names, strict=True):
            image = read_image(path)
            try:
                mask = predictor.labels(predictor.prepare(image)).cpu().numpy()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                other = "" if predictor.device.type == "cpu" else ", or try --device cpu"
                raise DanetError(
                    f"{path}: the memory of {predictor.device} is too small for {image.shape[0]}x{image.shape[1]} "
                    f"pixels (height x width); make the image smaller{other}"
                ) from error
            predictor.check(f"{weights}, on {path}")
            save_palette_png(mask_path, mask, dataset.palette)
            save_overlay(overlay_path, image, mask, dataset.classes, dataset.palette)
            written += [mask_path, overlay_path]
            progress.advance()
    return written


def load_predictor(
    row: Row, weights: Path, num_classes: int, *, mode: Mode = "ss", device: str | torch.device | None = None
) -> Predictor:
    """A row's network with weights (trained, imported or raw as released) under its testing protocol.

    Raises:
        CheckpointError: if the weights are of another model.
        ConfigError: if the row has no such mode.
    """
    chosen = select_device(device)
    model = load_network(row, weights, num_classes, chosen)
    return Predictor(model, row.test, row.model.align_corners, mode=mode, device=chosen, numerics=row.numerics)


def load_network(row: Row, weights: Path, num_classes: int, device: torch.device) -> nn.Module:
    """A row's network with weights (trained, imported or raw as released) on a device, in evaluation mode.

    Raises:
        CheckpointError: if the weights are of another model.
    """
    model = build_model(row.model, num_classes, attention=row.numerics.attention)
    load_any(weights, model)
    model.to(device).eval()
    if row.numerics.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def read_image(path: Path) -> NDArray[np.uint8]:
    """``H x W x 3`` BGR pixels of an image file, turned as its EXIF orientation says.

    Raises:
        DataError: if it cannot be read, or is not an image by :func:`~danet.data.layout.check_image`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give image files") from error
    try:
        check_image(data, str(path), grey=True, turned=True)
    except DataError as error:
        raise DataError(f"{error}; convert it to an 8-bit RGB JPEG or PNG") from error
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise DataError(f"{path}: cannot be decoded by OpenCV; convert it to JPEG or PNG")
    return np.asarray(pixels, dtype=np.uint8)


SUFFIXES = (".jpg", ".jpeg", ".png")
"""Of the files that are taken from a folder."""


def _files(given: Sequence[Path]) -> list[Path]:
    """The images given, folders replaced by the images in them, by name."""
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES)
        if not inside:
            raise DataError(f"{path}: has no image ({', '.join(SUFFIXES)}); give image files, or a folder of them")
        found += inside
    return found


def _outputs(images: Sequence[Path], out: Path) -> list[list[Path]]:
    """The mask and the overlay of each image. Raises DataError if one would overwrite an image, or another result."""
    if not images:
        raise DataError("no image was given")
    stems = Counter(path.stem for path in images)
    names = [path.stem if stems[path.stem] == 1 else path.name for path in images]
    outputs = [[out / f"{name}{ending}" for ending in (".png", "-overlay.png")] for name in names]
    files = Counter(path.resolve() for path in (*images, *itertools.chain.from_iterable(outputs)))
    if twice := next((path for path, times in files.items() if times > 1), None):
        raise DataError(f"{twice}: a result would overwrite this image or result; rename it, or give another --out")
    return outputs
