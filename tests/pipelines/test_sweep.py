"""Sweeps: what is planned and shown, jobs and their stops through real DVC, scripts for Slurm, and whole sweeps."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from danet.config.workspace import Workspace
from danet.config.yaml import write_raw
from danet.core.errors import ConfigError, DanetError
from danet.core.files import write_json
from danet.training.progress import STATUS
from pipelines.sweep import local
from pipelines.sweep.__main__ import choose_numerics
from pipelines.sweep.job import home, last_words, log_path, read_state, write_state
from pipelines.sweep.launch import PROCESSES
from pipelines.sweep.plan import Plan, check_divisible, choose_rows, make_plan
from pipelines.sweep.slurm import submit
from pipelines.sweep.status import print_status, survey
from tests.parameters import PARAMS, ROOT, raw_params
from tests.pipelines.programs import dvc
from tests.pipelines.small_sweep import ROWS, environment, make_workspace, reached, states, sweep

VOC, ADE = "ssseg-r50-d16-voc2012", "ssseg-r50-d16-ade20k"


def plan_of(*names, stale=None):
    """All stages of the rows are to do, unless ``stale`` says which."""
    rows = tuple(PARAMS.row(name) for name in names)
    if stale is None:
        stale = {f"{stage}@{row.dataset}" for row in rows for stage in ("download", "convert")}
        stale |= {f"weights@{row.weights}" for row in rows}
        stale |= {f"{stage}@{name}" for name in names for stage in ("train", "evaluate")}
    return Plan(PARAMS, rows, frozenset(stale), frozenset(stale))


@pytest.fixture
def workspace(tmp_path):
    write_raw(raw_params(), tmp_path)
    return Workspace(tmp_path)


def test_numerics_are_chosen_for_all_rows(workspace):
    file = workspace.root / "numerics.yaml"
    before, profile = file.read_text(), workspace.params().profile
    choose_numerics(workspace, "fast", look=False)
    assert workspace.params().row(VOC).profile == "fast"
    with pytest.raises(ConfigError, match=r"numerics\.yaml: names numerics fast; write"):
        choose_numerics(workspace, profile, look=True)
    choose_numerics(workspace, profile, look=False)
    assert file.read_text() == before
    with pytest.raises(ConfigError, match=r"--numerics quick: no such profile; allowed: .*published"):
        choose_numerics(workspace, "quick", look=False)


def wait(what, ready, seconds=180):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.2)


# what is planned


def test_rows_are_chosen_by_table_and_name_once():
    chosen = choose_rows(PARAMS, ["official"], [f"{VOC},{ADE}", VOC])
    assert [row.name for row in chosen] == [row.name for row in PARAMS.table_rows("official")] + [VOC, ADE]
    assert {row.name for row in choose_rows(PARAMS)} == set(PARAMS.rows)
    with pytest.raises(ConfigError, match=VOC):
        choose_rows(PARAMS, [], [f"{VOC}x"])


def test_what_is_left():
    other = "ssseg-r101-d16-voc2012"
    plan = plan_of(VOC, other)
    assert plan.shared(plan.rows) == [
        "download@voc2012,convert@voc2012", "weights@resnet50_v1c", "weights@resnet101_v1c",
    ]  # fmt: skip
    assert plan.chains(plan.rows[0]) == [f"train@{VOC},evaluate@{VOC}"]
    plan = plan_of(VOC, ADE, stale={f"evaluate@{VOC}"})
    assert plan.shared(plan.rows) == []
    assert [plan.chains(row) for row in plan.rows] == [[f"evaluate@{VOC}"], []]
    plan = plan_of(VOC, ADE, stale={"convert@ade20k"})  # new data means training again
    assert [plan.chains(row) for row in plan.rows] == [[], [f"train@{ADE},evaluate@{ADE}"]]
    assert plan.shared(plan.rows) == ["convert@ade20k"]


def test_a_batch_that_does_not_divide_is_refused_with_all_such_rows():
    rows = [PARAMS.row(VOC), PARAMS.row(ADE)]
    check_divisible(rows, 8)
    with pytest.raises(ConfigError, match=rf"over 3 GPUs: {VOC} \(16\), {ADE} \(16\)"):
        check_divisible(rows, 3)


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """GPUs 0 and 1, of which nvidia-smi says that 1 is in use."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text('#!/bin/sh\ncase $1 in *apps*) echo "GPU-b, 77";; *) printf "0, GPU-a\\n1, GPU-b\\n";; esac\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1"])
    return fake


