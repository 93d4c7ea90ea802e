"""Whole sweeps of small rows: two at a time, stopped, killed and continued, and results shared by a DVC remote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from danet.config.rows import Params, load_params
from danet.config.workspace import Workspace
from danet.results import tracking
from pipelines.sweep import local
from pipelines.sweep.plan import choose_rows, make_plan
from tests.pipelines.small_sweep import ROWS, edit, environment, make_workspace, sweep_command, use
from tests.slurm.cluster import free_ports

FIRST, SECOND, BAD = ROWS
ITERATIONS = 48


def wait(what: str, ready: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.2)


def sweep(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        sweep_command(*options), cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )


def log(folder: Path, row: str) -> str:
    found = sorted((folder / "build" / "sweep").glob(f"*/logs/{row}.log"))
    return found[-1].read_text() if found else ""


def status(folder: Path) -> dict[str, dict[str, Any]]:
    result = sweep(folder, "--status", "--format", "json")
    assert result.returncode == 0, result.stderr
    return {each["row"]: each for each in json.loads(result.stdout)}


def runs(folder: Path, row: str) -> dict[str, Any]:
    (run,) = json.loads((folder / "reports" / "metrics" / "demo" / row / "train.json").read_text())["runs"]
    return dict(run)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rows, of which the last cannot be trained."""
    folder = make_workspace(tmp_path_factory.mktemp("sweep"), iterations=ITERATIONS)
    edit(folder / "params.yaml", lambda params: params["rows"][BAD].update(optimizer={"lr": 1e12, "weight_decay": 1e9}))
    return folder


