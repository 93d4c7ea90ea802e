"""Training augmentation of every source (RECIPES, sections 1 to 5), from :class:`danet.rows.Augment`.

Two halves: :func:`draw` makes every random decision and returns it as :class:`Draws`; :func:`apply` computes the
sample from an image, its mask and the draws, and knows no randomness. So the same draws can be replayed in a peer,
and another implementation of ``apply`` can be compared with this one, which is the reference.

Images are ``(H, W, 3)`` uint8 in BGR, as cv2 decodes them: mmsegmentation and sssegmentation augment in that order.
Masks are ``(H, W)`` uint8 train ids. Ignored pixels are 255 everywhere here; sources with -1 or -100 map to it.
Sizes are (height, width), boxes (top, left, height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from danet.data.layout import IGNORE
from danet.errors import ConfigError, DataError
from danet.rows import Augment, Resize

MEAN_RGB = (123.675, 116.28, 103.53)
STD_RGB = (58.395, 57.12, 57.375)
"""ImageNet statistics on the 0..255 scale; the official code's .485 .456 .406 / .229 .224 .225 are these over 255."""

Array8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Box = tuple[int, int, int, int]
"""(top, left, height, width)."""
LabelCrop = Callable[[tuple[int, int], Box], Array8]
"""Gives the labels within a box of the mask resized to a size: all that cat_max_ratio needs to know."""

BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18

_IDENTITY: Array8 = np.arange(256, dtype=np.uint8)


def _normalisation_tables() -> tuple[Float32, Float32, Float32]:
    values = np.arange(256, dtype=np.float64)
    red, green, blue = (((values - mean) / std).astype(np.float32) for mean, std in zip(MEAN_RGB, STD_RGB, strict=True))
    return red, green, blue


_NORMALISED = _normalisation_tables()


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
    (mmsegmentation 1 + 10 draws, sssegmentation 10 in all; sssegmentation returns the *uncropped* sample where the
    last crop has no label at all, which cannot be batched and is not followed).

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


def apply(augment: Augment, image: Array8, mask: Array8, draws: Draws) -> tuple[Float32, Array8]:
    """The reference path: resizes the whole image, then crops, mirrors, distorts, normalises and pads.

    Args:
        image: ``(H, W, 3)`` uint8 BGR.
        mask: ``(H, W)`` uint8 train ids, 255 = ignore.

    Returns:
        The image as float32 ``(3, h, w)`` RGB, normalised, and the labels as uint8 ``(h, w)``; ``(h, w)`` is the crop
        size (turned for portrait crops where the row says so).
    """
    mirror_first = augment.order == "pad-then-crop" and draws.flip
    if mirror_first:
        image, mask = mirror(image), mirror(mask)
    return _finish(
        augment,
        crop_box(resize_image(augment, image, draws.resized), draws.crop),
        crop_box(resize_mask(augment, mask, draws.resized), draws.crop),
        draws,
        flip=draws.flip and not mirror_first,
    )


def augmented(augment: Augment, image: Array8, mask: Array8, rng: np.random.Generator) -> tuple[Float32, Array8]:
    """:func:`draw` and :func:`apply` in one, resizing the mask only once.

    Raises:
        DataError: if image and mask differ in size.
    """
    if image.shape[:2] != mask.shape:
        raise DataError(f"image is {image.shape[0]}x{image.shape[1]} but its mask {mask.shape[0]}x{mask.shape[1]}")
    if augment.order == "pad-then-crop":
        return apply(augment, image, mask, draw(augment, mask.shape, label_crop(augment, mask), rng))
    kept: list[Array8] = []

    def labels(size: tuple[int, int], box: Box) -> Array8:
        if not kept:
            kept.append(resize_mask(augment, mask, size))
        return crop_box(kept[0], box)

    draws = draw(augment, mask.shape, labels, rng)
    crop = crop_box(resize_image(augment, image, draws.resized), draws.crop)
    return _finish(augment, crop, labels(draws.resized, draws.crop), draws, flip=draws.flip)


