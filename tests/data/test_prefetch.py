"""Normalisation on the device and what is counted as waiting; what needs a GPU has the marker ``gpu``."""

import time

import numpy as np
import pytest
import torch

from danet.data.loader import TrainingSet, batch_stream, collate
from danet.data.prefetch import DeviceBatches, Normaliser
from tests.data.test_loader import AUGMENT, same, stream
from tests.data.test_transforms import SOURCES, small
from tests.parameters import altered
from tests.training.fakes import Images


def normalised(image_bgr):
    """(x - mean) / std in RGB, channels first, in float64."""
    rgb = image_bgr[..., ::-1].astype(np.float64)
    mean, std = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
    return ((rgb - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("crop", [(24, 24), (60, 60), (24, 80), (70, 30)])
@pytest.mark.parametrize("source", SOURCES)
def test_a_batch_is_normalised_within_its_boxes_and_padded_around_them(source, crop):
    """Crops within the image, over its edge in one direction and in both."""
    augment = altered(small(SOURCES[source], crop=crop), pad={"swap_for_portrait": False})
    samples = TrainingSet(Images(), augment, 3)
    grey, _, boxes = collate([samples[p] for p in range(6)])
    images = Normaliser(augment, torch.device("cpu"))(grey, boxes)
    assert images.is_contiguous()
    for image, levels, (top, left, height, width) in zip(images, grey.numpy(), boxes, strict=True):
        expected = normalised(levels)
        if augment.pad.image == "mean":
            outside = np.ones(levels.shape[:2], bool)
            outside[top : top + height, left : left + width] = False
            expected[:, outside] = 0
        np.testing.assert_array_equal(image.numpy(), expected.astype(np.float32))


def test_a_stream_tells_how_long_was_waited():
    with batch_stream(Images(), AUGMENT, seed=3, batch_size=4, start=0, stop=3) as batches:
        assert batches.waited == 0
        seen = []
        for _ in batches:
            seen.append(batches.waited)
    assert all(a < b for a, b in zip([0.0, *seen], seen, strict=False))


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_on_the_gpu(workers):
    for batch, expected in zip(stream(workers=workers, device="cuda"), stream(workers=workers), strict=True):
        assert {tensor.device.type for tensor in batch} == {"cuda"}
        assert same([tensor.cpu() for tensor in batch], expected)


@pytest.mark.gpu
def test_the_gpu_counts_only_its_own_idle_time():
    """A batch that is late, but not later than the GPU's own work, costs nothing."""

    def late():
        while True:
            time.sleep(0.05)
            grey = torch.zeros(1, 24, 32, 3, dtype=torch.uint8)
            yield grey, grey[..., 0], [(0, 0, 24, 32)]

    batches = DeviceBatches(late(), AUGMENT, torch.device("cuda"))
    next(batches)
    torch.cuda.synchronize()
    idle = batches.waited
    assert idle > 0.04
    torch.cuda._sleep(int(2e9))  # about a second of work
    next(batches)
    torch.cuda.synchronize()
    assert batches.waited - idle < 0.02
