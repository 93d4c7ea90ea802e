"""Whole networks: sizes of all published models, outputs, initialisation, and what training needs of them."""

import math

import pytest
import torch
from torch import nn

from danet.config.row import Model
from danet.models import build_model
from danet.models.heads import DANetHead
from tests.models.test_resnet import close_in_distribution

MMSEG = {"method": "danet", "output_stride": 8, "stem": "deep-32-32-64", "aux_channels": 256, "init": "mmsegmentation"}
SSSEG = {**MMSEG, "aux_channels": 512, "pam_bias": False, "init": "pytorch"}
OFFICIAL = {"method": "danet", "output_stride": 8, "multi_grid": (4, 8, 16), "align_corners": True}
DRANET = {**OFFICIAL, "method": "dranet", "stem": "deep-64-64-128", "aux_channels": 256}
CLUSTER = {"method": "clusterdanet", "output_stride": 8, "stem": "deep-64-64-128", "align_corners": True}

PUBLISHED = [
    (MMSEG, "resnet50", 19, 49_846_574),
    (MMSEG, "resnet101", 19, 68_838_702),
    (MMSEG, "resnet50", 150, 50_081_850),
    (MMSEG, "resnet50", 21, 49_850_166),
    (SSSEG, "resnet50", 19, 52_210_606),
    ({**SSSEG, "output_stride": 16}, "resnet101", 19, 71_202_734),
    (SSSEG, "resnet50", 21, 52_214_710),
    (SSSEG, "resnet50", 150, 52_479_418),
    ({**OFFICIAL, "stem": "7x7"}, "resnet101", 19, 66_454_779),
    ({**OFFICIAL, "stem": "deep-64-64-128"}, "resnet50", 19, 47_586_427),
    (DRANET, "resnet101", 19, 73_741_962),
    (CLUSTER, "resnet101", 21, 66_581_633),
]
SMALL = [("danet", MMSEG), ("danet-16", {**SSSEG, "output_stride": 16}), ("dranet", DRANET), ("clusterdanet", CLUSTER)]


def on_meta(settings, backbone, num_classes, *attention):
    with torch.device("meta"):
        return build_model(Model(backbone=backbone, **settings), num_classes, *attention)


@pytest.mark.parametrize(("settings", "backbone", "num_classes", "count"), PUBLISHED, ids=lambda v: str(v)[:40])
def test_parameter_counts(settings, backbone, num_classes, count):
    model = on_meta(settings, backbone, num_classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert {key.split(".")[0] for key in model.state_dict()} <= {"backbone", "head", "aux_head"}


@pytest.mark.parametrize("settings", [MMSEG, CLUSTER])
def test_attention_is_the_one_asked_for(settings):
    assert on_meta(settings, "resnet50", 5).head.pam.attention == "fused"
    assert on_meta(settings, "resnet50", 5, "reference").head.pam.attention == "reference"


def names(settings):
    extra = {"aux"} if settings.get("aux_channels") else set()
    return extra | ({"main"} if settings["method"] == "dranet" else {"main", "pam", "cam"})


@pytest.mark.parametrize(("settings", "size"), [(s, z) for _, s in SMALL for z in ((769, 769), (375, 500))])
def test_outputs_and_their_sizes(settings, size):
    model = on_meta(settings, "resnet50", 7)
    images = torch.empty(2, 3, *size, device="meta")
    stride = settings["output_stride"]
    with torch.no_grad():
        trained, tested = model.train()(images), model.eval()(images)
        asked = model(images, all_heads=True)
        assert set(model.train()(images, all_heads=False)) == {"main"}
    assert set(trained) == set(asked) == names(settings)
    assert set(tested) == {"main"}
    for name, logits in trained.items():
        step = 4 if settings["method"] == "dranet" and name == "main" else stride
        assert logits.shape == (2, 7, math.ceil(size[0] / step), math.ceil(size[1] / step))


@pytest.fixture(scope="module", params=SMALL, ids=[name for name, _ in SMALL])
def small(request):
    """A ResNet-50 network with attention that takes part (its scales start at 0)."""
    torch.manual_seed(0)
    model = build_model(Model(backbone="resnet50", **request.param[1]), 5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("pam.gamma", "cam.gamma", "scale")):
                parameter.fill_(0.5)
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 57, 41, generator=torch.Generator().manual_seed(3))


