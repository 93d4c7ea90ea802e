"""The training loop of one seed of a row: resumable at any iteration, on one process or many.

A step is a pure function of the weights, the momentum and (seed, iteration): data by :mod:`danet.data.loader`,
dropout by :func:`danet.models.numerics.seed_step`, rates by :mod:`danet.training.schedule`. So a run that was stopped
and continued, at any iteration and with any number of workers, ends with the same bits on a CPU, and on a GPU in
deterministic mode.

``numerics.accumulate`` splits each batch into micro-batches whose gradients add up to the whole batch's: loss averages
are taken over the whole batch. Only batch normalisation sees fewer images at a time, as it does on more GPUs without
synchronisation; so the setting moves results, is part of the row's identity, and what was used is recorded.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from danet.config.row import Row
from danet.core.console import console
from danet.core.errors import CheckpointError, ConfigError, DanetError, Interrupted, TrainingError, out_of_memory
from danet.core.process import Process, peak_memory_gib
from danet.core.provenance import EnergyMeter
from danet.data.layout import IGNORE, LabelledImages
from danet.data.loader import Batch, BatchStream, images_per_process
from danet.models import numerics
from danet.training.batch_norm import synchronise_batch_norm
from danet.training.checkpoint import Checkpoint, CheckpointStore
from danet.training.losses import loss_divisors, segmentation_losses
from danet.training.optim import build_optimizer, set_learning_rates
from danet.training.progress import History, Reporter, progress_line, write_status
from danet.training.stop import StopRequest

CHECK_EVERY = 25
"""Iterations between looks at the losses on a GPU, so that it need not wait for each (always before a checkpoint)."""


class StepMetrics(Protocol):
    """Where the metrics of a step go (:class:`danet.results.tracking.Tracker`)."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Notes values of a step."""
        ...


EMPTY_BATCHES = 10
"""So many in a row without a labelled pixel are not chance: training stops."""

GRADIENT = "gradient"


@dataclass
class _Step:
    """An iteration whose losses have not been looked at yet."""

    iteration: int
    names: list[str]
    losses: Tensor
    """By name; the last one, :data:`GRADIENT`, is the largest absolute value of the gradients."""
    ids: list[str]


