"""Normalisation on the device and what is counted as waiting; what needs a GPU has the marker ``gpu``."""

import time

import numpy as np
import pytest
import torch

from danet.data.loader import Batch, BatchStream, TrainingSet, collate
from danet.data.prefetch import DevicePrefetcher, Normaliser
from tests.data.test_loader import AUGMENT, Images, same
from tests.data.test_transforms import SOURCES, normalised, small


@pytest.mark.parametrize("crop", [(24, 24), (60, 60), (24, 80), (70, 30)])
@pytest.mark.parametrize("source", SOURCES)
def test_a_batch_is_normalised_within_its_boxes_and_padded_around_them(source, crop):
    """Crops within the image, over its edge in one direction and in both."""
    augment = small(SOURCES[source], crop=crop)
    augment = augment.model_copy(update={"pad": augment.pad.model_copy(update={"swap_for_portrait": False})})
    samples = TrainingSet(Images(), augment, 3)
    batch = collate([samples[p] for p in range(6)])
    assert batch.boxes is not None
    images = Normaliser(augment, torch.device("cpu"))(batch.images, batch.boxes)
    assert images.is_contiguous()
    for image, levels, (top, left, height, width) in zip(images, batch.images.numpy(), batch.boxes, strict=True):
        expected = normalised(levels)
        if augment.pad.image == "mean":
            outside = np.ones(levels.shape[:2], bool)
            outside[top : top + height, left : left + width] = False
            expected[:, outside] = 0
        np.testing.assert_array_equal(image.numpy(), expected.astype(np.float32))


def test_a_stream_tells_how_long_was_waited():
    with BatchStream(Images(), AUGMENT, seed=3, batch_size=4, start=0, stop=3) as stream:
        assert stream.waited == 0
        seen = []
        for _ in stream:
            seen.append(stream.waited)
    assert all(a < b for a, b in zip([0.0, *seen], seen, strict=False))


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_on_the_gpu(workers):
    settings = {"seed": 3, "batch_size": 4, "start": 0, "stop": 6, "workers": workers}
    with BatchStream(Images(), AUGMENT, **settings) as stream:
        expected = list(stream)
    with BatchStream(Images(), AUGMENT, device="cuda", **settings) as stream:
        got = []
        for batch in stream:
            assert batch.images.device.type == batch.masks.device.type == "cuda"
            assert batch.boxes is None
            got.append(Batch(batch.images.cpu(), batch.masks.cpu(), batch.positions))
    assert all(map(same, got, expected))


@pytest.mark.gpu
def test_the_gpu_counts_only_its_own_idle_time():
    """A batch that is late, but not later than the GPU's own work, costs nothing."""
    device = torch.device("cuda")
    levels = np.zeros((1, 24, 32, 3), np.uint8)

    def late():
        time.sleep(0.05)
        return Batch(torch.from_numpy(levels), torch.zeros(1, 24, 32, dtype=torch.uint8), [0], [(0, 0, 24, 32)])

    prefetcher = DevicePrefetcher(AUGMENT, device)
    prefetcher.fetch(late)
    torch.cuda.synchronize()
    idle = prefetcher.waited
    assert idle > 0.04
    torch.cuda._sleep(int(2e9))  # about a second of work
    prefetcher.fetch(late)
    torch.cuda.synchronize()
    assert prefetcher.waited - idle < 0.02
