"""The stream of batches: a pure function of (seed, iteration), whatever reads it."""

import os
import resource
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from danet.core.errors import DataError, TrainingError
from danet.data.loader import TrainingSet, batch_stream, collate, own_positions
from danet.data.prefetch import Normaliser
from tests.data.test_transforms import small
from tests.parameters import PARAMS
from tests.training.fakes import Images

AUGMENT = small(PARAMS.row("mmseg-r50-d8-cityscapes-512x1024-40k").augment, crop=(24, 32), scale=(32, 48))


def stream(**changes):
    settings = {"source": Images(7), "augment": AUGMENT, "seed": 3, "batch_size": 4, "start": 0, "stop": 6, **changes}
    with batch_stream(**settings) as s:
        return list(s)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def reference():
    return stream()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_matter(reference, workers):
    assert all(map(same, stream(workers=workers), reference))


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (4, 2), (6, 0)])
def test_starts_anywhere(reference, start, workers):
    got = stream(start=start, workers=workers)
    assert len(got) == 6 - start
    assert all(map(same, got, reference[start:]))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_global_batch(reference, world):
    parts = [stream(rank=rank, world=world) for rank in range(world)]
    for iteration, whole in enumerate(reference):
        assert same(map(torch.cat, zip(*(part[iteration] for part in parts), strict=True)), whole)
        positions = [position for rank in range(world) for position in own_positions(iteration, 4, rank, world)]
        assert positions == list(range(4 * iteration, 4 * iteration + 4))


def test_seeds_differ(reference):
    other = stream(seed=4)
    assert not any(same(a, b) for a, b in zip(other, reference, strict=True))


def test_global_random_state_is_left_alone():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    stream(workers=0)
    assert (torch.get_rng_state() == before[0]).all()
    assert (np.random.get_state()[1] == before[1]).all()


def test_order_is_a_permutation_of_the_epoch():
    order = TrainingSet(Images(10), AUGMENT, seed=0)
    epochs = [[order.index(10 * epoch + i) for i in range(10)] for epoch in range(20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert [order.index(i) for i in (35, 2, 35)] == [epochs[3][5], epochs[0][2], epochs[3][5]]


class Locked(Images):
    """Gives views that must not be written to."""

    def image(self, i):
        return self._locked(super().image(i))

    def mask(self, i):
        return self._locked(super().mask(i))

    def _locked(self, array):
        array.flags.writeable = False
        return array


def test_nothing_is_written_into_the_data(reference):
    assert all(map(same, stream(source=Locked(7)), reference))


@pytest.mark.parametrize("lazy", [True, False])
def test_the_fast_path_does_not_matter(reference, lazy):
    samples = TrainingSet(Images(7), AUGMENT, 3, lazy=lazy)
    for iteration, batch in enumerate(reference):
        levels, masks, boxes = collate([samples[p] for p in own_positions(iteration, 4, 0, 1)])
        assert same((Normaliser(AUGMENT, torch.device("cpu"))(levels, boxes), masks), batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_labels_name_the_image(workers):
    class Unlabelled(Images):
        def mask(self, i):
            return None

    with pytest.raises(DataError, match=r"^image\d: has no labels; train on a split that has$"):
        stream(source=Unlabelled(), workers=workers)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_closing_early_ends_the_workers_which_ignore_a_stop():
    before = {p.pid for p in psutil.Process().children()}
    with batch_stream(Images(), AUGMENT, seed=0, batch_size=4, start=0, stop=1000, workers=2) as s:
        for _ in range(2):  # a batch of each worker: both are past their start, where a signal would end them
            next(s)
        started = [p for p in psutil.Process().children() if p.pid not in before]
        assert len(started) == 2
        for worker in started:
            os.kill(worker.pid, signal.SIGTERM)
            os.kill(worker.pid, signal.SIGINT)
        for _ in range(30):
            next(s)
        assert all(worker.is_running() for worker in started)
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


def test_a_dead_worker_is_explained():
    settings = {"seed": 0, "batch_size": 4, "start": 0, "stop": 1000, "workers": 1}
    before = {p.pid for p in psutil.Process().children()}
    with (  # noqa: PT012
        pytest.raises(TrainingError, match=r"data loading process died .*lower runtime\.workers"),
        batch_stream(Images(), AUGMENT, **settings) as s,
    ):
        next(s)
        (worker,) = [p for p in psutil.Process().children() if p.pid not in before]
        os.kill(worker.pid, signal.SIGKILL)
        list(s)


def test_full_shared_memory_is_explained():
    """The limit is set before the worker starts, so that it inherits it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DataError, match=r"shared memory has no room for a batch of .* runtime\.workers"):
            stream(workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
