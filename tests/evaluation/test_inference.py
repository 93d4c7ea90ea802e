"""Testing protocols against brute force in numpy loops, closed forms and properties.

The reference functions below share no code with the package: resizing is a product with explicit weight matrices, the
network is numpy. Windows are walked one by one, and by the sources' own code, in :mod:`tests.parity`.
"""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from danet.config.row import MultiScale, Numerics, Test
from danet.core.errors import CheckpointError, ConfigError
from danet.evaluation import inference
from danet.evaluation.inference import Predictor, input_size, window_grid
from danet.models.numerics import configured

CLASSES, STRIDE = 4, 4
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
WEIGHT = np.random.default_rng(1).normal(size=(CLASSES, 3))
BIAS = np.random.default_rng(2).normal(size=CLASSES)


class Sampler(nn.Module):
    """A 1x1 convolution sampled at every fourth pixel from the left: flipping its input is not flipping its output."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor(WEIGHT, dtype=torch.float32)[:, :, None, None])
        self.register_buffer("bias", torch.tensor(BIAS, dtype=torch.float32))

    def forward(self, x):
        return {"main": nn.functional.conv2d(x, self.weight, self.bias)[..., ::STRIDE, ::STRIDE]}


def network(x):
    return (np.tensordot(WEIGHT, x, 1) + BIAS[:, None, None])[:, ::STRIDE, ::STRIDE]


def weights_1d(old, new, align_corners):
    matrix = np.zeros((new, old))
    for i in range(new):
        if align_corners:
            source = i * (old - 1) / (new - 1) if new > 1 else 0.0
        else:
            source = max((i + 0.5) * old / new - 0.5, 0.0)
        low = min(math.floor(source), old - 1)
        high = min(low + 1, old - 1)
        matrix[i, low] += 1 - (source - low)
        matrix[i, high] += source - low
    return matrix


def bilinear(x, size, align_corners):
    rows_, columns = (weights_1d(o, n, align_corners) for o, n in zip(x.shape[1:], size, strict=True))
    return np.stack([rows_ @ channel @ columns.T for channel in x])


def normalised(image):
    return np.stack([(image[..., 2 - c].astype(float) - MEAN[c]) / STD[c] for c in range(3)])


def picture(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (max(2, height // 5), max(2, width // 5), 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def assert_best(labels, scores, tie=1e-4):
    """Each label has the best score, but for ties: which of two nearly equal scores wins is rounding's."""
    picked = np.take_along_axis(scores, labels[None].astype(int), 0)[0]
    assert (scores.max(axis=0) - picked <= tie).all()


def scores_of(model, image, test, align, mode="ss", **settings):
    predictor = Predictor(model, test, align, mode=mode, **settings)
    with configured(predictor.numerics, training=False):
        return predictor.scores(predictor.prepare(image))


def labels_of(model, image, test, align, mode="ss", **settings):
    predictor = Predictor(model, test, align, mode=mode, **settings)
    return predictor.labels(predictor.prepare(image)).numpy()


def sampled(image, test, align, mode="ss"):
    return scores_of(Sampler(), image, test, align, mode).numpy()


# sizes


def test_input_size_at_multiple_scales():
    voc = Test(resize="fit", scale=(512, 2048))
    assert input_size((375, 500), voc, 1.0, "test-scale") == (512, 683)
    assert input_size((375, 500), voc, 1.0, "image") == (375, 500)  # what 1.x's --tta computes
    assert input_size((375, 500), voc, 1.75, "test-scale") == (896, 1195)
    assert input_size((375, 500), voc, 0.5, "image") == (188, 250)
    # (1025, 2049) x 0.75 is truncated to (768, 1536), and the image fitted into that
    assert input_size((1024, 2048), Test(resize="fit", scale=(1025, 2049)), 0.75) == (768, 1536)
    official_ = Test(resize="long", scale=(1024, 2048))
    assert input_size((1024, 2048), official_) == (1024, 2048)
    assert input_size((1024, 2048), official_, 2.2) == (2253, 4506)
    assert input_size((500, 333), Test(resize="long", scale=(520, 520))) == (520, 346)
    assert input_size((333, 333), Test(resize="long", scale=(520, 520))) == (520, 520)
    assert input_size((123, 77), Test()) == (123, 77)
    assert input_size((360, 480), Test(), 0.5) == (180, 240)


