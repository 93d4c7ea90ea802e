"""One process or many (torchrun): rank, sums and stops, and statistics over all of them on any device."""

from __future__ import annotations

import gc
import os
import resource
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from danet.core.errors import TrainingError
from danet.core.provenance import code_version

ARRIVAL = timedelta(minutes=10)
"""How long processes wait for each other at the start; nodes of a cluster do not come up at the same second."""


@dataclass(frozen=True)
class Process:
    """This process among ``world``; rank 0 writes, all compute.

    Control messages (stop, failure) are CPU tensors and go by gloo, so that they need no GPU synchronisation.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this one writes files, logs and tracks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            self.any(False)

    def any(self, flag: bool) -> bool:
        """Whether any process says so; every process gets the same answer."""
        if self.world == 1:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes of a tensor on their devices (not differentiable)."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every process's picklable value, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def agree(self, facts: Mapping[str, Any], remedy: str) -> None:
        """Refuses to go on, in every process, unless all have the same facts.

        Raises:
            TrainingError: naming the first fact that differs, and rank, host and value of two that differ in it.
        """
        first, *others = self.gather({"host": socket.gethostname(), **facts})
        for name in facts:
            for rank, other in enumerate(others, 1):
                if other[name] != first[name]:
                    raise TrainingError(
                        f"processes differ in {name}: rank 0 on {first['host']} has {first[name]}, "
                        f"rank {rank} on {other['host']} has {other[name]}; {remedy}"
                    )


@contextmanager
def processes(device: str | torch.device | None = None) -> Iterator[Process]:
    """Joins the processes that torchrun started (``WORLD_SIZE``), or is the only one.

    They compare what they run first: another PyTorch or another commit on one node would compute something else.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``; by default the GPU of the local rank if there is one, else the CPU.

    Raises:
        TrainingError: if that device is not there, a node has fewer GPUs than processes, a process does not come, or
            they differ in software or kind of device.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    chosen = select_device(device, local_rank, local_world)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Process(device=chosen)
        return
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=ARRIVAL)
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise TrainingError(
            f"process {rank} of {world} on {socket.gethostname()} could not meet the others "
            f"({(str(error) or type(error).__name__).splitlines()[0]}); check that as many as WORLD_SIZE were started, "
            "and that MASTER_ADDR and MASTER_PORT can be reached from every node"
        ) from error
    try:
        process = Process(rank, world, local_world, chosen)
        commit, dirty = code_version()
        software = {"torch": str(torch.__version__), "commit": commit[:12] + (" with changes" if dirty else "")}
        process.agree(
            software | {"device": chosen.type},
            "give every node the same environment (requirements.lock), commit and GPUs",
        )
        yield process
    except BaseException as error:
        _release(error)
        raise
    finally:
        # A network that outlives its group keeps the group's threads, and one that wants Python's lock while the
        # interpreter ends aborts the process: its exit code would be SIGABRT's.
        gc.collect()
        dist.destroy_process_group()


def _release(error: BaseException | None) -> None:
    """Frees what the finished frames of an error and of what led to it hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def select_device(device: str | torch.device | None, local_rank: int = 0, local_world: int = 1) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        TrainingError: if it is not there or not a device's name, or if processes would have to share a GPU.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise TrainingError(f"device {device!r} is unknown; allowed: cpu, cuda, cuda:N") from error
    if chosen.type not in {"cpu", "cuda"}:
        raise TrainingError(f"device {chosen} is not supported; allowed: cpu, cuda, cuda:N")
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if local_world > 1 and chosen.index is not None:
            raise TrainingError(f"device {chosen}: all {local_world} processes would use one GPU; give cuda")
        if 0 < count < local_world:
            raise TrainingError(
                f"{local_world} processes were started on {socket.gethostname()}, which has {count} GPUs for them; "
                f"start at most {count} (torchrun --nproc-per-node {count}) or use device cpu"
            )
        index = local_rank if chosen.index is None else chosen.index
        if index >= count:
            raise TrainingError(
                f"device cuda:{index} is not there ({count} GPUs found); use cpu or start fewer processes"
            )
        return torch.device("cuda", index)
    return chosen


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this process in GiB: allocated on a GPU (as mmcv logs it), resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
