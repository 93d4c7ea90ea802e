import pickle
from pathlib import Path

import pytest
import torch

from danet.core.errors import CheckpointError
from danet.results.identity import TrainingIdentity
from danet.training.checkpoint import Checkpoint, CheckpointStore, iterations
from tests.training.fakes import identity, tiny_row


def checkpoint(iteration):
    weights = torch.arange(100.0) * iteration
    return Checkpoint(iteration, {"w": weights}, {"state": {}}, {}, {"curve": [{"loss": 0.1, "val_miou": None}]})


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "seed0", identity(tiny_row()))


def test_round_trip_and_the_last_two_are_kept(store):
    assert store.load() == (None, [])
    for iteration in (10, 20, 30, 40):
        store.save(checkpoint(iteration))
    assert iterations(store.folder) == [40, 30]
    assert sorted(path.name for path in store.folder.iterdir()) == ["iteration_00000030.pt", "iteration_00000040.pt"]
    loaded, notes = store.load()
    assert notes == []
    assert loaded.iteration == 40
    assert torch.equal(loaded.model["w"], torch.arange(100.0) * 40)
    assert loaded.progress == checkpoint(40).progress
    assert store.newest() == store.path(40)
    store.clear()
    assert list(store.folder.iterdir()) == []


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_used(store, damage):
    store.save(checkpoint(10))
    store.save(checkpoint(20))
    damage(store.path(20))
    loaded, notes = store.load()
    assert loaded.iteration == 10
    assert len(notes) == 1
    assert "iteration_00000020.pt: damaged" in notes[0]
    damage(store.path(10))
    loaded, notes = store.load()
    assert loaded is None
    assert "starting from the beginning" in notes[-1]


def test_code_in_a_checkpoint_is_not_run(store, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    store.save(checkpoint(1))
    path = store.path(1)
    with path.open("wb") as stream:
        pickle.dump({"format": 1, "model": Hostile()}, stream)
    loaded, notes = store.load()
    assert loaded is None
    assert "damaged" in notes[0]
    assert not (tmp_path / "ran").exists()


def test_another_training_is_refused(store):
    store.save(checkpoint(1))
    row = tiny_row()
    for other, what in (
        (identity(tiny_row(optimizer={"lr": 0.07})), r"optimizer.lr 0.05, now 0.07"),
        (identity(row, seed=1), "seed 0, now 1"),
        (identity(row, data="f" * 64), "training data 000000000000, now ffffffffffff"),
        (
            TrainingIdentity.of(row, 0, data="0" * 64, initial_weights="e" * 64),
            "initial weights none, now eeeeeeeeeeee",
        ),
    ):
        with pytest.raises(CheckpointError, match=f"{store.folder}.*{what}.*rm -r {store.folder}"):
            CheckpointStore(store.folder, other).load()


def test_a_failed_write_leaves_the_older_ones(store, monkeypatch):
    store.save(checkpoint(10))

    def full(value, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"iteration_00000020\.pt: cannot be written"):
        store.save(checkpoint(20))
    assert iterations(store.folder) == [10]
    assert store.load()[0].iteration == 10
    assert not [path for path in store.folder.iterdir() if path.name.endswith(".tmp")]
