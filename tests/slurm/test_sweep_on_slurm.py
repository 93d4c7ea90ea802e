"""A sweep of the demo's rows on real Slurm with two emulated nodes: pre-emption, a lost node, a row on two nodes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.small_sweep import environment, make_workspace, sweep_command
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm

ROWS = ("demo-r50-d16-voc2012", "demo-r101-d16-voc2012")
ITERATIONS, CHECKPOINTS = 40, 8


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Path:
    folder = make_workspace(
        tmp_path_factory.mktemp("sweep"), ROWS, iterations=ITERATIONS, checkpoint_interval=CHECKPOINTS
    )
    cluster.environment = {**environment(folder), **{k: cluster.environment[k] for k in ("PATH", "SLURM_CONF")}}
    return folder


def sweep(cluster: Cluster, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        sweep_command(*options), cwd=folder, env=cluster.environment, capture_output=True, text=True, check=False
    )


def status(cluster: Cluster, folder: Path) -> dict[str, dict[str, Any]]:
    result = sweep(cluster, folder, "--status", "--format", "json")
    assert result.returncode == 0, result.stderr
    return {each["row"]: each for each in json.loads(result.stdout)}


def record(folder: Path) -> dict[str, Any]:
    newest = max((folder / "build" / "sweep").glob("*/sweep.json"))
    return {**json.loads(newest.read_text()), "folder": newest.parent}


def log(folder: Path, row: str) -> str:
    path = record(folder)["folder"] / "logs" / f"{row}.log"
    return path.read_text() if path.exists() else ""


def train_json(folder: Path, row: str) -> dict[str, Any]:
    path = folder / "reports" / "metrics" / "demo" / row / "train.json"
    (run,) = json.loads(path.read_text())["runs"]
    return dict(run)


def test_a_sweep_lives_through_preemption_and_a_lost_node(cluster: Cluster, workspace: Path) -> None:
    preempted, orphaned = ROWS
    submitted = sweep(cluster, workspace, "--slurm", "--cpus-per-task", "2", "--array-limit", "2")
    assert submitted.returncode == 0, submitted.stderr
    cluster.say("submitted:\n" + submitted.stderr.rstrip())
    jobs = record(workspace)["jobs"]
    assert set(jobs) == {"data", "weights", "train", "evaluate", "report"}

    again = sweep(cluster, workspace, "--slurm", "--rows", preempted)
    assert again.returncode == 2
    assert "live Slurm jobs" in again.stderr
    cluster.say("submitted a second time: " + again.stderr.strip())

    first, second = (f"{jobs['train']}_{index}" for index in range(2))
    cluster.wait(
        "trainings under way",
        lambda: all(f"iter {CHECKPOINTS + 1}/{ITERATIONS}" in log(workspace, row) for row in ROWS),
        300,
    )
    nodes = {task: cluster.queue()[task].split()[1] for task in (first, second)}
    assert set(nodes.values()) == {"node1", "node2"}
    shown = status(cluster, workspace)
    assert {shown[row]["state"] for row in ROWS} == {"running"}
    cluster.say("status: " + json.dumps(list(shown.values())))

    cluster.say(f"pre-empting {preempted} ({first} on {nodes[first]}): scontrol requeue")
    cluster.run("scontrol", "requeue", first)
    cluster.say(f"taking {nodes[second]} away from {orphaned} ({second}): slurmd and all its processes killed")
    cluster.take_away(nodes[second])

    cluster.wait("end of the jobs", lambda: not cluster.queue(), 400)
    cluster.bring_back(nodes[second])
    for row in ROWS:
        lines = log(workspace, row).splitlines()
        told = [line for line in lines if line.startswith("==") or "goes on" in line or "stopped" in line]
        cluster.say(f"{row}:\n  " + "\n  ".join(told))
    saved, lost = (train_json(workspace, row) for row in ROWS)
    assert saved["resumed"] == lost["resumed"] == 1
    stop = int(log(workspace, preempted).split("goes on after iteration ")[1].split()[0])
    assert f"stopped after iteration {stop} of {ITERATIONS} " in log(workspace, preempted)
    back = int(log(workspace, orphaned).split("goes on after iteration ")[1].split()[0])
    assert back >= CHECKPOINTS
    assert back % CHECKPOINTS == 0  # nobody told it to save: from its last checkpoint
    for row in ROWS:
        assert f"iter {ITERATIONS}/{ITERATIONS}" in log(workspace, row)
        assert log(workspace, row).count(f"iter 1/{ITERATIONS} ") == 1

    done = sweep(cluster, workspace, "--status")
    cluster.say("status at the end:\n" + done.stdout.rstrip())
    assert {each["state"] for each in status(cluster, workspace).values()} == {"done"}
    table = (workspace / "reports" / "demo.md").read_text()
    assert all(row in table for row in ROWS)
    nothing = sweep(cluster, workspace, "--slurm")
    assert "nothing to submit" in nothing.stderr


def test_a_row_on_two_nodes_is_one_training(cluster: Cluster, workspace: Path) -> None:
    from tests.pipelines.small_sweep import edit

    row = ROWS[0]
    edit(workspace / "params.yaml", lambda params: params["rows"][row].update(iterations=4))
    submitted = sweep(cluster, workspace, "--slurm", "--rows", row, "--nodes-per-row", "2", "--cpus-per-task", "1")
    assert submitted.returncode == 0, submitted.stderr
    assert set(record(workspace)["jobs"]) == {"train", "evaluate", "report"}
    cluster.wait("end of the jobs", lambda: not cluster.queue(), 400)
    cluster.say("a row on two nodes:\n  " + "\n  ".join(log(workspace, row).splitlines()[:12]))
    run = train_json(workspace, row)
    assert run["iterations"] == 4
    assert run["provenance"]["processes"] == 2
    assert status(cluster, workspace)[row]["state"] == "done"
