"""Requests to stop: signals, and the death of whoever started the training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class StopRequest:
    """Turns SIGTERM and SIGINT into a flag that the loop looks at after each iteration; a second one acts at once.

    Args:
        orphaned: whether whoever started this training has died, which is a request to stop too: a successor may be
            waiting for the row.
    """

    def __init__(self, orphaned: Callable[[], bool] | None = None) -> None:
        self.reason = ""
        self._orphaned = orphaned
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        if not self.reason and self._orphaned is not None and self._orphaned():
            self.reason = "the DVC that started this has ended"
        return bool(self.reason)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        signal.signal(number, self._before[number])

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.getsignal(number)
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