def test_published_numbers_of_windows():
    corners, window, reach = window_grid((1025, 2049), (769, 769), (513, 513), "shift")
    assert (len(corners), window, reach) == (8, (769, 769), (1025, 2049))
    assert corners[-1] == (256, 1280)
    corners, window, reach = window_grid((1024, 2048), (768, 768), (512, 512), "pad")
    assert (len(corners), window, reach) == (8, (768, 768), (1280, 2304))
    assert corners[-1] == (512, 1536)


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.integers(1, 30),
    st.sampled_from(["shift", "shift-padded", "pad"]),
)
def test_windows_cover_every_pixel(size, window, step, placement):
    stride = min(step, window[0]), min(step, window[1])
    corners, extent, reach = window_grid(size, window, stride, placement)
    covered = np.zeros(reach, dtype=int)
    for y, x in corners:
        assert y + extent[0] <= reach[0]
        assert x + extent[1] <= reach[1]
        covered[y : y + extent[0], x : x + extent[1]] += 1
    assert covered.min() >= 1
    assert len(set(corners)) == len(corners)
    if placement == "shift":
        assert reach == size
    else:
        assert extent == window
    if placement == "shift-padded":
        assert reach == (max(size[0], window[0]), max(size[1], window[1]))
    if placement == "pad":
        assert all(y % stride[0] == 0 and x % stride[1] == 0 for y, x in corners)


# whole image


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("logit_resize", ["once", "twice"])
@pytest.mark.parametrize("score", ["logits", "softmax"])
def test_whole_image_single_scale_is_resized_logits(align, logit_resize, score):
    image = picture(37, 53)
    test = Test(resize="fit", scale=(48, 200), score=score, logit_resize=logit_resize)
    seen = cv2.resize(image, (69, 48), interpolation=cv2.INTER_LINEAR)
    logits = network(normalised(seen))
    if logit_resize == "twice":
        logits = bilinear(logits, (48, 69), align)
    expected = bilinear(logits, (37, 53), align)
    scores = sampled(image, test, align)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    labels = labels_of(Sampler(), image, test, align)
    assert labels.dtype == np.uint8
    assert_best(labels, scores)


# closed forms


