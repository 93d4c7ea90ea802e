"""Augmentation against slow versions written from the sources' descriptions, closed forms and properties."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danet.data import transforms as T
from tests.parameters import PARAMS, altered

MMSEG = PARAMS.row("mmseg-r50-d8-cityscapes-512x1024-40k").augment
SSSEG = PARAMS.row("ssseg-r50-d8-cityscapes").augment
OFFICIAL = PARAMS.row("official-danet-r101-d8-cityscapes").augment
FORK = PARAMS.row("clusterdanet-r101-d8-voc2012").augment
SOURCES = {"mmsegmentation": MMSEG, "sssegmentation": SSSEG, "official": OFFICIAL, "fork": FORK}


def small(augment, crop=(32, 48), base=40, scale=(40, 80)):
    """The source's rules at sizes that test quickly."""
    resize = {"scale": scale} if augment.resize.rule == "ratio" else {"base": base}
    return altered(augment, crop_size=crop, resize=resize)


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def labels(height, width, seed=0, classes=5, ignored=True):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (height // 8 + 2, width // 8 + 2), dtype=np.uint8)
    if ignored:
        coarse[rng.random(coarse.shape) < 0.1] = 255
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


# sizes


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((1024, 2048), (1024, 2048), (1024, 2048)),
        ((1024, 2048), (512, 1024), (512, 1024)),
        ((1024, 2048), (1025, 2049), (1025, 2049)),
        ((1, 5000), (512, 2048), (1, 2048)),
        ((375, 500), (512, 2048), (512, 683)),  # VOC at ratio 1
        ((500, 375), (512, 2048), (683, 512)),
        ((100, 1000), (512, 2048), (205, 2048)),  # the long side limits
    ],
)
def test_fit_size(size, scale, expected):
    assert T.fit_size(size, scale) == expected
    assert T.fit_size(size, scale[::-1]) == expected


@pytest.mark.parametrize(
    ("size", "rule", "value", "expected"),
    [
        ((1024, 2048), "short", 768, (768, 1536)),
        ((333, 500), "short", 200, (200, 300)),  # 300.3 down
        ((375, 500), "short", 200, (200, 266)),  # 266.67: the 2018 code truncates
        ((375, 500), "long", 266, (200, 266)),  # 199.5: HEAD rounds half up
        ((500, 375), "long", 400, (400, 300)),
        ((400, 400), "short", 123, (123, 123)),
    ],
)
def test_side_size(size, rule, value, expected):
    assert T.side_size(size, rule, value) == expected


def test_side_range_has_both_ends():
    augment = small(OFFICIAL, base=8)  # short side 6..16
    seen = {T.draw(augment, (20, 30), lambda *_: labels(8, 8), np.random.default_rng(i)).resized[0] for i in range(300)}
    assert seen == set(range(6, 17))


# padding, which tests/parity compares


@pytest.mark.parametrize(
    ("crop", "target"), [((30, 60), (32, 64)), ((32, 20), (64, 32)), ((20, 20), (32, 64)), ((10, 12), (32, 64))]
)
def test_portrait_crops_turn_the_target(crop, target):
    draws = T.Draws(crop, (0, 0, *crop), False, None)
    for source, size in ((SSSEG, target), (MMSEG, (32, 64))):
        assert T.apply(small(source, crop=(32, 64)), picture(*crop), labels(*crop), draws)[1].shape == size


# cat_max_ratio


def slow_balanced(mask, ratio):
    kinds, counts = np.unique(mask, return_counts=True)
    counts = counts[kinds != 255]
    return len(counts) > 1 and counts.max() / counts.sum() < ratio


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0, 1, 7, 254, 255]), min_size=12, max_size=12), st.sampled_from([0.4, 0.5, 0.75, 1.0]))
def test_balanced(values, ratio):
    mask = np.array(values, dtype=np.uint8).reshape(3, 4)
    assert T.balanced(mask, ratio) == slow_balanced(mask, ratio)


