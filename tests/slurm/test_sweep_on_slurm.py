"""A sweep of the demo's rows on real Slurm with two emulated nodes: pre-emption, a time limit, a lost node."""

import json
import re

import pytest

from tests.pipelines.small_sweep import environment, make_workspace, reached, states, sweep
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm

ROWS = ("demo-r50-d16-voc2012", "demo-r101-d16-voc2012")
ITERATIONS, CHECKPOINTS = 60, 8


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def log(folder, row):
    path = folder / "build" / "sweep" / f"{row}.log"
    return path.read_text() if path.exists() else ""


def starts(folder, row):
    """The iterations after which a row's training went on."""
    return [int(number) for number in re.findall(r"goes on after iteration (\d+)", log(folder, row))]


def test_a_sweep_lives_through_preemption_a_time_limit_and_a_lost_node(cluster, tmp_path):
    folder = make_workspace(tmp_path, ROWS, iterations=ITERATIONS, checkpoint_interval=CHECKPOINTS)
    cluster.environment = {**environment(folder), **{k: cluster.environment[k] for k in ("PATH", "SLURM_CONF")}}
    stopped, orphaned = ROWS
    options = ("--jobs", "2", "--gpus-per-row", "0", "--slurm", "--cpus-per-task 2")
    submitted = sweep(folder, *options, env=cluster.environment)
    assert submitted.returncode == 0, submitted.stderr
    cluster.say(submitted.stderr)
    assert set(states(folder, cluster.environment).values()) == {"queued"}
    jobs = [json.loads((folder / "build" / "sweep" / f"{row}.json").read_text())["job"] for row in ROWS]
    queued = set(cluster.queue())
    again = sweep(folder, *options, env=cluster.environment)
    cluster.say(f"submitted a second time:\n{again.stdout}{again.stderr}")
    assert set(cluster.queue()) <= queued

    cluster.wait("trainings", lambda: min(reached(folder, row) for row in ROWS) > CHECKPOINTS, 300)
    nodes = {job: cluster.queue()[job].split()[1] for job in jobs}
    assert set(nodes.values()) == {"node1", "node2"}
    cluster.say("status:\n" + sweep(folder, "--status", env=cluster.environment).stdout)
    assert set(states(folder, cluster.environment).values()) == {"running"}

    cluster.say(f"taking {nodes[jobs[1]]} away from {orphaned} ({jobs[1]}): slurmd and all its processes killed")
    cluster.take_away(nodes[jobs[1]])
    cluster.say(f"pre-empting {stopped} ({jobs[0]} on {nodes[jobs[0]]}): scontrol requeue")
    cluster.run("scontrol", "requeue", jobs[0])
    cluster.wait("end of the pre-empted training", lambda: "stopped after iteration" in log(folder, stopped), 60)
    cluster.bring_back(nodes[jobs[1]])
    cluster.wait("second training", lambda: len(starts(folder, stopped)) == 1, 200)
    cluster.say(f"the time limit of {stopped} comes near: SIGUSR1 to the batch script, as by --signal=B:USR1@120")
    cluster.run("scancel", "--batch", "--signal=USR1", jobs[0])

    cluster.wait("end of the jobs", lambda: not cluster.queue(), 500)
    for row in ROWS:
        lines = [line for line in log(folder, row).splitlines() if re.search(r"^==|goes on|stopped after", line)]
        cluster.say(f"{row}:\n  " + "\n  ".join(lines))
    told = [int(number) for number in re.findall(r"stopped after iteration (\d+)", log(folder, stopped))]
    assert starts(folder, stopped) == told  # nothing was lost
    assert len(told) == 2
    (back,) = starts(folder, orphaned)
    assert back % CHECKPOINTS == 0  # nobody told it to save: from its last checkpoint
    for row in ROWS:
        assert reached(folder, row) == ITERATIONS
        begun = log(folder, row).count(f"seed 0: {ITERATIONS} iterations of ")
        assert begun == 1 + len(starts(folder, row))  # it began from nothing once

    cluster.say("status at the end:\n" + sweep(folder, "--status", env=cluster.environment).stdout)
    assert set(states(folder, cluster.environment).values()) == {"done"}
    table = (folder / "reports" / "demo.md").read_text()
    assert all(row in table for row in ROWS)
