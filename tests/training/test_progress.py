import json
from datetime import datetime

import pytest

from danet.training import loop
from danet.training.progress import STATUS
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


def test_a_log_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "LOG_INTERVAL_S", 0.0)
    history = trainer(tiny_row(iterations=6), tmp_path, show=True).run()
    said = capsys.readouterr().err
    assert "tiny seed 0: 4 of 6 iterations," in said
    assert f"loss {history.curve[1]['loss']:.4f}" in said
