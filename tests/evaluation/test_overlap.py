"""Evaluation loads ahead of the network, and what runs ahead changes no result."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from danet.config.params import load_params
from danet.config.row import MultiScale, Runtime, Test
from danet.evaluation.one_pass import evaluate_model
from tests.evaluation.test_evaluate import EXPECTED, Reader, Shades

WAIT = 20.0
"""Seconds after which what should happen at the same time is taken not to."""


@pytest.fixture
def row():
    plain = load_params("params.yaml").row("camvid-r50-d8")
    return plain.model_copy(update={"test": Test(), "runtime": Runtime(workers=1, progress="never")})


class Told(Shades):
    """Says which images have been loaded."""

    def __init__(self):
        super().__init__()
        self.loaded = [threading.Event() for _ in self.ids]

    def image(self, index):
        image = super().image(index)
        self.loaded[index].set()
        return image


class Waiting(nn.Module):
    """Computes an image only when the one after it has been loaded."""

    def __init__(self, dataset):
        super().__init__()
        self.reader, self.dataset, self.seen = Reader(), dataset, 0

    def forward(self, x):
        following = min(self.seen + 1, len(self.dataset) - 1)
        assert self.dataset.loaded[following].wait(WAIT), (
            f"image {following} is not loaded while {self.seen} is computed"
        )
        self.seen += 1
        return self.reader(x)


def test_the_next_image_is_loaded_while_the_network_computes(row):
    dataset = Told()
    result = evaluate_model(Waiting(dataset), row, dataset, "cpu")
    np.testing.assert_array_equal(result.confusion.matrix, EXPECTED)


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("mode", ["ss", "ms"])
def test_on_a_gpu_the_same_counts(row, mode, workers):
    test = Test(multi_scale=MultiScale(scales=(1.0,), flip=True))
    row = row.model_copy(update={"test": test, "runtime": Runtime(workers=workers, benchmark_images=2)})
    result = evaluate_model(Reader().cuda(), row, Shades(), torch.device("cuda"), mode=mode, keep=[2])
    np.testing.assert_array_equal(result.confusion.matrix, EXPECTED)
    assert list(result.predictions) == [2]