class Fixed(nn.Module):
    """The same logits whatever the image, at a head resolution of a quarter of the input."""

    def __init__(self, logits):
        super().__init__()
        self.values = torch.tensor(logits)

    def forward(self, x):
        size = (-(-x.shape[-2] // 4), -(-x.shape[-1] // 4))
        return {"main": self.values[None, :, None, None].expand(x.shape[0], -1, *size).clone()}


def test_exp_scores_beyond_float32_keep_the_argmax():
    # exp(2 x 60) overflows float32, where every class would be infinite and class 0 win
    test = Test(mode="slide", window=(16, 16), stride=(8, 8), placement="pad", flip=True, score="exp")
    image = picture(16, 24)
    scores = scores_of(Fixed([50.0, 60.0, 55.0]), image, test, True)
    assert torch.isfinite(scores).all()
    assert (scores.argmax(dim=0) == 1).all()
    assert (labels_of(Fixed([50.0, 60.0, 55.0]), image, test, True) == 1).all()
    low = scores_of(Fixed([-400.0, -380.0, -390.0]), image, test, True)
    assert torch.isfinite(low).all()


# how it is run


PROTOCOLS = {
    "whole": Test(resize="fit", scale=(40, 100), multi_scale=MultiScale(scales=(0.5, 1.0), flip=True)),
    "shift": Test(mode="slide", window=(16, 16), stride=(11, 11), multi_scale=MultiScale(scales=(0.5, 1.5), flip=True)),
    "pad": Test(
        resize="long",
        scale=(40, 64),
        mode="slide",
        window=(24, 24),
        stride=(16, 16),
        placement="pad",
        flip=True,
        score="exp",
        multi_scale=MultiScale(scales=(0.5, 1.5), flip=True),
    ),
}


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(8, 5, 1),
        )

    def forward(self, x):
        return {"main": self.body(x)}


@pytest.mark.parametrize("mode", ["ss", "ms"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batched_equals_one_by_one_and_labels_are_the_best_scores(protocol, mode):
    model, image = Convolutions().eval(), picture(37, 61)
    test = PROTOCOLS[protocol]
    one = scores_of(model, image, test, True, mode, max_batch=1)
    sizes = []
    model.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    for size in (3, 64):
        sizes.clear()
        many = scores_of(model, image, test, True, mode, max_batch=size)
        torch.testing.assert_close(many, one, atol=1e-5, rtol=1e-5)
        assert max(sizes) <= size
    np.testing.assert_array_equal(labels_of(model, image, test, True, mode, max_batch=1), one.argmax(0).numpy())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numerics_of_the_prediction(protocol):
    model, image = Convolutions().eval(), picture(37, 61)
    test = PROTOCOLS[protocol]
    plain = scores_of(model, image, test, True)
    last = scores_of(
        model.to(memory_format=torch.channels_last), image, test, True, numerics=Numerics(channels_last=True)
    )
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=1e-5)
    folded = scores_of(model, image, test, True, numerics=Numerics(fold_bn=True))
    torch.testing.assert_close(folded, plain, atol=1e-5, rtol=1e-5)
    half = scores_of(model, image, test, True, numerics=Numerics(precision="bf16"))
    assert half.dtype == torch.float32
    assert not torch.equal(half, plain)
    torch.testing.assert_close(half, plain, atol=0.05, rtol=0.05)


def test_argmax_by_parts_equals_argmax_of_scores(monkeypatch):
    image = picture(37, 53)
    test = Test(resize="fit", scale=(48, 200))
    scores = sampled(image, test, False)
    assert len(np.unique(scores.argmax(axis=0))) > 1
    for elements in (10**6, 1, 2 * 37 * 53, 3 * 37 * 53):
        monkeypatch.setattr(inference, "_CHUNK", elements)
        assert_best(labels_of(Sampler(), image, test, False), scores)


def test_ties_go_to_the_lower_class(monkeypatch):
    monkeypatch.setattr(inference, "_CHUNK", 1)
    labels = labels_of(Fixed([1.0, 1.0, 0.0]), picture(20, 20), Test(logit_resize="once"), False)
    assert (labels == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_output_that_is_not_finite_is_an_error(protocol, value):
    predictor = Predictor(Fixed([0.0, value]), PROTOCOLS[protocol], True)
    predictor.check("before anything was predicted")
    predictor.labels(predictor.prepare(picture(20, 30)))
    with pytest.raises(CheckpointError, match=r"w\.pth: .*not finite"):
        predictor.check("w.pth")


def test_modes_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="multi_scale is null"):
        Predictor(Sampler(), Test(), False, mode="ms")


@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(sorted(PROTOCOLS)), st.sampled_from(["ss", "ms"]))
def test_result_has_the_image_s_size(height, width, protocol, mode):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    before = image.copy()
    assert labels_of(Sampler(), image, PROTOCOLS[protocol], True, mode).shape == (height, width)
    assert scores_of(Sampler(), image, PROTOCOLS[protocol], True, mode).shape == (CLASSES, height, width)
    np.testing.assert_array_equal(image, before)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["ss", "ms"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cuda_agrees_with_the_cpu(protocol, mode):
    model, image = Convolutions().eval(), picture(37, 61)
    cpu = scores_of(model, image, PROTOCOLS[protocol], True, mode)
    gpu = scores_of(model.cuda(), image, PROTOCOLS[protocol], True, mode, device="cuda")
    torch.testing.assert_close(gpu.cpu(), cpu, atol=1e-4, rtol=1e-4)
