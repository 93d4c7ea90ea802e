"""Folding, Winograd and compilation for steady sizes against the plain network and closed forms."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danet.config import rows
from danet.models import build_model
from danet.models.fast import SteadyCompiled, WinogradConv2d, folded, for_prediction, for_training, with_winograd
from danet.models.matmul import matmul

CPU = torch.device("cpu")
MODELS = {
    "danet": {"method": "danet", "stem": "deep-32-32-64", "aux_channels": 256},
    "dranet": {"method": "dranet", "stem": "7x7", "multi_grid": (4, 8, 16)},
    "clusterdanet": {"method": "clusterdanet", "stem": "deep-64-64-128", "aux_channels": 32},
}


def trained(kind: str, stride: int = 8) -> nn.Module:
    """A network whose normalisations and attention scales do something."""
    config = rows.Model.model_validate({"backbone": "resnet50", "output_stride": stride, **MODELS[kind]})
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


def picture(*size: int, batch: int = 1) -> Tensor:
    return torch.randn((batch, 3, *size), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", MODELS)
def test_folding_changes_logits_by_rounding_only(kind: str) -> None:
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


def test_folding_is_the_closed_form() -> None:
    block = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0))
    conv, norm = block[0], block[1]
    with torch.no_grad():
        conv.weight.fill_(3.0)
        norm.running_mean.fill_(2.0)
        norm.running_var.fill_(4.0)
        norm.weight.fill_(5.0)
        norm.bias.fill_(7.0)
    fold: Any = folded(block)
    assert fold[0].weight.item() == pytest.approx(3 * 5 / 2)
    assert fold[0].bias.item() == pytest.approx(7 - 2 * 5 / 2)


@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (13, 7), (1, 3), (17, 16)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_winograd_is_the_convolution_and_its_gradients(dilation: int, size: Any, layout: Any) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 5, 3, padding=dilation, dilation=dilation).double()
    fast = WinogradConv2d(copy.deepcopy(conv))
    inputs = [torch.randn(2, 6, *size, dtype=torch.float64).contiguous(memory_format=layout) for _ in range(1)] * 2
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = [module(x) for module, x in zip((conv, fast), leaves, strict=True)]
    torch.testing.assert_close(out[1], out[0], rtol=0, atol=1e-12)
    upstream = torch.randn(out[0].shape, dtype=torch.float64)
    for value in out:
        value.backward(upstream)
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=0, atol=1e-12)
    for mine, other in zip(fast.parameters(), conv.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-11)


def test_winograd_in_float32_stays_within_its_bound() -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(512, 256, 3, padding=2, dilation=2, bias=False)
    x = torch.relu(torch.randn(1, 512, 24, 24))
    exact = copy.deepcopy(conv).double()(x.double())
    with torch.no_grad():
        for frozen in (False, True):
            got = WinogradConv2d(conv, frozen)(x)
            assert (got - exact).abs().max() <= 5e-5 * exact.abs().max()


@pytest.mark.parametrize("stride", [8, 16])
def test_winograd_network_predicts_and_learns_the_same(stride: int) -> None:
    model, x = trained("danet", stride), picture(64, 96, batch=2)
    numerics = rows.Numerics(fold_bn=True, winograd=True, channels_last=True)
    fast = for_prediction(model, numerics, CPU)
    replaced = [m for m in fast.modules() if isinstance(m, WinogradConv2d)]
    # of layer2 to layer4 those that are not strided, four in the head, one in the auxiliary head
    assert len(replaced) == 3 + (6 if stride == 8 else 5) + 3 + 4 + 1
    with torch.no_grad():
        expected, got = model(x)["main"], fast(x)["main"]
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (got.argmax(1) == expected.argmax(1)).float().mean() > 0.999

    plain, quick = copy.deepcopy(model).train(), for_training(copy.deepcopy(model).train(), numerics, CPU)
    assert plain.state_dict().keys() == quick.state_dict().keys()
    gradients = []
    for network in (plain, quick):
        torch.manual_seed(9)  # dropout
        outputs = network(x)
        sum(value.square().mean() for value in outputs.values()).backward()  # type: ignore[union-attr]
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    expected, got = (torch.cat([p.flatten() for p in each.values() if p is not None]) for each in gradients)
    # rounding flips a few ReLUs, whose gradients then jump: far below what a wrong transform would give
    assert (got - expected).norm() <= 2e-2 * expected.norm()


def test_winograd_is_for_float32_on_the_cpu_only() -> None:
    model = trained("danet")
    for numerics in (rows.Numerics(winograd=True, precision="bf16"), rows.Numerics()):
        assert for_prediction(model, numerics, CPU) is model
    assert for_training(model, rows.Numerics(winograd=True), torch.device("cuda")) is model
    assert not WinogradConv2d.takes(nn.Conv2d(256, 256, 3, padding=1, stride=2))
    assert not WinogradConv2d.takes(nn.Conv2d(256, 256, 1))
    assert not WinogradConv2d.takes(nn.Conv2d(64, 64, 3, padding=1))
    assert with_winograd(nn.Sequential(nn.Conv2d(256, 256, 3)))[0].__class__ is nn.Conv2d  # no padding


def test_products_are_right_in_every_layout() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(70, 33, generator=generator), torch.randn(33, 50, generator=generator)
    wide = torch.randn(70, 66, generator=generator)
    for left, right in (
        (a, b),
        (a.T.contiguous().T, b),
        (a, b.T.contiguous().T),
        (wide[:, ::2], b),
        (a.double(), b.double()),
    ):
        exact = left.double() @ right.double()
        torch.testing.assert_close(matmul(left, right).double(), exact, rtol=0, atol=2e-5)
    assert matmul(a[:0], b).shape == (0, 50)


class Compiler:
    """Counts compilations as torch.compile would make them: one for each size it is called with."""

    def __init__(self, fails: bool = False) -> None:
        self.sizes: set[Any] = set()
        self.fails = fails

    def __call__(self, model: nn.Module) -> Any:
        def compiled(x: Tensor) -> Any:
            if self.fails:
                raise RuntimeError("no compiler here")
            self.sizes.add(tuple(x.shape))
            return model(x)

        return compiled


def test_many_sizes_start_no_storm_of_compilations() -> None:
    compiler, plain = Compiler(), nn.Conv2d(3, 2, 1)
    steady = SteadyCompiled(plain, after=3, limit=2, compiler=compiler)
    for number in range(200):
        x = picture(4 + number % 50, 6)
        assert torch.equal(steady(x), plain(x))
    assert len(compiler.sizes) == 2


def test_one_size_is_compiled_once_and_by_torch(caplog: pytest.LogCaptureFixture) -> None:
    from torch._dynamo.testing import CompileCounter

    counter, plain = CompileCounter(), nn.Conv2d(3, 2, 1)
    steady = SteadyCompiled(plain, compiler=lambda m: torch.compile(m, backend=counter, dynamic=False))
    for number in range(40):
        x = picture(*((5, 6) if number % 2 else (7 + number, 6)))
        assert torch.equal(steady(x), plain(x))
    assert counter.frame_count == 1
    assert steady.failure is None


def test_a_compiler_that_fails_is_left_out_with_a_message(caplog: pytest.LogCaptureFixture) -> None:
    plain = nn.Conv2d(3, 2, 1)
    steady = SteadyCompiled(plain, after=1, compiler=Compiler(fails=True))
    x = picture(4, 4)
    for _ in range(5):
        assert torch.equal(steady(x), plain(x))
    assert [r.getMessage() for r in caplog.records] == [
        "torch.compile failed (RuntimeError: no compiler here); predicting without it"
    ]
