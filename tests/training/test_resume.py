"""A run that is stopped anywhere and continued anyhow ends with the same bits as one that was left alone."""

import itertools
import random

import pytest

from danet.core.errors import Interrupted
from danet.training.stop import StopRequest
from tests.training.fakes import identical, state, tiny_row, trainer

TIMED = {"images_per_second", "data_wait_share", "peak_memory_gib"}
WORKERS = (0, 1, 4)
ITERATIONS = 23
ROWS = {
    "plain": {},
    "accumulate": {"numerics": {"accumulate": 2}},
    "epochs end within a batch": {"schedule": {"batch_size": 5}, "loss": {"average": "valid"}},
}


class Store:
    """Takes each step of a metric once, as the tracker does."""

    def __init__(self):
        self.values = {}

    def metrics(self, step, values):
        for name, value in values.items():
            self.values.setdefault((name, step), value)

    def computed(self):
        return {key: None if key[0] in TIMED else value for key, value in self.values.items()}


def curve(trained):
    return [{name: value for name, value in row.items() if name not in TIMED} for row in trained.history.curve]


def row_of(kind):
    settings = {"runtime": {"log_interval": 3, "checkpoint_interval": 5}, "val_interval": 7, **ROWS[kind]}
    settings["schedule"] = {**settings.get("schedule", {}), "iterations": ITERATIONS}
    return tiny_row(**settings)


def validate(model):
    """Depends on the weights, so that a wrong one shows."""
    return sum(parameter.detach().double().abs().sum().item() for parameter in model.parameters())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    found = {}
    for kind in ROWS:
        store = Store()
        whole = trainer(row_of(kind), tmp_path_factory.mktemp("whole"), track=store.metrics, validate=validate)
        whole.run()
        found[kind] = state(whole), curve(whole), store.computed()
    return found


class KilledError(Exception):
    """Stands for SIGKILL: nothing is saved when it comes."""


@pytest.mark.parametrize("case", range(6))
def test_any_stops_with_any_workers(tmp_path, undisturbed, case):
    """Up to four stops and kills at random iterations, each session with another number of loader processes."""
    chance = random.Random(case)
    kind = list(ROWS)[case % len(ROWS)]
    row, sent = row_of(kind), Store()
    parts = row.numerics.accumulate
    for session in itertools.count():
        workers = WORKERS[(case + session) % 3]
        stop = StopRequest()
        run = trainer(row, tmp_path, workers=workers, track=sent.metrics, validate=validate, stop=stop)
        began, reached = run.iteration, iter(range(1, 10**6))
        at, kill = (chance.randint(1, 8), chance.random() < 0.5) if session < 4 else (0, False)

        def hook(*_, at=at, kill=kill, stop=stop, reached=reached):
            if next(reached) == at * parts:
                if kill:
                    raise KilledError
                stop.reason = "SIGTERM"

        run.model.register_forward_pre_hook(hook)
        if not at or began + at > ITERATIONS or (not kill and began + at == ITERATIONS):
            run.run()
            break
        with pytest.raises(KilledError if kill else Interrupted) as ended:
            run.run()
        saved = run.store.load()
        newest = saved["iteration"] if saved else 0
        if kill:
            assert newest >= began + at - 1 - row.runtime.checkpoint_interval
        else:
            assert newest == began + at
            assert f"stopped after iteration {began + at} of {ITERATIONS} (SIGTERM)" in str(ended.value)
    weights, rows, values = undisturbed[kind]
    assert run.history.resumed > 0
    assert identical(state(run), weights)
    assert curve(run) == rows
    assert sent.computed() == values


def test_dropout_and_augmentation_are_part_of_what_is_compared(tmp_path):
    """The comparison could not fail if nothing were random: another seed must give other bits."""
    runs = [trainer(tiny_row(iterations=2), tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    runs[1].model.load_state_dict(trainer(tiny_row(iterations=2), tmp_path / "same").model.state_dict())
    for run in runs:
        run.run()
    assert not identical(*map(state, runs))


class Meter:
    """Stands for NVML's counter, which only a GPU has."""

    def __init__(self, kilojoules):
        self.kilojoules = lambda: kilojoules


@pytest.mark.parametrize(("first", "second", "total"), [(5.0, 7.25, 12.25), (None, 7.25, None), (5.0, None, None)])
def test_energy_is_the_sum_over_the_parts_or_unknown_where_one_is(tmp_path, first, second, total):
    stop = StopRequest()
    stopped = trainer(tiny_row(), tmp_path, stop=stop)
    stopped._meter, stop.reason = Meter(first), "SIGTERM"
    with pytest.raises(Interrupted):
        stopped.run()
    resumed = trainer(tiny_row(), tmp_path)
    resumed._meter = Meter(second)
    assert resumed.run().energy_kj == total
