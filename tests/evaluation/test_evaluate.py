"""The whole path of an evaluation, with a small model for DANet and images whose colours are their labels."""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from danet.config.row import MultiScale, Runtime, Test
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, DataError
from danet.evaluation import evaluate, predict
from danet.evaluation.evaluate import evaluate_row
from danet.evaluation.one_pass import evaluate_model
from danet.evaluation.subject import spaced
from danet.results.schema import EvaluationFile, load
from danet.results.scores import scores
from tests.data.samples import contents
from tests.evaluation.fakes import EXPECTED, Reader, Shades, Unlabelled
from tests.launching import launch
from tests.parameters import PARAMS, altered
from tests.seeds import keep_seed


@pytest.fixture
def row():
    test = Test(multi_scale=MultiScale(scales=(1.0,), flip=True))
    return altered(PARAMS.row("camvid-r50-d8"), test=test, runtime=Runtime(workers=2, overlays=2), seeds=(3, 5))


@pytest.fixture
def one(row):
    """One seed, one mode, one overlay: drawing is what takes the time here."""
    return altered(row, test=Test(), runtime={"overlays": 1}, seeds=(3,))


# one pass


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("mode", ["ss", "ms"])
def test_confusion_of_a_pass(row, workers, mode):
    row = altered(row, runtime=Runtime(workers=workers))
    dataset, calls = Shades(), []
    result = evaluate_model(Reader(), row, dataset, "cpu", mode=mode, keep=[2], progress=lambda *x: calls.append(x))
    np.testing.assert_array_equal(result.confusion.matrix, EXPECTED)
    assert result.images == 7
    assert calls == [(i, 7) for i in range(1, 8)]
    assert result.seconds > 0
    assert (result.fps is not None) == (mode == "ss")
    assert all(name.startswith("ahead") for name in dataset.threads) == (workers > 0)
    expected = Shades().mask(2)
    expected[expected == 255] = 0
    np.testing.assert_array_equal(result.predictions[2], np.where(expected == 2, 3, expected))
    assert list(result.predictions) == [2]


def test_the_frame_rate_is_of_one_window_at_a_time(row):
    """Of 20 images 5 are skipped and 2 timed as published; each has 4 windows or more, and the others go in batches."""
    seen = []

    class Watched(Reader):
        def forward(self, x):
            seen[-1].append(len(x))
            return super().forward(x)

    class Counted(Shades):
        def image(self, index):
            seen.append([])
            return super().image(index)

    slide = Test(mode="slide", window=(16, 20), stride=(8, 12))
    row = altered(row, runtime=Runtime(workers=0, benchmark_images=2), test=slide)
    result = evaluate_model(Watched(), row, Counted(count=20), "cpu", max_batch=3)
    assert min(map(sum, seen)) == 4
    assert [max(batches) for batches in seen] == [1] * 7 + [3] * 13
    assert result.fps > 0


@pytest.mark.parametrize(("absent", "macc"), [("skip", 200 / 3), ("zero", 200 / 4)])
def test_scores_follow_the_row_s_convention(one, workspace, absent, macc):
    means = evaluate_row(altered(one, test={"absent_class": absent}), workspace, device="cpu").means
    assert means.miou == pytest.approx(200 / 4)  # road and car 100; sky missed and moon invented: 0
    assert means.macc == pytest.approx(macc, abs=1e-4)


def test_pictures_are_of_evenly_spaced_images():
    assert spaced(7, 3) == [0, 3, 6]
    assert spaced(7, 100) == list(range(7))
    assert spaced(500, 1) == [0]
    assert spaced(500, 0) == []


def test_a_split_without_labels_is_refused(row):
    with pytest.raises(DataError, match=r"image_00: has no labels; set the row's val_split"):
        evaluate_model(Reader(), row, Unlabelled(), "cpu")


def test_masks_without_a_label_measure_nothing(one, workspace, monkeypatch):
    monkeypatch.setattr(Shades, "labels", frozenset())
    with pytest.raises(DataError, match=r"no pixel of split test has a label, so nothing can be measured"):
        evaluate_row(one, workspace, device="cpu")
    assert not workspace.metrics(one).exists()


