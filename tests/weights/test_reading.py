"""Weights files of every usual form, and damaged, foreign and hostile ones: each refused by name, none executed."""

import os
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from danet.core.errors import CheckpointError
from danet.weights.reading import check_names, read_tensors

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "n": torch.tensor(3)}
OPTIMIZER = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1, momentum=0.9).state_dict()


def saved(path, value=STATE, **kwargs):
    torch.save(value, path, **kwargs)
    return path


def same(state):
    return state.keys() == STATE.keys() and all(torch.equal(state[key], value) for key, value in STATE.items())


def prefixed(prefix):
    return {prefix + key: value for key, value in STATE.items()}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        STATE,
        OrderedDict((key, nn.Parameter(value, requires_grad=False)) for key, value in STATE.items()),
        {"epoch": 3, "best_pred": np.float64(0.5), "state_dict": prefixed("module."), "meta": {"time": "now"}},
        {"model_state_dict": STATE, "optimizer_state_dict": OPTIMIZER, "loss": torch.tensor(0.1)},
        {"net": STATE, "acc": 71.5},
        {"network": {"state_dict": STATE}},
        {"optimizer": OPTIMIZER, "model": STATE},
        prefixed("_orig_mod."),
        {"a._orig_mod.weight": STATE["a.weight"], "a._orig_mod.bias": STATE["a.bias"], "n": STATE["n"]},
        prefixed("module.module."),
        {"state_dict": prefixed("model.")},
        prefixed("module._orig_mod.model."),
    ],
)
def test_the_usual_wrappings(tmp_path, value, legacy):
    file = saved(tmp_path / "w.pth", value, _use_new_zipfile_serialization=not legacy)
    assert same(read_tensors(file))


@pytest.fixture
def history_buffer(monkeypatch):
    """As mmengine's class, which is not importable when the file is read."""

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._count_history = np.array([0.5, 0.25]), np.array([1, 1])
            self._statistics_methods = {"mean": HistoryBuffer.mean}

        def mean(self):
            return float(self._log_history.mean())

    module = types.ModuleType("mmengine.logging.history_buffer")
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = module.__name__, "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging", module.__name__):
            patch.setitem(sys.modules, name, module)
        yield HistoryBuffer


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_of_mmsegmentation_1(tmp_path, history_buffer, legacy):
    content = {
        "meta": {"dataset_meta": {"classes": ("a",), "palette": np.zeros((1, 3), np.uint8)}, "seed": np.int64(0)},
        "state_dict": OrderedDict(STATE),
        "message_hub": {"log_scalars": OrderedDict({"train/loss": history_buffer()}), "resumed_keys": OrderedDict()},
        "optimizer": OPTIMIZER,
        "param_schedulers": [{"last_step": 3}],
    }
    file = saved(tmp_path / "iter_20000.pth", content, _use_new_zipfile_serialization=not legacy)
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        del sys.modules[name]
    assert same(read_tensors(file))


class Calls:
    """Unpickling this calls a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("function", [os.mkdir, eval])
def test_nothing_in_a_file_is_run(tmp_path, legacy, function):
    trap = tmp_path / "trap"
    arguments = {os.mkdir: (str(trap),), eval: (f"__import__('os').mkdir({str(trap)!r})",)}[function]
    file = tmp_path / "bad.pth"
    for value in ({"state_dict": STATE, "extra": Calls(function, *arguments)}, {"a": Calls(function, *arguments)}):
        saved(file, value, _use_new_zipfile_serialization=not legacy)
        try:
            assert same(read_tensors(file))
            assert "extra" in value
        except CheckpointError as error:
            assert str(file) in str(error)  # noqa: PT017 - either is right, running it is not
        assert not trap.exists()


def test_a_refusal_says_what_would_have_run(tmp_path):
    file = saved(tmp_path / "bad.pth", {"state_dict": STATE, "extra": Calls(os.mkdir, str(tmp_path / "trap"))})
    with pytest.raises(CheckpointError, match=r"refused \(.*posix\.mkdir.*\); delete it"):
        read_tensors(file)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite(tmp_path, bad, dtype):
    state = {"a.weight": torch.ones(2, 3, dtype=dtype), "a.bias": torch.tensor([1.0, bad], dtype=dtype)}
    tensors = read_tensors(saved(tmp_path / "w.pth", state))
    with pytest.raises(
        CheckpointError, match=r"w\.pth: is not it: 1 tensor with NaN or infinite values \(a\.bias\); no"
    ):
        check_names(tmp_path / "w.pth", tensors, state, what="it", remedy="no")


def test_each_kind_of_damage_is_named(tmp_path):
    whole = saved(tmp_path / "whole.pth").read_bytes()
    save_file(STATE, tmp_path / "whole.safetensors")
    tensors = (tmp_path / "whole.safetensors").read_bytes()
    for name, content, reason in (
        ("empty.pth", b"", "is not a PyTorch file, is cut off"),
        ("cut.pth", whole[: len(whole) // 2], "is not a PyTorch file, is cut off"),
        ("text.pth", b"Not found", "is not a PyTorch file, is cut off"),
        ("cut.safetensors", tensors[:-3], "is not a safetensors file, is cut off"),
        ("pth.safetensors", whole, "is not a safetensors file, is cut off"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: {reason}.*delete it and fetch it again"):
            read_tensors(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"none\.pth: does not exist"):
        read_tensors(tmp_path / "none.pth")


def test_things_that_are_no_state_dict(tmp_path):
    for value, reason in (
        ([1, 2], "no state dict was found in it, but a list"),
        ({}, r"but the entries \(none\)"),
        (OPTIMIZER, "but the entries state, param_groups"),
        ({"optimizer": OPTIMIZER, "epoch": 3, "state_dict": None}, "but the entries optimizer, epoch, state_dict"),
        (nn.Linear(1, 1), r"but a torch\.nn\.modules\.linear\.Linear"),
        ({"state_dict": {"a": 1, "b": torch.ones(1)}}, "entry 'a' is a int, not a tensor"),
        ({3: torch.ones(1)}, "entry 3 is a Tensor"),
    ):
        with pytest.raises(CheckpointError, match=rf"odd\.pth: .*{reason}"):
            read_tensors(saved(tmp_path / "odd.pth", value))
