"""The fast subset of `make parity`: ours against outputs stored from our own runs of the peers, and closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.parity import common, compare, training
from benchmarks.parity.results import ASPECTS, Result

DATA = Path(__file__).parent / "data"

CHECKS = {
    "models": lambda: compare.check_models(DATA),
    "DRANet": lambda: compare.check_official_model("dranet", depth=50, size=(33, 41)),
    "schedules": lambda: compare.check_row_schedules(every=101),
    "augmentation": lambda: compare.check_augmentation(DATA),
    "official augmentation": compare.check_official_augmentation,
    "inference": lambda: compare.check_inference(DATA),
    "official inference": compare.check_official_inference,
    "zero-padded windows": compare.check_padded_windows,
    "metrics": lambda: compare.check_metrics(DATA),
    "training": lambda: training.check_training(DATA),
}


@pytest.mark.parametrize("name", CHECKS)
def test_within_bounds(name):
    results = list(CHECKS[name]())
    assert results, "nothing was compared: tests/parity/data is incomplete"
    broken = [f"{r.case}: {r.aspect} {r.measured:.3g} > {r.limit:.3g} ({r.note})" for r in results if not r.passed]
    assert not broken, "\n".join(broken)


def test_nan_breaks_a_bound():
    """Also where the largest of several differences is taken, and it is not the last."""
    for aspect in ASPECTS:
        assert not Result("all", aspect, "", np.nan, "").passed
    assert compare.difference(np.array([0.0, np.nan, 0.0]), np.ones(3)) == np.inf
    ours = {"first": torch.tensor([np.nan, 1.0]), "last": torch.ones(2)}
    theirs = {name: common.projections(name, np.ones(2)) for name in ours}
    assert compare.projection_difference(ours, theirs, {name: name for name in ours}) == (np.inf, "first")
    starts = {"first": (np.nan, 1.0, 4), "last": (0.0, 1.0, 4)}
    assert compare.worst_start(starts, dict.fromkeys(starts, (0.0, 1.0)), draws=1) == (np.inf, "first")


def test_the_papers_channel_attention_is_noticed(monkeypatch):
    # softmax(E), as the paper has it, where every source computes softmax(max - E)
    def paper(x, y):
        return (x @ y.transpose(1, 2)).softmax(dim=-1)

    monkeypatch.setattr("danet.models.attention._inverted_softmax", paper)
    logits = next(r for r in compare.check_models(DATA) if r.aspect.startswith("logits"))
    assert not logits.passed


def test_a_wrong_draw_is_noticed():
    augment = compare.row("ssseg").augment
    replay = compare.Replay(augment, {"ratio": 1.0, "flip": True, "crops": [[0, 0], [0, 0]]})
    assert replay.random() == pytest.approx(1 / 3)
    assert replay.random() == 0.0
    with pytest.raises(AssertionError):
        replay.integers(0, 0)


def test_a_tie_is_no_difference_and_a_wrong_class_is():
    scores = np.array([[[1.0, 1.0]], [[1.0 + 1e-7, 0.5]]])
    theirs = scores.argmax(0)
    assert theirs.tolist() == [[1, 0]]
    assert compare.misplaced(np.array([[0, 0]]), theirs, scores) == 0
    assert compare.misplaced(np.array([[1, 1]]), theirs, scores) == 0.5