def test_diverged_model_gives_no_result(row):
    class Diverged(Reader):
        def forward(self, x):
            return {"main": super().forward(x)["main"] * float("nan")}

    with pytest.raises(CheckpointError, match=r"camvid-r50-d8.*not finite"):
        evaluate_model(Diverged(), row, Shades(), "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("mode", ["ss", "ms"])
def test_on_a_gpu_the_same_counts(row, mode, workers):
    row = altered(row, runtime=Runtime(workers=workers, benchmark_images=2))
    result = evaluate_model(Reader().cuda(), row, Shades(), torch.device("cuda"), mode=mode, keep=[2])
    np.testing.assert_array_equal(result.confusion.matrix, EXPECTED)
    assert list(result.predictions) == [2]


# a row


def test_row_writes_everything_with_the_agreed_names(row, workspace):
    result = evaluate_row(row, workspace, device="cpu")
    metrics = workspace.metrics(row)
    assert sorted(p.name for p in metrics.iterdir()) == ["evaluation.json"]
    truth = scores(EXPECTED)
    summary = json.loads(workspace.scores(row).read_text())
    assert summary == result.means.model_dump()
    assert list(summary) == ["miou", "aacc", "macc", "miou_ms_flip", "baseline_miou", "fps", "seeds"]
    assert summary["miou"] == round(truth.miou, 4) == summary["miou_ms_flip"]
    assert summary["aacc"] == round(truth.aacc, 4)
    assert summary["macc"] == round(truth.macc, 4)
    assert summary["baseline_miou"] == round(truth.constant[0], 4)
    assert (summary["fps"] > 0, summary["seeds"]) == (True, 2)

    document = load(metrics / "evaluation.json", EvaluationFile, "")
    assert document == result
    assert (document.row, document.table, document.dataset, document.split) == (row.name, "camvid", "camvid", "test")
    assert (document.row_hash, document.train_hash, document.settings) == (row.hash, row.train_hash, row.settings)
    assert document.classes == Shades.classes
    assert [run.seed for run in document.runs] == [3, 5]
    for run in document.runs:
        assert run.peak_memory_gib > 0
        assert (run.data, len(run.weights_sha256)) == (Shades.manifest_hash, 64)
        assert [mode for mode, _ in run.modes.items()] == ["ss", "ms"]
        for _, values in run.modes.items():
            np.testing.assert_array_equal(values.matrix, EXPECTED)
            assert values.images == 7
            assert values.scores.iou == (100.0, 100.0, 0.0, 0.0)
            assert values.scores.acc == (100.0, 100.0, 0.0, None)

    names = {p.name for p in workspace.evaluation(row).iterdir()}
    expected = {f"seed{s}-{m}-confusion.png" for s in (3, 5) for m in ("ss", "ms")}
    expected |= {"seed3.json", "seed5.json"}
    expected |= {f"seed{s}-image_{i}-{k}.png" for s in (3, 5) for i in ("00", "06") for k in ("panels", "prediction")}
    assert names == expected
    with Image.open(workspace.evaluation(row) / "seed3-image_06-prediction.png") as picture:
        assert picture.mode == "P"
        assert picture.size == Shades().mask(6).shape[::-1]


def _undated(files):
    """Without the records, which say when."""
    return {name: data for name, data in files.items() if not name.endswith(".json")}


def test_second_evaluation_gives_the_same_pictures_and_removes_old_files(one, workspace):
    evaluate_row(one, workspace, device="cpu")
    folder = workspace.evaluation(one)
    first = contents(folder)
    (folder / "left-over.png").write_bytes(b"old")
    evaluate_row(one, workspace, device="cpu")
    assert _undated(contents(folder)) == _undated(first)
    assert [p.name for p in folder.parent.iterdir()] == [one.name]


def test_failure_leaves_earlier_results_alone(one, workspace, monkeypatch):
    evaluate_row(one, workspace, device="cpu")
    before = contents(workspace.root)

    def fail(path, model):
        raise CheckpointError(f"{path}: of another model")

    monkeypatch.setattr(predict, "load_any", fail)
    with pytest.raises(CheckpointError):
        evaluate_row(one, workspace, device="cpu")
    assert contents(workspace.root) == before
    assert [p.name for p in workspace.evaluation(one).parent.iterdir()] == [one.name]


def test_weights_that_do_not_belong_to_the_row(row, workspace):
    missing = workspace.model(row) / "seed5.safetensors"
    missing.unlink()
    with pytest.raises(CheckpointError, match=r"seed5\.safetensors: does not exist.*dvc repro train@camvid-r50-d8"):
        evaluate_row(row, workspace, device="cpu")
    missing.write_bytes(b"others")
    with pytest.raises(CheckpointError, match=r"seed5\.safetensors: was removed or changed"):
        evaluate_row(row, workspace, device="cpu")
    keep_seed(workspace, row, 5, lambda path: path.write_bytes(b"weights"), data="f" * 64)
    with pytest.raises(CheckpointError, match=r"training data ffffffffffff, now 000000000000.*dvc repro train@"):
        evaluate_row(row, workspace, device="cpu")
    other = altered(row, optimizer={"lr": 0.5})
    with pytest.raises(CheckpointError, match=r"optimizer\.lr 0\.02, now 0\.5"):
        evaluate_row(other, workspace, device="cpu")
    assert not workspace.metrics(row).exists()


def test_given_weights_do_not_touch_the_row_s_results(one, workspace):
    evaluate_row(one, workspace, device="cpu")
    before = contents(workspace.root)
    weights = workspace.root / "mine.safetensors"
    weights.write_bytes(b"other")
    result = evaluate_row(one, workspace, device="cpu", weights=weights)
    assert (workspace.evaluation_of(one, weights) / "scores.json").is_file()
    assert result.means.seeds == 1
    after = contents(workspace.root)
    assert {key: after[key] for key in before} == before
    with pytest.raises(CheckpointError, match=r"none\.safetensors: does not exist"):
        evaluate_row(one, workspace, device="cpu", weights=workspace.root / "none.safetensors")


# several processes


def evaluated(root, row, count):
    evaluate.PreparedDataset = functools.partial(Shades, count=count)
    predict.build_model = lambda config, classes, attention: Reader(classes)
    predict.load_any = lambda path, model: None
    evaluate_row(row, Workspace(root), device="cpu")


@pytest.mark.parametrize(("world", "count"), [(2, 7), (3, 2)])
def test_any_number_of_processes_gives_what_one_gives(row, workspace, tmp_path, monkeypatch, world, count):
    """7 images do not divide over 2; of 2 images the third process has none."""
    row = altered(row, seeds=(3,))
    monkeypatch.setattr(evaluate, "PreparedDataset", functools.partial(Shades, count=count))
    alone = evaluate_row(row, workspace, device="cpu")
    pictures = _undated(contents(workspace.evaluation(row)))
    launch(world, evaluated, tmp_path, row, count)
    (both,) = load(workspace.metrics(row) / "evaluation.json", EvaluationFile, "").runs
    for (_, here), (_, there) in zip(both.modes.items(), alone.runs[0].modes.items(), strict=True):
        assert here.images == count
        assert here.model_copy(update={"seconds": 0}) == there.model_copy(update={"seconds": 0})
    assert both.provenance.processes == world
    assert _undated(contents(workspace.evaluation(row))) == pictures
