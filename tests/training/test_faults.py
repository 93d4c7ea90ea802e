"""Values that are not finite, checkpoints that cannot be used, and full disks at every write of a training."""

import contextlib
import io
import json
import math
import pickle
import resource

import pytest
import safetensors.torch
import torch

from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, DanetError, TrainingError
from danet.core.files import sha256, write_json, write_text
from danet.training.checkpoint import CheckpointStore
from danet.training.train import train_row
from tests.training.fakes import TinyNet, identity, tiny_row, trainer

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


@pytest.mark.parametrize("head", ["main", "aux"])
def test_a_loss_that_is_infinite_stops_the_training(tmp_path, head):
    run = trainer(tiny_row(), tmp_path, model=Spiking(5, head))
    with pytest.raises(TrainingError, match=rf"loss_{head} is (inf|nan).* at iteration 5"):
        run.run()
    assert run.store.load()["iteration"] == 3


@pytest.mark.parametrize(
    ("at", "noticed", "kept"),
    [(3, r"\w+\.weight is not finite at iteration 3", None), (4, "at iteration 5", 3), (8, "at iteration 8", 6)],
)
def test_a_gradient_that_is_no_number_is_never_saved(tmp_path, at, noticed, kept):
    """Its loss is finite. The next one is not, and where a checkpoint or the end comes first, the weights tell."""
    run = trainer(tiny_row(), tmp_path, model=Spiking(at, gradient=True))
    with pytest.raises(TrainingError, match=f"{noticed}; nothing of it was saved"):
        run.run()
    saved = run.store.load()
    assert (saved["iteration"] if saved else None) == kept


# checkpoints


@pytest.fixture
def store(tmp_path):
    """With the checkpoint of an iteration."""
    store = CheckpointStore(tmp_path / "seed0", identity(tiny_row()))
    store.save(iteration=10, model={"w": torch.arange(100.0)})
    return store


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_checkpoint_is_named_with_a_remedy(store, share):
    store.path.write_bytes(store.path.read_bytes()[: int(share * store.path.stat().st_size)])
    with pytest.raises(CheckpointError, match=rf"{store.path}: damaged.*rm -r {store.folder}"):
        store.load()


def test_code_in_a_checkpoint_is_not_run(store, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with store.path.open("wb") as stream:
        pickle.dump({"model": Hostile()}, stream)
    with pytest.raises(CheckpointError, match="damaged"):
        store.load()
    assert not (tmp_path / "ran").exists()


def test_another_training_is_refused(store):
    other = CheckpointStore(store.folder, identity(tiny_row(optimizer={"lr": 0.07}), seed=1))
    with pytest.raises(CheckpointError, match=f"{store.folder}.*0.05, now 0.07; seed 0, now 1.*rm -r {store.folder}"):
        other.load()


# disks


def short_row():
    return tiny_row(iterations=4, runtime={"checkpoint_interval": 1})


def train(folder):
    with contextlib.redirect_stderr(io.StringIO()):  # pytest keeps it in a file, which could not grow either
        train_row(short_row(), Workspace(folder), device="cpu")


def check_whole(folder):
    """Whatever a reader finds under its own name is whole."""
    row, workspace = short_row(), Workspace(folder)
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    assert not list(folder.rglob("*.tmp"))
    CheckpointStore(workspace.checkpoints(row, 0), identity(row)).load()
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


def test_a_full_disk_leaves_nothing(tmp_path):
    with largest_file(10):
        with pytest.raises(DanetError, match=rf"{tmp_path}/a\.txt: cannot be written \(File too large\); free space"):
            write_text(tmp_path / "a.txt", "x" * 20)
        write_text(tmp_path / "b.txt", "x" * 10)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "c.json", math.nan)
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]