@pytest.mark.parametrize(("augment", "most"), [(MMSEG, 11), (SSSEG, 10)])
def test_crops_are_redrawn(augment, most):
    """11 draws in all by mmsegmentation, 10 by sssegmentation; the last is used unchecked."""
    augment = small(augment)
    asked = []

    def uniform(size, box):
        asked.append(box)
        return np.zeros(box[2:], dtype=np.uint8)

    draws = T.draw(augment, (64, 128), uniform, np.random.default_rng(0))
    assert len(asked) == most - 1
    assert draws.crop not in asked[:1]
    asked.clear()

    def third(size, box):
        asked.append(box)
        mask = np.zeros(box[2:], dtype=np.uint8)
        mask[:, ::2] = len(asked) >= 3
        return mask

    draws = T.draw(augment, (64, 128), third, np.random.default_rng(0))
    assert len(asked) == 3
    assert draws.crop == asked[-1]


def test_draws_have_the_sources_probabilities():
    augment = small(MMSEG)
    rng = np.random.default_rng(0)
    draws = [T.draw(augment, (64, 128), lambda _, box: labels(*box[2:]), rng) for _ in range(2000)]
    photometric = [draw.photometric for draw in draws]
    for share in (
        np.mean([draw.flip for draw in draws]),
        np.mean([p.contrast_first for p in photometric]),
        *(np.mean([getattr(p, name) is not None for p in photometric]) for name in ("brightness", "contrast", "hue")),
        np.mean([p.saturation is not None for p in photometric]),
    ):
        assert abs(share - 0.5) < 4 * 0.5 / 2000**0.5
    hues = {p.hue for p in photometric if p.hue is not None}
    assert hues == set(range(-18, 18))
    offsets = [p.brightness for p in photometric if p.brightness is not None]
    assert -32 <= min(offsets) < -30
    assert 30 < max(offsets) <= 32
    ratios = [draw.resized[0] / 40 for draw in draws]
    assert 0.5 <= min(ratios) < 0.53
    assert 1.95 < max(ratios) <= 2.0


# colours


def slow_convert(image, alpha=1.0, beta=0.0):
    out = image.astype(np.float32) * alpha + beta
    return np.clip(out, 0, 255).astype(np.uint8)


def slow_photometric(image, p, forth, back):
    """The five steps one by one on whole arrays, in the order of the sources."""
    if p.brightness is not None:
        image = slow_convert(image, beta=p.brightness)
    if p.contrast_first and p.contrast is not None:
        image = slow_convert(image, alpha=p.contrast)
    if p.saturation is not None:
        hsv = cv2.cvtColor(image, forth)
        hsv[..., 1] = slow_convert(hsv[..., 1], alpha=p.saturation)
        image = cv2.cvtColor(hsv, back)
    if p.hue is not None:
        hsv = cv2.cvtColor(image, forth)
        hsv[..., 0] = (hsv[..., 0].astype(int) + p.hue) % 180
        image = cv2.cvtColor(hsv, back)
    if not p.contrast_first and p.contrast is not None:
        image = slow_convert(image, alpha=p.contrast)
    return image


def maybe(values):
    return st.none() | values


PHOTOMETRIC = st.builds(
    T.PhotometricDraws,
    brightness=maybe(st.floats(-32, 32)),
    contrast=maybe(st.floats(0.5, 1.5)),
    contrast_first=st.booleans(),
    saturation=maybe(st.floats(0.5, 1.5)),
    hue=maybe(st.integers(-18, 17)),
)


@settings(max_examples=100)
@given(PHOTOMETRIC, st.integers(0, 5))
def test_photometric_equals_the_steps_one_by_one(p, seed):
    image = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    before = image.copy()
    for kind, codes in (
        ("mmsegmentation", (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)),
        ("sssegmentation", (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB)),
    ):
        np.testing.assert_array_equal(T.photometric(image, p, kind), slow_photometric(image, p, *codes))
    np.testing.assert_array_equal(image, before)
