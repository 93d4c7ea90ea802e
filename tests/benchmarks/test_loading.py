"""The loading benchmark: its pictures, its clock and its page. No timing is asserted."""

import numpy as np
import pytest

from benchmarks.loading import __main__ as loading
from benchmarks.loading import scenes, timing
from danet.data.cityscapes import LABEL_TO_TRAIN


@pytest.fixture(scope="module")
def scene():
    return scenes.scene(0, (256, 512))


def test_scenes_have_many_classes_and_a_road(scene):
    ids = scenes.train_ids(scene[1])
    present, counts = np.unique(ids, return_counts=True)
    assert 255 in present
    assert len(present) > 10
    assert counts.max() / ids.size > 0.2
    assert all(
        LABEL_TO_TRAIN[label] == train
        for label, train in zip(scene[1].ravel(), ids.ravel(), strict=True)
        if train != 255
    )
    again = scenes.scene(0, (256, 512))
    assert all((a == b).all() for a, b in zip(scene, again, strict=True))


def test_rates(monkeypatch):
    """Each case once a repetition, in turn; medians of what the clocks say, without the warm-up."""
    called = []
    seconds = [100, 2, 1, 4, 1, 8, 4, 16]  # of a and b in turn; the first two warm up
    monkeypatch.setattr(timing.time, "perf_counter", iter([t for s in seconds for t in (0, s)]).__next__)
    monkeypatch.setattr(timing.time, "process_time", iter([0, 0.5] * len(seconds)).__next__)
    found = timing.rates(
        {"a": lambda n: called.append(("a", n)), "b": lambda n: called.append(("b", n))}, 16, repetitions=3, warm_up=1
    )
    assert called == [("a", 16), ("b", 16)] * 4
    assert found["a"] == timing.Rate(wall=16, slowest=4, fastest=16, cpu=32)
    assert found["b"] == timing.Rate(wall=2, slowest=1, fastest=4, cpu=32)


def measured():
    rate = timing.Rate
    lines = [
        loading.Measured(
            name, pipeline, loading.STORED["raw"], loading.OUTPUT["uint8"], rate(value, value - 1, value + 1, 2 * value)
        )
        for name in (loading.ROW, *loading.OTHERS)
        for pipeline, value in zip(loading.OURS.values(), (120.0, 60.0), strict=True)
    ]
    peer = loading.Measured(
        loading.ROW, "mmsegmentation 1.2.2", loading.MMSEG["memory"], loading.OUTPUT["uint8"], rate(34, 33, 35, 36)
    )
    return lines, peer


@pytest.mark.parametrize("with_peer", [False, True])
def test_page_and_sheet(with_peer):
    lines, peer = measured()
    lines += [peer] if with_peer else []
    settings = {"count": 4, "images": 16, "repetitions": 2, "warm_up": 1}
    text = loading.page(lines, {"commit": "abc", "load": 3.0}, settings)
    assert "**120 images/s** (240 by CPU time)" in text
    assert "reference path makes 60 (120)" in text
    assert ("mmsegmentation 1.2.2 34 (36)" in text) == with_peer
    assert ("make parity" in text) == (not with_peer)
    assert "3.0 (not idle: preliminary)" in text
    assert "0.1 |" in loading.page(lines, {"commit": "abc", "load": 0.1}, settings)
    assert text.count(f"| {loading.OTHERS[0]} |") == 2