def label_crop(augment: Augment, mask: Array8) -> LabelCrop:
    """What :func:`draw` asks for, from a mask in memory."""

    def labels(size: tuple[int, int], box: Box) -> Array8:
        return crop_box(resize_mask(augment, mask, size), box)

    return labels


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


def resize_image(augment: Augment, image: Array8, size: tuple[int, int]) -> Array8:
    """The image at ``size``, bilinear: by cv2 (two taps) or PIL (filtered when shrinking), as the source does."""
    if image.shape[:2] == size:
        return image
    if augment.interpolation == "pil":
        return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return _array8(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR))


def resize_mask(augment: Augment, mask: Array8, size: tuple[int, int]) -> Array8:
    """The mask at ``size``, nearest neighbour: cv2's (floor) or PIL's (centre), which differ."""
    if mask.shape == size:
        return mask
    if augment.interpolation == "pil":
        return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return _array8(cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST))


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
        table = np.stack([_IDENTITY, _affine(_IDENTITY, factor=draws.saturation), _IDENTITY], axis=-1)[None]
        image = _array8(cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, to_hsv), table), from_hsv))
    if draws.hue is not None:
        turned = ((_IDENTITY.astype(np.int64) + draws.hue) % 180).astype(np.uint8)
        table = np.stack([turned, _IDENTITY, _IDENTITY], axis=-1)[None]
        image = _array8(cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, to_hsv), table), from_hsv))
    if not draws.contrast_first and draws.contrast is not None:
        image = _array8(cv2.LUT(image, _affine(_IDENTITY, factor=draws.contrast)))
    return image


def _affine(table: Array8, factor: float | None = None, offset: float | None = None) -> Array8:
    if factor is None and offset is None:
        return table
    value = table.astype(np.float32) * np.float32(1.0 if factor is None else factor)
    value = value + np.float32(0.0 if offset is None else offset)
    return _array8(np.clip(value, 0, 255).astype(np.uint8))


def normalise(image: Array8, out: Float32) -> None:
    """Writes a ``(h, w, 3)`` uint8 BGR image as ``(3, h, w)`` RGB, ``(x - mean) / std``, into ``out``."""
    blue, green, red = cv2.split(image)
    for channel, plane, table in zip(range(3), (red, green, blue), _NORMALISED, strict=True):
        out[channel] = cv2.LUT(plane, table)


def target_size(augment: Augment, crop: tuple[int, int]) -> tuple[int, int]:
    """The size a crop is padded to: the crop size, turned where ``swap_for_portrait`` and the orientations differ."""
    height, width = augment.crop_size
    if augment.pad.swap_for_portrait:
        turned = (crop[0] > crop[1] and height < width) or (crop[0] < crop[1] and height > width)
        if turned:
            return width, height
    return height, width


def _finish(augment: Augment, image: Array8, mask: Array8, draws: Draws, *, flip: bool) -> tuple[Float32, Array8]:
    if flip:
        image, mask = mirror(image), mirror(mask)
    if augment.photometric is not None and draws.photometric is not None:
        image = photometric(image, draws.photometric, augment.photometric)
    size = mask.shape
    height, width = target_size(augment, size)
    top, left = ((height - size[0]) // 2, (width - size[1]) // 2) if augment.pad.position == "centre" else (0, 0)
    out = np.empty((3, height, width), dtype=np.float32)
    labels: Array8 = np.empty((height, width), dtype=np.uint8)
    if size != (height, width):
        for channel in range(3):
            out[channel] = _NORMALISED[channel][0] if augment.pad.image == "black" else 0.0
        labels.fill(IGNORE if augment.pad.label == "ignore" else 0)
    normalise(image, out[:, top : top + size[0], left : left + size[1]])
    labels[top : top + size[0], left : left + size[1]] = mask
    return out, labels


def _array8(array: Any) -> Array8:
    """Types what untyped cv2 returns."""
    result: Array8 = array
    return result