class Trainer:
    """Trains one model by a row's recipe, from its newest checkpoint or from the start.

    Args:
        row: the recipe; its model section only gives ``align_corners``, so tests may bring any model.
        seed: of the run.
        model: initialised; outputs a mapping of logits, see :func:`danet.training.losses.segmentation_losses`.
        dataset: the training split.
        store: where resume checkpoints go.
        validate: returns the mIoU in percent of the model as it is; called every ``row.val_interval`` iterations,
            in every process.
        select: returns the score by which an epoch is the best (:mod:`danet.training.selection`); called after each
            epoch in every process.
        keep_best: stores the model with its iteration and score, the highest so far; called on the first process,
            before the checkpoint that knows of it.
    """

    def __init__(
        self,
        row: Row,
        seed: int,
        model: nn.Module,
        dataset: LabelledImages,
        store: CheckpointStore,
        *,
        process: Process | None = None,
        reporter: Reporter | None = None,
        tracker: StepMetrics | None = None,
        validate: Callable[[nn.Module], float] | None = None,
        select: Callable[[nn.Module], float] | None = None,
        keep_best: Callable[[nn.Module, int, float], None] = lambda model, iteration, score: None,
        stop: StopRequest | None = None,
        workers: int = 0,
    ) -> None:
        self.row, self.seed, self.dataset, self.store = row, seed, dataset, store
        self.process = process or Process()
        self.device = self.process.device
        self.reporter = reporter or Reporter(console, quiet=True)
        self.tracker, self.validate, self.workers = tracker, validate, workers
        self.select, self.keep_best = select, keep_best
        self.stop = stop or StopRequest()
        self.title = f"{row.name} seed {seed}"
        self.total = row.schedule.total_iterations(len(dataset))
        self.epoch = row.schedule.iterations_per_epoch(len(dataset))
        self.local_batch = local_batch_size(row, self.process)
        self.finds_accumulation = row.numerics.accumulate == "auto" and self.process.world == 1
        self.accumulate = self._wanted_accumulation()

        self.model = self._placed(model)
        self.optimizer = build_optimizer(self.model, row.optimizer)  # type: ignore[arg-type]
        self.scaler = numerics.gradient_scaler(row.numerics, self.device)
        self.history = History()
        self.iteration = 0
        self._lr = 0.0
        self._updating = False  # in the optimizer's step, of which there is no going back
        self._saved: int | None = None
        self._empty = 0  # batches in a row that had no labelled pixel
        self._pending: deque[_Step] = deque()
        self._meter: EnergyMeter | None = None
        self._energy_before: float | None = 0.0
        self._restore()
        self._session = self.iteration, self.history.seconds  # where this process began
        self.process.agree(
            {"the iteration of the newest checkpoint": self.iteration},
            f"every node must see the same {self.store.folder}: put the workspace on a shared file system",
        )
        if not self.history.accumulate:
            self.history.accumulate = [[1, self.accumulate]]
        self.network = self._wrap()
        self._proven = not row.numerics.compile  # whether this network has made a step

    def _wanted_accumulation(self) -> int:
        wanted = self.row.numerics.accumulate
        parts = 1 if wanted == "auto" else wanted
        if self.local_batch % parts:
            raise ConfigError(
                f"{self.row.name}: numerics.accumulate {parts} does not divide the {self.local_batch} "
                f"images of a process; allowed: auto, {', '.join(map(str, _divisors(self.local_batch)))}"
            )
        return parts

    def _placed(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the layout and with the batch normalisation that the row asks for."""
        model = model.to(self.device)
        if self.row.numerics.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if self.row.numerics.sync_batch_norm and self.process.world > 1:
            model = synchronise_batch_norm(model, self.device)
        return model

    @property
    def micro_batch(self) -> int:
        """Images of this process at a time."""
        return self.local_batch // self.accumulate

    def _restore(self) -> None:
        checkpoint, notes = self.store.load()
        for note in notes:
            self.reporter.say(f"{self.title}: {note}")
        if checkpoint is None:
            return
        try:
            self.model.load_state_dict(checkpoint.model)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.store.path(checkpoint.iteration)}: is of another model ({_first_lines(error)}), so other code "
                "wrote it; remove the folder to train from the start"
            ) from error
        # only the momentum: rates and kernel choices come from this row on this device
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": checkpoint.optimizer["state"], "param_groups": groups})
        if self.scaler.is_enabled() and checkpoint.scaler:
            self.scaler.load_state_dict(checkpoint.scaler)
        self.history = History(**checkpoint.progress)
        self.history.resumed += 1
        if self.finds_accumulation and self.history.accumulate:
            self.accumulate = self.history.accumulate[-1][1]
        self.iteration = self._saved = checkpoint.iteration
        self._energy_before = self.history.energy_kj
        self.reporter.say(f"{self.title}: goes on after iteration {self.iteration} of {self.total}")

    def _wrap(self) -> nn.Module:
        network = self.model
        if self.process.world > 1:
            network = DistributedDataParallel(
                network,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                # outputs without a weight leave their layers without a gradient (ClusterDANet, by its source's design)
                find_unused_parameters=self.row.loss.pam == 0 or self.row.loss.cam == 0,
            )
        if self.row.numerics.compile:
            network = _compiled(network)
        return network

    def run(self) -> History:
        """Trains to the end and returns what was measured; the trained weights are in ``self.model``.

        Raises:
            Interrupted: after a SIGTERM or SIGINT, with a checkpoint saved.
            TrainingError: for a non-finite loss or a lack of memory, saying what to do.
        """
        self.model.train()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._meter = EnergyMeter()
        with self._stream() as stream, self.reporter.run(self.title, self.total, self.iteration):
            while self.iteration < self.total:
                ids = self._train_on(stream)
                self._validate_and_log()
                self._keep_if_best(ids)
                self._save_or_stop(ids)
        self._settle()
        self._check_finite([])
        self._note_energy()
        return self.history

    def _stream(self) -> BatchStream:
        return BatchStream(
            self.dataset,
            self.row.augment,
            seed=self.seed,
            batch_size=self.row.schedule.batch_size,
            start=self.iteration,
            stop=self.total,
            rank=self.process.rank,
            world=self.process.world,
            workers=self.workers,
            device=self.device,
        )

    def _train_on(self, stream: BatchStream) -> list[str]:
        """One iteration on the next batch, whose ids it returns."""
        began, waited = time.perf_counter(), stream.waited
        batch = next(stream)
        self._lr = set_learning_rates(self.optimizer, self.row.schedule, self.iteration, self.total)
        with self._explained(batch):
            self._pending.append(self._step(batch))
        self.iteration += 1
        looks = self._logs() or self._checkpoints() or self.device.type != "cuda"
        if looks or len(self._pending) >= CHECK_EVERY:
            self._settle()
        self.history.time(time.perf_counter() - began, stream.waited - waited, self.row.schedule.batch_size)
        self.reporter.step(self.iteration, self._line)
        return batch.ids

    def _validate_and_log(self) -> None:
        score = self._evaluated(self.validate) if self.validate and self._validates() else None
        if self._logs():
            self._log(score)

    def _keep_if_best(self, ids: Sequence[str]) -> None:
        """At the end of an epoch, where the row keeps the best one."""
        if self.select is None or self.iteration % self.epoch:
            return
        self._settle()
        score, before = self._evaluated(self.select), self.history.best
        if before is not None and score <= before[1]:
            return
        self.history.best = (self.iteration, score)
        if self.process.is_main:
            self.keep_best(self.model, self.iteration, score)
        if self.iteration < self.total:
            self._save(ids)

    def _save_or_stop(self, ids: Sequence[str]) -> None:
        """Saves where it is time to, and where any process was told to stop; then raises ``Interrupted``."""
        stopping = self.process.any(self.stop.requested)
        if self.iteration == self.total or not (stopping or self._checkpoints()):
            return
        self._settle()
        self._save(ids)
        if stopping:
            raise Interrupted(
                f"{self.title}: stopped after iteration {self.iteration} of {self.total}"
                f"{f' ({self.stop.reason})' if self.stop.reason else ''}, saved in {self.store.folder}; "
                "run the same command again to go on from there"
            )

    def _eta(self) -> float:
        """Seconds to go at this session's pace."""
        iteration, seconds = self._session
        done = max(1, self.iteration - iteration)
        return (self.history.seconds - seconds) / done * (self.total - self.iteration)

    def _line(self) -> str:
        history = self.history
        last = history.curve[-1] if history.curve else {}
        loss = history.sums["loss"] / history.counted if history.counted else last.get("loss")
        speed = history.images_per_second
        if history.interval_seconds > 0:
            speed = history.interval_images / history.interval_seconds
        elif last.get("images_per_second"):
            speed = float(last["images_per_second"] or 0.0)
        return progress_line(
            self.iteration,
            self.total,
            loss=loss,
            lr=self._lr,
            speed=speed,
            wait=history.data_wait_share,
            memory_gib=history.peak_memory_gib,
            eta=self._eta(),
        )

    def _note_energy(self) -> None:
        """Brings the history's energy up to date: every part of the run on every GPU, or nothing."""
        drawn = self._meter.kilojoules() if self._meter else None
        parts = [self._energy_before, *self.process.gather(drawn)]
        known = [part for part in parts if part is not None]
        self.history.energy_kj = round(sum(known), 3) if len(known) == len(parts) else None

    def _checkpoints(self) -> bool:
        return self.iteration % self.row.runtime.checkpoint_interval == 0

    def _validates(self) -> bool:
        interval = self.row.val_interval
        return interval is not None and self.validate is not None and self.iteration % interval == 0

    def _logs(self) -> bool:
        """Whether the curve gets a row."""
        ends = self.iteration in (1, self.total)
        return ends or self.iteration % self.row.runtime.log_interval == 0 or self._validates()

    def _step(self, batch: Batch) -> _Step:
        """One optimizer step on this process's part of a batch; divides it finer if memory runs out and it may."""
        if self._proven and not self.finds_accumulation:
            return self._compute(batch)
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        while True:
            try:
                step = self._compute(batch)
            except Exception as error:
                if out_of_memory(error):
                    if self._updating or not self._divide_finer():
                        raise
                    del error  # its traceback holds on to what did not fit
                    self.optimizer.zero_grad(set_to_none=True)
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
                elif isinstance(error, DanetError) or self._proven:
                    raise
                else:
                    # The first call compiles. If the fault is not the compiler's, the plain network raises it again.
                    reason = " ".join(str(error).split())[:200]
                    self.reporter.say(
                        f"{self.title}: torch.compile failed ({type(error).__name__}: {reason}); going on without it, "
                        "at the plain speed"
                    )
                    self.network = self._uncompiled()
                    self._proven = True
                for buffer, before in buffers:
                    buffer.copy_(before)
            else:
                self._proven = True
                return step

    def _divide_finer(self) -> bool:
        """Raises the number of micro-batches to the next that divides the batch; False if there is none."""
        finer = [n for n in _divisors(self.local_batch) if n > self.accumulate] if self.finds_accumulation else []
        if not finer:
            return False
        self.accumulate = finer[0]
        changes = [entry for entry in self.history.accumulate if entry[0] != self.iteration + 1]
        self.history.accumulate = [*changes, [self.iteration + 1, self.accumulate]]
        self.reporter.say(
            f"{self.title}: out of memory at iteration {self.iteration + 1}; from here on {self.micro_batch} images at "
            f"a time ({self.accumulate} to an optimizer step, recorded in train.json): the batch size stays"
        )
        return True

    def _uncompiled(self) -> nn.Module:
        inner: nn.Module = getattr(self.network, "_orig_mod", self.network)
        return inner

    def _compute(self, batch: Batch) -> _Step:
        row, device = self.row, self.device
        images = batch.images.to(device, non_blocking=True)
        if row.numerics.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        labels = batch.masks.to(device, non_blocking=True)
        places = [position % row.schedule.batch_size for position in batch.positions]
        divisors = loss_divisors(labels, row.loss, places, row.schedule.batch_size, self.process.sum)
        divisors /= self.process.world  # DDP averages gradients over processes; with this they add up to the batch's
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        for first in range(0, self.local_batch, self.micro_batch):
            part = slice(first, first + self.micro_batch)
            numerics.seed_step(self.model, self.seed, batch.positions[part], device)
            with self._synchronised(last=first + self.micro_batch >= self.local_batch):
                with numerics.autocast(row.numerics, device):
                    outputs: Mapping[str, Tensor] = self.network(images[part])
                losses = segmentation_losses(
                    outputs, labels[part], row.loss, align_corners=row.model.align_corners, divisors=divisors[part]
                )
                self.scaler.scale(losses["loss"]).backward()  # type: ignore[no-untyped-call]
            for name, value in losses.items():
                total[name] = total[name] + value.detach() if name in total else value.detach()
        total[GRADIENT] = self._largest_gradient()
        self._updating = True
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._updating = False
        return _Step(self.iteration, list(total), torch.stack(list(total.values())), batch.ids)

    def _largest_gradient(self) -> Tensor:
        """NaN or infinite if any gradient is (scalar); 0 for fp16, whose scaler looks for those itself."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.scaler.is_enabled() or not gradients:
            return torch.zeros((), device=self.device)
        return torch.nn.utils.get_total_norm(gradients, math.inf)

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged with the last micro-batch only."""
        network = self._uncompiled()
        if isinstance(network, DistributedDataParallel) and not last:
            return network.no_sync()
        return contextlib.nullcontext()

    def _settle(self) -> None:
        """Looks at the losses not looked at yet: adds them to the curve, or stops the run if one is not finite."""
        if not self._pending:
            return
        steps = list(self._pending)
        self._pending.clear()
        values = self.process.sum(torch.stack([step.losses for step in steps])) / self.process.world
        for step, losses in zip(steps, values.double().cpu().tolist(), strict=True):
            named = dict(zip(step.names, losses, strict=True))
            gradient = named.pop(GRADIENT)
            if bad := [f"{name} {value}" for name, value in named.items() if not math.isfinite(value)]:
                raise self._not_finite(f"loss is {named['loss']}", step.iteration + 1, step.ids, also=bad)
            if not math.isfinite(gradient):
                raise self._not_finite(f"{self._bad_gradient()} is not finite", step.iteration + 1, step.ids)
            self.history.add(named)
            # the scaler of fp16 hides the gradient, but a loss of exactly 0 has no labelled pixel
            self._empty = self._empty + 1 if named["loss"] == 0 and gradient == 0 else 0
            if self._empty >= min(EMPTY_BATCHES, self.total):
                raise self._learns_nothing(step)
        self.history.peak_memory_gib = max(self.history.peak_memory_gib, peak_memory_gib(self.device))

    def _learns_nothing(self, step: _Step) -> TrainingError:
        return TrainingError(
            f"{self.title}: no pixel of the last {self._empty} batches is labelled (loss 0, all labels "
            f"{IGNORE} = ignore), up to iteration {step.iteration + 1}, images {', '.join(step.ids)}; look at them "
            f"with `danet browse {self.row.name} --out samples.png`, correct the labels and convert the data set again "
            f"(dvc repro -f -s download@{self.row.dataset}, dvc repro convert@{self.row.dataset})"
        )

    def _bad_gradient(self) -> str:
        named = self.model.named_parameters()
        bad = (name for name, p in named if p.grad is not None and not bool(torch.isfinite(p.grad).all()))
        return f"the gradient of {next(bad, 'a weight')}"

    def _not_finite(self, what: str, iteration: int, ids: Sequence[str], also: Sequence[str] = ()) -> TrainingError:
        images = list(itertools.chain.from_iterable(self.process.gather(list(ids))))
        good = self.store.newest()
        parts = f" ({', '.join(also)})" if also else ""
        return TrainingError(
            f"{self.title}: {what} at iteration {iteration}{parts}, images {', '.join(images) or '-'}; nothing of it "
            f"was saved. Newest checkpoint: {good or 'none'}. Look at these images, lower optimizer.lr, give "
            "schedule.warmup_iterations, or use numerics.precision fp32 or bf16"
        )

    def _check_finite(self, ids: Sequence[str]) -> None:
        """Refuses weights, statistics or momentum that are not finite, even where no loss has shown it yet."""
        tensors = [*self.model.state_dict().items()]
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for parameter, state in self.optimizer.state.items():
            tensors += [(f"momentum of {names[id(parameter)]}", v) for v in state.values() if isinstance(v, Tensor)]
        tensors = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
        finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in tensors]).tolist()
        bad = [name for (name, _), good in zip(tensors, finite, strict=True) if not good]
        if self.process.any(bool(bad)):
            raise self._not_finite(f"{bad[0] if bad else 'a weight'} is not finite", self.iteration, ids)

    def _evaluated(self, measure: Callable[[nn.Module], float]) -> float:
        self.model.eval()
        try:
            return round(measure(self.model), 4)
        finally:
            self.model.train()

    def _log(self, score: float | None) -> None:
        shown, eta = self._line(), self._eta()
        entry = self.history.close(self.iteration, self._lr, score)
        if self.process.is_main:
            write_status(
                self.store.folder,
                row=self.row.name,
                seed=self.seed,
                iteration=self.iteration,
                total=self.total,
                loss=entry["loss"],
                eta_seconds=eta,
            )
        self.reporter.interval(self.title, self.iteration, shown)
        if score is not None:
            self.reporter.say(f"{self.title}  iter {self.iteration}/{self.total}  validation mIoU {score:.2f}")
        self._track(entry)

    def _track(self, entry: Mapping[str, float | int | None]) -> None:
        """Gives a row of the curve to the tracker."""
        if self.tracker is not None:
            values = {name: float(value) for name, value in entry.items() if value is not None and name != "iteration"}
            self.tracker.metrics(int(entry["iteration"] or 0), values)

    def _save(self, ids: Sequence[str]) -> None:
        if self._saved == self.iteration:
            return
        self._check_finite(ids)
        self._note_energy()
        if self.process.is_main:
            self.store.save(
                Checkpoint(
                    iteration=self.iteration,
                    model=self.model.state_dict(),
                    optimizer=self.optimizer.state_dict(),
                    scaler=self.scaler.state_dict() if self.scaler.is_enabled() else {},
                    progress=asdict(self.history),
                )
            )
        self._saved = self.iteration
        self.process.barrier()

    @contextmanager
    def _explained(self, batch: Batch) -> Iterator[None]:
        """Gives failures of a step that a user can fix a message that says how."""
        try:
            yield
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            text = str(error)
            if out_of_memory(error):
                raise self._does_not_fit() from error
            if "more than 1 value per channel" in text:
                raise TrainingError(
                    f"{self.title}: batch normalisation of a 1x1 map needs at least 2 images at a time, here it has "
                    f"{self.micro_batch}; lower numerics.accumulate, use fewer processes or set "
                    "numerics.sync_batch_norm"
                ) from error
            if "does not have a deterministic implementation" in text:
                raise TrainingError(
                    f"{self.title}: {text.splitlines()[0].split('.')[0]}; set numerics.deterministic false for this row"
                ) from error
            if isinstance(error, IndexError) and "Target" in text and "out of bounds" in text:
                raise TrainingError(
                    f"{self.title}: a label of {', '.join(batch.ids)} is outside the dataset's classes ({text}); "
                    "convert the dataset again"
                ) from error
            raise

    def _does_not_fit(self) -> TrainingError:
        used = f" (peak {peak_memory_gib(self.device):.1f} GiB)" if self.device.type == "cuda" else ""
        finer = [n for n in _divisors(self.local_batch) if n > self.accumulate]
        choices = " or ".join(f"{n} ({self.local_batch // n} at a time)" for n in finer)
        auto = " or, on one GPU, auto" if self.process.world == 1 and not self.finds_accumulation else ""
        remedy = (
            f"set numerics.accumulate to {choices}{auto}: batch size and learning rate stay as they are, batch "
            "normalisation sees fewer images at a time"
            if finer
            else "set numerics.precision to bf16, or use more GPUs"
        )
        return TrainingError(
            f"{self.title}: out of memory on {self.device}{used} with {self.micro_batch} images at a time "
            f"(schedule.batch_size {self.row.schedule.batch_size}, world size {self.process.world}, "
            f"numerics.accumulate {self.accumulate}); {remedy}"
        )


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def local_batch_size(row: Row, process: Process) -> int:
    """Images of a batch that each process gets; raises ``ConfigError`` with the row's name if they do not divide."""
    try:
        return images_per_process(row.schedule.batch_size, process.world)
    except ConfigError as error:
        raise ConfigError(f"{row.name}: {error}") from None


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _compiled(network: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(network)  # type: ignore[assignment]
    return compiled
