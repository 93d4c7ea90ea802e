"""The training loop: against a loop written out by hand, across stops, faults and added seeds."""

import contextlib
import csv
import json
import math
import os
import signal
import subprocess
from datetime import datetime

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load_file

from danet.core.errors import CheckpointError, ConfigError, DataError, Interrupted, TrainingError
from danet.core.files import sha256
from danet.data.prefetch import Normaliser
from danet.data.transforms import augmented
from danet.models import numerics
from danet.results import store
from danet.training import loop
from danet.training import train as training
from danet.training.progress import STATUS
from danet.training.train import train_row
from tests.training.fakes import Images, TinyNet, identical, in_float64, state, tiny_row, trainer


def stopping(model, after):
    """Sends this process a SIGTERM in the given iteration's forward pass, as a batch system would."""
    calls = iter(range(1, 10**6))

    def hook(*_):
        if next(calls) == after:
            os.kill(os.getpid(), signal.SIGTERM)

    model.register_forward_pre_hook(hook)
    return model


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    whole = trainer(tiny_row(), tmp_path_factory.mktemp("whole"))
    return whole.run().curve, state(whole)


def test_equals_a_loop_written_out(tmp_path):
    """Data order, dropout seed, loss, momentum and schedule, all written out again."""
    row = tiny_row(iterations=5)
    trained = trainer(row, tmp_path, seed=2, double=True)
    numerics.seed_initialisation(2)
    model = in_float64(TinyNet()).train()
    momentum = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    data, losses, normalise = Images(), [], Normaliser(row.augment, torch.device("cpu"))
    for iteration in range(5):
        pixels, masks = [], []
        for position in range(4 * iteration, 4 * iteration + 4):
            epoch, place = divmod(position, 6)
            index = np.random.default_rng([2, epoch, 0x6F72646572]).permutation(6)[place]
            draws = np.random.default_rng([2, position])
            levels, labels, box = augmented(row.augment, data.image(index), data.mask(index), draws)
            pixels.append(normalise(torch.from_numpy(levels)[None], [box])[0])
            masks.append(labels)
        images, target = torch.stack(pixels), torch.from_numpy(np.stack(masks)).long()
        numerics.seed_step(model, 2, range(4 * iteration, 4 * iteration + 4))
        outputs = model(images)
        loss = torch.zeros(())
        for part, weight in (("main", 1), ("pam", 1), ("cam", 1), ("aux", 0.4)):
            resized = F.interpolate(outputs[part], (24, 24), mode="bilinear", align_corners=False)
            loss = loss + weight * F.cross_entropy(resized, target, ignore_index=255, reduction="sum") / target.numel()
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                base = 0.05 if name.startswith("backbone") else 0.1
                rate = (base - 1e-4) * (1 - iteration / 5) ** 0.9 + 1e-4
                momentum[name] = 0.9 * momentum[name] + parameter.grad + 5e-4 * parameter
                parameter.sub_(rate * momentum[name])
    history = trained.run()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained.model.state_dict()[name], tensor, rtol=1e-9, atol=1e-9, msg=name)
    assert [row["iteration"] for row in history.curve] == [1, 3, 5]
    assert history.curve[0]["loss"] == pytest.approx(losses[0], rel=1e-9)
    assert history.curve[1]["loss"] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-9)
    assert history.curve[2]["loss"] == pytest.approx((losses[3] + losses[4]) / 2, rel=1e-9)
    assert history.curve[2]["lr"] == pytest.approx((0.05 - 1e-4) * (1 - 4 / 5) ** 0.9 + 1e-4)  # the backbone's
    parts = sum(history.curve[2][f"loss_{part}"] for part in ("main", "pam", "cam", "aux"))
    assert parts == pytest.approx(history.curve[2]["loss"], rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_near(tmp_path, precision, uninterrupted):
    row = tiny_row(numerics={"precision": precision, "channels_last": True})
    history = trainer(row, tmp_path).run()
    for low, full in zip(history.curve, uninterrupted[0], strict=True):
        assert low["loss"] == pytest.approx(full["loss"], rel=0.03)


def test_deterministic_mode_repeats_and_agrees(tmp_path):
    row = tiny_row(numerics={"deterministic": True})
    with numerics.configured(row.numerics):
        assert torch.are_deterministic_algorithms_enabled()
        runs = [trainer(row, tmp_path / str(i), double=i > 1) for i in range(3)]
        for run in runs:
            run.run()
    assert not torch.are_deterministic_algorithms_enabled()
    assert identical(*map(state, runs[:2]))
    plain = trainer(tiny_row(), tmp_path / "plain", double=True)
    plain.run()
    for name, tensor in state(plain).items():
        torch.testing.assert_close(state(runs[2])[name], tensor, rtol=1e-9, atol=1e-9)


# faults


def test_out_of_memory_says_what_would_fit(tmp_path):
    class Huge(TinyNet):
        def forward(self, images):
            if len(images) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return super().forward(images)

    with pytest.raises(
        TrainingError,
        match=r"out of memory on cpu with 4 images at a time; set numerics.accumulate to 2 or 4 ",
    ):
        trainer(tiny_row(), tmp_path, model=Huge()).run()
    trainer(tiny_row(iterations=1, numerics={"accumulate": 4}), tmp_path, model=Huge()).run()
    with pytest.raises(ConfigError, match="accumulate 3 does not divide the 4 images"):
        trainer(tiny_row(numerics={"accumulate": 3}), tmp_path)


def test_validation_leaves_no_trace(tmp_path, uninterrupted):
    seen = []

    def validate(model):
        assert not model.training
        seen.append(torch.rand(1))
        return 12.345678

    row = tiny_row(val_interval=4)
    run = trainer(row, tmp_path, validate=validate)
    history = run.run()
    assert identical(state(run), uninterrupted[1])
    assert [(r["iteration"], r["val_miou"]) for r in history.curve] == [
        (1, None), (3, None), (4, 12.3457), (6, None), (8, 12.3457),
    ]  # fmt: skip
    assert len(seen) == 2


# what is said on the way


def test_a_training_notes_how_far_it_is(tmp_path):
    running = trainer(tiny_row(iterations=6, runtime={"log_interval": 4}), tmp_path)
    running.model.register_forward_hook(lambda *_: noted.append((tmp_path / STATUS).exists()))
    noted = []
    history = running.run()
    assert (noted[0], noted[1]) == (False, True)  # from the first iteration on
    status = json.loads((running.store.folder / STATUS).read_text())
    assert (status["seed"], status["iteration"], status["total"]) == (0, 6, 6)
    assert status["loss"] == pytest.approx(history.curve[-1]["loss"])
    assert status["eta_seconds"] == 0
    assert datetime.fromisoformat(status["updated"]).tzinfo is not None


def test_a_log_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "LOG_INTERVAL_S", 0.0)
    history = trainer(tiny_row(iterations=6), tmp_path, show=True).run()
    said = capsys.readouterr().err
    assert "tiny seed 0: 4 of 6 iterations," in said
    assert f"loss {history.curve[1]['loss']:.4f}" in said


