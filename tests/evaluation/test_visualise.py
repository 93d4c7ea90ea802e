"""Pictures: values of pixels, and that each figure is written whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from danet.evaluation import visualise

CLASSES = ("road", "car", "sky")
PALETTE = ((128, 64, 128), (0, 0, 142), (70, 130, 180))
TRUTH = np.repeat(np.array([[0, 0, 1, 2, 255, 255]], np.uint8), 40, axis=0).repeat(12, axis=1)
PREDICTION = np.roll(TRUTH, 6, axis=1)
PREDICTION[PREDICTION == 255] = 0
IMAGE = np.random.default_rng(0).integers(0, 256, (*TRUTH.shape, 3)).astype(np.uint8)


def test_colours():
    coloured = visualise.colourise(np.array([[0, 2], [255, 1]], np.uint8), PALETTE)
    np.testing.assert_array_equal(coloured, [[PALETTE[0], PALETTE[2]], [(255, 255, 255), PALETTE[1]]])


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 2)))
def test_boundaries_are_where_right_or_lower_neighbours_differ(mask):
    edge = visualise.boundaries(mask)
    height, width = mask.shape
    for y in range(height):
        for x in range(width):
            right = x + 1 < width and mask[y, x] != mask[y, x + 1]
            below = y + 1 < height and mask[y, x] != mask[y + 1, x]
            assert edge[y, x] == (right or below)


def test_overlay_is_the_mean_of_image_and_colour_off_the_borders():
    mask = np.zeros((10, 12), np.uint8)
    mask[:, 6:] = 1
    image = np.full((10, 12, 3), (200, 100, 0), np.uint8)  # BGR
    picture = visualise.overlay(image, mask, PALETTE)
    np.testing.assert_allclose(picture[0, 0], (np.array((0, 100, 200)) + PALETTE[0]) / 2, atol=1)
    np.testing.assert_allclose(picture[9, 11], (np.array((0, 100, 200)) + PALETTE[1]) / 2, atol=1)
    assert (picture[:, 5] == 255).all()


def test_overlay_has_the_names_of_what_is_present_below(tmp_path):
    visualise.save_overlay(tmp_path / "o.png", IMAGE, np.full(TRUTH.shape, 1, np.uint8), CLASSES, PALETTE)
    with Image.open(tmp_path / "o.png") as picture:
        pixels = np.asarray(picture)
    scale = pixels.shape[1] // TRUTH.shape[1]
    assert scale * TRUTH.shape[1] == pixels.shape[1] >= 576  # enlarged by a whole factor
    legend = pixels[scale * TRUTH.shape[0] :].reshape(-1, 3)
    assert (legend == PALETTE[1]).all(axis=1).any()
    assert not (legend == PALETTE[0]).all(axis=1).any()


def test_errors_differ_in_lightness_and_ignored_pixels_are_striped():
    picture = visualise.error_map(PREDICTION, TRUTH)
    right, wrong = (PREDICTION == TRUTH) & (TRUTH != 255), (PREDICTION != TRUTH) & (TRUTH != 255)
    assert right.any()
    assert wrong.any()
    assert (picture[right] == visualise.CORRECT_RGB).all()
    assert (picture[wrong] == visualise.WRONG_RGB).all()
    ignored = {tuple(map(int, colour)) for colour in np.unique(picture[TRUTH == 255], axis=0)}
    assert ignored == {visualise.IGNORED_RGB, visualise.STRIPE_RGB}
    colours = np.array([visualise.CORRECT_RGB, visualise.IGNORED_RGB, visualise.WRONG_RGB])
    levels = colours @ (0.2126, 0.7152, 0.0722)
    assert levels[0] - levels[1] > 40 < levels[1] - levels[2]


@pytest.mark.parametrize("size", [(40, 72), (72, 40), (1200, 2400), (1, 1)])
def test_panels_are_written_for_every_shape_and_the_same_each_time(tmp_path, size):
    import cv2

    truth, prediction, image = (
        cv2.resize(x, size[::-1], interpolation=cv2.INTER_NEAREST) for x in (TRUTH, PREDICTION, IMAGE)
    )
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        given = [("prediction", prediction)]
        visualise.save_panels(path, image, truth, given, CLASSES, PALETTE, title="row $x, seed 0: id_1")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as picture:
        assert max(picture.size) < 2200
        assert min(picture.size) > 150
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_legend_names_what_is_present_and_stays_short():
    names = tuple(f"class {i}" for i in range(150))
    few = [p.get_label() for p in visualise.legend(TRUTH, [PREDICTION], CLASSES, PALETTE)]
    assert few == ["road", "car", "sky", "wrong", "ignored"]
    one = np.full((5, 5), 7, np.uint8)
    palette = tuple((i, i, i) for i in range(150))
    assert [p.get_label() for p in visualise.legend(one, [one], names, palette)] == ["class 7", "wrong", "ignored"]
    everything = np.arange(150, dtype=np.uint8)[None]
    many = [p.get_label() for p in visualise.legend(everything, [everything], names, palette)]
    assert len(many) == visualise.MAX_LEGEND + 2
    assert many[-3:] == ["and 127 more", "wrong", "ignored"]


@pytest.mark.parametrize("classes", [3, 19, 150])
def test_confusion_figure(tmp_path, classes):
    matrix = np.random.default_rng(0).integers(0, 90, (classes, classes))
    matrix[1] = 0
    visualise.save_confusion(tmp_path / "c.png", "title", matrix, [f"class {i}" for i in range(classes)])
    with Image.open(tmp_path / "c.png") as picture:
        assert min(picture.size) > 300
