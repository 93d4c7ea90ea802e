"""Whole rows at test size."""

import pytest
import torch

from danet.config.workspace import Workspace
from danet.training import lock
from danet.training import train as training
from danet.weights import ours
from tests.training.fakes import Images, TinyNet


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Sums are divided among threads: with another number of them come other bits (docs/determinism.md)."""
    torch.set_num_threads(1)


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """train_row with the tiny network and images in memory: the workspace, and what was built."""
    built = []

    def build(config, num_classes, attention):
        built.append(num_classes)
        return TinyNet()

    monkeypatch.setattr(training, "PreparedDataset", lambda *_: Images())
    monkeypatch.setattr(training, "backbone_sha256", lambda *_: None)
    monkeypatch.setattr(training, "load_backbone", lambda *_: None)
    monkeypatch.setattr(training, "build_model", build)
    monkeypatch.setattr(ours, "Segmentor", torch.nn.Module)
    monkeypatch.setattr(lock, "LOCK_WAIT", 0.1)
    return Workspace(tmp_path), built
