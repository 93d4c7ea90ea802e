"""Training batches as a pure function of (seed, iteration).

Global sample position ``p`` of a run (iteration i, batch size B: positions iB .. iB + B - 1) is image
``permutation(seed, p // n)[p % n]`` of the ``n`` images, augmented with a generator seeded by ``(seed, p)``. Nothing
depends on worker or process state, so any number of workers, any number of processes and a start at any iteration
give the same stream to the bit, and resuming costs nothing. Every image comes once in each ``n`` positions.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from danet.config.row import Augment
from danet.core.errors import ConfigError, DanetError, DataError, TrainingError
from danet.data.prefetch import DevicePrefetcher, HostWait
from danet.data.prepared import PreparedDataset
from danet.data.transforms import Box, augmented

_ORDER = 0x6F72646572  # keeps the order's random stream apart from the augmentation's


@dataclass
class Batch:
    """One process's samples of one iteration.

    ``images`` float32 ``(N, 3, H, W)`` normalised RGB; ``masks`` uint8 ``(N, H, W)``; ``positions`` the
    samples' global positions.

    As they are loaded images are grey levels, uint8 ``(N, H, W, 3)`` BGR, and ``boxes`` says which part of each is
    image; the rest is padding.
    """

    images: Tensor
    masks: Tensor
    positions: list[int]
    boxes: list[Box] | None = None

    def pin_memory(self) -> Batch:
        """Called by the data loader, so that copies to the GPU need not wait."""
        return replace(self, images=self.images.pin_memory(), masks=self.masks.pin_memory())


class EpochOrder:
    """The order of ``samples`` images over a run: a new permutation in each epoch."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples = samples
        self.seed = seed
        self._kept: tuple[int, NDArray[np.int64]] | None = None

    def index(self, position: int) -> int:
        """The image at a global sample position."""
        epoch, place = divmod(position, self.samples)
        if self._kept is None or self._kept[0] != epoch:
            self._kept = (epoch, np.random.default_rng([self.seed, epoch, _ORDER]).permutation(self.samples))
        return int(self._kept[1][place])

    def rng(self, position: int) -> np.random.Generator:
        """The generator of that sample's augmentation."""
        return np.random.default_rng([self.seed, position])