def test_every_parameter_gets_a_gradient(small, images):
    small.train().zero_grad(set_to_none=True)
    outputs = small(images)
    sum(value.square().mean() for value in outputs.values()).backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        # A shift of all scores of a position, or of all channels before batch normalisation, changes nothing.
        if not name.endswith(("pam.key.bias", "cpam_decoder.key.bias")):
            assert bool((parameter.grad != 0).any()), name


def test_evaluation_is_a_function_of_the_image(small, images):
    small.eval()
    with torch.no_grad():
        first, again = small(images)["main"], small(images)["main"]
        alone = torch.cat([small(image[None])["main"] for image in images])
        layout = small(images.to(memory_format=torch.channels_last))["main"]
    assert torch.equal(first, again)
    scale = float(first.abs().max())
    assert (first - alone).abs().max() < 1e-4 * scale  # no state from one image reaches another
    assert (first - layout).abs().max() < 1e-4 * scale


def test_autocast_stays_near(small, images):
    small.eval()
    with torch.no_grad():
        exact = small(images)["main"]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = small(images)["main"]
    assert mixed.dtype == torch.bfloat16
    assert (mixed.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_main_output_is_the_sum_of_the_branches():
    """With one branch silenced and classifiers shared, ``main`` is the other branch's output."""
    torch.manual_seed(0)
    features = tuple(torch.randn(2, channels, 3, 4) for channels in (256, 512, 1024, 2048))
    for silenced, kept in (("cam", "pam"), ("pam", "cam")):
        head = DANetHead(5).eval()
        nn.init.zeros_(getattr(head, f"{silenced}_out")[1].weight)
        getattr(head, f"{kept}_classifier").load_state_dict(head.classifier.state_dict())
        with torch.no_grad():
            logits = head(features, True)
        assert torch.equal(logits["main"], logits[kept])
        assert not torch.equal(logits["main"], logits[silenced])


def test_dropout_has_the_sources_rates():
    model = on_meta(MMSEG, "resnet50", 5)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout2d)}
    assert rates == {"head.dropout": 0.1, "aux_head.dropout": 0.1}


def blocks(head):
    for module in head.modules():
        if isinstance(module, nn.Sequential) and isinstance(module[0], nn.Conv2d):
            yield module[0]


def test_initialisation_as_mmsegmentation():
    torch.manual_seed(0)
    model = build_model(Model(backbone="resnet50", **MMSEG), 150)
    for head in (model.head, model.aux_head):
        convs = list(blocks(head))
        assert convs
        for conv in convs:
            assert close_in_distribution(conv.weight, math.sqrt(2 / (conv.out_channels * 9)))
        assert close_in_distribution(head.classifier.weight, 0.01)
        assert not bool(head.classifier.bias.any())
    for layer in (model.head.pam_classifier, model.head.cam_classifier, model.head.pam.query, model.head.pam.value):
        assert close_in_distribution(layer.weight, 1 / math.sqrt(3 * 512))
        assert float(layer.weight.detach().abs().max()) <= (1 + 1e-6) / math.sqrt(512)
        assert bool(layer.bias.any())
    assert model.head.pam.gamma.item() == model.head.cam.gamma.item() == 0


@pytest.mark.parametrize("settings", [SSSEG, DRANET, CLUSTER])
def test_initialisation_as_pytorch(settings):
    torch.manual_seed(0)
    model = build_model(Model(backbone="resnet50", **settings), 150)
    heads = [head for head in (model.head, model.aux_head) if head is not None]
    for head in heads:
        for layer in head.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                fan_in = layer.weight[0].numel()
                assert close_in_distribution(layer.weight, 1 / math.sqrt(3 * fan_in))
                assert float(layer.weight.detach().abs().max()) <= (1 + 1e-6) / math.sqrt(fan_in)


@pytest.mark.parametrize("settings", [MMSEG, DRANET, CLUSTER])
def test_heads_compile_to_one_graph(settings):
    torch.manual_seed(0)
    model = build_model(Model(backbone="resnet50", **settings), 5).eval()
    features = tuple(
        torch.randn(2, channels, size, size) for channels, size in ((256, 6), (512, 3), (1024, 3), (2048, 3))
    )
    with torch.no_grad():
        expected = model.head(features, True)
        compiled = torch.compile(model.head, backend="eager", fullgraph=True)(features, True)
    assert expected.keys() == compiled.keys()
    for name, value in expected.items():
        torch.testing.assert_close(compiled[name], value)