def test_rows_share_out_the_free_gpus(two_gpus):
    def places(**asked):
        return local.choose_places(**{"gpus_per_row": None, "gpus": None, "jobs": None, **asked})

    assert places() == ["0"]
    assert places(gpus="0,1") == ["0", "1"]
    assert places(gpus="0,1", gpus_per_row=2) == ["0,1"]
    assert places(gpus="none", jobs=2) == ["", ""]
    for asked, message in (
        ({"gpus_per_row": 2}, "only 1 GPUs are free"),
        ({"gpus": "7"}, "GPU 7 is not here; visible: 0, 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            places(**asked)
    two_gpus.write_text("#!/bin/sh\nexit 9\n")  # a driver that does not answer
    assert places() == ["0", "1"]


# jobs, on real DVC

PIPELINE = """
stages:
  bad: {cmd: 'echo "error: the disk is full"; false', outs: [bad.txt]}
  good: {cmd: 'echo fine > good.txt', outs: [good.txt]}
  slow: {cmd: '%s slow.py', outs: [slow.txt]}
"""
SLOW = """
import os, signal, time
def stop(number, frame):
    open("stopped", "w").write(signal.Signals(number).name)
    raise SystemExit(75)
signal.signal(signal.SIGINT, stop)
open("started", "w").write(str(os.getpid()))
time.sleep(120)
"""


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "dvc.yaml").write_text(PIPELINE % sys.executable)
    (tmp_path / "slow.py").write_text(SLOW)
    assert dvc(tmp_path, "init", "-q", "--no-scm") == 0
    yield Workspace(tmp_path)
    if (started := tmp_path / "started").exists() and psutil.pid_exists(int(started.read_text())):
        os.kill(int(started.read_text()), signal.SIGKILL)


def python(workspace, *arguments):
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=workspace.root, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


def job(workspace, *arguments):
    return python(workspace, "-m", "pipelines.sweep.job", *arguments)


def test_a_failed_chain_stops_itself_alone(tiny):
    assert job(tiny, "row", "bad,slow", "good").wait(timeout=60) == 1
    assert (tiny.root / "good.txt").exists()
    assert not (tiny.root / "started").exists()
    state = read_state(tiny, "row")
    assert (state["state"], state["note"]) == ("failed", "error: the disk is full")
    assert job(tiny, "row", "good").wait(timeout=60) == 0
    assert read_state(tiny, "row")["state"] == "done"
    assert last_words(log_path(tiny, "row"), 0) == "error: the disk is full"


@pytest.mark.parametrize("killed", ["the stage", "the sweep"])
def test_a_stopped_job_leaves_no_stage(tiny, killed):
    """SIGINT kills the stage; a job whose sweep was killed outright asks the stage to save, and stops by itself."""
    started = tiny.root / "started"
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'pipelines.sweep.job', 'row', 'slow'])"
    with job(tiny, "row", "slow") if killed == "the stage" else python(tiny, "-c", code) as process:
        wait("stage", lambda: started.exists() and bool(started.read_text()))
        assert read_state(tiny, "row")["state"] == "running"
        process.send_signal(signal.SIGINT if killed == "the stage" else signal.SIGKILL)
    wait("end", lambda: read_state(tiny, "row")["state"] == "stopped")
    wait("end of the stage", lambda: not psutil.pid_exists(int(started.read_text())))
    assert (tiny.root / "stopped").exists() == (killed == "the sweep")


def test_a_stage_becomes_several_processes():
    """By torchrun, whose children are the stage itself."""
    code = "from pipelines.sweep.launch import launched; launched('tests.pipelines.small_rank')"
    environment = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    environment |= {PROCESSES: "2", "PYTHONPATH": str(ROOT)}
    stage = [sys.executable, "-c", code, "a row"]
    done = subprocess.run(stage, env=environment, capture_output=True, text=True, check=False)
    assert sorted(done.stdout.splitlines()) == ["0 of 2: a row", "1 of 2: a row"], done.stderr


# what is shown