@dataclass
class Sample:
    """One augmented image and its labels, as :func:`danet.data.transforms.augmented` returns them."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    box: Box
    id: str
    position: int


class TrainingSet(Dataset[Sample]):
    """The samples of a run by global position (not by image): ``len`` is unbounded on purpose and not defined.

    Args:
        source: the training split.
        augment: the row's augmentation.
        seed: of the run.
        lazy: resize what a crop needs, not the whole image (:mod:`danet.data.transforms`): the same sample, sooner.
    """

    def __init__(self, source: PreparedDataset, augment: Augment, seed: int, *, lazy: bool = True) -> None:
        self.source = source
        self.augment = augment
        self.order = EpochOrder(len(source), seed)
        self.lazy = lazy

    def __getitem__(self, position: int) -> Sample:
        """Reads and augments the sample at a global position.

        Raises:
            DataError: naming the image, if it has no mask.
        """
        index = self.order.index(position)
        name = self.source.ids[index]
        image, mask = self.source.image(index), self.source.mask(index)
        if mask is None:
            raise DataError(f"{name}: has no labels; train on a split that has")
        return Sample(*augmented(self.augment, image, mask, self.order.rng(position), lazy=self.lazy), name, position)


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


class Positions(Sampler[list[int]]):
    """The global positions of this process's part of each batch, from iteration ``start`` to ``stop``.

    Rank r of ``world`` takes the r-th contiguous part of every global batch, so that the parts in the order of the
    ranks are that batch, whatever ``world`` is.

    Raises:
        ConfigError: if the batch size does not divide over the processes.
    """

    def __init__(self, batch_size: int, start: int, stop: int, rank: int = 0, world: int = 1) -> None:
        self.part = images_per_process(batch_size, world)
        self.batch_size, self.start, self.stop = batch_size, start, stop
        self.rank = rank

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in range(self.start, self.stop):
            first = iteration * self.batch_size + self.rank * self.part
            yield list(range(first, first + self.part))


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples, in a worker into shared memory.

    The queue's own thread would move them there too; but if it fails, it drops the batch and training waits forever.

    Raises:
        DataError: if shared memory has no room.
    """
    batch = Batch(
        images=torch.from_numpy(np.stack([sample.image for sample in samples])),
        masks=torch.from_numpy(np.stack([sample.mask for sample in samples])),
        positions=[sample.position for sample in samples],
        boxes=[sample.box for sample in samples],
    )
    if get_worker_info() is not None:
        try:
            batch.images.share_memory_()  # type: ignore[no-untyped-call]
            batch.masks.share_memory_()  # type: ignore[no-untyped-call]
        except (RuntimeError, OSError) as error:
            size = (batch.images.nbytes + batch.masks.nbytes) / 2**20
            raise DataError(
                f"shared memory has no room for a batch of {size:.1f} MiB ({str(error).splitlines()[0]}); free it "
                "(`df -h | grep shm`), give the container more (docker: --shm-size), or lower runtime.workers (0 needs "
                "none)"
            ) from error
    return batch


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # A stop is often sent to all processes of a job (Ctrl-C, Slurm). The trainer then finishes its iteration and saves,
    # for which it needs its workers; they end when it closes them, or a few seconds after it dies.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class BatchStream:
    """This process's batches of iterations ``start`` to ``stop`` (excluded), loaded ahead by ``workers`` processes.

    Iterate once, then :meth:`close` (or use as a context manager): ends the workers, also in mid-stream.

    ``batch_size`` is over all processes; on a GPU batches arrive by :class:`danet.data.prefetch.DevicePrefetcher`.
    """

    def __init__(
        self,
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
    ) -> None:
        device = torch.device(device)
        on_gpu = device.type == "cuda"
        self._arrival = DevicePrefetcher(augment, device) if on_gpu else HostWait(augment)
        self._loader: DataLoader[Sample] | None = DataLoader(
            TrainingSet(source, augment, seed),
            batch_sampler=Positions(batch_size, start, stop, rank, world),
            num_workers=workers,
            worker_init_fn=_start_worker,
            collate_fn=collate,
            pin_memory=on_gpu,
            generator=torch.Generator(),  # the loader's own draws must not touch the global generator
        )
        self._batches: Any = None

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        return self._arrival.fetch(self._take)

    @property
    def waited(self) -> float:
        """Seconds that training has waited for data so far; a GPU reports its own a few iterations later."""
        return self._arrival.waited

    def _take(self) -> Batch:
        if self._loader is None:
            raise ValueError("this stream is closed")
        if self._batches is None:
            self._batches = iter(self._loader)
        try:
            batch: Batch = next(self._batches)
        except DanetError as error:  # out of a worker it comes behind the worker's traceback
            kind = type(error)
            raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].rstrip()) from None
        except (EOFError, ConnectionError) as error:  # its socket closed before PyTorch noticed its death
            raise RuntimeError(f"DataLoader worker exited ({type(error).__name__})") from error
        return batch

    def close(self) -> None:
        """Ends the workers and frees what they loaded ahead."""
        batches, self._batches, self._loader = self._batches, None, None
        # Dropping the iterator would do the same, but not while an exception's traceback still refers to it.
        if hasattr(batches, "_shutdown_workers"):
            try:
                batches._shutdown_workers()
            finally:
                for worker in batches._workers:
                    worker.kill()  # only one that is stuck is still there, and it does not hear SIGTERM
                    worker.join()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes; raises TrainingError for what PyTorch raised at the death of a worker."""
        with suppress(RuntimeError):  # a worker's death, told only now
            self.close()
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise TrainingError(
                f"a data loading process died ({str(error).splitlines()[-1]}): it was killed, or memory or /dev/shm "
                "ran out; lower runtime.workers (0 loads in the training process)"
            ) from error
