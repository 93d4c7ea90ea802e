"""A workspace in which seeds 3 and 5 of a module's ``row`` count as trained."""

import pytest

from danet.config.workspace import Workspace
from danet.evaluation import evaluate, predict
from tests.evaluation.fakes import Reader, Shades
from tests.seeds import keep_seed


@pytest.fixture
def workspace(tmp_path, row, monkeypatch):
    monkeypatch.setattr(evaluate, "PreparedDataset", Shades)
    monkeypatch.setattr(predict, "build_model", lambda config, classes, attention: Reader(classes))
    monkeypatch.setattr(predict, "load_any", lambda path, model: None)
    space = Workspace(tmp_path)
    for seed in (3, 5):
        keep_seed(space, row, seed, lambda path: path.write_bytes(b"weights"), data=Shades.manifest_hash)
    return space
