"""The status file that a trainer keeps for those who look from outside."""

import json
from datetime import datetime

import pytest

from danet.training.progress import STATUS, write_status
from tests.training.fakes import tiny_row, trainer


def test_a_training_notes_how_far_it_is(tmp_path):
    running = trainer(tiny_row(iterations=6, runtime={"log_interval": 4}), tmp_path)
    running.model.register_forward_hook(lambda *_: noted.append((tmp_path / STATUS).exists()))
    noted: list[bool] = []
    history = running.run()
    assert (noted[0], noted[1]) == (False, True)  # from the first iteration on
    status = json.loads((running.store.folder / STATUS).read_text())
    assert (status["seed"], status["iteration"], status["total"]) == (0, 6, 6)
    assert status["loss"] == pytest.approx(history.curve[-1]["loss"])
    assert status["eta_seconds"] == 0
    assert datetime.fromisoformat(status["updated"]).tzinfo is not None


def test_a_folder_that_cannot_be_written_stops_no_training(tmp_path):
    (tmp_path / "file").touch()
    write_status(tmp_path / "file", row="a", seed=0, iteration=1, total=2, loss=None, eta_seconds=1.0)
