"""What a task of a Slurm array runs: ``python -m pipelines.sweep.job FOLDER STAGE INDEX``.

A stop comes in two ways. Near the time limit Slurm sends SIGUSR1 to this process alone: the training saves and the job
is queued again. Pre-emption, ``scontrol requeue`` and ``scancel`` send SIGTERM to all processes of the job: the
training saves, and Slurm knows whether the job comes back. After a node was lost, it goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from danet.config.workspace import Workspace
from danet.core.console import console, report_errors
from danet.core.errors import DanetError, DataError, Interrupted
from danet.results import tracking
from pipelines import dvc_environment
from pipelines.sweep import records
from pipelines.sweep.launch import LAUNCH, check_versions, launcher, versions
from pipelines.sweep.plan import repro_command
from pipelines.sweep.processes import free_stale_locks, send, stages_below, start
from pipelines.sweep.records import Record, load_record, row_locks, write_state

POLL_SECONDS = 0.5
LOCK_WAIT = 60.0
"""Seconds to wait for a row: what was cut off on another node may take a little to die."""


def main(folder: Path, stage: str, index: int) -> int:
    """Runs a task; returns its exit code."""
    workspace = Workspace(folder.parents[2])
    record = load_record(folder)
    name = record.tasks[stage][index]
    label = f"{stage}-{name}" if stage in ("data", "weights") else name if stage != "report" else "report"
    log = record.log(workspace, label)
    before = records.size(log)
    _redirect(log)
    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    where = os.environ.get("SLURM_JOB_NODELIST") or socket.gethostname()
    job = os.environ.get("SLURM_JOB_ID", "-")
    print(f"== {stage} {name}: job {job}, attempt {int(attempt) + 1}, on {where}", flush=True)
    facts = {"stage": stage, "job": job, "node": where, "attempt": int(attempt) + 1, "log": str(log)}
    write_state(record, workspace, label, "running", **facts)
    task = Task(record, workspace, stage, name, log)
    try:
        code = task.run()
    except DanetError as error:
        write_state(record, workspace, label, "failed", note=str(error), **facts)
        raise
    state = "stopped" if task.stopped else "failed" if code else "done"
    note = records.last_words(log, before) if state == "failed" else ""
    write_state(record, workspace, label, state, note=note, **facts)
    return code


class Task:
    """One task of an array, from its start to its end or to a stop."""

    def __init__(self, record: Record, workspace: Workspace, stage: str, name: str, log: Path) -> None:
        self.record, self.workspace, self.stage, self.name, self.log = record, workspace, stage, name, log
        self.stopped = False
        self._again = False  # whether this job has to queue itself again
        self._told: set[int] = set()

    def run(self) -> int:
        """Waits for the row, lets DVC run the stages, passes stops on."""
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGUSR1, self._note)
        check_versions({"torch": self.record.torch}, "where the sweep was submitted")
        if versions()["code"] != self.record.code:
            console.print("note: danet/ has changed since the sweep was submitted")
        if self.stage == "report":
            return self._report()
        rows = [self.name] if self.stage in ("train", "evaluate", "verify") else []
        self._check_inputs()
        with row_locks(rows, self.workspace, f"Slurm job {os.environ.get('SLURM_JOB_ID')}", wait_seconds=LOCK_WAIT):
            code = self._repro()
        if self._again and code and self.stage == "train":
            print("== saved before the time limit; queued again", flush=True)
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
            time.sleep(60)  # until Slurm ends this attempt
        return Interrupted.exit_code if self.stopped and code else code

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        self._again = self._again or number == signal.SIGUSR1

    def targets(self) -> list[str]:
        """The stages of ``dvc.yaml`` that this task is for."""
        before = {"data": ("download", "convert"), "verify": ("released", "verify")}
        return [f"{stage}@{self.name}" for stage in before.get(self.stage, (self.stage,))]

    def _check_inputs(self) -> None:
        if self.stage not in ("train", "verify") or self.record.pull:
            return
        row = self.workspace.params().row(self.name)
        needs = {f"convert@{row.dataset}": self.workspace.prepared(row.dataset)}
        if self.stage == "train":
            needs[f"weights@{row.weights}"] = self.workspace.weights(row.weights)
        for stage, folder in needs.items():
            if not folder.exists():
                raise DataError(f"{self.name}: {stage} has left no {folder}; see its log, then submit the sweep again")

    def _repro(self) -> int:
        for note in free_stale_locks(self.workspace.root):
            console.print(note, markup=False)
        environment = dvc_environment() | {tracking.SWEEP: self.record.id}
        if self.stage in ("train", "evaluate") and (value := self._launcher()):
            environment[LAUNCH] = json.dumps(value)
        command = repro_command(*self.targets(), pull=self.record.pull)
        process = start(command, self.workspace.root, environment, self.log, own_session=False)
        while process.poll() is None:
            if self.stopped:
                self._pass_on(process.pid)
            time.sleep(POLL_SECONDS)
        return process.returncode

    def _pass_on(self, pid: int) -> None:
        # SIGINT, as Slurm may have sent SIGTERM to all already: trainers take the second of a kind for "at once"
        send(stages_below(pid), signal.SIGINT, self._told)
        if self.record.nodes > 1 and 0 not in self._told:
            self._told.add(0)
            subprocess.run(["scancel", "--signal=INT", os.environ["SLURM_JOB_ID"]], check=False)

    def _launcher(self) -> list[str] | None:
        job = int(os.environ.get("SLURM_JOB_ID", "0"))
        identity = f"{job}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        head = _head() if self.record.nodes > 1 else ""
        return launcher(
            self.record.processes, nodes=self.record.nodes, head=head, port=20000 + job % 20000, identity=identity
        )

    def _report(self) -> int:
        params = self.workspace.params()
        tables = dict.fromkeys(params.row(name).table for name in self.record.rows)
        command = repro_command(*(f"report@{table}" for table in tables), "index")
        code = start(command, self.workspace.root, dvc_environment(), self.log, own_session=False).wait()
        experiments = [f"danet / {params.tables[table].title}" for table in tables]
        states = [records.read_state(self.record, self.workspace, name).get("state") for name in self.record.rows]
        failed = code != 0 or "failed" in states
        tracking.sweep_runs(self.record.id, experiments, self.workspace, status="FAILED" if failed else "FINISHED")
        return code


def _head() -> str:
    """The first node of this job; by this machine's own name where the node's is no address (emulated nodes)."""
    nodes = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], capture_output=True, text=True, check=True
    ).stdout.split()
    try:
        socket.getaddrinfo(nodes[0], None)
    except OSError:
        return socket.gethostname()  # the batch script runs on the first node
    return nodes[0]


def _redirect(log: Path) -> None:
    """What this process prints goes to the row's log; Slurm's own file keeps what Slurm says."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


if __name__ == "__main__":
    with report_errors():
        sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
