"""A small training in a process of its own, in which a fault strikes at a given point.

Each session is a fork of the harness, which has imported everything already: starting one takes milliseconds. It runs
:func:`danet.training.train.train_row` with the project's own data, checkpoints and tracking; only the network is
narrow.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import selectors
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danet.config import rows
from danet.config.rows import Dataset, Row, load_params
from danet.config.workspace import Workspace
from danet.core.console import report_errors
from danet.data.convert import convert_dataset
from danet.models.segmentor import Segmentor
from danet.results import tracking
from danet.training import train as training
from danet.training.checkpoint import CheckpointStore
from pipelines.demo.scenes import Sizes, make_archives

DATASET = "voc2012"
SIZES = Sizes(train=10, val=4, test=1, size=(40, 56), cityscapes=(24, 64))
ITERATIONS = 40
INTERVAL = 4
"""Iterations between checkpoints: what a kill may lose."""
LIMIT_SECONDS = 120.0
"""A session that takes longer hangs."""

Strike = Callable[["Points"], None]


class Points:
    """Counts what a session does, in memory that its parent sees, and strikes at the points it is told.

    ``step``: the n-th forward pass of training; ``backward``: its backward pass; ``file``: the n-th time that a file of
    the workspace is opened, renamed, removed or made.

    Args:
        plan: kind of point, its number, and what happens there; in the order in which they strike.
    """

    def __init__(self, *plan: tuple[str, int, Strike]) -> None:
        self.plan = plan
        self._memory = mmap.mmap(-1, 128)
        self._owner = 0

    def hit(self, kind: str) -> None:
        """Notes one event and strikes if it is the one."""
        if os.getpid() != self._owner:  # loader processes inherit this
            return
        place = 8 * ("step", "backward", "file").index(kind)
        (count,) = struct.unpack_from("<q", self._memory, place)
        struct.pack_into("<q", self._memory, place, count + 1)
        for point, number, strike in self.plan:
            if kind == point and count + 1 == number:
                self.note_struck()
                strike(self)

    def note_struck(self) -> None:
        """Notes that a fault has struck."""
        struct.pack_into("<q", self._memory, 24, self.struck + 1)

    @property
    def steps(self) -> int:
        """Forward passes begun."""
        return int(struct.unpack_from("<q", self._memory, 0)[0])

    @property
    def files(self) -> int:
        """File events."""
        return int(struct.unpack_from("<q", self._memory, 16)[0])

    @property
    def struck(self) -> int:
        """How many faults have struck."""
        return int(struct.unpack_from("<q", self._memory, 24)[0])

    @property
    def momentum(self) -> str:
        """Digest of the optimizer's state at the end of training; empty if it did not come to that."""
        return self._memory[32:96].rstrip(b"\0").decode()

    @momentum.setter
    def momentum(self, digest: str) -> None:
        self._memory[32 : 32 + len(digest)] = digest.encode()

    def install(self, root: Path) -> None:
        """Starts to count in this process; cannot be undone."""
        self._owner = os.getpid()
        prefix = str(root.resolve())
        events = {"open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.truncate", "sqlite3.connect"}
        busy = False

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal busy
            if event in events and not busy and arguments and str(arguments[0]).startswith(prefix):
                busy = True
                try:
                    self.hit("file")
                finally:
                    busy = False

        sys.addaudithook(audit)


class Narrow(Segmentor):
    """Few channels, the outputs of DANet, batch normalisation and dropout: everything that has a state."""

    def __init__(self, config: rows.Model, num_classes: int, points: Points) -> None:
        nn.Module.__init__(self)
        self.config, self.num_classes, self.points = config, num_classes, points
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())  # type: ignore[assignment]
        self.dropout = nn.Dropout2d(0.3)
        self.head = nn.ModuleDict({part: nn.Conv2d(8, num_classes, 1) for part in ("main", "pam", "cam", "aux")})  # type: ignore[assignment]
        self.aux_head = None

    def forward(self, images_N3HW: Tensor, all_heads: bool | None = None) -> dict[str, Tensor]:
        """As :meth:`Segmentor.forward`; training passes are points at which a fault can strike."""
        if self.training:
            self.points.hit("step")
        features = self.dropout(self.backbone(images_N3HW))
        outputs = {part: layer(features) for part, layer in self.head.items()}  # type: ignore[operator]
        if self.training:
            outputs["main"].register_hook(lambda _: self.points.hit("backward"))
        return outputs if self.training or all_heads else {"main": outputs["main"]}


def variant(name: str) -> Row:
    """The row that is trained: ``plain``, ``accumulate`` (two micro-batches) or ``deterministic``."""
    base = load_params().row("mmseg-r50-d8-voc2012-20k")
    changed = {"accumulate": {"accumulate": 2}, "deterministic": {"deterministic": True}}.get(name, {})
    sections: dict[str, dict[str, Any]] = {
        "schedule": {"iterations": ITERATIONS, "epochs": None, "batch_size": 4},
        "augment": {"resize": base.augment.resize.model_copy(update={"scale": (40, 56)}), "crop_size": (32, 32)},
        "optimizer": {"lr": 0.05, "head_lr_multiplier": 2.0},
        "test": {"resize": "none", "scale": None, "multi_scale": None},
        "numerics": changed,
        "runtime": {"log_interval": 2, "checkpoint_interval": INTERVAL, "progress": "never"},
    }
    update: dict[str, Any] = {
        section: getattr(base, section).model_copy(update=fields) for section, fields in sections.items()
    }
    update |= {"name": f"faults-{name}", "seeds": (0,), "train_split": "trainaug", "val_split": "val"}
    return Row.model_validate(base.model_copy(update={**update, "val_interval": 10}).model_dump())


