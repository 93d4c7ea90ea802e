"""Metrics against sets of pixels and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from danet.core.errors import DataError
from danet.evaluation.metrics import Confusion
from danet.results.scores import constant_baseline, scores

CLASSES = 5
ids = st.integers(0, CLASSES - 1)
maps = st.integers(1, 4).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.uint8, (n, 6, 7), elements=ids),
        hnp.arrays(np.uint8, (n, 6, 7), elements=st.one_of(ids, st.just(255))),
    )
)


def by_sets(prediction, target, absent, classes=CLASSES):
    """IoU from sets of pixel positions: no matrix, no counting by class pairs."""
    valid = {i for i, t in enumerate(target.flat) if t != 255}
    ious, accs = [], []
    for c in range(classes):
        truth = {i for i in valid if target.flat[i] == c}
        found = {i for i in valid if prediction.flat[i] == c}
        if truth | found:
            ious.append(len(truth & found) / len(truth | found))
        elif absent == "zero":
            ious.append(0.0)
        if truth:
            accs.append(len(truth & found) / len(truth))
        elif absent == "zero":
            accs.append(0.0)
    right = sum(prediction.flat[i] == target.flat[i] for i in valid)
    return sum(ious) / len(ious), sum(accs) / len(accs), right / len(valid)


@given(maps, st.sampled_from(["skip", "zero"]))
@settings(max_examples=60)
def test_scores_equal_brute_force_over_sets(pair, absent):
    prediction, target = pair
    confusion = Confusion(CLASSES)
    for p, t in zip(prediction, target, strict=True):
        confusion.update(p, t)
    if (target == 255).all():
        with pytest.raises(DataError, match="no labelled pixel"):
            confusion.scores(absent)
        return
    result = confusion.scores(absent)
    expected = [100 * value for value in by_sets(prediction, target, absent)]
    assert [result.miou, result.macc, result.aacc] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("classes", [2, 19, 127, 128, 150, 255])
def test_counting_for_every_number_of_classes(classes):
    rng = np.random.default_rng(classes)
    prediction = rng.integers(0, classes, (40, 50)).astype(np.uint8)
    target = rng.integers(0, classes, (40, 50)).astype(np.uint8)
    target[rng.random(target.shape) < 0.2] = 255
    expected = np.zeros((classes, classes), dtype=np.int64)
    valid = target != 255
    np.add.at(expected, (target[valid], prediction[valid]), 1)
    confusion = Confusion(classes)
    confusion.update(torch.from_numpy(prediction), target)
    np.testing.assert_array_equal(confusion.matrix, expected)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (0, 5, "ground-truth"),
        (5, 0, "predicted"),
        (200, 0, "predicted"),
        (200, 255, "predicted"),
        (1, 254, "ground-truth"),
    ],
)
def test_ids_that_are_no_class_are_refused(prediction, target, message):
    confusion = Confusion(CLASSES)
    confusion.update(np.full((2, 2), prediction, np.uint8), np.full((2, 2), target, np.uint8))
    with pytest.raises(DataError, match=f"4 {message}"):
        _ = confusion.matrix


@given(hnp.arrays(np.int64, CLASSES, elements=st.integers(0, 50)), st.sampled_from(["skip", "zero"]))
def test_baseline_is_the_best_constant_prediction(pixels, absent):
    assume(pixels.sum() > 0)
    tried = []
    for c in range(CLASSES):
        matrix = np.zeros((CLASSES, CLASSES), dtype=np.int64)
        matrix[:, c] = pixels
        tried.append(scores(matrix, absent).miou)
    value, best = constant_baseline(pixels, absent)
    assert value == pytest.approx(max(tried), abs=1e-10)
    assert tried[best] == pytest.approx(max(tried), abs=1e-10)
