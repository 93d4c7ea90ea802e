"""The whole path of an evaluation, with a small model for DANet and images whose colours are their labels."""

import csv
import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from torch import nn

from danet.config.params import load_params
from danet.config.row import MultiScale, Runtime, Test
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, DataError
from danet.core.process import Process
from danet.evaluation import evaluate, subject
from danet.evaluation.evaluate import evaluate_row
from danet.evaluation.inference import MEAN_RGB, STD_RGB
from danet.evaluation.one_pass import evaluate_model, spaced
from danet.results.schema import EvaluationFile, load
from danet.results.scores import constant_baseline, scores
from tests.seeds import keep_seed

CLASSES = 4
GREYS = np.array([20, 90, 160, 230], np.uint8)


class Shades:
    """Images of different sizes in which class c is a grey level; the last class is not in any image."""

    classes = ("road", "car", "sky", "moon")
    palette = ((128, 64, 128), (0, 0, 142), (70, 130, 180), (255, 255, 0))
    num_classes = CLASSES
    manifest_hash = "0" * 64
    labelled = True

    def __init__(self, folder=None, split="val", count=7):
        self.folder, self.split = folder, split
        self.ids = [f"image_{i:02d}" for i in range(count)]
        self.threads = set()

    def __len__(self):
        return len(self.ids)

    def mask(self, index):
        rng = np.random.default_rng(index)
        mask = rng.integers(0, 3, (3 + index % 3, 4)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        mask[:2] = 255
        return mask

    def image(self, index):
        self.threads.add(threading.current_thread().name)
        mask = self.mask(index)
        mask[mask == 255] = 0
        return GREYS[mask][..., None].repeat(3, axis=2)


class Unlabelled(Shades):
    labelled = False

    def mask(self, index):
        return None


class Reader(nn.Module):
    """Reads the class from the grey level, but takes ``sky`` for ``moon``."""

    def __init__(self, num_classes=CLASSES):
        super().__init__()
        levels = GREYS.astype(float).copy()
        levels[[2, 3]] = levels[[3, 2]]
        self.register_buffer("levels", torch.tensor((levels - MEAN_RGB[0]) / STD_RGB[0], dtype=torch.float32))

    def forward(self, x):
        return {"main": -((x[:, :1] - self.levels[None, :, None, None]) ** 2)}


EXPECTED = np.zeros((CLASSES, CLASSES), dtype=np.int64)
for _index in range(7):
    _mask = Shades().mask(_index)
    for _truth, _taken in ((0, 0), (1, 1), (2, 3)):
        EXPECTED[_truth, _taken] += (_mask == _truth).sum()


@pytest.fixture
def row():
    plain = load_params("params.yaml").row("camvid-r50-d8")
    test = Test(multi_scale=MultiScale(scales=(1.0,), flip=True))
    runtime = Runtime(workers=2, overlays=2, progress="never")
    return plain.model_copy(update={"test": test, "runtime": runtime, "seeds": (3, 5)})


@pytest.fixture
def one(row):
    """One seed, one mode, one overlay: drawing is what takes the time here."""
    runtime = Runtime(workers=2, overlays=1, progress="never")
    return row.model_copy(update={"test": Test(), "runtime": runtime, "seeds": (3,)})


@pytest.fixture
def workspace(tmp_path, row, monkeypatch):
    monkeypatch.setattr(evaluate, "PreparedDataset", Shades)
    monkeypatch.setattr(subject, "build_model", lambda config, classes, attention: Reader(classes))
    monkeypatch.setattr(subject, "load_model", lambda path, model: {"train_hash": row.train_hash})
    space = Workspace(tmp_path)
    for seed in row.seeds:
        keep_seed(space, row, seed, lambda path: path.write_bytes(b"weights"), data=Shades.manifest_hash)
    return space


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# one pass


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("mode", ["ss", "ms"])
def test_confusion_of_a_pass(row, workers, mode):
    row = row.model_copy(update={"runtime": Runtime(workers=workers)})
    dataset, calls = Shades(), []
    result = evaluate_model(Reader(), row, dataset, "cpu", mode=mode, keep=[2], progress=lambda *x: calls.append(x))
    np.testing.assert_array_equal(result.confusion.matrix, EXPECTED)
    assert result.images == 7
    assert calls == [(i, 7) for i in range(1, 8)]
    assert result.seconds > 0
    assert (result.fps is not None) == (mode == "ss")
    assert all(name.startswith("decode") for name in dataset.threads) == (workers > 0)
    expected = Shades().mask(2)
    expected[expected == 255] = 0
    np.testing.assert_array_equal(result.predictions[2], np.where(expected == 2, 3, expected))
    assert list(result.predictions) == [2]


def test_frame_rates_are_of_one_window_at_a_time_and_of_batches(row):
    """Of 20 images 5 are skipped, 2 timed as published, 5 skipped, 2 timed in batches; each has 4 windows or more."""
    seen = []

    class Watched(Reader):
        def forward(self, x):
            seen[-1].append(len(x))
            return super().forward(x)

    class Counted(Shades):
        def image(self, index):
            seen.append([])
            return super().image(index)

    runtime = Runtime(workers=0, benchmark_images=2)
    slide = Test(mode="slide", window=(16, 20), stride=(8, 12))
    row = row.model_copy(update={"runtime": runtime, "test": slide})
    result = evaluate_model(Watched(), row, Counted(count=20), "cpu", max_batch=3)
    assert min(map(sum, seen)) == 4
    assert [max(batches) for batches in seen] == [1] * 7 + [3] * 13
    assert result.fps > 0
    assert result.fps_batched > 0
    whole = evaluate_model(Watched(), row.model_copy(update={"test": Test()}), Counted(count=20), "cpu", max_batch=3)
    assert whole.fps > 0
    assert whole.fps_batched is None


def test_scores_follow_the_row_s_convention(row):
    test = row.test.model_copy(update={"absent_class": "zero"})
    skip = evaluate_model(Reader(), row, Shades(), "cpu").scores
    zero = evaluate_model(Reader(), row.model_copy(update={"test": test}), Shades(), "cpu").scores
    assert skip.miou == pytest.approx(2 / 4)  # road and car 1; sky missed and moon invented: 0
    assert zero.macc == pytest.approx(2 / 4)
    assert skip.macc == pytest.approx(2 / 3)


def test_mode_of_the_model_is_kept(row):
    model = Reader()
    seen = []
    model.register_forward_pre_hook(lambda m, _: seen.append(m.training))
    for training in (True, False):
        model.train(training)
        evaluate_model(model, row, Shades(), "cpu", limit=1)
        assert model.training is training
    assert seen == [False, False]


def test_limit_takes_evenly_spaced_images(row):
    dataset = Shades()
    assert evaluate_model(Reader(), row, dataset, "cpu", limit=3).images == 3
    assert spaced(7, 3) == [0, 3, 6]
    assert spaced(7, None) == spaced(7, 100) == list(range(7))
    assert spaced(500, 1) == [0]
    assert len(spaced(101, 4)) == 4
    assert spaced(0, 4) == []


def test_each_image_is_evaluated_by_one_process(row):
    total = np.zeros_like(EXPECTED)
    images = 0
    for rank in range(3):

        class Alone(Process):
            """Sums nothing, so that the shards can be added up here."""

            def sum(self, value):
                return value

            def gather(self, value):
                return [value]

        result = evaluate_model(Reader(), row, Shades(), "cpu", process=Alone(rank=rank, world=3), keep=[rank])
        total += result.confusion.matrix
        images += result.images
    np.testing.assert_array_equal(total, EXPECTED)
    assert images == 7


def test_data_that_cannot_be_compared(row, monkeypatch):
    with pytest.raises(DataError, match=r"image_00.*no labels"):
        evaluate_model(Reader(), row, Unlabelled(), "cpu")
    with pytest.raises(DataError, match="empty"):
        evaluate_model(Reader(), row, Shades(count=0), "cpu")
    monkeypatch.setattr(Shades, "image", lambda self, i: np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(DataError, match=r"image_00.*\(5, 5\).*\(24, 32\)"):
        evaluate_model(Reader(), row, Shades(), "cpu")


def test_diverged_model_names_row_and_image(row):
    class Diverged(Reader):
        def forward(self, x):
            return {"main": super().forward(x)["main"] * float("nan")}

    with pytest.raises(CheckpointError, match=r"camvid-r50-d8.*image_00.*not finite"):
        evaluate_model(Diverged(), row, Shades(), "cpu")


# a row


def test_row_writes_everything_with_the_agreed_names(row, workspace):
    result = evaluate_row(row, workspace, device="cpu")
    metrics = workspace.metrics(row)
    assert sorted(p.name for p in metrics.iterdir()) == ["evaluation.json", "per_class.csv"]
    truth = scores(EXPECTED)
    baseline, best = constant_baseline(truth.pixels)
    summary = json.loads(workspace.scores(row).read_text())
    assert summary == result.metrics.model_dump()
    assert list(summary) == ["miou", "aacc", "macc", "miou_ms_flip", "baseline_miou", "fps", "seeds"]
    assert summary["miou"] == round(100 * truth.miou, 4) == summary["miou_ms_flip"]
    assert summary["aacc"] == round(100 * truth.aacc, 4)
    assert summary["macc"] == round(100 * truth.macc, 4)
    assert summary["baseline_miou"] == round(100 * baseline, 4)
    assert (summary["fps"] > 0, summary["seeds"]) == (True, 2)

    document = load(metrics / "evaluation.json", EvaluationFile, "")
    assert document == result.evaluation
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
            assert values.iou == [100.0, 100.0, 0.0, 0.0]
            assert values.acc == [100.0, 100.0, 0.0, None]
            assert values.baseline == (100 * baseline, best)

    with (metrics / "per_class.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert list(lines[0]) == ["class", "seed", "mode", "iou", "acc", "pixels"]
    assert len(lines) == 2 * 2 * CLASSES
    assert lines[3] == {"class": "moon", "seed": "3", "mode": "ss", "iou": "0.0000", "acc": "", "pixels": "0"}

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
    first = tree(folder)
    (folder / "left-over.png").write_bytes(b"old")
    evaluate_row(one, workspace, device="cpu")
    assert _undated(tree(folder)) == _undated(first)
    assert [p.name for p in folder.parent.iterdir()] == [one.name]


def test_failure_leaves_earlier_results_alone(one, workspace, monkeypatch):
    evaluate_row(one, workspace, device="cpu")
    before = tree(workspace.root)

    def fail(path, model):
        raise CheckpointError(f"{path}: of another model")

    monkeypatch.setattr(subject, "load_model", fail)
    with pytest.raises(CheckpointError):
        evaluate_row(one, workspace, device="cpu")
    assert tree(workspace.root) == before
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
    other = row.model_copy(update={"optimizer": row.optimizer.model_copy(update={"lr": 0.5})})
    with pytest.raises(CheckpointError, match=r"optimizer\.lr 0\.02, now 0\.5"):
        evaluate_row(other, workspace, device="cpu")
    assert not workspace.metrics(row).exists()


def test_given_weights_do_not_touch_the_row_s_results(one, workspace, monkeypatch):
    evaluate_row(one, workspace, device="cpu")
    before = tree(workspace.root)
    monkeypatch.setattr(subject, "load_any", lambda path, model, row: {"train_hash": "0123456789ab"})
    weights = workspace.root / "mine.safetensors"
    weights.write_bytes(b"other")
    result = evaluate_row(one, workspace, device="cpu", weights=weights)
    assert result.folder == workspace.evaluation_of(one, weights)
    assert (result.folder / "scores.json").is_file()
    assert result.metrics.seeds == 1
    after = tree(workspace.root)
    assert {key: after[key] for key in before} == before
    with pytest.raises(CheckpointError, match=r"none\.safetensors: does not exist"):
        evaluate_row(one, workspace, device="cpu", weights=workspace.root / "none.safetensors")


def test_split_without_labels_is_refused(row, workspace, monkeypatch):
    monkeypatch.setattr(evaluate, "PreparedDataset", Unlabelled)
    with pytest.raises(DataError, match="no labels"):
        evaluate_row(row, workspace, device="cpu")
    monkeypatch.setattr(evaluate, "PreparedDataset", lambda folder, split: Shades(folder, split, count=0))
    with pytest.raises(DataError, match="empty"):
        evaluate_row(row, workspace, device="cpu")


def test_row_without_multi_scale_and_overlays(row, workspace):
    row = row.model_copy(update={"test": Test(), "runtime": Runtime(overlays=0), "seeds": (3,)})
    result = evaluate_row(row, workspace, device="cpu")
    assert result.metrics.miou_ms_flip is None
    assert result.evaluation.runs[0].modes.ms is None
    names = {path.name for path in workspace.evaluation(row).iterdir()}
    assert names == {"seed3-ss-confusion.png", "seed3.json"}


def test_progress_is_shown_with_the_time_left(row, workspace, capfd):
    row = row.model_copy(update={"runtime": Runtime(workers=1, overlays=0), "seeds": (3,)})
    evaluate_row(row, workspace, device="cpu")
    shown = capfd.readouterr()
    assert "camvid-r50-d8 seed3 ss: 7 images in" in shown.err
    assert "mIoU 50.00 %" in shown.err
    assert shown.out == ""
    evaluate_row(row, workspace, device="cpu", progress=False)
    assert capfd.readouterr().err == ""


# several processes


def work(rank, root, row_bytes, port):
    torch.set_num_threads(1)
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    row = pickle.loads(row_bytes)
    evaluate.PreparedDataset = Shades
    subject.build_model = lambda config, classes, attention: Reader(classes)
    subject.load_model = lambda path, model: {}
    evaluate_row(row, Workspace(Path(root)), device="cpu")


def test_two_processes_give_what_one_gives(row, workspace, tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    row = row.model_copy(update={"seeds": (3,)})
    alone = evaluate_row(row, workspace, device="cpu")
    pictures = _undated(tree(workspace.evaluation(row)))
    mp.start_processes(work, args=(str(tmp_path), pickle.dumps(row), port), nprocs=2, start_method="spawn")
    (both,) = load(workspace.metrics(row) / "evaluation.json", EvaluationFile, "").runs
    for (_, here), (_, there) in zip(both.modes.items(), alone.evaluation.runs[0].modes.items(), strict=True):
        assert here.model_copy(update={"seconds": 0}) == there.model_copy(update={"seconds": 0})
    assert both.provenance.processes == 2
    assert _undated(tree(workspace.evaluation(row))) == pictures