# whole rows


class OtherImages(Images):
    manifest_hash = "f" * 64


class Recorder:
    def __init__(self):
        self.steps = []

    def metrics(self, step, values):
        assert all(isinstance(value, float) and math.isfinite(value) for value in values.values())
        self.steps.append((step, values))


def test_outputs(harness):
    workspace, _ = harness
    row = tiny_row(seeds=(0, 7))
    trackers = []

    @contextlib.contextmanager
    def factory(row, seed, space, identity):
        assert space == workspace
        trackers.append((seed, Recorder()))
        yield trackers[-1][1]

    train_row(row, workspace, tracker_factory=factory, device="cpu")
    metrics = json.loads((workspace.metrics(row) / "train.json").read_text())
    for run, seed in zip(metrics["runs"], (0, 7), strict=True):
        assert run["seed"] == seed
        assert run["iterations"] == 8
        assert 0 <= run["data_wait_share"] <= 1
        weights = workspace.model(row) / f"seed{seed}.safetensors"
        assert sha256(weights) == run["weights_sha256"]
    with (workspace.metrics(row) / "curve.csv").open() as stream:
        curve = list(csv.DictReader(stream))
    assert list(curve[0]) == [
        "seed", "iteration", "loss", "loss_main", "loss_pam", "loss_cam", "loss_aux", "lr", "images_per_second",
        "val_miou",
    ]  # fmt: skip
    assert [(r["seed"], r["iteration"]) for r in curve] == [(s, i) for s in ("0", "7") for i in ("1", "3", "6", "8")]
    assert {r["val_miou"] for r in curve} == {""}
    assert [seed for seed, _ in trackers] == [0, 7]
    assert [step for step, _ in trackers[0][1].steps] == [1, 3, 6, 8]
    assert {"loss", "loss_main", "loss_aux", "lr", "images_per_second"} <= set(trackers[0][1].steps[0][1])


def test_added_seeds_train_alone(harness):
    workspace, built = harness
    train_row(tiny_row(), workspace, device="cpu")
    first = sha256(workspace.model(tiny_row()) / "seed0.safetensors")
    assert len(built) == 1
    train_row(tiny_row(seeds=(0, 1)), workspace, device="cpu")
    assert len(built) == 2
    assert sha256(workspace.model(tiny_row()) / "seed0.safetensors") == first
    assert sha256(workspace.model(tiny_row()) / "seed1.safetensors") != first
    train_row(tiny_row(seeds=(1, 0)), workspace, device="cpu")
    assert len(built) == 2
    train_row(tiny_row(optimizer={"lr": 0.06}), workspace, device="cpu")  # another training
    assert len(built) == 3


def test_damaged_finished_weights_are_trained_again(harness):
    workspace, built = harness
    row = tiny_row()
    train_row(row, workspace, device="cpu")
    weights = workspace.model(row) / "seed0.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1])
    train_row(row, workspace, device="cpu")
    assert len(built) == 2
    assert weights.read_bytes() == good


