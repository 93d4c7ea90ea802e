"""A round: one training that suffers several faults and must end as if there had been none."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil

from benchmarks.faults import kinds
from benchmarks.faults.session import ITERATIONS, Points, Session, in_fork, resumable, train, variant
from danet.config.rows import Row
from danet.config.workspace import Workspace
from danet.core.files import sha256
from danet.results import tracking

VARIANTS = ("plain", "accumulate", "deterministic")
WORKERS = (0, 1, 4)
TIMED = {"images_per_second", "data_wait_share", "peak_memory_gib"}
"""Metrics that are measured and not computed: of them only the steps must agree."""
FAULTS = 6
"""Faults in a round."""
ORPHAN_SECONDS = 15.0
"""Loader processes of a killed trainer may live so long."""


@dataclass
class Result:
    """What a training left."""

    weights: str
    """SHA-256 of the weights file, which holds batch normalisation's statistics too."""
    momentum: str
    curve: list[dict[str, str]]
    metrics: dict[str, Any]
    tracked: dict[str, list[tuple[int, str]]]
    """Of each metric in MLflow: step and value."""
    problems: list[str] = field(default_factory=list)


@dataclass
class Round:
    """How a round went."""

    number: int
    variant: str
    faults: Counter[str]
    sessions: int
    workers: list[int]
    differences: list[str]
    """Between its result and the uninterrupted training's; none is what counts."""
    complaints: list[str]
    """Of single sessions: exit status, message, iterations lost."""
    repeated: int
    """Iterations that were done more than once because of kills."""
    messages: dict[str, str]
    """An example of what was said, by fault."""
    seconds: float = 0.0


def reference(template: Path, folder: Path, name: str) -> tuple[Row, Result, int]:
    """The uninterrupted training: its row, what it left, and the number of file events in it."""
    row, points = variant(name), Points()
    shutil.copytree(template / "workspace", folder)
    session = train(folder, row, 0, points)
    if session.code:
        raise RuntimeError(f"the uninterrupted training failed: {session.output}")
    return row, collect(folder, row, points.momentum), points.files


def run_round(number: int, seed: int, template: Path, folder: Path, expected: tuple[Row, Result, int]) -> Round:
    """One training with faults at points that follow from ``seed`` and ``number``.

    SIGKILL after a time is the exception: its time is drawn, what the training is doing then is not.
    """
    random, began = Random(f"{seed}-{number}"), time.monotonic()  # noqa: S311 - no secret
    row, wanted, _ = expected
    result = Round(number, row.name.removeprefix("faults-"), Counter(), 0, [], [], [], 0, {})
    shutil.copytree(template / "workspace", folder)
    done, momentum, queue = False, "", _queue(random)
    while queue or not done:
        name = queue.pop(0) if queue else ""
        if name in kinds.AFTER_THE_END and not done:
            if any(other not in kinds.AFTER_THE_END for other in queue):
                queue.append(name)
                continue
            queue.insert(0, name)
            name = ""  # to the end first
        if name in kinds.BETWEEN:
            if kinds.BETWEEN[name][1](folder, row, random):
                result.faults[name] += 1
                done = False
            else:
                queue.append(_another(random))
            continue
        session = _session(folder, row, random, name, result)
        momentum = session.points.momentum or momentum
        done = session.code == 0 and _whole(folder, row)
        if name and not session.points.struck:
            queue.append(_another(random) if not done else random.choice(sorted(kinds.AFTER_THE_END)))
    final = collect(folder, row, momentum)
    result.differences = compare(wanted, final)
    result.seconds = time.monotonic() - began
    shutil.rmtree(folder)
    return result


