"""Pictures of Cityscapes' size with the statistics of photographs, to be prepared as training images.

Natural images have amplitudes that fall as 1/frequency, and edges where things hide each other. Both matter here: noise
makes PNG files that no decoder meets, and flat colour makes files and hues that cost nothing.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from danet.config.params import Dataset
from danet.core.provenance import PACKAGE_ROOT
from danet.data.cityscapes import CLASSES, LABEL_TO_TRAIN
from danet.data.convert import convert_dataset
from danet.data.layout import IGNORE
from danet.data.raw import download_dataset

SIZE = (1024, 2048)
LEAVES = 400
FOLDER = PACKAGE_ROOT / "build" / "loading"
PAIRS = FOLDER / "pairs"
_VOID = 0
_BACKGROUND = ((0.25, 23), (0.55, 11), (1.0, 7))  # share of the height where each ends: sky, building, road

Pixels = NDArray[np.uint8]


def scene(seed: int, size: tuple[int, int] = SIZE) -> tuple[Pixels, Pixels]:
    """A picture (H, W, 3) uint8 BGR and its Cityscapes label ids (H, W).

    Dead leaves: shapes whose radii follow a power law hide each other before sky, buildings and a road. Over them lies
    1/f noise as texture, then the blur of a lens and the noise of a sensor.
    """
    rng = np.random.default_rng([seed, *size])
    height, width = size
    image = np.empty((height, width, 3), np.uint8)
    labels = np.empty((height, width), np.uint8)
    start = 0
    for share, label in _BACKGROUND:
        end = round(share * height)
        image[start:end], labels[start:end] = rng.integers(60, 200) + rng.integers(-20, 20, 3), label
        start = end
    ids = [label for _, label, _ in CLASSES]
    radii = height / 5 / (1 + 60 * np.sort(rng.random(LEAVES)))  # their density falls as 1/r^2; the large ones behind
    for radius in radii:
        centre = int(rng.integers(width)), int(rng.normal(0.45, 0.15) * height)
        axes = max(2, int(radius)), max(2, int(radius * rng.uniform(0.4, 2)))
        colour = tuple(int(c) for c in np.clip(rng.integers(30, 220) + rng.normal(0, 25, 3), 0, 255))
        label = _VOID if rng.random() < 0.1 else int(rng.choice(ids))
        for canvas, value in ((image, colour), (labels, (label,))):
            if axes[1] % 2:
                cv2.ellipse(canvas, centre, axes, 0, 0, 360, value, cv2.FILLED)
            else:
                corner = centre[0] - axes[0], centre[1] - axes[1]
                cv2.rectangle(canvas, corner, (centre[0] + axes[0], centre[1] + axes[1]), value, cv2.FILLED)
    lit = image * (1 + 0.15 * _texture(rng, size)[..., None])
    seen = cv2.GaussianBlur(lit.astype(np.float32), (0, 0), 0.8) + rng.normal(0, 1.5, (height, width, 1))
    return np.clip(np.round(seen), 0, 255).astype(np.uint8), labels


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    """Noise of amplitude 1/frequency, mean 0 and standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(size)) / frequency, s=size)
    return field / field.std()


def train_ids(labels: Pixels) -> Pixels:
    """Train ids of label ids, 255 = ignored."""
    table = np.array([LABEL_TO_TRAIN.get(label, IGNORE) for label in range(256)], np.uint8)
    mapped: Pixels = table[labels]
    return mapped


def prepare(count: int = 24) -> Path:
    """Makes the pictures and converts them to raw pixels, unless that has been done; the prepared folder.

    :data:`PAIRS` has image and train ids as PNG files, for the peer.
    """
    prepared = FOLDER / "cityscapes"
    if prepared.exists():
        return prepared
    shutil.rmtree(FOLDER, ignore_errors=True)
    tree = FOLDER / "tree"
    PAIRS.mkdir(parents=True)
    counts = {"train": count, "val": 1, "test": 1}
    numbers = iter(range(sum(counts.values())))
    for split, number in counts.items():
        images, labels = (tree / kind / split / "generated" for kind in ("leftImg8bit", "gtFine"))
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in itertools.islice(numbers, number):
            image, ids = scene(index)
            name = f"generated_{index:06d}_000019"
            cv2.imwrite(str(images / f"{name}_leftImg8bit.png"), image)
            cv2.imwrite(str(labels / f"{name}_gtFine_labelIds.png"), ids)
            if split == "train":
                shutil.copyfile(images / f"{name}_leftImg8bit.png", PAIRS / f"{name}_image.png")
                cv2.imwrite(str(PAIRS / f"{name}_labels.png"), train_ids(ids))
    spec = Dataset.model_validate(
        {"adapter": "cityscapes", "title": "generated", "archives": (), "counts": counts, "storage": "raw"}
    )
    download_dataset("cityscapes", spec, FOLDER / "download", FOLDER, tree=tree, progress=False)
    convert_dataset("cityscapes", spec, FOLDER / "download", prepared, progress=False)
    shutil.rmtree(tree)
    return prepared
