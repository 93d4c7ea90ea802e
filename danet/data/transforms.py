"""Training augmentation of every source, from :class:`danet.config.row.Augment`.

Two halves: :func:`draw` makes every random decision and returns it as :class:`Draws`; :func:`apply` computes the
sample from an image, its mask and the draws, and knows no randomness. So the same draws can be replayed in a peer.

The reference path resizes the whole image and mask, as the sources do. The fast path (``lazy``) reads and resizes
little more than the crop needs, and gives the same sample to the bit. It is for rows that resize by cv2 and crop before
they pad: mmsegmentation's and sssegmentation's. The others take the reference path, which four workers make fast enough
(benchmarks/NOTES.md).

Images are ``(H, W, 3)`` uint8 in BGR, as cv2 decodes them: mmsegmentation and sssegmentation augment in that order.
Masks are ``(H, W)`` uint8 train ids. Ignored pixels are 255 everywhere here; sources with -1 or -100 map to it.
Sizes are (height, width), boxes (top, left, height, width) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from danet.config.row import Augment, Resize
from danet.core.errors import ConfigError
from danet.data.layout import IGNORE, Array8

MEAN_RGB = (123.675, 116.28, 103.53)
STD_RGB = (58.395, 57.12, 57.375)
"""ImageNet statistics on the 0..255 scale; the official code's .485 .456 .406 / .229 .224 .225 are these over 255."""

Box = tuple[int, int, int, int]
"""(top, left, height, width)."""
LabelCrop = Callable[[tuple[int, int], Box], Array8]
"""Gives the labels within a box of the mask resized to a size: all that cat_max_ratio needs to know."""

BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18

_IDENTITY: Array8 = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True)
class PhotometricDraws:
    """Colour distortion of one sample; ``None`` where that step is not taken.

    ``brightness`` is added, ``contrast`` and ``saturation`` multiply, ``hue`` is added on cv2's circle of 180.
    """

    brightness: float | None
    contrast: float | None
    contrast_first: bool
    saturation: float | None
    hue: int | None


@dataclass(frozen=True)
class Draws:
    """Every random decision about one training sample.

    ``resized`` is the size after the random resize, ``crop`` a box within the resized image: an image smaller than
    the crop size in a direction is taken whole there and padded afterwards. With order ``pad-then-crop`` the box is
    counted on the image that was mirrored first, as the official code does.
    """

    resized: tuple[int, int]
    crop: Box
    flip: bool
    photometric: PhotometricDraws | None


def draw(augment: Augment, size: tuple[int, int], labels: LabelCrop, rng: np.random.Generator) -> Draws:
    """Makes the random decisions for an image of ``size``.

    The photometric draws depend on ``rng`` only, never on the image: the crop, whose number of redraws depends on
    the labels, is drawn last. With ``cat_max_ratio`` the crop is drawn again, up to ``cat_redraws`` times, until it
    has more than one class and none with that share of its labelled pixels; the last redraw is taken unchecked
    (mmsegmentation 1 + 10 draws, sssegmentation 10 in all, also where the last has no label; later versions of
    sssegmentation return the *uncropped* sample then).

    Raises:
        ConfigError: for ``cat_max_ratio`` with order ``pad-then-crop``, which no source combines.
    """
    resized = _draw_size(augment.resize, size, rng)
    flip = bool(rng.random() < augment.flip)
    photometric = _draw_photometric(rng) if augment.photometric else None
    height, width = min(augment.crop_size[0], resized[0]), min(augment.crop_size[1], resized[1])

    def box() -> Box:
        top = int(rng.integers(0, resized[0] - height, endpoint=True))
        left = int(rng.integers(0, resized[1] - width, endpoint=True))
        return top, left, height, width

    crop = box()
    if augment.cat_max_ratio is not None and augment.cat_max_ratio < 1:
        if augment.order != "crop-then-pad":
            raise ConfigError(
                "augment.cat_max_ratio needs augment.order 'crop-then-pad': no source combines it with padding first"
            )
        for _ in range(augment.cat_redraws):
            if balanced(labels(resized, crop), augment.cat_max_ratio):
                break
            crop = box()
    return Draws(resized=resized, crop=crop, flip=flip, photometric=photometric)


