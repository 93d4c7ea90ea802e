"""The fast path of the augmentation against the reference path, from the same random draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danet.data import transforms as T
from tests.data.test_transforms import SOURCES, labels, picture, small
from tests.parameters import altered

FAST = [name for name, augment in SOURCES.items() if augment.interpolation == "cv2"]
# rows of one source differ in these only: augmentation knows no other rules
PARAMETERS = st.fixed_dictionaries(
    {
        "source": st.sampled_from(FAST),
        "crop": st.tuples(st.integers(4, 60), st.integers(4, 60)),
        "scale": st.tuples(st.integers(20, 90), st.integers(20, 120)),
        "range": st.tuples(st.floats(0.2, 1.0), st.floats(1.0, 3.0)),
    }
)
IMAGES = st.tuples(st.integers(1, 110), st.integers(1, 130), st.integers(0, 10**6), st.booleans())


def recipe(parameters):
    """A source's rules with other sizes."""
    augment = small(SOURCES[parameters["source"]], parameters["crop"], min(parameters["scale"]), parameters["scale"])
    return altered(augment, resize={"range": parameters["range"]})


def sample(height, width, seed, harsh):
    """A smooth picture or, ``harsh``, noise: the worst case for a wrong phase. Labels change from pixel to pixel."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8) if harsh else picture(height, width, seed)
    mask = rng.choice(np.array([0, 1, 7, 255], np.uint8), (height, width)) if harsh else labels(height, width, seed)
    return image, mask


def assert_same(fast, reference):
    """Image, labels and box, to the bit: rounding apart by one grey level may be several in the hue that follows."""
    for one, other in zip(fast, reference, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=200)
@given(PARAMETERS, IMAGES, st.integers(0, 2**31 - 1))
def test_same_seed(parameters, image, seed):
    """Everything: random size, redraws by the labels, mirror, colours, padding."""
    augment = recipe(parameters)
    fast, reference = (
        T.augmented(augment, *sample(*image), np.random.default_rng(seed), lazy=lazy) for lazy in (True, False)
    )
    assert_same(fast, reference)


@settings(max_examples=200)
@given(PARAMETERS, IMAGES, st.data())
def test_any_draws(parameters, image, data):
    """Also sizes and boxes that no seed draws: other shapes, crops at the edges and of one pixel."""
    augment = recipe(parameters)
    pixels, mask = sample(*image)
    resized = data.draw(st.tuples(st.integers(1, 160), st.integers(1, 160)))
    if data.draw(st.booleans()):  # nearly or exactly as before: cv2 has shortcuts there
        resized = tuple(max(1, n + data.draw(st.integers(-2, 2))) for n in mask.shape)
    height, width = (data.draw(st.integers(1, min(a, b))) for a, b in zip(augment.crop_size, resized, strict=True))
    top, left = (data.draw(st.integers(0, a - b)) for a, b in zip(resized, (height, width), strict=True))
    draws = T.Draws(resized, (top, left, height, width), data.draw(st.booleans()), None)
    before = pixels.copy(), mask.copy()
    fast, reference = (T.apply(augment, pixels, mask, draws, lazy=lazy) for lazy in (True, False))
    assert_same(fast, reference)
    np.testing.assert_array_equal(pixels, before[0])
    np.testing.assert_array_equal(mask, before[1])


@pytest.mark.parametrize("source", FAST)
@pytest.mark.parametrize("ratio", [0.5, 0.999, 1.37, 2.0])
def test_full_size(source, ratio):
    """The sizes of Cityscapes, where positions need more bits than in a small image."""
    augment = SOURCES[source]
    image, mask = sample(1024, 2048, 3, harsh=False)
    resized = T.fit_size((1024, 2048), (int(1024 * ratio), int(2048 * ratio)))
    height, width = (min(a, b) for a, b in zip(augment.crop_size, resized, strict=True))
    draws = T.Draws(resized, (resized[0] - height, (resized[1] - width) // 3, height, width), True, None)
    assert_same(*(T.apply(augment, image, mask, draws, lazy=lazy) for lazy in (True, False)))


def test_reads_no_more_than_it_needs():
    """Pixels behind the crop are never looked at: an image that changes there gives the same sample."""
    augment = small(SOURCES["mmsegmentation"])
    image, mask = sample(64, 128, 5, harsh=True)
    draws = T.Draws((96, 192), (10, 20, 32, 48), False, None)
    first = T.apply(augment, image, mask, draws, lazy=True)
    image[40:], image[:, 60:], mask[40:], mask[:, 60:] = 0, 0, 9, 9  # the crop ends at row 28, column 45.3 of the image
    assert_same(T.apply(augment, image, mask, draws, lazy=True), first)
