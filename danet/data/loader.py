"""Training batches as a pure function of (seed, iteration).

Global sample position ``p`` of a run (iteration i, batch size B: positions iB .. iB + B - 1) is image
``permutation(seed, p // n)[p % n]`` of the ``n`` images, augmented with a generator seeded by ``(seed, p)``. Nothing
depends on worker or process state, so any number of workers, any number of processes and a start at any iteration
give the same stream to the bit, and resuming costs nothing. Every image comes once in each ``n`` positions.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from danet.config.row import Augment
from danet.core.errors import ConfigError, DanetError, DataError, TrainingError
from danet.data.layout import Array8
from danet.data.prefetch import DeviceBatches, HostBatches, Loaded
from danet.data.prepared import PreparedDataset
from danet.data.transforms import Box, augmented

_ORDER = 0x6F72646572  # keeps the order's random stream apart from the augmentation's
Sample = tuple[Array8, Array8, Box]
"""As :func:`danet.data.transforms.augmented` returns it."""


class TrainingSet(Dataset[Sample]):
    """The samples of a run by global position (not by image): ``len`` is unbounded on purpose and not defined.

    ``lazy`` resizes what a crop needs, not the whole image (:mod:`danet.data.transforms`): the same sample, sooner.
    """

    def __init__(self, source: PreparedDataset, augment: Augment, seed: int, *, lazy: bool = True) -> None:
        self.source = source
        self.augment = augment
        self.seed = seed
        self.lazy = lazy
        self._kept: tuple[int, NDArray[np.int64]] | None = None

    def index(self, position: int) -> int:
        """The image at a global sample position; each epoch has a new permutation."""
        epoch, place = divmod(position, len(self.source))
        if self._kept is None or self._kept[0] != epoch:
            self._kept = (epoch, np.random.default_rng([self.seed, epoch, _ORDER]).permutation(len(self.source)))
        return int(self._kept[1][place])

    def __getitem__(self, position: int) -> Sample:
        """Reads and augments the sample at a global position.

        Raises:
            DataError: naming the image, if it has no mask.
        """
        index = self.index(position)
        image, mask = self.source.image(index), self.source.mask(index)
        if mask is None:
            raise DataError(f"{self.source.ids[index]}: has no labels; train on a split that has")
        return augmented(self.augment, image, mask, np.random.default_rng([self.seed, position]), lazy=self.lazy)


def images_per_process(batch_size: int, world: int) -> int:
    """Each process's share of a global batch.

    Raises:
        ConfigError: if it does not divide, naming the numbers of processes over which it does.
    """
    if batch_size % world:
        allowed = ", ".join(str(n) for n in range(1, batch_size + 1) if batch_size % n == 0)
        raise ConfigError(
            f"schedule.batch_size {batch_size} does not divide over {world} processes; start one of {allowed}"
        )
    return batch_size // world


def own_positions(iteration: int, batch_size: int, rank: int, world: int) -> range:
    """The global positions of a process's part of a batch: the parts in the order of the ranks are that batch."""
    part = images_per_process(batch_size, world)
    first = iteration * batch_size + rank * part
    return range(first, first + part)


def collate(samples: Sequence[Sample]) -> Loaded:
    """Stacks samples, in a worker into shared memory.

    The queue's own thread would move them there too; but if it fails, it drops the batch and training waits forever.

    Raises:
        DataError: if shared memory has no room.
    """
    images, masks, boxes = zip(*samples, strict=True)
    levels, labels = torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))
    if get_worker_info() is not None:
        try:
            levels.share_memory_()  # type: ignore[no-untyped-call]
            labels.share_memory_()  # type: ignore[no-untyped-call]
        except (RuntimeError, OSError) as error:
            size = (levels.nbytes + labels.nbytes) / 2**20
            raise DataError(
                f"shared memory has no room for a batch of {size:.1f} MiB ({str(error).splitlines()[0]}); free it "
                "(`df -h | grep shm`), give the container more (docker: --shm-size), or lower runtime.workers (0 needs "
                "none)"
            ) from error
    return levels, labels, list(boxes)


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # A stop is often sent to all processes of a job (Ctrl-C, Slurm). The trainer then finishes its iteration and saves,
    # for which it needs its workers; they end when it closes them, or a few seconds after it dies.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def batch_stream(
    source: PreparedDataset,
    augment: Augment,
    *,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[HostBatches | DeviceBatches]:
    """This process's batches of iterations ``start`` to ``stop`` (excluded), loaded ahead by ``workers`` processes.

    ``batch_size`` is over all processes. On leaving the workers end, also in mid-stream.

    Raises:
        ConfigError: if the batch size does not divide over the processes.
        TrainingError: for what PyTorch raised at the death of a worker.
    """
    device = torch.device(device)
    loader: DataLoader[Sample] = DataLoader(
        TrainingSet(source, augment, seed),
        batch_sampler=(list(own_positions(iteration, batch_size, rank, world)) for iteration in range(start, stop)),
        num_workers=workers,
        worker_init_fn=_start_worker,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader's own draws must not touch the global generator
    )
    batches: Any = iter(loader)
    try:
        loaded = _told(batches)
        yield HostBatches(loaded, augment) if device.type == "cpu" else DeviceBatches(loaded, augment, device)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a data loading process died ({str(error).splitlines()[-1]}): it was killed, or memory or /dev/shm "
            "ran out; lower runtime.workers (0 loads in the training process)"
        ) from error
    finally:
        # Dropping the iterator would do the same, but not while an exception's traceback still refers to it.
        if workers:
            with suppress(RuntimeError):  # a worker's death, told only now
                batches._shutdown_workers()
            for worker in batches._workers:
                worker.kill()  # only one that is stuck is still there, and it does not hear SIGTERM
                worker.join()


def _told(batches: Iterator[Loaded]) -> Iterator[Loaded]:
    """The batches, with what goes wrong in a worker as it was raised there."""
    try:
        yield from batches
    except DanetError as error:  # out of a worker it comes behind the worker's traceback
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].rstrip()) from None
    except (EOFError, ConnectionError) as error:  # its socket closed before PyTorch noticed its death
        raise RuntimeError(f"DataLoader worker exited ({type(error).__name__})") from error
