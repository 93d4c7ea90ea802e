"""Documents: what is written is read back, each number stands once, and records of earlier versions stay readable."""

import json

import numpy as np
import pytest

from danet.results.identity import TrainingIdentity
from danet.results.schema import ModeResult, SeedRecord, TrainedSeed, load, save
from tests.parameters import PARAMS
from tests.report import samples

ROW = PARAMS.row("camvid-r50-d8")


def test_documents_are_read_back_as_they_were_written(tmp_path):
    for document in (samples.evaluation(ROW, {0: 55.0, 1: 56.0}, ms=1.0), samples.training(ROW, [0, 1])):
        save(tmp_path / "file.json", document)
        assert load(tmp_path / "file.json", type(document), "") == document


def test_a_record_of_november_2026_is_read():
    """``models/ROW/seedK.json`` as the code before this schema wrote it, with facts that stood twice."""
    identity = TrainingIdentity.of(ROW, 3, data="d" * 64, initial_weights="e" * 64)
    provenance = samples.provenance(ROW).model_dump(exclude={"device"})
    run = {
        "seed": 3, "identity": identity.digest, "iterations": 40_000, "final_loss": 0.25, "images_per_second": 30.0,
        "hours": 2.5, "peak_memory_gib": 12.5, "data_wait_share": 0.01, "resumed": 2, "accumulate": [[1, 1], [20, 2]],
        "weights_sha256": "f" * 64,
        "provenance": provenance | {"row_hash": ROW.hash, "train_hash": ROW.train_hash, "seed": 3,
            "manifest_hash": "d" * 64, "weights_sha256": "f" * 64, "imagenet_sha256": "e" * 64, "processes": 2,
            "peak_memory_gib": 12.5, "wall_seconds": 9000.0, "energy_kj": 1.5},
    }  # fmt: skip
    old = {
        "format": 2, "row": ROW.name, "identity": identity.model_dump(mode="json"), "weights_sha256": "f" * 64,
        "best": {"iteration": 30_000, "score": 70.0, "weights_sha256": "a" * 64}, "run": run,
        "curve": [{"iteration": 50, "loss": 1.0, "lr": 0.01, "val_miou": None}],
    }  # fmt: skip
    trained = TrainedSeed.of(SeedRecord.model_validate_json(json.dumps(old)))
    assert (trained.seed, trained.identity) == (3, identity.digest)
    assert (trained.data, trained.initial_weights, trained.weights_sha256) == ("d" * 64, "e" * 64, "f" * 64)
    assert (trained.hours, trained.resumed, trained.provenance.wall_seconds) == (2.5, 2, 9000.0)


def test_numbers_follow_from_the_matrix():
    matrix = np.array([[50, 10, 0], [5, 35, 0], [0, 0, 0]])
    result = ModeResult.of(matrix, "skip", 4, 1.0)
    np.testing.assert_array_equal(result.matrix, matrix)
    found = result.scores
    assert found.iou == (pytest.approx(100 * 50 / 65), pytest.approx(70.0), None)
    assert found.aacc == pytest.approx(85.0)
    assert found.miou == pytest.approx((100 * 50 / 65 + 70) / 2)
    assert found.constant == (pytest.approx(30.0), 0)  # 60 of 100 pixels, over two classes
    assert ModeResult.of(matrix, "zero", 4, 1.0).scores.miou == pytest.approx(found.miou * 2 / 3)
    assert {"miou", "iou"}.isdisjoint(result.model_dump())


def test_a_hash_stands_once_beside_a_result():
    text = samples.evaluation(ROW, {0: 55.0}).model_dump_json()
    for value in (ROW.hash, ROW.train_hash, samples.DATA, "f" * 64):
        assert text.count(value) == 1


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["1 2"], "not a matrix of 1 x 1 counts"),
        (["-1"], "not a matrix"),
        (["0 0", "0 0"], "no labelled pixel"),
    ],
)
def test_what_is_no_confusion_matrix(lines, reason):
    with pytest.raises(ValueError, match=reason):
        ModeResult(images=1, seconds=1.0, absent_class="skip", confusion=tuple(lines))