@pytest.mark.usefixtures("no_environment")
def test_status_tells_where_each_row_is(workspace, capsys):
    names = [row.name for row in PARAMS.table_rows("sssegmentation") if row.dataset != "cityscapes"]
    running, failed, stopped, trained, done, new = names[:6]
    blocked = "official-danet-r101-d8-cityscapes"
    stale = {f"{s}@{name}" for name in (running, failed, stopped, new, blocked) for s in ("train", "evaluate")}
    stale |= {f"evaluate@{trained}", "download@cityscapes", "convert@cityscapes"}
    plan = plan_of(*names[:6], blocked, stale=stale)
    write_state(workspace, failed, "failed", note="error: no [space] left")
    for name, iteration in ((running, 5), (stopped, 7)):
        folder = workspace.checkpoints(PARAMS.row(name), 0)
        status = {"row": name, "seed": 0, "iteration": iteration, "total": 9, "eta_seconds": 75, "updated": ""}
        write_json(folder / STATUS, status)
    with FileLock(workspace.checkpoints(PARAMS.row(running), 0).parent / "train.lock"):
        found = {each.row.name: each for each in survey(plan, workspace)}
    assert {name: each.state for name, each in found.items()} == {
        running: "running", failed: "failed", stopped: "stopped", trained: "trained", done: "done", new: "not run",
        blocked: "blocked",
    }  # fmt: skip
    assert (found[running].time, found[running].at) == ("0:01:15 left", "5/9")
    assert found[stopped].at == "7/9"
    assert "CITYSCAPES_USERNAME" in found[blocked].note
    print_status(list(found.values()))
    shown = capsys.readouterr().out
    table = shown.split("\n\n", maxsplit=1)[0].splitlines()
    assert len(table) == 8
    assert all(len(line) <= 80 for line in table)
    assert "error: no [space] left" in shown
    assert str(log_path(workspace, failed)) in shown


# Slurm's commands as programs of a few lines; the real ones are in tests/slurm

