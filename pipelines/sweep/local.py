"""A sweep on this machine: rows side by side, each on its GPUs, through DVC."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from joblib import cpu_count
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from danet.config.rows import Row
from danet.config.workspace import Workspace
from danet.core.console import console
from danet.core.errors import ConfigError, Interrupted
from danet.results import tracking
from danet.training.progress import duration
from pipelines import dvc_environment
from pipelines.sweep import records
from pipelines.sweep.launch import LAUNCH, launcher
from pipelines.sweep.plan import Plan, check_divisible, make_plan, repro_command
from pipelines.sweep.processes import free_stale_locks, left_over, send, stages_below, start
from pipelines.sweep.records import Progress, Record, read_progress, row_locks, write_state
from pipelines.sweep.slurm import refuse_live_jobs

POLL_SECONDS = 0.5
LINE_SECONDS = 60
"""Between two lines about a row where there is no terminal to draw on."""
STOPPED = Interrupted.exit_code


@dataclass(frozen=True)
class Slots:
    """How many rows run at a time, and on what."""

    places: tuple[tuple[str, ...], ...]
    """For each row that runs at a time its GPUs; none on the CPU."""

    @property
    def gpus_per_row(self) -> int:
        """0 on the CPU."""
        return len(self.places[0])


def choose_slots(*, gpus_per_row: int | None, gpus: str | None, jobs: int | None) -> Slots:
    """Places for rows on this machine.

    Args:
        gpus_per_row: default 1 where there are GPUs.
        gpus: their numbers, joined by commas, or ``none``; by default those visible that no other process uses.
        jobs: rows at a time on the CPU; default 1.

    Raises:
        ConfigError: for fewer GPUs than asked for.
    """
    if gpus == "none" or gpus_per_row == 0:
        devices: list[str] = []
    elif gpus is not None:
        devices = [each.strip() for each in gpus.split(",") if each.strip()]
        visible = visible_gpus()
        missing = [each for each in devices if each not in visible]
        if missing or len(set(devices)) < len(devices):
            what = f"GPU {missing[0]} is not here" if missing else f"{gpus} names a GPU twice"
            raise ConfigError(f"--gpus: {what}; visible: {', '.join(visible) or 'none'}")
    else:
        visible = visible_gpus()
        devices = free_gpus(visible)
        if visible and not devices:
            raise ConfigError(f"all {len(visible)} GPUs are in use by other processes; name those to use with --gpus")
        if len(devices) < len(visible):
            busy = ", ".join(each for each in visible if each not in devices)
            console.print(
                f"[yellow]GPU {busy}[/] is in use by other processes and left out (--gpus names those to use)"
            )
    if not devices:
        if gpus_per_row:
            raise ConfigError(f"--gpus-per-row {gpus_per_row}: no GPU here; leave it out to run on the CPU (--jobs N)")
        return Slots(((),) * (jobs or 1))
    if jobs is not None:
        raise ConfigError("--jobs is for the CPU; on GPUs their number and --gpus-per-row decide (or give --gpus none)")
    each = gpus_per_row or 1
    if each > len(devices):
        raise ConfigError(f"--gpus-per-row {each}: only {len(devices)} GPUs are free here ({', '.join(devices)})")
    return Slots(tuple(tuple(devices[i : i + each]) for i in range(0, len(devices) - each + 1, each)))


def visible_gpus() -> list[str]:
    """Numbers (or names) of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` takes them."""
    import torch

    count = torch.cuda.device_count()
    given = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    return given[:count] if given else [str(number) for number in range(count)]


def free_gpus(visible: Sequence[str]) -> list[str]:
    """Those on which no process computes, by ``nvidia-smi``; all where it does not say."""

    def ask(what: str) -> list[list[str]]:
        command = ["nvidia-smi", what, "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return [[cell.strip() for cell in line.split(",")] for line in result.stdout.splitlines() if line.strip()]

    if not visible:
        return []
    try:
        busy = {line[0] for line in ask("--query-compute-apps=gpu_uuid,pid")}
        names = {index: uuid for index, uuid in (line[:2] for line in ask("--query-gpu=index,uuid"))}
    except (OSError, subprocess.SubprocessError, ValueError):
        return list(visible)
    return [each for each in visible if names.get(each, each) not in busy]


@dataclass
class Work:
    """A row while the sweep is on."""

    row: Row
    chains: list[list[str]]
    log: Path
    state: str = "waiting"
    note: str = ""
    devices: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    from_byte: int = 0
    seen: Progress = field(default_factory=Progress)
    printed: tuple[str, float] = ("", 0.0)
    failed: list[str] = field(default_factory=list)
    words: str = ""

    @property
    def name(self) -> str:
        """The row's."""
        return self.row.name

    def line(self) -> str:
        """What it is at."""
        return self.note or (str(self.seen) if self.process else "")


class _Stop:
    """Ctrl-C or SIGTERM for the sweep: the first asks the trainers to save, the second kills them."""

    def __init__(self) -> None:
        self.count = 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    @contextmanager
    def watching(self) -> Iterator[_Stop]:
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Sweep:
    """Runs a plan on some slots; see :func:`run`."""

    def __init__(
        self, plan: Plan, workspace: Workspace, slots: Slots, record: Record, *, keep_going: bool, pull: bool
    ) -> None:
        self.plan, self.workspace, self.slots, self.record = plan, workspace, slots, record
        self.keep_going, self.pull = keep_going, pull
        self.stop = _Stop()
        self._told: set[int] = set()
        self._killed = False
        self.works = [self._work(row) for row in plan.rows]
        threads = max(1, cpu_count() // (len(slots.places) * max(1, slots.gpus_per_row)))
        self.environment = dvc_environment() | {tracking.SWEEP: record.id}
        if "OMP_NUM_THREADS" not in os.environ:
            self.environment["OMP_NUM_THREADS"] = str(threads)

    def _work(self, row: Row) -> Work:
        chains = self.plan.chains(row)
        log = self.record.log(self.workspace, row.name)
        return Work(row, chains, log, "waiting" if chains else "done", "" if chains else "up to date")

    def run(self) -> int:
        """All of it; returns the exit code."""
        with self.stop.watching():
            if shared := self.plan.shared():
                self._share(shared)
            if not self.stop.count:
                self._rows()
            reports = 0 if self.stop.count else self._report()
            interrupted = self.stop.count > 0
        failed = any(work.state == "failed" for work in self.works)
        stopped = interrupted or any(work.state == "stopped" for work in self.works)
        self._finish("KILLED" if stopped else "FAILED" if failed else "FINISHED")
        return STOPPED if stopped else 1 if failed or reports else 0

    def _share(self, stages: list[str]) -> None:
        """Downloads, conversions and weights, once for all rows; rows that lack theirs afterwards fail here."""
        console.print(f"[bold]shared stages:[/] {', '.join(stages)}")
        log = self.record.log(self.workspace, "shared")
        before = records.size(log)
        for note in free_stale_locks(self.workspace.root):
            console.print(note, markup=False)
        command = repro_command(*stages, single=False, pull=self.pull)
        process = start(command, self.workspace.root, self.environment, log, own_session=True)
        last = ""
        while process.poll() is None:
            self._pass_stop_on([process])
            stage = read_progress(log, before).stage
            if stage and stage != last:
                console.print(f"  {stage} ...", markup=False)
                last = stage
            time.sleep(POLL_SECONDS)
        if process.returncode and not self.stop.count:
            self.plan = make_plan(self.workspace, self.plan.rows, verify=self.plan.verify, pull=self.pull)
            missing = set(self.plan.shared())
            for work in self.works:
                mine = {f"{stage}@{work.row.dataset}" for stage in ("download", "convert")}
                lost = sorted(missing & (mine | {f"weights@{work.row.weights}"}))
                if lost and work.chains:
                    self._end(work, "failed", f"needs {', '.join(lost)}: {records.last_words(log, before)}", log)

    def _rows(self) -> None:
        free = list(self.slots.places)
        with self._shown() as show:
            while True:
                running = [work for work in self.works if work.process is not None]
                self._pass_stop_on([work.process for work in running if work.process])
                for work in running:
                    self._poll(work, free)
                for work in self.works:
                    if work.state == "waiting" and free and self._may_start():
                        self._begin(work, free)
                show()
                if not any(work.process for work in self.works) and (
                    not self._may_start() or all(work.state != "waiting" for work in self.works)
                ):
                    return
                time.sleep(POLL_SECONDS)

    def _may_start(self) -> bool:
        return not self.stop.count and (self.keep_going or all(work.state != "failed" for work in self.works))

    def _begin(self, work: Work, free: list[tuple[str, ...]]) -> None:
        others = left_over(work.name, self.workspace.root)
        if others or records.training_lock_held(work.row, self.workspace):
            who = f"process {min(others)}" if others else "a process elsewhere"
            work.note = f"waiting for {who}: an earlier sweep, or a command, left it at this row"
            return
        if work.note:  # somebody else has been at it: ask DVC again what remains
            work.note = ""
            plan = make_plan(self.workspace, [work.row], verify=self.plan.verify, pull=self.pull)
            work.chains = plan.chains(work.row)
            if not work.chains:
                self._end(work, "done")
                return
        work.devices = free.pop(0)
        work.state, work.began = "running", time.monotonic()
        self._next(work)

    def _next(self, work: Work) -> None:
        """Starts the row's next chain of stages."""
        for note in free_stale_locks(self.workspace.root):
            console.print(note, markup=False)
        work.from_byte = records.size(work.log)
        environment = dict(self.environment)
        if work.devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(work.devices)
        elif "CUDA_VISIBLE_DEVICES" not in os.environ:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if value := launcher(max(1, len(work.devices))):
            environment[LAUNCH] = json.dumps(value)
        command = repro_command(*work.chains[0], pull=self.pull)
        work.process = start(command, self.workspace.root, environment, work.log, own_session=True)
        write_state(self.record, self.workspace, work.name, "running", gpus=list(work.devices))

    def _poll(self, work: Work, free: list[tuple[str, ...]]) -> None:
        assert work.process is not None
        work.seen = read_progress(work.log, work.from_byte)
        code = work.process.poll()
        if code is None:
            return
        work.process = None
        chain = work.chains.pop(0)
        words = records.last_words(work.log, work.from_byte)
        stopped = self.stop.count > 0 or (code != 0 and f"exited with {STOPPED}" in words)
        if code and not stopped:
            work.failed.append(chain[-1])
            work.words = words
        if work.chains and not stopped and self._may_start():
            self._next(work)
            return
        free.append(work.devices)
        if stopped and (code or work.chains):
            self._end(work, "stopped", str(replace(work.seen, eta="")))
        elif work.failed:
            self._end(work, "failed", work.words)
        else:
            self._end(work, "done")

    def _end(self, work: Work, state: str, note: str = "", log: Path | None = None) -> None:
        work.state, work.note = state, note
        write_state(
            self.record, self.workspace, work.name, state, note=note, log=str(log or work.log), gpus=list(work.devices)
        )

    def _pass_stop_on(self, started: Sequence[subprocess.Popen[bytes]]) -> None:
        """SIGTERM to the stages of the rows once; after a second Ctrl-C, SIGKILL to all that belongs to them."""
        if self.stop.count and not self._told:
            console.print("[yellow]stopping:[/] rows save where they are; Ctrl-C again kills them at once")
            self._told.add(0)
        for process in started if self.stop.count else ():
            stages = stages_below(process.pid)
            send(stages, signal.SIGTERM, self._told)
            if self.stop.count > 1 and process.poll() is None:
                send(stages, signal.SIGKILL, set())  # torchrun has them in sessions of their own
                os.killpg(process.pid, signal.SIGKILL)

    def _report(self) -> int:
        """The tables of the rows and the index; returns DVC's exit code."""
        log = self.record.log(self.workspace, "report")
        before = records.size(log)
        command = repro_command(*(f"report@{table}" for table in self.plan.tables), "index")
        process = start(command, self.workspace.root, self.environment, log, own_session=True)
        while process.poll() is None:
            self._pass_stop_on([process])
            time.sleep(POLL_SECONDS)
        if process.returncode and "is busy" in records.tail(log, before):
            console.print("other rows of these tables are running: the sweep that ends last writes the tables")
            return 0
        if process.returncode and not self.stop.count:
            console.print(f"[red]reports failed:[/] {escape(records.last_words(log, before))} ({escape(str(log))})")
        return process.returncode

    def _finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        replace(self.record, finished=status == "FINISHED").save(self.workspace)
        tracking.sweep_runs(self.record.id, self.plan.experiments, self.workspace, status=status)

    # what is shown

    @contextmanager
    def _shown(self) -> Iterator[Any]:
        if console.is_terminal:
            with Live(self.table(), console=console, auto_refresh=False, transient=True) as live:
                yield lambda: live.update(self.table(), refresh=True)
        else:
            yield self._print_changes

    def _print_changes(self) -> None:
        for work in self.works:
            now, (text, when) = time.monotonic(), work.printed
            kind = f"{work.state} {work.seen.stage if work.process else work.note}"
            if kind != text or (work.process and now - when > LINE_SECONDS):
                work.printed = (kind, now)
                if work.state != "waiting" or work.note:
                    console.print(f"{work.name}: {work.state}  {work.line()}".rstrip(), markup=False)

    def table(self) -> Table:
        """One line for each row."""
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("row", "state", "on", "time", "at"):
            shown.add_column(title, no_wrap=title != "at")
        for work in self.works:
            spent = duration(time.monotonic() - work.began) if work.process else ""
            on = (f"GPU {','.join(work.devices)}" if work.devices else "CPU") if work.process else ""
            shown.add_row(work.name, coloured(work.state), on, spent, escape(work.line()))
        return shown


def coloured(state: str) -> str:
    """A state with its colour, as rich markup."""
    colours = {"done": "green", "failed": "red", "stopped": "yellow", "running": "cyan", "training": "cyan"}
    colour = colours.get(state.split(maxsplit=1)[0])
    return f"[{colour}]{state}[/]" if colour else state


def run(plan: Plan, workspace: Workspace, slots: Slots, *, keep_going: bool = True, pull: bool = False) -> int:
    """Runs what remains of a plan, then the tables; returns the exit code (0; 1: a row failed; 75: stopped).

    Raises:
        DanetError: if another sweep is at these rows, or a batch does not divide over the GPUs; nothing was started.
    """
    check_divisible(plan.remaining(), max(1, slots.gpus_per_row))
    names = [row.name for row in plan.rows]
    refuse_live_jobs(plan, workspace)
    record = _unfinished(workspace, names) or records.new_record(plan, workspace, "local", processes=1)
    with row_locks(names, workspace, f"sweep {record.id}"):
        record.save(workspace)
        reason = tracking.sweep_runs(record.id, plan.experiments, workspace, status="RUNNING")
        if reason:
            console.print(f"[yellow]MLflow:[/] no parent run for the sweep: {escape(reason)}")
        sweep = Sweep(plan, workspace, slots, record, keep_going=keep_going, pull=pull)
        on = f"GPUs {' '.join(','.join(place) for place in slots.places)}" if slots.gpus_per_row else "the CPU"
        console.print(
            f"[bold]sweep {record.id}:[/] {len(plan.remaining())} of {len(plan.rows)} rows to run, "
            f"{len(slots.places)} at a time on {on}; logs in {escape(str(record.folder(workspace) / 'logs'))}"
        )
        code = sweep.run()
    _print_end(sweep, code)
    return code


def _unfinished(workspace: Workspace, rows: Sequence[str]) -> Record | None:
    """The sweep of the same rows that was stopped or had failures: this one goes on with it."""
    for record in records.records(workspace):
        if record.mode == "local" and set(record.rows) == set(rows):
            return None if record.finished else record
    return None


def _print_end(sweep: Sweep, code: int) -> None:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("row", "state", "", "log"):
        shown.add_column(title, no_wrap=title in ("row", "state"), overflow="fold")
    for work in sweep.works:
        state = "remains" if work.state == "waiting" else work.state
        log = str(work.log) if work.log.exists() else ""
        shown.add_row(work.name, coloured(state), escape(work.note), log if state in ("failed", "stopped") else "")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    out = Console(width=width, highlight=False)
    out.print(shown)
    states = Counter(work.state for work in sweep.works)
    out.print(
        f"\n{states['done']} done, {states['failed']} failed, {states['stopped'] + states['waiting']} remain"
        + ("" if not code else "; the same command goes on from here")
    )
