"""Sweeps: what is planned, the scripts for Slurm, locks, processes and launchers. Whole sweeps: test_sweep_runs.py."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from danet.config.rows import Params, load_params
from danet.config.workspace import Workspace
from danet.core.errors import ConfigError, DanetError
from danet.training.progress import progress_line
from pipelines.sweep import command, job, local, processes, records
from pipelines.sweep.launch import LAUNCH, check_versions, launcher
from pipelines.sweep.plan import Plan, check_divisible, choose_rows, repro_command, survey_stages
from pipelines.sweep.records import Record, load_record, new_record, read_progress, read_state, row_locks
from pipelines.sweep.slurm import Options, has_gpus, sbatch_command, script, tasks_of
from pipelines.sweep.status import RowStatus, survey

ROOT = Path(__file__).parents[2]
VOC, ADE = "ssseg-r50-d16-voc2012", "ssseg-r50-d16-ade20k"


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


def plan_of(params: Params, *names: str, changed: set[str] | None = None, verify: bool = False) -> Plan:
    """All stages of the rows are to do, unless ``changed`` says which."""
    plan = Plan(params, tuple(params.row(name) for name in names), verify, frozenset())
    if changed is None:
        changed = {f"{stage}@{name}" for name in plan.datasets for stage in ("download", "convert")}
        changed |= {f"weights@{name}" for name in plan.weights}
        changed |= {f"{s}@{name}" for name in names for s in ("train", "evaluate", "released", "verify")}
    return replace(plan, changed=frozenset(changed))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


# what is planned


def test_rows_are_chosen_by_table_and_name_once(params: Params) -> None:
    chosen = choose_rows(params, ["official"], [f"{VOC},{ADE}", VOC])
    assert [row.name for row in chosen] == [row.name for row in params.table_rows("official")] + [VOC, ADE]
    assert {row.name for row in choose_rows(params)} == set(params.rows)
    with pytest.raises(ConfigError, match=f"did you mean.*{VOC}"):
        choose_rows(params, [], [f"{VOC}x"])


def test_shared_stages_come_first_and_once(params: Params) -> None:
    plan = plan_of(params, VOC, "ssseg-r101-d16-voc2012")
    assert plan.shared() == ["download@voc2012", "convert@voc2012", "weights@resnet50_v1c", "weights@resnet101_v1c"]
    assert plan.chains(plan.rows[0]) == [[f"train@{VOC}", f"evaluate@{VOC}"]]


def test_only_what_is_left_is_planned(params: Params) -> None:
    plan = plan_of(params, VOC, ADE, changed={f"evaluate@{VOC}"})
    assert plan.shared() == []
    assert plan.chains(plan.rows[0]) == [[f"evaluate@{VOC}"]]
    assert [row.name for row in plan.remaining()] == [VOC]


def test_new_data_means_training_again(params: Params) -> None:
    plan = plan_of(params, VOC, ADE, changed={"convert@ade20k"})
    assert plan.remaining() == [params.row(ADE)]
    assert plan.chains(params.row(ADE)) == [[f"train@{ADE}", f"evaluate@{ADE}"]]


def test_verifying_is_a_chain_of_its_own(params: Params) -> None:
    name = next(name for name in params.released)
    plan = plan_of(params, name, verify=True)
    assert plan.chains(plan.rows[0])[1] == [f"released@{name}", f"verify@{name}"]
    assert len(plan_of(params, name).chains(plan.rows[0])) == 1


def test_a_batch_that_does_not_divide_is_refused_with_all_such_rows(params: Params) -> None:
    rows = [params.row(VOC), params.row(ADE)]
    check_divisible(rows, 8)
    with pytest.raises(ConfigError, match=rf"over 3 processes: {VOC} \(16\), {ADE} \(16\)"):
        check_divisible(rows, 3)


DVC_YAML = """
stages:
  train:
    foreach: [a, b]
    do:
      cmd: echo done > ${item}
      outs:
        - ${item}
