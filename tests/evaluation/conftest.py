"""A workspace in which seeds 3 and 5 of a module's ``row`` count as trained."""

import pytest

from danet.config.workspace import Workspace
from tests.evaluation.fakes import Shades, stand_in
from tests.seeds import keep_seed


@pytest.fixture
def workspace(tmp_path, row, monkeypatch):
    stand_in(monkeypatch)
    space = Workspace(tmp_path)
    for seed in (3, 5):
        keep_seed(space, row, seed, lambda path: path.write_bytes(b"weights"), data=Shades.manifest_hash)
    return space
