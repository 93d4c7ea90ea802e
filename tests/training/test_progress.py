"""What a training says of how far it is: its status file, and its line on a terminal."""

import io
import json
import re
from datetime import datetime

import pytest
from rich.console import Console

from danet.training.progress import STATUS, Reporter, progress_line
from tests.training.fakes import tiny_row, trainer


def test_a_training_notes_how_far_it_is(tmp_path):
    running = trainer(tiny_row(iterations=6, runtime={"log_interval": 4}), tmp_path)
    running.model.register_forward_hook(lambda *_: noted.append((tmp_path / STATUS).exists()))
    noted = []
    history = running.run()
    assert (noted[0], noted[1]) == (False, True)  # from the first iteration on
    status = json.loads((running.store.folder / STATUS).read_text())
    assert (status["seed"], status["iteration"], status["total"]) == (0, 6, 6)
    assert status["loss"] == pytest.approx(history.curve[-1]["loss"])
    assert status["eta_seconds"] == 0
    assert datetime.fromisoformat(status["updated"]).tzinfo is not None


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_time_left_is_seen_at_every_width(width):
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    numbers = {"loss": 0.5321, "lr": 0.01, "speed": 12.3, "wait": 0.03, "memory_gib": 10.25}
    line = progress_line(15000, 160000, eta=3 * 86400 + 7384, **numbers)
    reporter = Reporter(console, "always")
    with reporter.run("mmseg-r101-d8-cityscapes-512x1024-40k seed 0", 160000, 0):
        reporter.step(15000, lambda: line)
    lines = re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    last = [each.rstrip() for each in lines if each.strip()][-1]
    assert "3d 2:03:04 left  iter 15000/160000  loss 0.5321" in last
    assert len(last) <= width
    assert ("lr 1.00e-02" in last) == (width >= 120)
