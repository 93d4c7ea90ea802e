"""The faults: what strikes within a session, what is done to files between two, and what must hold afterwards."""

from __future__ import annotations

import os
import re
import resource
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil
import torch

from benchmarks.faults.session import INTERVAL, ITERATIONS, Points, Session
from danet.config.rows import Row
from danet.config.workspace import Workspace

_HELD: list[object] = []
"""Keeps a locked database connection open as long as its process lives."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    group: str
    """``kill``, ``stop``, ``corrupt``, ``fill``, ``disconnect`` or ``compute``."""
    text: str
    """For the report."""
    at: tuple[str, ...] = ()
    """Points within a session at which it may strike; none for faults between sessions."""
    strike: Callable[[Path, Row, Random], Callable[[Points], None]] | None = None
    """Makes what happens there; nothing for SIGKILL after a time."""
    codes: tuple[int, ...] = (0,)
    """Exit statuses that may follow. 0 too where nothing was left that the fault could touch."""
    lost: int = INTERVAL
    """Iterations that may have to be done again."""
    message: str = ""
    """Must be in the output if the status is not 0 (regular expression)."""


def _signal(number: signal.Signals) -> Callable[[Path, Row, Random], Callable[[Points], None]]:
    return lambda *_: lambda points: os.kill(os.getpid(), number)


def _fill(folder: Path, row: Row, random: Random) -> Callable[[Points], None]:
    """No file may grow beyond a size, as on a full disk: writes end in the middle."""
    size = random.choice([0, 1, 100, 1000, random.randrange(1000, 60_000)])
    return lambda points: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _vanish(folder: Path, row: Row, random: Random) -> Callable[[Points], None]:
    """The checkpoints' folder is gone, and nothing can be made in its place."""
    checkpoints = Workspace(folder).checkpoints(row, row.seeds[0])

    def strike(points: Points) -> None:
        if checkpoints.exists():
            checkpoints.rename(checkpoints.with_name("elsewhere"))
        checkpoints.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.touch()

    return strike


def restore(folder: Path, row: Row) -> None:
    """Undoes what outlives a session: the folder that vanished is back."""
    checkpoints = Workspace(folder).checkpoints(row, row.seeds[0])
    if checkpoints.is_file():
        checkpoints.unlink()
    if (elsewhere := checkpoints.with_name("elsewhere")).exists():
        elsewhere.rename(checkpoints)


def _lock(folder: Path, row: Row, random: Random) -> Callable[[Points], None]:
    """Somebody else writes to MLflow's database and does not end, until this session does."""

    def strike(points: Points) -> None:
        connection = sqlite3.connect(folder / "mlflow.db", timeout=0.1, isolation_level=None)
        _HELD.append(connection)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:  # the training itself is writing at this moment
            return

    return strike


def _server_gone(folder: Path, row: Row, random: Random) -> Callable[[Points], None]:
    """MLflow's server does not answer; strikes before the first connection."""

    def strike(points: Points) -> None:
        os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

    return strike


def _database_gone(folder: Path, row: Row, random: Random) -> Callable[[Points], None]:
    """MLflow's database is moved away in mid-run, for the rest of the session."""

    def strike(points: Points) -> None:
        (folder / "mlflow.db").rename(folder / "mlflow.away")
        (folder / "mlflow.db").write_bytes(b"no database " * 100)

    return strike


def bring_back(folder: Path) -> None:
    """Undoes :func:`_database_gone`."""
    if (away := folder / "mlflow.away").exists():
        away.replace(folder / "mlflow.db")


def _memory(folder: Path, row: Row, random: Random) -> Callable[[Points], None]:
    def strike(points: Points) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    return strike


def _worker(folder: Path, row: Row, random: Random) -> Callable[[Points], None]:
    """A loader process is killed, as by the system's out-of-memory killer."""
    place = random.random()

    def strike(points: Points) -> None:
        if children := psutil.Process().children():
            children[int(place * len(children))].kill()

    return strike


def _newest(folder: Path, row: Row) -> Path | None:
    found = sorted(Workspace(folder).checkpoints(row, row.seeds[0]).glob("iteration_*.pt"))
    return found[-1] if found else None


def truncate(path: Path, random: Random) -> None:
    """Cuts a file off anywhere."""
    data = path.read_bytes()
    path.write_bytes(data[: random.randrange(len(data))])


def flip(path: Path, random: Random) -> None:
    """Changes one to eight bytes."""
    data = bytearray(path.read_bytes())
    for _ in range(random.randint(1, 8)):
        data[random.randrange(len(data))] ^= random.randint(1, 255)
    path.write_bytes(data)


def empty(path: Path, random: Random) -> None:
    """Leaves no byte."""
    path.write_bytes(b"")


def remove(path: Path, random: Random) -> None:
    """Removes a file."""
    path.unlink()


