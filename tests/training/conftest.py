"""Whole rows at test size."""

import pytest
import safetensors.torch

from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError
from danet.core.files import atomic_write
from danet.training import lock
from danet.training import train as training
from tests.training.fakes import Images, TinyNet


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """train_row with the tiny network, images in memory and plain files: the workspace, and what was built."""
    built = []

    def build(config, num_classes, attention):
        built.append(num_classes)
        return TinyNet()

    def save(path, model, *_):
        with atomic_write(path) as temporary:
            try:
                safetensors.torch.save_file(model.state_dict(), temporary)
            except safetensors.SafetensorError as error:
                raise CheckpointError(f"{path}: cannot be written ({error}); free space, then run again") from error

    monkeypatch.setattr(training, "PreparedDataset", lambda *_: Images())
    monkeypatch.setattr(training, "backbone_sha256", lambda *_: None)
    monkeypatch.setattr(training, "load_backbone", lambda *_: None)
    monkeypatch.setattr(training, "build_model", build)
    monkeypatch.setattr(training, "save_model", save)
    monkeypatch.setattr(lock, "LOCK_WAIT", 0.1)
    return Workspace(tmp_path), built