"""


def test_dvc_is_asked_once_even_while_rows_are_running(workspace: Workspace) -> None:
    root, names = workspace.root, ["train@a", "train@b"]
    (root / "dvc.yaml").write_text(DVC_YAML)
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], cwd=root, check=True)
    assert survey_stages(workspace, names) == ({*names}, set(), set())
    subprocess.run([*dvc, "repro", "-q"], cwd=root, check=True)
    assert survey_stages(workspace, names) == (set(), set(), set())
    (root / "b").unlink()
    assert survey_stages(workspace, names) == ({"train@b"}, set(), {"train@b"})
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc"]) as running:
        holder = {"pid": running.pid, "cmd": "dvc repro"}
        (root / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": {str(root / "a"): holder}, "read": {}}))
        assert survey_stages(workspace, names) == ({"train@b"}, {"train@a"}, {"train@b"})
        running.kill()
    with pytest.raises(DanetError, match="DVC cannot tell what is done"):
        survey_stages(workspace, ["train@c"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "gpu"}, "--partition is for --slurm"),
        ({"slurm": True, "jobs": 2}, "--gpus and --jobs are for a sweep on this machine"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command.sweep(Workspace(ROOT), tables=[], rows=[VOC], **options)  # type: ignore[arg-type]


# GPUs


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1", "2", "3"])
    monkeypatch.setattr(local, "free_gpus", lambda visible: [gpu for gpu in visible if gpu != "2"])


def test_rows_share_out_the_free_gpus(four_gpus: None) -> None:
    assert local.choose_slots(gpus_per_row=None, gpus=None, jobs=None).places == (("0",), ("1",), ("3",))
    assert local.choose_slots(gpus_per_row=2, gpus=None, jobs=None).places == (("0", "1"),)
    assert local.choose_slots(gpus_per_row=2, gpus="0,1,2,3", jobs=None).places == (("0", "1"), ("2", "3"))
    assert local.choose_slots(gpus_per_row=None, gpus="none", jobs=2).places == ((), ())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus_per_row": 4}, "only 3 GPUs are free here"),
        ({"gpus": "0,7"}, "GPU 7 is not here; visible: 0, 1, 2, 3"),
        ({"gpus": "1,1"}, "names a GPU twice"),
        ({"jobs": 2}, "--jobs is for the CPU"),
        ({"gpus": "none", "gpus_per_row": 2}, "no GPU here"),
    ],
)
def test_gpus_that_are_not_there(four_gpus: None, asked: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        local.choose_slots(**{"gpus_per_row": None, "gpus": None, "jobs": None, **asked})  # type: ignore[arg-type]


def test_free_gpus_are_those_without_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text('#!/bin/sh\ncase $1 in *apps*) echo "GPU-b, 77";; *) printf "0, GPU-a\\n1, GPU-b\\n";; esac\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert local.free_gpus(["0", "1"]) == ["0"]
    assert local.free_gpus(["GPU-b"]) == []
    fake.write_text("#!/bin/sh\nexit 9\n")
    assert local.free_gpus(["0", "1"]) == ["0", "1"]


# Slurm's scripts


def a_record(plan: Plan, workspace: Workspace, **more: object) -> Record:
    return new_record(plan, workspace, "slurm", tasks=tasks_of(plan), **more)


def directives(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return dict(line.split("=", 1) if "=" in line else (line, "") for line in lines)


def test_scripts_ask_for_what_was_asked(params: Params, workspace: Workspace) -> None:
    record = a_record(plan_of(params, VOC, ADE), workspace)
    options = Options(partition="gpu", time="1-00:00:00", array_limit=4, nodes_per_row=2, gpus_per_row=8, mem="64G")
    train = directives(script(record, workspace, "train", options))
    assert train == {
        "job-name": f"danet-train-{record.id}",
        "array": "0-1%4",
        "open-mode": "append",
        "partition": "gpu",
        "time": "1-00:00:00",
        "mem": "64G",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "requeue": "",
        "kill-on-invalid-dep": "yes",
        "signal": "B:USR1@120",
    }
    data = directives(script(record, workspace, "data", options))
    assert (data["array"], data["nodes"]) == ("0-1", "1")
    assert "gpus-per-node" not in data


def test_stages_wait_for_what_they_need(params: Params, workspace: Workspace) -> None:
    record = a_record(plan_of(params, VOC), workspace)
    jobs = {stage: str(number) for number, stage in enumerate(record.tasks, start=1)}
    record = replace(record, jobs=jobs)

    def dependency(stage: str) -> str:
        found = [part for part in sbatch_command(record, workspace, stage) if part.startswith("--dependency=")]
        return found[0].partition("=")[2] if found else ""

    assert dependency("data") == ""
    assert dependency("train") == f"afterany:{jobs['data']},afterany:{jobs['weights']}"
    assert dependency("evaluate") == f"aftercorr:{jobs['train']}"
    assert dependency("report") == f"afterany:{jobs['evaluate']}"


def test_tasks_of_train_and_evaluate_correspond(params: Params) -> None:
    tasks = tasks_of(plan_of(params, VOC, ADE, changed={f"evaluate@{VOC}", f"train@{ADE}", f"evaluate@{ADE}"}))
    assert tasks == {"train": [VOC, ADE], "evaluate": [VOC, ADE], "report": ["tables"]}
    assert tasks_of(plan_of(params, VOC, changed=set())) == {}


@pytest.mark.parametrize("folder", ["plain", "with space", "$(touch owned)", "it's; rm -rf x #", '"quoted"\n'])
def test_no_path_reaches_a_shell(params: Params, tmp_path: Path, folder: str) -> None:
    workspace = Workspace(tmp_path / folder)
    record = a_record(plan_of(params, VOC), workspace)
    file = tmp_path / "train.sh"
    file.write_text(
        script(record, workspace, "train", Options()).replace("exec ", f"printf '%s\\n' {sys.executable!r} ")
    )
    words = subprocess.run(
        ["bash", file], capture_output=True, text=True, check=True, cwd=tmp_path, env={"SLURM_ARRAY_TASK_ID": "0; id"}
    ).stdout
    assert words.endswith(f"\n{record.folder(workspace).resolve()}\ntrain\n0; id\n")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partition", "a b"),
        ("partition", "gpu\n#SBATCH --uid=0"),
        ("account", "x;y"),
        ("time", "soon"),
        ("mem", "$(id)"),
    ],
)
def test_options_that_sbatch_does_not_take(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name}"):
        Options(**{name: value})  # type: ignore[arg-type]


def test_gpus_divide_over_nodes() -> None:
    assert Options(nodes_per_row=2, gpus_per_row=16).processes == 8
    with pytest.raises(ConfigError, match="--gpus-per-row 3 does not divide over --nodes-per-row 2"):
        Options(nodes_per_row=2, gpus_per_row=3)


def test_a_cluster_says_whether_it_has_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "sinfo"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_gpus()  # no Slurm here
    for answer, wanted in (("(null)", False), ("gpu:h100:8", True), ("craynetwork:4,gpu:2(S:0)", True)):
        fake.write_text(f"#!/bin/sh\necho '{answer}'\n")
        fake.chmod(0o755)
        assert has_gpus("a-partition") == wanted


# records, locks, progress


def test_a_record_is_read_as_written(params: Params, workspace: Workspace) -> None:
    record = a_record(plan_of(params, VOC), workspace, nodes=2, processes=4)
    record.save(workspace)
    assert load_record(record.folder(workspace)) == record == records.records(workspace)[0]
    (record.folder(workspace) / "sweep.json").write_text("{}")
    assert records.records(workspace) == []
    with pytest.raises(ConfigError, match="is no record of a sweep"):
        load_record(record.folder(workspace))


HOLD = """
import sys, time
from danet.config.workspace import Workspace
from pathlib import Path
from pipelines.sweep.records import row_locks
with row_locks(sys.argv[2:], Workspace(Path(sys.argv[1])), "sweep 1"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_sweeps_never_share_a_row_and_a_dead_one_holds_none(workspace: Workspace) -> None:
    holding = [sys.executable, "-c", HOLD, str(workspace.root), VOC, ADE]
    with subprocess.Popen(holding, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(DanetError, match=rf"sweep 1 \(process {other.pid} on .*\) has {ADE}\..*nothing was started"),
            row_locks(["another-row", ADE], workspace, "sweep 2"),
        ):
            pass
        with row_locks(["another-row"], workspace, "sweep 2"):  # was given back
            pass
        other.kill()
    with row_locks([VOC, ADE], workspace, "sweep 2"):
        pass


def test_progress_is_what_the_trainer_prints_last(tmp_path: Path) -> None:
    log = tmp_path / "row.log"
    assert str(read_progress(log)) == ""
    line = progress_line(50, 200, loss=1.0, lr=0.1, speed=2.0, wait=0.1, memory_gb=1.0, eta=75.0)
    log.write_text(f"Running stage 'train@{VOC}':\n> python -m pipelines.train {VOC}\n")
    assert str(read_progress(log)) == "train"
    with log.open("a") as stream:
        stream.write(f"{VOC} seed 0  {line}\n")
    assert str(read_progress(log)) == "train 50/200, 0:01:15 left"
    assert str(read_progress(log, start=log.stat().st_size)) == ""
    with log.open("a") as stream:
        stream.write(f"Running stage 'evaluate@{VOC}':\n")
    assert str(read_progress(log)) == "evaluate"


def test_last_words_are_the_error_of_this_attempt(tmp_path: Path) -> None:
    log = tmp_path / "row.log"
    log.write_text("error: loss is nan\nERROR: failed to reproduce 'train@x': exited with 3\n")
    before = records.size(log)
    assert records.last_words(log) == "error: loss is nan"
    with log.open("a") as stream:
        stream.write("stopped: saved\nERROR: failed to reproduce 'train@x': exited with 75\n\n")
    assert records.last_words(log, before).endswith("exited with 75")
    assert records.last_words(tmp_path / "none.log") == ""


# processes


@pytest.fixture
def tree() -> Iterator[subprocess.Popen[str]]:
    """Like ``dvc`` above torchrun above two trainers, one with a data loader that shows its parent's command line."""
    sleeper = "import time; time.sleep(60)"
    loader = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleeper!r}, *sys.argv[1:]]).wait()"
    agent = f"""
import subprocess, sys, time
names = ["-m", "pipelines.train", "row"]
for code in ({loader!r}, {sleeper!r}):
    subprocess.Popen([sys.executable, "-c", code, *names])
time.sleep(60)
"""
    top = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {agent!r}, "-m", "torch.distributed.run", "-m", "pipelines.train", "row"])
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", top], text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_stops_reach_trainers_and_neither_launchers_nor_loaders(tree: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 20
    while len(below := psutil.Process(tree.pid).children(recursive=True)) < 4 and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.2)  # until the last has its own command line
    trainers = processes.stages_below(tree.pid)
    agent = psutil.Process(tree.pid).children()[0]
    assert {process.pid for process in trainers} == {process.pid for process in agent.children()}
    told: set[int] = set()
    processes.send(trainers, signal.SIGTERM, told)
    assert told == {process.pid for process in trainers}
    end = time.monotonic() + 20
    while any(process.status() != psutil.STATUS_ZOMBIE for process in trainers) and time.monotonic() < end:
        time.sleep(0.1)
    ended = {process.pid for process in below if process.status() == psutil.STATUS_ZOMBIE}
    assert ended == told  # not the agent, which has not looked yet, nor the loader


