"""Folding and compilation for steady sizes against the plain network and closed forms."""

import copy
import functools
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from danet.config.row import Model, Numerics
from danet.models import build_model
from danet.models.fast import SteadyCompiled, folded, narrowed
from danet.models.numerics import configured

MODELS = {
    "danet": {"method": "danet", "stem": "deep-32-32-64", "aux_channels": 256},
    "dranet": {"method": "dranet", "stem": "7x7", "multi_grid": (4, 8, 16)},
    "clusterdanet": {"method": "clusterdanet", "stem": "deep-64-64-128", "aux_channels": 32},
}


def trained(kind, stride=8):
    """A network whose normalisations and attention scales do something."""
    config = Model.model_validate({"backbone": "resnet50", "output_stride": stride, **MODELS[kind]})
    torch.manual_seed(3)
    model = build_model(config, 5)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                shape = module.weight.shape
                module.running_mean = 0.2 * torch.randn(shape, generator=generator)
                module.running_var = 0.5 + torch.rand(shape, generator=generator)
                last = 0.3 if ".bn3" in name else 1.0
                module.weight.copy_(last * (0.7 + 0.6 * torch.rand(shape, generator=generator)))
                module.bias.copy_(0.1 * torch.randn(shape, generator=generator))
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma", "scale")):
                parameter.fill_(0.4)
    return model.eval()


def picture(*size, batch=1):
    return torch.randn((batch, 3, *size), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", MODELS)
def test_folding_changes_logits_by_rounding_only(kind):
    model, x = trained(kind), picture(65, 97)
    before = copy.deepcopy(model.state_dict())
    fold = folded(model)
    assert not [m for m in fold.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        expected, got = model(x, True), fold(x, True)
        exact = copy.deepcopy(model).double()(x.double(), True)
        in_double = folded(copy.deepcopy(model).double())(x.double(), True)
    for head, value in expected.items():
        # the bound of logits in float32, in any order of summation: benchmarks/parity/results.py
        assert (got[head] - value).abs().max() <= 1e-4 * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(in_double[head], exact[head], rtol=0, atol=1e-10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # it is a copy


@pytest.mark.parametrize("kind", MODELS)
def test_weights_cast_once_give_the_bits_of_autocast(kind):
    model, x = trained(kind), picture(33, 33)
    narrow = narrowed(model, torch.bfloat16)
    assert {m.weight.dtype for m in narrow.modules() if isinstance(m, nn.Conv2d)} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(narrow(x)["main"], model(x)["main"])


@pytest.mark.parametrize(("sizes", "limits", "compiled"), [(50, {"after": 3, "limit": 2}, 2), (2, {}, 2), (30, {}, 0)])
def test_sizes_that_come_again_are_compiled_and_no_storm_starts(monkeypatch, sizes, limits, compiled):
    from torch._dynamo.testing import CompileCounter

    counter, plain = CompileCounter(), nn.Conv2d(3, 2, 1)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    steady = SteadyCompiled(plain, **limits)
    for number in range(200):
        x = picture(4 + number % sizes, 6)
        assert torch.equal(steady(x), plain(x))
    assert counter.frame_count == compiled


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_for_convolutions_alone(allowed):
    """The energies of CAM and clustering are products of matrices."""
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    with configured(Numerics(tf32=allowed)):
        assert [switch.allow_tf32 for switch in switches] == [allowed, False]
    assert [switch.allow_tf32 for switch in switches] == before


def test_tf32_after_a_library_has_set_the_new_interface_alone():
    """Reading PyTorch's older interface then raises; in a process of its own, for the switch is global."""
    program = """
        import torch
        from danet.config.row import Numerics
        from danet.models.numerics import configured
        new = torch.backends.cudnn.conv, torch.backends.cuda.matmul
        for switch in new:
            switch.fp32_precision = "tf32"
        for allowed in (False, True):
            with configured(Numerics(tf32=allowed)):
                print(*(switch.fp32_precision for switch in new))
            print(*(switch.fp32_precision for switch in new))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:4] == ["ieee ieee", "tf32 tf32", "tf32 ieee", "tf32 tf32"]