@pytest.mark.slow
def test_two_at_a_time_stopped_and_continued(workspace: Path) -> None:
    with subprocess.Popen(
        sweep_command("--jobs", "2"),
        cwd=workspace,
        env=environment(workspace),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as first:
        wait("two trainings", lambda: all(f"iter 3/{ITERATIONS}" in log(workspace, row) for row in (FIRST, SECOND)))
        other = sweep(workspace, "--rows", FIRST)
        assert other.returncode == 2
        assert f"(process {first.pid} on" in other.stderr
        assert {row: each["state"] for row, each in status(workspace).items()} == {
            FIRST: "running", SECOND: "running", BAD: "not run",
        }  # fmt: skip
        first.send_signal(signal.SIGINT)
        shown, _ = first.communicate(timeout=120)
    assert first.returncode == 75, shown
    assert "0 done, 0 failed, 3 remain" in shown
    for row in (FIRST, SECOND):
        assert f"of {ITERATIONS} (SIGTERM), saved" in log(workspace, row)
        assert status(workspace)[row]["state"] == "stopped"

    second = sweep(workspace, "--jobs", "2")
    assert second.returncode == 1, second.stderr
    assert "2 done, 1 failed, 0 remain" in second.stdout
    failed = next(line for line in second.stdout.splitlines() if line.startswith(BAD))
    assert "failed" in failed
    assert f"{BAD}.log" in second.stdout
    assert "not finite" in log(workspace, BAD) or "loss is" in log(workspace, BAD)
    for row in (FIRST, SECOND):
        assert runs(workspace, row)["resumed"] == 1
        assert log(workspace, row).count(f"iter 1/{ITERATIONS} ") == 1
    assert {row: each["state"] for row, each in status(workspace).items()} == {
        FIRST: "done", SECOND: "done", BAD: "failed",
    }  # fmt: skip
    assert FIRST in (workspace / "reports" / "demo.md").read_text()
    assert len(list((workspace / "build" / "sweep").glob("*/sweep.json"))) == 1  # it went on with the same sweep


@pytest.mark.slow
def test_a_sweep_killed_outright_leaves_trainers_that_the_next_one_waits_for(workspace: Path) -> None:
    edit(workspace / "params.yaml", lambda params: params["rows"][FIRST].update(iterations=ITERATIONS + 1))
    with subprocess.Popen(
        sweep_command("--rows", FIRST), cwd=workspace, env=environment(workspace), stderr=subprocess.DEVNULL
    ) as first:
        wait("a training", lambda: f"iter 3/{ITERATIONS + 1}" in log(workspace, FIRST))
        first.kill()
    second = sweep(workspace, "--rows", FIRST)
    assert second.returncode == 0, second.stderr
    assert "waiting for process" in second.stderr
    assert log(workspace, FIRST).count(f"iter 1/{ITERATIONS + 1} ") == 1
    assert runs(workspace, FIRST)["resumed"] == 0
    assert status(workspace)[FIRST]["state"] == "done"


@pytest.mark.slow
def test_a_row_on_two_gpus_is_one_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_workspace(tmp_path, (FIRST,), iterations=3)
    use(folder, monkeypatch)
    workspace = Workspace(folder)
    plan = make_plan(workspace, choose_rows(workspace.params()))
    assert local.run(plan, workspace, local.Slots((("0", "1"),))) == 0  # without GPUs the processes use the CPU
    assert runs(folder, FIRST)["provenance"]["processes"] == 2


@pytest.mark.slow
def test_a_second_machine_pulls_what_the_first_has_made(tmp_path: Path) -> None:
    first = make_workspace(tmp_path / "first", (FIRST,), iterations=3)
    under_git(first, remote=tmp_path / "remote")
    shell(first, "dvc", "repro", environment=environment(first))
    shell(first, "git", "add", ".")
    shell(first, "git", "commit", "-qm", "results")
    shell(first, "dvc", "push")

    second = tmp_path / "second"
    shell(tmp_path, "git", "clone", "-q", str(first), str(second))
    weights = Path("models") / FIRST / "seed0.safetensors"
    assert not (second / weights).exists()
    shown = shell(second, "dvc", "repro", "--pull", "--allow-missing", environment=environment(second))
    assert "Running stage" not in shown
    assert status(second)[FIRST]["at"] == "on another machine; `dvc pull` brings it here"
    assert f"{FIRST}: up to date" in sweep(second, "--pull", "--dry-run").stderr
    assert shell(second, "git", "status", "--porcelain") == ""
    shell(second, "dvc", "pull")
    assert (second / weights).read_bytes() == (first / weights).read_bytes()
    assert json.loads(shell(second, "dvc", "status", "--json")) == {}
    planned = sweep(second, "--dry-run")
    assert f"{FIRST}: up to date" in planned.stderr


def under_git(folder: Path, *, remote: Path) -> None:
    """A demo's workspace as a repository of its own, with a folder as DVC's remote."""
    shutil.rmtree(folder / ".dvc")
    pipeline = (folder / "dvc.yaml").read_bytes()
    (folder / "dvc.yaml").unlink()
    (folder / "dvc.yaml").write_bytes(pipeline)
    (folder / ".gitignore").write_text("/archives/\n/build/\n/checkpoints/\n/mlruns/\n/mlflow.db*\n")
    for command in (
        ("git", "init", "-q"),
        ("git", "config", "user.email", "someone@example.com"),
        ("git", "config", "user.name", "Someone"),
        ("dvc", "init", "-q"),
        ("dvc", "remote", "add", "--default", "shared", str(remote)),
    ):
        shell(folder, *command)


def shell(folder: Path, *command: str, environment: Any = None) -> str:
    if command[0] == "dvc":
        command = (sys.executable, "-m", *command)
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


# the parent run


def nested(uri: str, params: Params, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Logs two runs of a sweep as its rows' processes would, and reads them back."""
    from mlflow import MlflowClient

    patch.setenv("MLFLOW_TRACKING_URI", uri)
    workspace, row = Workspace(folder), params.row("camvid-r50-d16")
    title = tracking._experiment_name(row, workspace)
    assert tracking.sweep_runs("20260101-000000", [title], workspace, status="RUNNING") is None
    patch.setenv(tracking.SWEEP, "20260101-000000")
    for seed in (0, 1):
        with tracking.run(row, "train", seed, workspace) as tracker:
            tracker.metrics(1, {"loss": 1.0})
    assert tracking.sweep_runs("20260101-000000", [title], workspace, status="FINISHED") is None
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(title).experiment_id])
    (parent,) = [run for run in found if run.data.tags["stage"] == "sweep"]
    assert (parent.info.run_name, parent.info.status) == ("sweep 20260101-000000", "FINISHED")
    children = [run for run in found if run is not parent]
    assert {run.data.tags["seed"] for run in children} == {"0", "1"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}


@pytest.mark.filterwarnings("ignore")
def test_runs_of_a_sweep_hang_under_one_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    nested(f"sqlite:///{tmp_path / 'mlflow.db'}", params, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_runs_of_a_sweep_hang_under_one_parent_on_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with subprocess.Popen(
        [*command, "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"],
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            wait("server", lambda: answers(port), 120)
            nested(f"http://127.0.0.1:{port}", params, tmp_path, monkeypatch)
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def answers(port: int) -> bool:
    import requests

    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=2).ok
    except requests.RequestException:
        return False
