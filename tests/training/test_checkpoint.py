import pickle

import pytest
import torch

from danet.core.errors import CheckpointError
from danet.training.checkpoint import CheckpointStore
from tests.training.fakes import identity, tiny_row


def checkpoint(iteration):
    weights = torch.arange(100.0) * iteration
    return {"iteration": iteration, "model": {"w": weights}, "progress": {"curve": [{"loss": 0.1, "val_miou": None}]}}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "seed0", identity(tiny_row()))


def test_round_trip(store):
    assert store.load() is None
    for iteration in (10, 20):
        store.save(**checkpoint(iteration))
    assert list(store.folder.iterdir()) == [store.path]
    loaded = store.load()
    assert loaded["iteration"] == 20
    assert torch.equal(loaded["model"]["w"], torch.arange(100.0) * 20)
    assert loaded["progress"] == checkpoint(20)["progress"]


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_one_is_named_with_a_remedy(store, share):
    store.save(**checkpoint(10))
    store.path.write_bytes(store.path.read_bytes()[: int(share * store.path.stat().st_size)])
    with pytest.raises(CheckpointError, match=rf"{store.path}: damaged.*rm -r {store.folder}"):
        store.load()


def test_code_in_a_checkpoint_is_not_run(store, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    store.save(**checkpoint(1))
    with store.path.open("wb") as stream:
        pickle.dump({"model": Hostile()}, stream)
    with pytest.raises(CheckpointError, match="damaged"):
        store.load()
    assert not (tmp_path / "ran").exists()


def test_another_training_is_refused(store):
    store.save(**checkpoint(1))
    other = CheckpointStore(store.folder, identity(tiny_row(optimizer={"lr": 0.07}), seed=1))
    with pytest.raises(CheckpointError, match=f"{store.folder}.*0.05, now 0.07; seed 0, now 1.*rm -r {store.folder}"):
        other.load()