def test_locks_of_dvc_are_freed_from_the_dead(tmp_path: Path) -> None:
    lock = tmp_path / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(parents=True)
    assert processes.free_stale_locks(tmp_path) == []
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc"]) as alive:
        mine, other = ({"pid": pid, "cmd": "dvc repro"} for pid in (alive.pid, os.getpid()))  # this one is no dvc
        lock.write_text(json.dumps({"write": {"a": mine, "b": other}, "read": {"c": [mine, other], "d": [other]}}))
        (note,) = processes.free_stale_locks(tmp_path)
        assert f"freed 1 files from process {os.getpid()}" in note
        assert json.loads(lock.read_text()) == {"write": {"a": mine}, "read": {"c": [mine]}}
        alive.kill()
    lock.write_text('{"write": {')
    assert "was damaged" in processes.free_stale_locks(tmp_path)[0]
    assert not lock.exists()


def test_a_stage_becomes_its_launcher_once() -> None:
    show = [sys.executable, "-c", "import os, sys; print(sys.argv[1:], os.environ.get('DANET_LAUNCH'))"]
    environment = os.environ | {LAUNCH: json.dumps(show)}
    stage = [sys.executable, "-c", "from pipelines.sweep.launch import launched; launched('pipelines.train')", VOC]
    shown = subprocess.run(stage, env=environment, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert shown == f"['-m', 'pipelines.train', '{VOC}'] None\n"
    inner = environment | {"WORLD_SIZE": "2"}  # a child of torchrun is the trainer itself
    assert subprocess.run(stage, env=inner, capture_output=True, text=True, check=True, cwd=ROOT).stdout == ""


def test_launchers() -> None:
    assert launcher(1) is None
    one = launcher(4)
    assert one is not None
    assert one[:3] == [sys.executable, "-m", "pipelines.sweep.launch"]
    assert "--standalone" in one
    assert "--nproc-per-node=4" in one
    many = launcher(1, nodes=2, head="node7", port=20123, identity="9-0")
    assert many is not None
    assert many[0] == "srun"
    assert {"--nnodes=2", "--rdzv-endpoint=node7:20123", "--rdzv-id=9-0"} <= set(many)


def test_another_version_on_a_node_is_named() -> None:
    torch = metadata.version("torch")
    check_versions({"torch": torch}, "here")
    with pytest.raises(ConfigError, match=rf"torch {torch.replace('+', '.')}, but 1.0.0 on the head.*constraints.txt"):
        check_versions({"torch": "1.0.0"}, "on the head")
    with pytest.raises(ConfigError, match="check out the same commit"):
        check_versions({"code": "0000000"}, "on the head")


def test_a_job_on_another_torch_fails_and_says_so(
    params: Params, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = replace(a_record(plan_of(params, VOC), workspace), torch="1.0.0")
    record.save(workspace)
    monkeypatch.setattr(job, "_redirect", lambda log: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with pytest.raises(ConfigError, match=r"but 1\.0\.0 where the sweep was submitted"):
            job.main(record.folder(workspace), "train", 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    state = read_state(record, workspace, VOC)
    assert state["state"] == "failed"
    assert "1.0.0" in state["note"]


# status


def test_status_tells_where_each_row_is(params: Params, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [row.name for row in params.table_rows("sssegmentation")][:6]
    queued, running, failed, stopped, trained, done = names
    changed = {f"{stage}@{name}" for name in (queued, running, failed, stopped) for stage in ("train", "evaluate")}
    plan = plan_of(params, *names, changed=changed | {f"evaluate@{trained}"})
    record = replace(a_record(plan, workspace), jobs={"train": "7", "evaluate": "8"})
    record.save(workspace)
    records.write_state(record, workspace, failed, "failed", note="error: no data")
    row = params.row(stopped)
    folder = workspace.checkpoints(row, 0)
    folder.mkdir(parents=True)
    (folder / "iteration_00001234.pt").touch()
    index = {name: record.tasks["train"].index(name) for name in (queued, running)}
    queue = {("7", index[queued]): ("PENDING", "", "Resources"), ("7", index[running]): ("RUNNING", "n1", "None")}
    monkeypatch.setattr(records, "squeue", lambda jobs: queue)
    record.log(workspace, running).parent.mkdir()
    line = progress_line(5, 9, loss=1.0, lr=0.1, speed=2.0, wait=0.1, memory_gb=1.0, eta=75.0)
    record.log(workspace, running).write_text(f"Running stage 'train@{running}':\n{line}\n")
    found = {each.row: each for each in survey(plan, workspace)}
    assert {name: each.state for name, each in found.items()} == {
        queued: "queued", running: "running", failed: "failed", stopped: "stopped", trained: "trained", done: "done",
    }  # fmt: skip
    assert found[queued] == RowStatus(queued, "queued", "train: Resources", f"job 7_{index[queued]}")
    assert found[running].at == "train 5/9, 0:01:15 left"
    assert found[running].where == f"n1, job 7_{index[running]}"
    assert found[failed].at == "error: no data"
    assert found[stopped].at.startswith("seed 0: 1234/")


def test_status_sees_a_trainer_outside_any_sweep(params: Params, workspace: Workspace) -> None:
    plan = plan_of(params, VOC)
    folder = workspace.checkpoints(params.row(VOC), 0).parent
    folder.mkdir(parents=True)
    assert survey(plan, workspace)[0].state == "not run"
    with FileLock(folder / "train.lock"):
        assert survey(plan, workspace)[0] == RowStatus(VOC, "running", "", "outside any sweep")
    assert survey(plan, workspace)[0].state == "not run"


def test_dvc_waits_for_its_lock_beside_other_rows() -> None:
    words = repro_command(f"train@{VOC}", pull=True)
    assert shlex.join(words[1:]) == (f"-m dvc --wait-for-lock repro --single-item --pull --allow-missing train@{VOC}")
