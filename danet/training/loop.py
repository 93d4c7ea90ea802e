"""The training loop of one seed of a row: resumable at any iteration, on one process or many.

A step is a pure function of the weights, the momentum and (seed, iteration): data by :mod:`danet.data.loader`,
dropout by :func:`danet.models.numerics.seed_step`, rates by :mod:`danet.training.optim`. So a run that was stopped
and continued, at any iteration and with any number of workers, ends with the same bits on a CPU, and on a GPU in
deterministic mode.

``numerics.accumulate`` splits each batch into micro-batches whose gradients add up to the whole batch's: loss averages
are taken over the whole batch. Only batch normalisation sees fewer images at a time, as it does on more GPUs without
synchronisation; so the setting moves results and is part of the row's identity.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from datetime import UTC, datetime

import torch
from rich.markup import escape
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from danet.config.row import Row
from danet.core.console import console
from danet.core.errors import ConfigError, DanetError, Interrupted, TrainingError, out_of_memory
from danet.core.files import write_json
from danet.core.process import Process, peak_memory_gib
from danet.core.progress import Progress
from danet.core.provenance import EnergyMeter
from danet.data.loader import batch_stream, images_per_process, own_positions
from danet.data.prefetch import Batch, DeviceBatches, HostBatches
from danet.data.prepared import PreparedDataset
from danet.models import numerics
from danet.training.batch_norm import synchronise_batch_norm
from danet.training.checkpoint import CheckpointStore
from danet.training.losses import loss_divisors, segmentation_losses
from danet.training.optim import build_optimizer, set_learning_rates
from danet.training.progress import STATUS, CurveRow, History
from danet.training.stop import StopRequest

CHECK_EVERY = 25
"""Iterations between looks at the losses on a GPU, so that it need not wait for each (always before a checkpoint)."""
LOG_INTERVAL_S = 60.0
"""Seconds between lines about the progress in a log."""


class Trainer:
    """Trains one model by a row's recipe, from its checkpoint or from the start.

    Args:
        row: the recipe; its model section only gives ``align_corners``, so tests may bring any model.
        seed: of the run.
        model: initialised; outputs a mapping of logits, see :func:`danet.training.losses.segmentation_losses`.
        dataset: the training split.
        store: where the resume checkpoint goes.
        show: whether to print.
        track: takes the iteration and the values of each row of the curve.
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
        dataset: PreparedDataset,
        store: CheckpointStore,
        *,
        process: Process | None = None,
        show: bool = False,
        track: Callable[[int, dict[str, float]], None] = lambda iteration, values: None,
        validate: Callable[[nn.Module], float] | None = None,
        select: Callable[[nn.Module], float] | None = None,
        keep_best: Callable[[nn.Module, int, float], None] = lambda model, iteration, score: None,
        stop: StopRequest | None = None,
        workers: int = 0,
    ) -> None:
        self.row, self.seed, self.dataset, self.store = row, seed, dataset, store
        self.process = process or Process()
        self.device = self.process.device
        self.show, self.track, self.workers = show, track, workers
        self.validate, self.select, self.keep_best = validate, select, keep_best
        self.stop = stop or StopRequest()
        self.title = f"{row.name} seed {seed}"
        self.total = row.schedule.total_iterations(len(dataset))
        self.epoch = row.schedule.iterations_per_epoch(len(dataset))
        self.local_batch = images_per_process(row.schedule.batch_size, self.process.world)
        if self.local_batch % row.numerics.accumulate:
            raise ConfigError(
                f"{row.name}: numerics.accumulate {row.numerics.accumulate} does not divide the {self.local_batch} "
                "images of a process"
            )

        self.model = self._placed(model)
        self.optimizer = build_optimizer(self.model, row.optimizer)
        self.scaler = numerics.gradient_scaler(row.numerics, self.device)
        self.history = History()
        self.iteration = 0
        self._lr = 0.0
        self._pending: list[dict[str, Tensor]] = []  # losses of the last iterations, not looked at yet
        self._meter = EnergyMeter() if self.device.type == "cuda" else None
        self._energy_before: float | None = 0.0
        self._restore()
        self.process.agree(
            {"the iteration of the checkpoint": self.iteration},
            f"every node must see the same {self.store.folder}: put the workspace on a shared file system",
        )
        self.network = self._wrapped()

    def _placed(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the layout and with the batch normalisation that the row asks for."""
        model = model.to(self.device)
        if self.row.numerics.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if self.row.numerics.sync_batch_norm and self.process.world > 1:
            model = synchronise_batch_norm(model, self.device)
        return model

    def _restore(self) -> None:
        checkpoint = self.store.load()
        if checkpoint is None:
            return
        self.model.load_state_dict(checkpoint["model"])
        # only the momentum: rates and kernel choices come from this row on this device
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": checkpoint["optimizer"]["state"], "param_groups": groups})
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.history = History(**checkpoint["progress"])
        self.history.resumed += 1
        self.iteration = checkpoint["iteration"]
        self._energy_before = self.history.energy_kj
        self._say(f"goes on after iteration {self.iteration} of {self.total}")

    def _wrapped(self) -> nn.Module:
        network = self.model
        if self.process.world > 1:
            network = DistributedDataParallel(
                network,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                # outputs without a weight leave their layers without a gradient (ClusterDANet, by its source's design)
                find_unused_parameters=self.row.loss.pam == 0 or self.row.loss.cam == 0,
            )
        if self.row.numerics.compile:
            network = torch.compile(network)  # type: ignore[assignment]
        return network

    def _say(self, message: str) -> None:
        if self.show:
            console.print(escape(f"{self.title}: {message}"))

    def run(self) -> History:
        """Trains to the end and returns what was measured; the trained weights are in ``self.model``.

        Raises:
            Interrupted: after a SIGTERM or SIGINT, with a checkpoint saved.
            TrainingError: for a loss that is not finite or a lack of memory, saying what to do.
        """
        self.model.train()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with (
            batch_stream(
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
            ) as stream,
            Progress(
                self.title, self.total, "iterations", show=self.show, done=self.iteration, every=LOG_INTERVAL_S
            ) as bar,
        ):
            while self.iteration < self.total:
                self._train_on(stream)
                if self._logs():
                    bar.note = _text(self._log())
                bar.advance()
                if self.select is not None and self.iteration % self.epoch == 0:
                    self._keep_if_best(self.select)
                self._save_or_stop()
        self._check_finite()
        self._note_energy()
        return self.history

    # one iteration

    def _train_on(self, stream: HostBatches | DeviceBatches) -> None:
        """One iteration on the next batch."""
        began, waited = time.perf_counter(), stream.waited
        batch = next(stream)
        self._lr = set_learning_rates(self.optimizer, self.row.schedule, self.iteration, self.total)
        try:
            self._pending.append(self._step(batch))
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise self._does_not_fit() from error
            raise
        self.iteration += 1
        if self._logs() or self._checkpoints() or self.device.type != "cuda" or len(self._pending) >= CHECK_EVERY:
            self._settle()
        self.history.time(time.perf_counter() - began, stream.waited - waited, self.row.schedule.batch_size)

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimizer step on this process's part of a batch; its losses by name, on the device."""
        row, device = self.row, self.device
        images, labels = batch
        if row.numerics.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        batch_size, process = row.schedule.batch_size, self.process
        positions = own_positions(self.iteration, batch_size, process.rank, process.world)
        places = [position % batch_size for position in positions]
        divisors = loss_divisors(labels, row.loss, places, batch_size, process.sum)
        divisors /= process.world  # DDP averages gradients over processes; with this they add up to the batch's
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        size = self.local_batch // row.numerics.accumulate
        for first in range(0, self.local_batch, size):
            part = slice(first, first + size)
            numerics.seed_step(self.model, self.seed, positions[part], device)
            with self._synchronised(last=first + size == self.local_batch):
                with numerics.autocast(row.numerics, device):
                    outputs: Mapping[str, Tensor] = self.network(images[part])
                losses = segmentation_losses(
                    outputs, labels[part], row.loss, align_corners=row.model.align_corners, divisors=divisors[part]
                )
                self.scaler.scale(losses["loss"]).backward()  # type: ignore[no-untyped-call]
            for name, value in losses.items():
                total[name] = total[name] + value.detach() if name in total else value.detach()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return total

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged with the last micro-batch only."""
        network = getattr(self.network, "_orig_mod", self.network)
        if isinstance(network, DistributedDataParallel) and not last:
            return network.no_sync()
        return nullcontext()

    def _settle(self) -> None:
        """Adds the losses not looked at yet to the curve, or stops the run if one is not finite."""
        if not self._pending:
            return
        names = list(self._pending[0])
        values = torch.stack([torch.stack(list(losses.values())) for losses in self._pending])
        first = self.iteration - len(self._pending) + 1
        self._pending.clear()
        values = self.process.sum(values) / self.process.world
        for iteration, line in enumerate(values.double().cpu().tolist(), first):
            losses = dict(zip(names, line, strict=True))
            if not math.isfinite(losses["loss"]):
                raise self._not_finite(", ".join(f"{name} is {value}" for name, value in losses.items()), iteration)
            self.history.add(losses)
        self.history.peak_memory_gib = max(self.history.peak_memory_gib, peak_memory_gib(self.device))

    def _check_finite(self) -> None:
        """Refuses weights and statistics that are not finite, even where no loss has shown it yet."""
        floating = {name: tensor for name, tensor in self.model.state_dict().items() if tensor.is_floating_point()}
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in floating.values()]).tolist()
        bad = [name for name, good in zip(floating, finite, strict=True) if not good]
        if self.process.any(bool(bad)):
            raise self._not_finite(f"{bad[0] if bad else 'a weight'} is not finite", self.iteration)

    def _not_finite(self, what: str, iteration: int) -> TrainingError:
        return TrainingError(
            f"{self.title}: {what} at iteration {iteration}; nothing of it was saved. Lower optimizer.lr, give "
            "schedule.warmup_iterations, or use numerics.precision fp32 or bf16; the checkpoint before is in "
            f"{self.store.folder}"
        )

    def _does_not_fit(self) -> TrainingError:
        used = f" (peak {peak_memory_gib(self.device):.1f} GiB)" if self.device.type == "cuda" else ""
        parts = self.row.numerics.accumulate
        finer = [str(n) for n in range(parts + 1, self.local_batch + 1) if self.local_batch % n == 0]
        divide = f"set numerics.accumulate to {' or '.join(finer)} (fewer images at a time), or " if finer else ""
        return TrainingError(
            f"{self.title}: out of memory on {self.device}{used} with {self.local_batch // parts} images at a time; "
            f"{divide}set numerics.precision to bf16, or use more GPUs"
        )

    # what comes between iterations

    def _checkpoints(self) -> bool:
        return self.iteration % self.row.runtime.checkpoint_interval == 0

    def _validates(self) -> bool:
        interval = self.row.val_interval
        return interval is not None and self.validate is not None and self.iteration % interval == 0

    def _logs(self) -> bool:
        """Whether the curve gets a row."""
        ends = self.iteration in (1, self.total)
        return ends or self.iteration % self.row.runtime.log_interval == 0 or self._validates()

    def _log(self) -> CurveRow:
        """Validates if it is time to, and ends the interval with a row of the curve."""
        score = self._evaluated(self.validate) if self.validate and self._validates() else None
        entry = self.history.close(self.iteration, self._lr, score)
        if self.process.is_main:
            eta = self.history.seconds / self.iteration * (self.total - self.iteration)
            status = {"row": self.row.name, "seed": self.seed, "iteration": self.iteration, "total": self.total}
            status |= {"loss": entry["loss"], "eta_seconds": round(eta, 1)}
            status["updated"] = datetime.now(UTC).isoformat(timespec="seconds")
            with suppress(DanetError):  # a full disk stops no training
                write_json(self.store.folder / STATUS, status)
        if score is not None:
            self._say(f"iteration {self.iteration} of {self.total}, validation mIoU {score:.2f}")
        values = {name: float(value) for name, value in entry.items() if value is not None and name != "iteration"}
        self.track(self.iteration, values)
        return entry

    def _keep_if_best(self, select: Callable[[nn.Module], float]) -> None:
        """At the end of an epoch, where the row keeps the best one."""
        score, before = self._evaluated(select), self.history.best
        if before is not None and score <= before[1]:
            return
        self.history.best = (self.iteration, score)
        if self.process.is_main:
            self.keep_best(self.model, self.iteration, score)
        if self.iteration < self.total:
            self._save()

    def _evaluated(self, measure: Callable[[nn.Module], float]) -> float:
        self.model.eval()
        try:
            return round(measure(self.model), 4)
        finally:
            self.model.train()

    def _save_or_stop(self) -> None:
        """Saves where it is time to, and where any process was told to stop; then raises ``Interrupted``."""
        stopping = self.process.any(bool(self.stop.reason))
        if self.iteration == self.total or not (stopping or self._checkpoints()):
            return
        self._save()
        if stopping:
            raise Interrupted(
                f"{self.title}: stopped after iteration {self.iteration} of {self.total}"
                f"{f' ({self.stop.reason})' if self.stop.reason else ''}, saved in {self.store.folder}; "
                "run the same command again to go on from there"
            )

    def _save(self) -> None:
        self._settle()
        self._check_finite()
        self._note_energy()
        if self.process.is_main:
            self.store.save(
                iteration=self.iteration,
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                scaler=self.scaler.state_dict(),
                progress=asdict(self.history),
            )
        self.process.barrier()

    def _note_energy(self) -> None:
        """Brings the history's energy up to date: every part of the run on every GPU, or nothing."""
        drawn = self._meter.kilojoules() if self._meter else None
        parts = [self._energy_before, *self.process.gather(drawn)]
        known = [part for part in parts if part is not None]
        self.history.energy_kj = round(sum(known), 3) if len(known) == len(parts) else None


def _text(entry: CurveRow) -> str:
    """A row of the curve for people."""
    return (
        f"loss {entry['loss']:.4f}  {entry['images_per_second']:.1f} img/s  data wait {entry['data_wait_share']:.0%}  "
        f"mem {entry['peak_memory_gib']:.1f} GiB  lr {entry['lr']:.2e}"
    )
