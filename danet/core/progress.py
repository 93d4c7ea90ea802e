"""Progress of long steps on stderr: a live bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Column

from danet.core.console import console
from danet.core.text import duration

LOG_INTERVAL_S = 10.0


class Progress:
    """Counts up to ``total`` (None where unknown); ``unit`` "bytes" shows sizes and speed. ``show`` False is silent.

    What ``note`` is set to stands at the end. In a log a line comes every ``every`` seconds.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str = "images",
        *,
        show: bool = True,
        done: int = 0,
        every: float = LOG_INTERVAL_S,
    ) -> None:
        self.title, self.total, self.unit, self.done, self.show = title, total, unit, done, show
        self.note = ""
        self._start_done, self._every = done, every
        self._bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        self._start = self._last = time.monotonic()
        if self.show and console.is_terminal:
            amounts = [DownloadColumn(), TransferSpeedColumn()] if self.unit == "bytes" else [MofNCompleteColumn()]
            # the line gives way to a narrow terminal at its end
            end = Column(no_wrap=True, overflow="ellipsis", ratio=1)
            text = TextColumn("{task.fields[note]}{task.description}", table_column=end)
            self._bar = RichProgress(
                TimeRemainingColumn(), *amounts, BarColumn(bar_width=10), text, console=console, expand=True
            )
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, note="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.show and kind is None:
            amount = f"{self.done / 1e6:,.1f} MB" if self.unit == "bytes" else f"{self.done:,} {self.unit}"
            print(f"{self.title}: {amount} in {time.monotonic() - self._start:.1f} s", file=sys.stderr, flush=True)

    def advance(self, count: int = 1) -> None:
        """Adds ``count`` to what is done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=f"{self.note}  " if self.note else "")
        elif self.show and time.monotonic() - self._last >= self._every:
            self._line()

    def _line(self) -> None:
        self._last = time.monotonic()
        rate = (self.done - self._start_done) / max(self._last - self._start, 1e-3)
        scale, unit = (1e6, "MB") if self.unit == "bytes" else (1, self.unit)
        of = f" of {self.total / scale:,.0f}" if self.total else ""
        text = f"{self.title}: {self.done / scale:,.0f}{of} {unit}, {rate / scale:,.2f} {unit}/s"
        if self.total and rate > 0:
            text += f", {duration((self.total - self.done) / rate)} left"
        print(f"{text}, {self.note}" if self.note else text, file=sys.stderr, flush=True)
