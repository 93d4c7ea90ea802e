"""A real ``dvc repro`` that is killed or interrupted leaves no trainer behind, and the next one goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

ROOT = Path(__file__).parents[2]
PIPELINE = """
stages:
  train:
    cmd: {python} stage.py {extra}
    outs: [models/tiny]
"""
STAGE = """
import os, sys, time
here = os.getcwd()
sys.path.insert(0, {root!r})
os.chdir({root!r})  # where the parameters are
import safetensors.torch, torch
torch.set_num_threads(1)
from danet.training import train as training
from danet.config.workspace import Workspace
from pipelines import dvc_died, stage
from tests.training.fakes import Images, TinyNet, tiny_row

def slow(module, _):
    time.sleep(0.02)

def build(*_):
    model = TinyNet()
    model.register_forward_pre_hook(slow)
    return model

training._open_split = lambda *_: Images()
training._initial_weights = lambda *_: None
training._build_model = build
training._save_model = lambda path, model, *_: safetensors.torch.save_file(model.state_dict(), path)
row = tiny_row(iterations=200, runtime={{"checkpoint_interval": 10**6, "log_interval": 5, "workers": 1}})
os.chdir(here)
stage(lambda *_: training.train_row(row, Workspace(), device="cpu", orphaned=dvc_died()))
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "stage.py").write_text(STAGE.format(root=str(ROOT)))
    # a command with && keeps the shell between DVC and Python, which a plain one replaces
    (tmp_path / "dvc.yaml").write_text(PIPELINE.format(python=sys.executable, extra="&& true"))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=tmp_path, check=True)
    yield tmp_path
    for process in trainers(tmp_path):
        process.kill()


def repro(folder: Path, log: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SHELL": "/bin/sh"}
    environment.pop("DVC_STAGE", None)
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=folder, env=environment, stdout=(folder / log).open("wb"), stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def trainers(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if "stage.py" in process.cmdline() and Path(process.cwd()) == folder.resolve():
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(log: Path, words: str, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        text = log.read_text()
        if re.search(words, text):
            return text
        time.sleep(0.05)
    raise AssertionError(f"no {words!r} in: {log.read_text()}")


def saved(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").rglob("iteration_*.pt"))


def test_dvc_killed_outright(workspace: Path) -> None:
    """The orphan notices, saves and stops; a second ``dvc repro``, started at once, waits for it and goes on."""
    first = repro(workspace, "first.log")
    wait_for(workspace / "first.log", r"iter 10/200")
    assert saved(workspace) == []
    first.kill()
    first.wait()
    second = repro(workspace, "second.log")
    text = wait_for(workspace / "first.log", "stopped after iteration")
    assert "the DVC that started this has ended" in text
    assert "run the same command again" in text
    stopped = int(re.findall(r"stopped after iteration (\d+) of 200", text)[0])
    assert 10 <= stopped < 200
    assert second.wait(timeout=120) == 0, (workspace / "second.log").read_text()
    assert f"goes on after iteration {stopped} of 200" in (workspace / "second.log").read_text()
    assert not trainers(workspace)
    assert (workspace / "models" / "tiny" / "seed0.safetensors").exists()


def test_dvc_interrupted(workspace: Path) -> None:
    """Ctrl-C reaches every process of the terminal: the trainer saves, DVC reports that the stage did not finish."""
    (workspace / "dvc.yaml").write_text(PIPELINE.format(python=sys.executable, extra=""))
    first = repro(workspace, "first.log")
    wait_for(workspace / "first.log", r"iter 10/200")
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait(timeout=60) != 0
    text = (workspace / "first.log").read_text()
    stopped = int(re.findall(r"stopped after iteration (\d+) of 200 \(SIGINT\)", text)[0])
    # the trainer's own status is 75; a shell in between that heard the signal too may die of it instead
    assert re.search(r"failed to reproduce 'train'.*exited with (75|-2|130)", " ".join(text.split()))
    (path,) = saved(workspace)
    assert torch.load(path, weights_only=True)["iteration"] == stopped
    deadline = time.monotonic() + 20
    while trainers(workspace) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not trainers(workspace)
