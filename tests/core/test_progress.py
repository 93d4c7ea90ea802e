"""The bar of a long step on a narrow terminal."""

import io
import re

from rich.console import Console

from danet.core import progress


def test_the_time_left_and_the_count_are_whole_at_80_columns(monkeypatch):
    drawn = Console(file=io.StringIO(), width=80, force_terminal=True)
    monkeypatch.setattr(progress, "console", drawn)
    with progress.Progress("mmseg-r101-d8-cityscapes-512x1024-40k seed 0", 40000, "iterations") as bar:
        for _ in range(3):
            bar.note = "loss 0.4321  12.3 img/s  data wait 0%  mem 10.1 GiB  lr 1.00e-02"
            bar.advance(20)
    line = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.file.getvalue().replace("\r", "\n")).strip().splitlines()[-1]
    assert len(line) <= 80
    assert re.match(r"\s*(-:--:--|\d+:\d\d:\d\d)\s+60/40000 .* loss 0\.4321", line), line