@pytest.mark.parametrize(("what", "value"), [("PreparedDataset", "data"), ("backbone_sha256", "weights")])
def test_other_data_or_weights_are_another_training(harness, monkeypatch, capsys, what, value):
    """The seen fault: labels were swapped, and the weights trained on the old ones were shown as new."""
    workspace, built = harness
    row = tiny_row()
    train_row(row, workspace, device="cpu")
    monkeypatch.setattr(training, what, lambda *_: OtherImages() if value == "data" else "e" * 64)
    train_row(row, workspace, device="cpu")
    assert len(built) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert ("training data 000000000000, now ffffffffffff" in said) == (value == "data")
    record = json.loads((workspace.model(row) / "seed0.json").read_text())
    assert record["identity"]["data" if value == "data" else "initial_weights"][0] in "fe"
    train_row(row, workspace, device="cpu")
    assert len(built) == 2


def test_the_epoch_best_on_val_is_kept_beside_the_last(harness, monkeypatch):
    workspace, built = harness
    scores = iter([10.0, 30.0, 20.0, 30.0, 5.0, 5.0, 5.0, 5.0])
    seen = []

    def scripted(row, dataset, process):
        assert isinstance(dataset, Images)

        def score(model):
            seen.append({key: value.clone() for key, value in model.state_dict().items()})
            return next(scores)

        return score

    monkeypatch.setattr(training, "selection_score", scripted)
    row = tiny_row(checkpoint="best-on-val")  # 6 images in batches of 4: an iteration an epoch
    train_row(row, workspace, device="cpu")
    record = store.load_record(workspace, row, 0)
    assert (record.best.iteration, record.best.score) == (2, 30.0)
    assert record.identity.data == "+".join(["0" * 64] * 2)  # of the training split, and of the one it is chosen on
    kept = load_file(store.best_path(workspace, row, 0))
    assert all(torch.equal(kept[key], value) for key, value in seen[1].items())
    last = load_file(store.weights_path(workspace, row, 0))
    assert all(torch.equal(last[key], value) for key, value in seen[-1].items())
    train_row(row, workspace, device="cpu")
    assert len(built) == 1
    store.best_path(workspace, row, 0).unlink()
    with pytest.raises(CheckpointError, match=r"seed0-best\.safetensors: was removed.*dvc repro train@tiny"):
        store.load_record(workspace, row, 0)


def test_a_stopped_training_does_not_go_on_with_other_data(harness, monkeypatch):
    workspace, _ = harness
    row = tiny_row()
    monkeypatch.setattr(training, "build_model", lambda *_: stopping(TinyNet(), 4))
    with pytest.raises(Interrupted):
        train_row(row, workspace, device="cpu")
    monkeypatch.setattr(training, "PreparedDataset", lambda *_: OtherImages())
    monkeypatch.setattr(training, "build_model", lambda *_: TinyNet())
    with pytest.raises(CheckpointError, match="training data 000000000000, now ffffffffffff") as refusal:
        train_row(row, workspace, device="cpu")
    subprocess.run(str(refusal.value).partition("beginning: ")[2], shell=True, check=True)  # the remedy, as printed
    train_row(row, workspace, device="cpu")
    record = json.loads((workspace.model(row) / "seed0.json").read_text())
    assert (record["identity"]["data"], record["run"]["resumed"]) == ("f" * 64, 0)


def test_a_stopped_row_goes_on(harness, monkeypatch):
    workspace, _ = harness
    row = tiny_row(seeds=(0, 1))
    monkeypatch.setattr(training, "build_model", lambda *_: stopping(TinyNet(), 4))
    with pytest.raises(Interrupted, match="after iteration 4 of 8"):
        train_row(row, workspace, device="cpu")
    assert not workspace.model(row).exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.setattr(training, "build_model", lambda *_: TinyNet())
    train_row(row, workspace, device="cpu")
    metrics = json.loads((workspace.metrics(row) / "train.json").read_text())
    assert [run["resumed"] for run in metrics["runs"]] == [1, 0]


def test_a_second_trainer_is_refused(harness):
    workspace, built = harness
    row = tiny_row()
    folder = workspace.checkpoints(row, 0).parent
    folder.mkdir(parents=True)
    with FileLock(folder / "train.lock"), pytest.raises(TrainingError, match=f"{folder}: another process is training"):
        train_row(row, workspace, device="cpu")
    assert built == []
    train_row(row, workspace, device="cpu")


def test_masks_without_a_label_train_nothing(harness, monkeypatch):
    class Void(Images):
        labels = frozenset()

    monkeypatch.setattr(training, "PreparedDataset", lambda *_: Void())
    with pytest.raises(DataError, match=r"no pixel of split train has a label.*danet browse \w+ --split train --out"):
        train_row(tiny_row(), harness[0], device="cpu")