def apply(
    augment: Augment, image: Array8, mask: Array8, draws: Draws, *, lazy: bool = False
) -> tuple[Array8, Array8, Box]:
    """Resizes, crops, mirrors, distorts and pads; :class:`danet.data.prefetch.Normaliser` does the rest.

    ``image`` is uint8 ``(H, W, 3)`` BGR and may be a mapped file, ``mask`` uint8 ``(H, W)`` train ids, 255 = ignore;
    ``lazy`` is the fast path.

    Returns:
        The image as uint8 ``(h, w, 3)`` BGR, the labels as uint8 ``(h, w)``, and the box within which they are image;
        ``(h, w)`` is the crop size (turned for portrait crops where the row says so).
    """
    size, box = draws.resized, draws.crop
    mirror_first = draws.flip and augment.order == "pad-then-crop"
    if lazy and _crops_first(augment):
        image, mask = image_region(image, size, box), label_region(mask, size, box)
    else:
        if mirror_first:
            image, mask = mirror(image), mirror(mask)
        image = crop_box(resize(image, size, augment.interpolation), box)
        mask = crop_box(resize(mask, size, augment.interpolation, nearest=True), box)
    if draws.flip and not mirror_first:
        image, mask = mirror(image), mirror(mask)
    if augment.photometric is not None and draws.photometric is not None:
        image = photometric(image, draws.photometric, augment.photometric)
    return _padded(augment, image, mask)


def augmented(
    augment: Augment, image: Array8, mask: Array8, rng: np.random.Generator, *, lazy: bool = False
) -> tuple[Array8, Array8, Box]:
    """:func:`draw` and :func:`apply` in one."""

    def labels(size: tuple[int, int], box: Box) -> Array8:
        if lazy and _crops_first(augment):
            return label_region(mask, size, box)
        return crop_box(resize(mask, size, augment.interpolation, nearest=True), box)

    return apply(augment, image, mask, draw(augment, mask.shape, labels, rng), lazy=lazy)


def _crops_first(augment: Augment) -> bool:
    """Whether there is a fast path."""
    return augment.interpolation == "cv2" and augment.order == "crop-then-pad"