def _queue(random: Random) -> list[str]:
    """The faults of a round, in order; damage to checkpoints follows a kill, so that there is something to lose."""
    within = [name for name in kinds.KINDS if name not in {"SIGKILL after a time"}]
    often = [name for name in within if name != "database locked"]  # which costs MLflow's patience, many seconds
    chosen = [random.choice(["SIGKILL after a time", *within, *often, *often]) for _ in range(FAULTS - 2)]
    position = random.randrange(1, len(chosen) + 1)
    between = random.choice([name for name in kinds.BETWEEN if name not in kinds.AFTER_THE_END])
    chosen.insert(position, between)
    chosen.append(random.choice(sorted(kinds.BETWEEN)))
    return chosen


def _another(random: Random) -> str:
    return random.choice(["SIGKILL in a step", "SIGKILL at a file", "SIGTERM", "SIGINT"])


def _session(folder: Path, row: Row, random: Random, name: str, result: Round) -> Session:
    workers = random.choice(WORKERS)
    kind = kinds.KINDS.get(name)
    points, after, names = Points(), None, [name]
    if kind is not None and kind.strike is None:
        after = random.uniform(0, 0.4)
    elif kind is not None and kind.strike is not None:
        # a limit of loader processes too would stand for full shared memory, which is no disk
        at = "step" if name == "disk full" and workers else random.choice(kind.at)
        # the server has to be gone before the first word with it
        number = 1 if name == "server gone" else random.randint(1, {"step": 16, "backward": 16, "file": 60}[at])
        plan = [(at, number, kind.strike(folder, row, random))]
        if kind.group == "disconnect" and random.random() < 0.8:
            # training goes on without MLflow, so that it can be stopped or killed before it has sent what it kept
            names.append(random.choice(["SIGTERM", "SIGKILL in a step"]))
            then = kinds.KINDS[names[1]].strike
            assert then is not None
            plan.append(("step", number + random.randint(1, 8), then(folder, row, random)))
        points = Points(*plan)
        if name == "loader killed":
            workers = random.choice([1, 4])
    before = torn(folder)
    session = train(folder, row, workers, points, after=after)
    kinds.restore(folder, row)
    kinds.bring_back(folder)
    session.kept = resumable(Workspace(folder), row)
    result.sessions += 1
    result.workers.append(workers)
    result.repeated += max(0, min(session.reached, ITERATIONS) - session.kept)
    where = f"session {result.sessions} ({name or 'no fault'}, {workers} workers)"
    if points.struck:
        result.faults.update(names[: points.struck])
        result.complaints += [f"{where}: {text}" for text in kinds.complaints(names[points.struck - 1], session)]
        if session.code not in (0, -9) or name in {"database locked", "database gone", "server gone"}:
            first = next((line for line in session.output.splitlines() if line.startswith("MLflow")), "")
            said = _shown(first, folder) if kinds.KINDS[name].group == "disconnect" else ""
            result.messages.setdefault(name, said or _last_line(session.output, folder))
    elif session.code != 0:
        result.complaints.append(f"{where}: exit status {session.code}: {_last_line(session.output, folder)}")
    result.complaints += [f"{where}: {text}" for text in newly_torn(before, folder)]
    damaged = [line for line in session.output.splitlines() if ": damaged (" in line]
    if damaged:
        result.messages.setdefault("checkpoint damaged", _shown(damaged[0], folder))
    if not _orphans_end():
        result.complaints.append(f"{where}: loader processes outlived it by {ORPHAN_SECONDS:.0f} s")
    return session


def _last_line(output: str, folder: Path) -> str:
    marked = [line for line in output.splitlines() if line.startswith(("error:", "stopped:", "MLflow"))]
    lines = marked or output.splitlines() or [""]
    return _shown(lines[-1], folder)


def _shown(line: str, folder: Path) -> str:
    return line.replace(str(folder.resolve()) + "/", "").replace(str(folder) + "/", "")


def _whole(folder: Path, row: Row) -> bool:
    workspace = Workspace(folder)
    return (workspace.model(row) / "seed0.safetensors").exists() and (workspace.metrics(row) / "train.json").exists()