def damage_newest(how: Callable[[Path, Random], None], sidecar: bool = False) -> Callable[[Path, Row, Random], bool]:
    """Damages the newest checkpoint, or its checksum; False if there is none, or nothing left in it."""

    def apply(folder: Path, row: Row, random: Random) -> bool:
        path = _newest(folder, row)
        if path is None or not path.stat().st_size:
            return False
        target = Path(f"{path}.sha256") if sidecar else path
        if not target.exists():
            return False
        how(target, random)
        return True

    return apply


def damage_finished(how: Callable[[Path, Random], None], *names: str) -> Callable[[Path, Row, Random], bool]:
    """Damages an output of a finished training; False if it is not finished."""

    def apply(folder: Path, row: Row, random: Random) -> bool:
        workspace = Workspace(folder)
        places = (workspace.metrics(row), workspace.model(row))
        found = [path for place in places for name in names if (path := place / name).is_file() and path.stat().st_size]
        if not found:
            return False
        how(random.choice(found), random)
        return True

    return apply


FULL = r"cannot be written \(|MLflow"
KINDS: dict[str, Kind] = {
    "SIGKILL in a step": Kind(
        "kill", "in a forward or backward pass", ("step", "backward"), _signal(signal.SIGKILL), (-9,)
    ),
    "SIGKILL at a file": Kind(
        "kill", "just before a file is opened, renamed or removed", ("file",), _signal(signal.SIGKILL), (-9,)
    ),
    "SIGKILL after a time": Kind("kill", "0 to 0.4 s after the first iteration began", (), None, (-9,)),
    "SIGTERM": Kind(
        "stop", "in a pass or at a file", ("step", "backward", "file"), _signal(signal.SIGTERM), (75, 0), 0,
        "run the same command again",
    ),
    "SIGINT": Kind(
        "stop", "in a pass or at a file", ("step", "backward", "file"), _signal(signal.SIGINT), (75, 0), 0,
        "run the same command again",
    ),
    "disk full": Kind(
        "fill", "no file can grow beyond 0 to 60,000 bytes (RLIMIT_FSIZE)", ("step", "file"), _fill, (2, 3, 0),
        message=r"cannot be written .*bytes needed, [\d,]+ free",
    ),
    "folder vanished": Kind(
        "fill", "the checkpoints' folder is gone and cannot be made", ("step",), _vanish, (2, 3),
        message="cannot be (written|read)",
    ),
    "database locked": Kind(
        "disconnect", "somebody else holds MLflow's database", ("step",), _lock, (0,), ITERATIONS
    ),
    "database gone": Kind(
        "disconnect", "MLflow's database is replaced by rubbish in mid-run", ("step",), _database_gone, (0,), ITERATIONS
    ),
    "server gone": Kind(
        "disconnect", "nobody listens at MLFLOW_TRACKING_URI", ("file",), _server_gone, (0,), ITERATIONS
    ),
    "out of memory": Kind(
        "compute", "torch.OutOfMemoryError in a forward pass", ("step",), _memory, (3,),
        message="out of memory .*set numerics.accumulate to",
    ),
    "loader killed": Kind(
        "compute", "SIGKILL of a loader process", ("step",), _worker, (3, 0), message="data loading process died"
    ),
}  # fmt: skip
"""Faults within a session, by name."""

BETWEEN: dict[str, tuple[str, Callable[[Path, Row, Random], bool]]] = {
    "checkpoint truncated": ("the newest", damage_newest(truncate)),
    "checkpoint flipped": ("1 to 8 bytes of the newest", damage_newest(flip)),
    "checkpoint emptied": ("the newest", damage_newest(empty)),
    "checksum lost": ("of the newest checkpoint", damage_newest(remove, sidecar=True)),
    "curve.csv damaged": ("truncated, after the end", damage_finished(truncate, "curve.csv")),
    "train.json damaged": ("flipped, after the end", damage_finished(flip, "train.json")),
    "weights damaged": ("flipped, after the end", damage_finished(flip, "seed0.safetensors")),
    "result damaged": ("truncated, after the end", damage_finished(truncate, "seed0.json")),
}
"""Damage done to files while no session runs (group ``corrupt``), by name."""

AFTER_THE_END = {"curve.csv damaged", "train.json damaged", "weights damaged", "result damaged"}


def complaints(name: str, session: Session) -> list[str]:
    """What a session with a fault did that it must not."""
    kind, found = KINDS[name], []
    if session.code not in kind.codes:
        found.append(f"exit status {session.code}, expected {' or '.join(map(str, kind.codes))}")
    if session.code not in (0, -9) and kind.message and not re.search(kind.message, session.output, re.DOTALL):
        found.append(f"no message like {kind.message!r}")
    if "Traceback" in session.output:
        found.append("a traceback instead of a message")
    lost = min(session.reached, ITERATIONS) - session.kept
    if session.code != 0 and lost > kind.lost:
        found.append(f"{lost} iterations lost, allowed are {kind.lost}")
    return found