def fit_size(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """``size`` fitted into ``scale`` keeping its shape, long side to long side, rounded as mmcv does.

    Neither order matters: (1024, 2048) and (2048, 1024) are the same scale.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def side_size(size: tuple[int, int], rule: str, value: int) -> tuple[int, int]:
    """``size`` with its short or long side made ``value`` pixels.

    The official 2018 code (``short``) truncates the other side, its HEAD (``long``) rounds it.
    """
    height, width = size
    if rule == "short":
        if height > width:
            return max(1, int(1.0 * height * value / width)), value
        return value, max(1, int(1.0 * width * value / height))
    if height > width:
        return value, max(1, int(1.0 * width * value / height + 0.5))
    return max(1, int(1.0 * height * value / width + 0.5)), value


def _draw_size(resize: Resize, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    low, high = resize.range
    if resize.rule == "ratio":
        assert resize.scale is not None
        ratio = float(rng.random()) * (high - low) + low
        return fit_size(size, (max(1, int(resize.scale[0] * ratio)), max(1, int(resize.scale[1] * ratio))))
    assert resize.base is not None
    side = int(rng.integers(int(resize.base * low), int(resize.base * high), endpoint=True))
    return side_size(size, resize.rule, max(1, side))


def _draw_photometric(rng: np.random.Generator) -> PhotometricDraws:
    def maybe(low: float, high: float) -> float | None:
        return float(rng.uniform(low, high)) if rng.integers(2) else None

    return PhotometricDraws(
        brightness=maybe(-BRIGHTNESS, BRIGHTNESS),
        contrast_first=bool(rng.integers(2)),
        contrast=maybe(*CONTRAST),
        saturation=maybe(*SATURATION),
        hue=int(rng.integers(-HUE, HUE)) if rng.integers(2) else None,  # numpy's end is exclusive: -18..17
    )


def balanced(labels: Array8, max_ratio: float) -> bool:
    """Whether the labelled pixels have more than one class and none with a share of ``max_ratio`` or more."""
    # calcHist counts in float32, exact below 2**24 pixels: far above any crop, and several times faster than bincount
    counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()
    counts[IGNORE] = 0
    total, largest = float(counts.sum()), float(counts.max())
    return largest < total and largest / total < max_ratio


def resize(array: Array8, size: tuple[int, int], interpolation: str, *, nearest: bool = False) -> Array8:
    """An image bilinear, by cv2 (two taps) or PIL (filtered when shrinking), as the source does.

    Or a mask by its ``nearest`` neighbours: cv2's (floor) or PIL's (centre), which differ.
    """
    if array.shape[:2] == size:
        return array
    if interpolation == "pil":
        kind = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
        return np.asarray(Image.fromarray(array).resize(size[::-1], kind))
    return _array8(cv2.resize(array, size[::-1], interpolation=cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR))


def label_region(mask: Array8, size: tuple[int, int], box: Box) -> Array8:
    """``box`` of the mask resized to ``size`` by cv2: nearest neighbour looks up its own pixels."""
    top, left, height, width = box
    rows = nearest_source(mask.shape[0], size[0])[top : top + height]
    columns = nearest_source(mask.shape[1], size[1])[left : left + width]
    first, last = int(columns.min()), int(columns.max())
    return mask[rows, first : last + 1].take(columns - first, axis=1)


def nearest_source(old: int, new: int) -> NDArray[np.int32]:
    """The pixel of ``old`` that each of ``new`` pixels is taken from, asked of the resize itself."""
    ramp: Any = np.arange(old, dtype=np.int32)[None]
    taken: Any = resize(ramp, (1, new), "cv2", nearest=True)[0]
    return taken  # type: ignore[no-any-return]


def image_region(image: Array8, size: tuple[int, int], box: Box) -> Array8:
    """``box`` of the image resized to ``size`` by cv2, from the top left corner to the box's end and no further.

    cv2 rounds a pixel's position to float32 and its weights to 1/2048, so that a region of its own, even one in phase,
    has other weights here and there, and one grey level becomes several in the hue that follows. Counted from the
    same corner at the same scale, every pixel is the reference's.
    """
    if image.shape[:2] == size:
        return crop_box(image, box)
    ends = box[0] + box[2], box[1] + box[3]
    scales = size[0] / image.shape[0], size[1] / image.shape[1]
    rows, columns = (min(old, math.ceil(end / s) + 2) for old, end, s in zip(image.shape, ends, scales, strict=False))
    if (round(rows * scales[0]), round(columns * scales[1])) == (rows, columns):
        rows, columns = image.shape[:2]  # cv2 copies where a size stays the same, whatever the scale
    # without a size cv2 keeps the scale given, to the bit
    part = cv2.resize(image[:rows, :columns], None, fx=scales[1], fy=scales[0], interpolation=cv2.INTER_LINEAR)
    return crop_box(_array8(part), box)


def crop_box(array: Array8, box: Box) -> Array8:
    """A view of ``array`` within ``box``."""
    top, left, height, width = box
    return array[top : top + height, left : left + width]


def mirror(array: Array8) -> Array8:
    """Left and right exchanged."""
    return _array8(cv2.flip(array, 1))


def photometric(image: Array8, draws: PhotometricDraws, kind: str) -> Array8:
    """Colour distortion of a ``(H, W, 3)`` uint8 BGR image, clipped and truncated to uint8 after every step.

    Brightness, contrast (``contrast_first``), saturation, hue, contrast (otherwise); saturation and hue each through
    cv2's HSV and back. ``sssegmentation`` converts BGR data with the RGB constants, so its hues differ.
    A step on uint8 is a function of 256 values and done by a table, which is exact.
    """
    to_hsv, from_hsv = (
        (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB) if kind == "sssegmentation" else (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)
    )
    first = _affine(_IDENTITY, offset=draws.brightness)
    if draws.contrast_first:
        first = _affine(first, factor=draws.contrast)
    if first is not _IDENTITY:
        image = _array8(cv2.LUT(image, first))
    if draws.saturation is not None:
        image = _through_hsv(image, 1, _affine(_IDENTITY, factor=draws.saturation), to_hsv, from_hsv)
    if draws.hue is not None:
        turned = ((_IDENTITY.astype(np.int64) + draws.hue) % 180).astype(np.uint8)
        image = _through_hsv(image, 0, turned, to_hsv, from_hsv)
    if not draws.contrast_first and draws.contrast is not None:
        image = _array8(cv2.LUT(image, _affine(_IDENTITY, factor=draws.contrast)))
    return image


def _through_hsv(image: Array8, channel: int, table: Array8, to_hsv: int, from_hsv: int) -> Array8:
    hsv = cv2.cvtColor(image, to_hsv)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return _array8(cv2.cvtColor(hsv, from_hsv))


def _affine(table: Array8, factor: float | None = None, offset: float | None = None) -> Array8:
    if factor is None and offset is None:
        return table
    value = table.astype(np.float32) * np.float32(1.0 if factor is None else factor)
    value = value + np.float32(0.0 if offset is None else offset)
    return _array8(np.clip(value, 0, 255).astype(np.uint8))


def _padded(augment: Augment, image: Array8, mask: Array8) -> tuple[Array8, Array8, Box]:
    """What :func:`apply` returns of a crop; the image is black where it is padded.

    The size is the crop size, turned where ``swap_for_portrait`` and the orientations differ.
    """
    (height, width), (tall, wide) = augment.crop_size, mask.shape
    if augment.pad.swap_for_portrait and (tall - wide) * (height - width) < 0:
        height, width = width, height
    top, left = ((height - tall) // 2, (width - wide) // 2) if augment.pad.position == "centre" else (0, 0)
    box = (top, left, tall, wide)
    if (tall, wide) == (height, width):
        return image, mask, box
    levels: Array8 = np.zeros((height, width, 3), dtype=np.uint8)
    labels: Array8 = np.full((height, width), IGNORE if augment.pad.label == "ignore" else 0, dtype=np.uint8)
    crop_box(levels, box)[...] = image
    crop_box(labels, box)[...] = mask
    return levels, labels, box


def _array8(array: Any) -> Array8:
    """Types what untyped cv2 returns."""
    result: Array8 = array
    return result
