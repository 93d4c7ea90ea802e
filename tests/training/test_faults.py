"""Memory that runs out, values that are not finite, and disks that are full, at every write of a training."""

import contextlib
import io
import json
import math
import resource
from pathlib import Path

import pytest
import safetensors.torch
import torch
from rich.console import Console

from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, DanetError, TrainingError
from danet.core.files import sha256, write_json, write_text
from danet.training.checkpoint import CheckpointStore, iterations
from danet.training.progress import Reporter
from danet.training.train import train_row
from tests.training.fakes import TinyNet, identical, identity, state, tiny_row, trainer


@pytest.fixture(autouse=True)
def few_threads():
    torch.set_num_threads(1)


# memory


class Limited(TinyNet):
    """Fits ``most`` images from the forward pass numbered ``since``; changes its statistics before it fails."""

    def __init__(self, most, since=1, error=torch.OutOfMemoryError):
        super().__init__()
        self.most, self.since, self.calls, self.error = most, since, 0, error

    def forward(self, images):
        self.calls += 1
        outputs = super().forward(images)
        if self.calls >= self.since and len(images) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 20.00 GiB")
        return outputs


def like(model, folder, row):
    model.load_state_dict(trainer(row, folder).model.state_dict())
    return model


@pytest.mark.parametrize("most", [1, 2])
def test_automatic_accumulation_is_the_explicit_one(tmp_path, most):
    lines = Console(record=True, width=300, file=io.StringIO())
    auto = tiny_row(numerics={"accumulate": "auto"})
    model = like(Limited(most), tmp_path / "a", auto)
    found = trainer(auto, tmp_path / "auto", model=model, reporter=Reporter(lines, "never"))
    found.run()
    explicit = trainer(tiny_row(numerics={"accumulate": 4 // most}), tmp_path / "explicit")
    explicit.run()
    assert identical(state(found), state(explicit))
    assert found.history.accumulate == [[1, 4 // most]]
    assert f"out of memory at iteration 1; from here on {most} images at a time" in lines.export_text()


def test_accumulation_found_in_mid_run_survives_a_stop(tmp_path):
    row = tiny_row(numerics={"accumulate": "auto"})
    whole = trainer(row, tmp_path / "whole", model=like(Limited(2, since=5), tmp_path / "a", row))
    whole.run()
    assert whole.history.accumulate == [[1, 1], [5, 2]]

    stopped = trainer(row, tmp_path / "stopped", model=like(Limited(2, since=5), tmp_path / "b", row))
    stopped.stop.reason = ""
    stopped.model.register_forward_pre_hook(
        lambda module, _: setattr(stopped.stop, "reason", "SIGTERM") if module.calls == 6 else None
    )
    with pytest.raises(DanetError, match="stopped after iteration 5"):
        stopped.run()
    again = trainer(row, tmp_path / "stopped", model=TinyNet())
    assert again.accumulate == 2
    again.run()
    assert again.history.accumulate == whole.history.accumulate
    assert identical(state(again), state(whole))


def test_automatic_accumulation_ends_with_a_message(tmp_path):
    row = tiny_row(numerics={"accumulate": "auto"})
    with pytest.raises(TrainingError, match=r"with 1 images at a time .*set numerics\.precision to bf16"):
        trainer(row, tmp_path, model=Limited(0)).run()


def test_memory_that_runs_out_in_the_optimizer_is_not_tried_again(tmp_path, monkeypatch):
    """Half of the weights may have moved."""
    run = trainer(tiny_row(numerics={"accumulate": "auto"}), tmp_path)

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run.optimizer, "step", full)
    with pytest.raises(TrainingError, match=r"out of memory .*set numerics\.accumulate to 2"):
        run.run()


# values


class Spiking(TinyNet):
    """An output of one head is infinite, or a gradient is not a number, at an iteration."""

    def __init__(self, at, head="", gradient=False):
        super().__init__()
        self.at, self.head, self.gradient, self.calls = at, head, gradient, 0

    def forward(self, images):
        self.calls += 1
        outputs = super().forward(images)
        if self.calls == self.at and self.head:
            outputs[self.head] = outputs[self.head] * 1e38 * 10
        if self.calls == self.at and self.gradient:
            outputs["main"].register_hook(lambda gradient: gradient * math.nan)
        return outputs


def batch_ids(iteration):
    from danet.data.loader import EpochOrder

    order = EpochOrder(6, 0)
    return [f"image{order.index(place)}" for place in range(4 * (iteration - 1), 4 * iteration)]


@pytest.mark.parametrize("head", ["main", "aux"])
def test_one_head_that_is_infinite_is_named(tmp_path, head):
    run = trainer(tiny_row(), tmp_path, model=Spiking(5, head))
    with pytest.raises(TrainingError) as caught:
        run.run()
    message = str(caught.value)
    assert "at iteration 5" in message
    assert f"loss_{head} " in message
    assert ", ".join(batch_ids(5)) in message
    assert "iteration_00000003.pt" in message
    assert iterations(run.store.folder) == [3]


@pytest.mark.parametrize("at", [3, 6])
def test_a_gradient_that_is_no_number_stops_at_once(tmp_path, at):
    """Its loss is finite: the iteration and the images named are its own, and its checkpoint is not written."""
    run = trainer(tiny_row(), tmp_path, model=Spiking(at, gradient=True))
    with pytest.raises(TrainingError) as caught:
        run.run()
    message = str(caught.value)
    assert f"is not finite at iteration {at}, images {', '.join(batch_ids(at))}" in message
    assert "the gradient of " in message
    assert iterations(run.store.folder) == ([3] if at == 6 else [])


# disks


def short_row():
    return tiny_row(iterations=4, runtime={"checkpoint_interval": 1})


def train(folder):
    train_row(short_row(), Workspace(folder), device="cpu", progress=False)


def check_whole(folder):
    """Whatever a reader finds under its own name is whole."""
    row, workspace = short_row(), Workspace(folder)
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    assert not list(folder.rglob("*.tmp"))
    store = CheckpointStore(workspace.checkpoints(row, 0), identity(row))
    for iteration in iterations(store.folder):
        payload = torch.load(store.path(iteration), weights_only=True)
        assert payload["iteration"] == iteration
    for path in folder.rglob("*.safetensors"):
        safetensors.torch.load_file(path)
    for path in folder.rglob("curve.csv"):
        assert path.read_text().count("\n") == 4


def outcome(folder):
    row, workspace = short_row(), Workspace(folder)
    lines = (workspace.metrics(row) / "curve.csv").read_text().splitlines()
    untimed = "\n".join(",".join(line.split(",")[:8]) for line in lines)
    return sha256(workspace.model(row) / "seed0.safetensors"), untimed


@contextlib.contextmanager
def largest_file(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1000, 8000])
@pytest.mark.usefixtures("harness")
def test_files_that_cannot_grow(tmp_path, size):
    train(tmp_path / "good")
    folder = tmp_path / "limited"
    with largest_file(size), pytest.raises(DanetError, match=rf"{folder}.* cannot be written"):
        train(folder)
    check_whole(folder)
    train(folder)
    assert outcome(folder) == outcome(tmp_path / "good")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with largest_file(10):
        with pytest.raises(DanetError, match=rf"{tmp_path}/a\.txt: cannot be written \(File too large\); free space"):
            write_text(tmp_path / "a.txt", "x" * 20)
        write_text(tmp_path / "b.txt", "x" * 10)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "c.json", math.nan)
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


def test_a_checkpoint_of_other_code_is_explained(tmp_path):
    first = trainer(tiny_row(), tmp_path)
    first.stop.reason = "SIGTERM"
    with pytest.raises(DanetError, match="stopped"):
        first.run()
    with pytest.raises(CheckpointError, match=r"iteration_00000001\.pt: is of another model"):
        trainer(tiny_row(), tmp_path, model=TinyNet(norm=False))