SBATCH = """#!/bin/sh
echo "$@" >> "$0.log"
for last; do :; done
case $last in *report*) if [ -e "$0.full" ]; then echo "queue is full" >&2; exit 1; fi; esac
wc -l < "$0.log"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = tmp_path / "slurm commands"
    folder.mkdir()
    queue = 'echo "2_0|RUNNING|n1|None"; echo "2_1|PENDING||Resources"'
    programs = {"sbatch": SBATCH, "squeue": queue, "scancel": 'echo "$@" > "$0.log"'}
    for name, text in programs.items():
        (folder / name).write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_rows_are_submitted_as_one_array(workspace, cluster):
    plan = plan_of(VOC, ADE)
    assert submit(plan, plan.rows, workspace, '--partition gpu --comment "my rows"', gpus=4, limit=2) == 0
    text = (home(workspace) / "rows.sh").read_text()
    directives = re.findall(r"^#SBATCH --(\S+)$", text, re.MULTILINE)
    assert {"array=0-1%2", "gpus-per-node=4", "requeue", "signal=B:USR1@120"} <= set(directives)
    data, rows, report = (cluster / "sbatch.log").read_text().splitlines()
    assert "--dependency" not in data
    assert "--dependency=afterany:1 --partition gpu --comment my rows" in rows
    assert "--dependency=afterany:2" in report
    assert "gpus" not in (home(workspace) / "data.sh").read_text()

    lines = text.replace("exec ", "printf '%s\\n' ").splitlines()  # the task's words instead of the task
    task = subprocess.run(
        ["bash", "-c", "\n".join(lines)], env={"SLURM_ARRAY_TASK_ID": "1"}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert task[1:] == ["-m", "pipelines.sweep.job", ADE, f"train@{ADE},evaluate@{ADE}"]

    assert [(each.state, each.at) for each in survey(plan, workspace)] == [
        ("running", "starting, job 2_0 on n1"), ("queued", "job 2_1: Resources"),
    ]  # fmt: skip


def test_what_slurm_refuses(workspace, cluster):
    plan = plan_of(VOC)
    (cluster / "sbatch.full").touch()
    with pytest.raises(DanetError, match=r"report\.sh.*queue is full"):
        submit(plan, plan.rows, workspace, "")
    assert (cluster / "scancel.log").read_text() == "1 2\n"  # nothing is left half submitted
    assert read_state(workspace, VOC) == {}
    with pytest.raises(ConfigError, match="quot"):
        submit(plan, plan.rows, workspace, '--comment "open')


# whole sweeps

FIRST, SECOND, BAD = ROWS
ITERATIONS = 40


def trained(folder, row):
    (run,) = json.loads((folder / "reports" / "metrics" / "demo" / row / "train.json").read_text())["runs"]
    return dict(run)


def trainers(folder):
    found = []
    for process in psutil.process_iter():
        try:
            if "pipelines.train" in process.cmdline() and Path(process.cwd()) == folder.resolve():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_stopped_killed_and_continued(tmp_path):
    """Three rows, of which the last cannot be trained: Ctrl-C, then ``kill -9``, then to the end."""
    optimizer = {"lr": 1e12, "weight_decay": 1e9}
    folder = make_workspace(tmp_path / "work", iterations=ITERATIONS, optimizer=optimizer)
    assert set(states(folder).values()) == {"not run"}

    def begin(*options):
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.sweep", *options],
            cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    with begin("--jobs", "2") as first:
        wait("two trainings", lambda: min(reached(folder, row) for row in (FIRST, SECOND)) >= 2)
        assert states(folder) == {FIRST: "running", SECOND: "running", BAD: "not run"}
        first.send_signal(signal.SIGINT)
        shown, _ = first.communicate(timeout=120)
    assert first.returncode == 75, shown
    assert trainers(folder) == []
    assert states(folder) == {FIRST: "stopped", SECOND: "stopped", BAD: "not run"}

    at = reached(folder, FIRST)
    with begin("--rows", FIRST) as second:
        wait("a training", lambda: reached(folder, FIRST) > at + 1)
        second.kill()
    wait("end of its job", lambda: read_state(Workspace(folder), FIRST)["state"] == "stopped")

    third = sweep(folder, "--jobs", "2")
    assert third.returncode == 1, third.stderr
    assert states(folder) == {FIRST: "done", SECOND: "done", BAD: "failed"}
    assert "finite" in third.stdout or "loss is" in third.stdout
    assert (trained(folder, FIRST)["resumed"], trained(folder, SECOND)["resumed"]) == (2, 1)
    assert FIRST in (folder / "reports" / "demo.md").read_text()


@pytest.mark.slow
def test_ctrl_c_in_dvc_saves_and_the_same_command_goes_on(tmp_path):
    folder = make_workspace(tmp_path, (FIRST,), iterations=ITERATIONS)

    def repro(log):
        command = [sys.executable, "-m", "dvc", "repro", f"train@{FIRST}"]
        with (folder / log).open("wb") as stream:
            return subprocess.Popen(
                command, cwd=folder, env=environment(folder), stdout=stream, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    first = repro("first.log")
    wait("a training", lambda: reached(folder, FIRST) >= 2)
    os.killpg(first.pid, signal.SIGINT)  # Ctrl-C reaches every process of the terminal
    assert first.wait(timeout=60) != 0
    wait("end of the training", lambda: trainers(folder) == [], 60)
    stopped = int(re.findall(r"stopped after iteration (\d+)", (folder / "first.log").read_text())[0])
    assert repro("second.log").wait(timeout=120) == 0
    assert f"goes on after iteration {stopped} of" in (folder / "second.log").read_text()


@pytest.mark.slow
def test_a_row_on_two_gpus_is_one_torchrun(tmp_path, monkeypatch):
    """Without GPUs its processes use the CPU. A stop reaches them through torchrun."""
    folder = make_workspace(tmp_path, (FIRST,), iterations=12)
    for key, value in environment(folder).items():
        monkeypatch.setenv(key, value)
    workspace = Workspace(folder)
    plan = make_plan(workspace, choose_rows(workspace.params()))
    running = local.Sweep(plan, plan.rows, workspace, ["0,1"])
    poll = running._poll

    def stop_at_two():
        running.stops = int(reached(folder, FIRST) >= 2)
        poll()

    monkeypatch.setattr(running, "_poll", stop_at_two)
    assert running.run() == 75
    assert local.run(make_plan(workspace, plan.rows), plan.rows, workspace, ["0,1"]) == 0
    run = trained(folder, FIRST)
    assert run["resumed"] == 1
    assert run["provenance"]["processes"] == 2


@pytest.mark.slow
def test_a_second_machine_runs_nothing_that_the_first_has_run(tmp_path):
    first, second = make_workspace(tmp_path / "first", (FIRST,), iterations=3), tmp_path / "second"
    pipeline = (first / "dvc.yaml").read_bytes()
    shutil.rmtree(first / ".dvc")
    (first / "dvc.yaml").unlink()
    (first / "dvc.yaml").write_bytes(pipeline)
    (first / ".gitignore").write_text("/archives/\n/build/\n/checkpoints/\n/mlruns/\n/mlflow.db*\n")

    def shell(folder, *command):
        words = [sys.executable, "-m", *command] if command[0] == "dvc" else command
        done = subprocess.run(words, cwd=folder, env=environment(first), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    git = ("git", "-c", "user.email=someone@example.com", "-c", "user.name=Someone")
    shell(first, "git", "init", "-q")
    shell(first, "dvc", "init", "-q")
    shell(first, "dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    assert sweep(first).returncode == 0
    shell(first, "git", "add", ".")
    shell(first, *git, "commit", "-qm", "results")
    shell(first, "dvc", "push", "-q")

    shell(tmp_path, "git", "clone", "-q", str(first), str(second))
    assert states(second) == {FIRST: "done"}  # without any data, weights or pictures here
    shell(second, "dvc", "pull", "-q")
    weights = Path("models") / FIRST / "seed0.safetensors"
    assert (second / weights).read_bytes() == (first / weights).read_bytes()
    assert json.loads(shell(second, "dvc", "status", "--json")) == {}
