"""A row on several processes: the training is that of one, also resumed on another number of them; what is refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from danet.core import process as distributed
from danet.core.errors import ConfigError, Interrupted, TrainingError
from danet.core.process import Process, processes, select_device
from danet.models import numerics
from danet.models.attention import Clustering
from danet.training.stop import StopRequest
from tests.launching import launch
from tests.training.fakes import Images, TinyNet, state, tiny_row, trainer

STEPS = 5
CASES = {
    "valid": {"loss": {"average": "valid"}},
    "all": {"loss": {"average": "all"}},
    "replicas": {"loss": {"average": "valid", "replicas": 2}},
    "replicas of one": {"loss": {"average": "valid", "replicas": 4}},
    "unused outputs": {"loss": {"pam": 0.0, "cam": 0.0}},
    "clusters": {"loss": {"average": "valid"}},
}


class Uneven(Images):
    """Images whose labelled share is from nothing to all, so that a mean of means is not the mean."""

    def mask(self, i):
        mask = super().mask(i)
        mask[: mask.shape[0] * i // (len(self) - 1)] = 255
        return mask


class Clustered(TinyNet):
    def __init__(self):
        super().__init__()
        self.backbone.append(Clustering(8, 8))


def row(name):
    return tiny_row(iterations=STEPS, runtime={"log_interval": 1}, **CASES[name])


def build(name, folder, **more):
    numerics.seed_initialisation(0)
    model = Clustered() if name == "clusters" else TinyNet()
    return trainer(row(name), folder, model=model, dataset=Uneven(), **{"double": True} | more)


def losses(history):
    return [[entry[part] for part in entry if part.startswith("loss") and entry[part] is not None] for entry in history]


def everything(folder):
    """Every case on the processes that are there: losses of each iteration, and the state at the end."""
    with processes("cpu") as process:
        found = {}
        for name in CASES:
            run = build(name, folder / name, process=process)
            found[name] = losses(run.run().curve), state(run)
        return found


def stopped(folder):
    """Two processes, of which the second is told to stop in iteration 3; then nothing but the checkpoint is left."""
    with processes("cpu") as process:
        run = build("valid", folder, process=process, stop=StopRequest())
        calls = iter(range(1, 100))

        def hook(*_):
            if process.rank == 1 and next(calls) == 3:
                run.stop.reason = "SIGTERM"

        run.model.register_forward_pre_hook(hook)
        run.run()


def continued(folder):
    with processes("cpu") as process:
        run = build("valid", folder, process=process)
        started = run.iteration
        return started, losses(run.run().curve)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    torch.set_num_threads(1)
    return everything(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_is_one(tmp_path, alone, world):
    """Batch, data order, dropout, loss average, statistics, schedule: the same curve and weights, but for rounding."""
    for rank, found in enumerate(launch(world, everything, tmp_path)):
        for name, (curve, tensors) in found.items():
            np.testing.assert_allclose(curve, alone[name][0], rtol=1e-9, err_msg=f"{name}, rank {rank}")
            assert tensors.keys() == alone[name][1].keys()
            for key, tensor in alone[name][1].items():
                torch.testing.assert_close(tensors[key], tensor, rtol=1e-8, atol=1e-8, msg=f"{name}: {key}")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run that was stopped on two processes."""
    folder = tmp_path_factory.mktemp("two")
    for error in launch(2, stopped, folder):
        assert isinstance(error, Interrupted)
        assert "stopped after iteration 3 of 5" in str(error)
    return folder


def test_an_interrupted_run_goes_on_with_another_number_of_processes(tmp_path, alone, two):
    started, curve = continued(shutil.copytree(two, tmp_path / "one"))
    assert started == 3
    np.testing.assert_allclose(curve, alone["valid"][0], rtol=1e-9)


@pytest.mark.parametrize("case", ["all", "valid", "replicas"])
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_is_the_whole_batch(tmp_path, parts, case):
    """Without batch norm, micro-batches are the whole batch: averages, dropout and the means of replicas too."""
    curves = []
    for accumulate in (1, parts):
        settings = tiny_row(iterations=STEPS, numerics={"accumulate": accumulate}, **CASES[case])
        numerics.seed_initialisation(0)
        model = TinyNet(norm=False)
        run = trainer(settings, tmp_path / str(accumulate), model=model, dataset=Uneven(), double=True)
        curves.append(losses(run.run().curve))
    np.testing.assert_allclose(*curves, rtol=1e-9)


# what is refused


def test_batch_that_does_not_divide(tmp_path):
    with pytest.raises(ConfigError, match=r"schedule\.batch_size 4 does not .* 3 processes; start one of 1, 2, 4"):
        trainer(tiny_row(), tmp_path, process=Process(world=3))


def test_a_gpu_that_is_not_there():
    count = torch.cuda.device_count()
    with pytest.raises(TrainingError, match=rf"cuda:{count} is not there \({count} GPUs"):
        select_device(f"cuda:{count}")
    with pytest.raises(TrainingError, match="all 2 processes would use one GPU"):
        select_device("cuda:0", 0, 2)
    with pytest.raises(TrainingError, match="unknown; allowed: cpu, cuda"):
        select_device("gpu")


@pytest.mark.gpu
def test_fewer_gpus_than_processes():
    count = torch.cuda.device_count()
    for rank in range(count + 1):  # all of them, so that nobody waits for the others
        with pytest.raises(TrainingError, match=rf"{count + 1} processes .* has {count} GPUs .* {count}\)"):
            select_device(None, rank, count + 1)
    assert select_device(None, count - 1, count) == torch.device("cuda", count - 1)


def with_torch(versions):
    import os

    torch.__version__ = versions[int(os.environ["RANK"])]
    with processes("cpu"):
        pass


def test_a_node_with_other_software():
    for error in launch(2, with_torch, ["2.12", "2.11.0+cpu"]):
        assert isinstance(error, TrainingError)
        assert "processes differ in torch: rank 0 on " in str(error)
        assert "has 2.11.0+cpu; give every node the same environment" in str(error)


def test_a_process_that_does_not_come(monkeypatch):
    from datetime import timedelta

    monkeypatch.setattr(distributed, "ARRIVAL", timedelta(seconds=1))
    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(TrainingError, match=r"process 0 of 2 on .* could not meet the others"), processes("cpu"):
        pass


def own_folder(folder):
    with processes("cpu") as process:
        process.agree({"settings": "abc"}, "fine")
        build("valid", folder / f"rank{process.rank}", process=process)


def test_files_that_differ_between_nodes(tmp_path, two):
    shutil.copytree(two, tmp_path / "rank0")
    for error in launch(2, own_folder, tmp_path):
        assert isinstance(error, TrainingError)
        assert "of the checkpoint: rank 0 on" in str(error)
        assert "has 3, rank 1 on" in str(error)
        assert "shared file system" in str(error)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_are_one(tmp_path):
    one = build("valid", tmp_path / "one", double=False, process=replace(Process(), device=torch.device("cuda", 0)))
    curve = losses(one.run().curve)
    for found in launch(2, on_gpus, tmp_path / "two"):
        np.testing.assert_allclose(found, curve, rtol=1e-4)


def on_gpus(folder):
    with processes("cuda") as process:
        return losses(build("valid", folder, double=False, process=process).run().curve)