def make_template(folder: Path) -> None:
    """A workspace with generated data and an empty MLflow store, to be copied for each training."""
    made = make_archives(folder / "raw", sizes=SIZES)[DATASET]
    spec = Dataset.model_validate({"adapter": DATASET, "title": DATASET, **made})
    workspace = Workspace(folder / "workspace")
    convert_dataset(DATASET, spec, folder / "raw", workspace.prepared(DATASET), progress=False)
    code, output = in_fork(lambda: tracking.connect(tracking.tracking_uri(workspace)))
    if code:
        raise RuntimeError(f"MLflow's store cannot be made: {output}")


@dataclass
class Session:
    """How one session ended."""

    code: int
    """Exit status; negative: killed by that signal."""
    output: str
    start: int
    """Iteration it could go on from."""
    reached: int
    """Iterations begun."""
    kept: int
    """Iteration that the next one can go on from; the total if the weights are there."""
    points: Points
    seconds: float


def train(folder: Path, row: Row, workers: int, points: Points, *, after: float | None = None) -> Session:
    """Runs one session; ``after`` kills it that many seconds after its first iteration began."""
    workspace = Workspace(folder)
    start, began = resumable(workspace, row), time.monotonic()

    def work() -> None:
        set_up(points)
        points.install(folder)
        uncut = row.model_copy(update={"runtime": row.runtime.model_copy(update={"workers": workers})})
        training.train_row(uncut, workspace, tracker_factory=tracking.run, device="cpu")

    code, output = in_fork(work, points=points, after=after)
    parts = row.numerics.accumulate
    assert isinstance(parts, int)
    reached = start + -(-points.steps // parts)
    return Session(code, output, start, reached, resumable(workspace, row), points, time.monotonic() - began)


def set_up(points: Points) -> None:
    """The narrow network in place of a ResNet, any number of workers on few cores, short waits for MLflow."""
    torch.set_num_threads(1)
    keep = training._keep

    def build(row: Row, workspace: Workspace, num_classes: int) -> tuple[nn.Module, None]:
        return Narrow(row.model, num_classes, points), None

    def noting(trainer: training.Trainer, *arguments: Any) -> None:
        points.momentum = digest_of(trainer.optimizer.state_dict()["state"])
        keep(trainer, *arguments)

    setattr(training, "_build_model", build)  # noqa: B010 - replaced on purpose, and only in this process
    setattr(training, "_keep", noting)  # noqa: B010
    setattr(training, "cpu_cores", lambda: 8)  # noqa: B010
    tracking.TIMEOUT_SECONDS = 1


def digest_of(value: Any) -> str:
    """SHA-256 over nested tensors."""
    found = hashlib.sha256()

    def walk(item: Any) -> None:
        if isinstance(item, dict):
            for key in sorted(item, key=str):
                found.update(str(key).encode())
                walk(item[key])
        elif isinstance(item, Tensor):
            found.update(item.contiguous().numpy().tobytes())
        else:
            found.update(repr(item).encode())

    walk(value)
    return found.hexdigest()


def resumable(workspace: Workspace, row: Row) -> int:
    """Iterations that no session has to do again: of the newest undamaged checkpoint, or all."""
    folder = workspace.checkpoints(row, row.seeds[0])
    if training._finished(folder, row, row.seeds[0]) is not None:
        return ITERATIONS
    good = CheckpointStore(folder, row, row.seeds[0]).last_good() if folder.is_dir() else None
    return int(good.stem.removeprefix("iteration_")) if good else 0


def in_fork(work: Callable[[], object], points: Points | None = None, after: float | None = None) -> tuple[int, str]:
    """Runs a function as a stage would be, in a fork; returns its exit status and what it printed.

    Raises:
        TimeoutError: if it hangs.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            os.dup2(write, 1)
            os.dup2(write, 2)
            with report_errors():
                work()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:  # a bug: its traceback is the result
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    output, deadline, due = bytearray(), time.monotonic() + LIMIT_SECONDS, None
    os.set_blocking(read, False)
    with selectors.DefaultSelector() as selector:
        selector.register(read, selectors.EVENT_READ)
        while True:
            for _ in selector.select(0.002 if after is not None else 0.02):
                data = os.read(read, 65536)
                output += data
                if not data:
                    selector.unregister(read)
            if after is not None and points is not None and points.steps and due is None:
                due = time.monotonic() + after
            if due is not None and time.monotonic() >= due and points is not None and not points.struck:
                points.note_struck()
                os.kill(child, signal.SIGKILL)
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise TimeoutError(f"a session hangs: {output.decode(errors='replace')[-2000:]}")
    with contextlib.suppress(BlockingIOError):  # loader processes of a killed trainer keep it open
        output += os.read(read, 1 << 20)
    os.close(read)
    return os.waitstatus_to_exitcode(status), output.decode(errors="replace")


def adopt_orphans() -> None:
    """Makes orphaned descendants this process's children (Linux), so that loaders that outlive a trainer are seen."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