def torn(folder: Path) -> dict[Path, bytes]:
    """Files that a reader cannot make sense of, with what is in them."""
    found = {}
    for path in folder.rglob("*.json"):
        if path.parent.name.startswith("prepared"):
            continue
        content = path.read_bytes()
        try:
            json.loads(content.decode("utf-8"))
        except ValueError:
            found[path] = content
    return found


def newly_torn(before: Mapping[Path, bytes], folder: Path) -> list[str]:
    """What a session tore, as complaints.

    Not what was damaged before it began, on purpose, and is as it was: a session that is killed early cannot have
    repaired that. Whether it is repaired in the end is for :func:`compare` to say.
    """
    return [f"{path.name} is torn" for path, content in torn(folder).items() if before.get(path) != content]


def _orphans_end() -> bool:
    """Waits for adopted loader processes of a killed trainer to end by themselves."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = psutil.Process().children(recursive=True)
        if not left:
            return True
        if time.monotonic() > deadline:
            for process in left:
                process.kill()
            return False
        time.sleep(0.05)


def collect(folder: Path, row: Row, momentum: str) -> Result:
    """Reads what a training left, after ``danet sync``."""
    workspace, problems = Workspace(folder), []
    code, output = in_fork(lambda: tracking.send([row], workspace))
    if code:
        problems.append(f"danet sync: exit status {code}: {output.strip()[-300:]}")
    metrics = json.loads((workspace.metrics(row) / "train.json").read_text(encoding="utf-8"))
    with (workspace.metrics(row) / "curve.csv").open(encoding="utf-8") as stream:
        curve = [{key: value for key, value in line.items() if key not in TIMED} for line in csv.DictReader(stream)]
    weights = workspace.model(row) / "seed0.safetensors"
    problems += [f"left behind: {path.relative_to(folder)}" for path in folder.rglob("*.tmp")]
    checkpoints = workspace.checkpoints(row, row.seeds[0])
    problems += [f"left behind: {path.name}" for path in checkpoints.glob("iteration_*")]
    tracked, statuses = _tracked(folder / "mlflow.db")
    if statuses != {"FINISHED"}:
        problems.append(f"MLflow has runs with status {sorted(statuses)}, expected finished ones alone")
    run = metrics["runs"][0]
    kept = {key: run[key] for key in ("seed", "iterations", "final_loss", "accumulate", "weights_sha256")}
    return Result(sha256(weights), momentum, curve, kept, tracked, problems)


def _tracked(database: Path) -> tuple[dict[str, list[tuple[int, str]]], set[str]]:
    """Step metrics of the newest run of the seed, to the digits of curve.csv, and the statuses of all runs.

    Read from the tables: a client would start threads, after which nothing may fork.
    """
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT key, step, value FROM metrics WHERE key LIKE 'train/%' AND run_uuid = (SELECT runs.run_uuid "
            "FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid WHERE tags.key = 'seed' AND tags.value = '0' "
            "ORDER BY start_time DESC LIMIT 1) ORDER BY key, step"
        ).fetchall()
        statuses = {status for (status,) in connection.execute("SELECT status FROM runs")}
    tracked: dict[str, list[tuple[int, str]]] = {}
    for key, step, value in rows:
        if key.removeprefix("train/") not in TIMED:
            tracked.setdefault(key, []).append((step, f"{value:.6g}"))
    return tracked, statuses


def compare(wanted: Result, found: Result) -> list[str]:
    """What differs, in words; an empty list if nothing was lost."""
    differences = list(found.problems)
    for name in ("weights", "momentum", "curve", "metrics"):
        if getattr(wanted, name) != getattr(found, name):
            differences.append(f"{name} differ")
    for key in sorted(wanted.tracked.keys() | found.tracked.keys()):
        first, second = wanted.tracked.get(key, []), found.tracked.get(key, [])
        if first != second:
            missing = sorted(set(first) - set(second))[:3]
            surplus = list((Counter(second) - Counter(first)).elements())[:3]
            differences.append(f"MLflow's {key}: missing {missing}, surplus {surplus}")
    return differences
