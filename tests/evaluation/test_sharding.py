"""A split divided over processes: every image counted once, and the sums are those of one process to the pixel."""

import numpy as np
import pytest
import torch
from torch import nn

from danet.config.row import MultiScale, Test
from danet.core.process import Process, processes
from danet.evaluation.one_pass import evaluate_model
from tests.launching import launch
from tests.training.fakes import tiny_row

CLASSES, IMAGES = 5, 7


class Photographs:
    """Noise of many sizes, so that the network has something to get wrong."""

    num_classes = CLASSES
    ids = tuple(f"image{i}" for i in range(IMAGES))

    def __len__(self):
        return IMAGES

    def image(self, index):
        return np.random.default_rng(index).integers(0, 256, (20 + 3 * index, 30, 3)).astype(np.uint8)

    def mask(self, index):
        mask = np.random.default_rng(100 + index).integers(0, CLASSES, (20 + 3 * index, 30)).astype(np.uint8)
        mask[:index] = 255
        return mask


class Few(Photographs):
    def __len__(self):
        return 2


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, CLASSES, 1)]

    class Net(nn.Sequential):
        def forward(self, images):
            return {"main": super().forward(images)}

    return Net(*layers).train()


def evaluated(process, kind=Photographs):
    row = tiny_row()
    row = row.model_copy(
        update={
            "test": Test(multi_scale=MultiScale(scales=(0.5, 1.0), flip=True)),
            "runtime": row.runtime.model_copy(update={"workers": 2}),
        }
    )
    found = {}
    for mode in ("ss", "ms"):
        seen = []
        result = evaluate_model(
            network(),
            row,
            kind(),
            "cpu",
            mode=mode,
            process=process,
            keep=[0, 1],
            progress=lambda *at, seen=seen: seen.append(at),
        )
        assert len(seen) == len(range(process.rank, len(kind()), process.world))  # its own images, and no other
        found[mode] = result.confusion.matrix, result.images, result.predictions
    return found


def sharded(kind):
    with processes("cpu") as process:
        return evaluated(process, kind)


@pytest.mark.parametrize(("world", "kind"), [(2, Photographs), (3, Few)])
def test_any_number_of_processes_gives_the_same_pixels(world, kind):
    """7 images do not divide over 2; of 2 images the third process has none."""
    torch.set_num_threads(1)
    alone = evaluated(Process(), kind)
    labelled = sum(int((kind().mask(i) != 255).sum()) for i in range(len(kind())))
    for found in launch(world, sharded, kind):
        for mode, (matrix, images, predictions) in found.items():
            np.testing.assert_array_equal(matrix, alone[mode][0])
            assert images == len(kind())
            assert matrix.sum() == labelled
            assert sorted(predictions) == [0, 1]
            for index, labels in predictions.items():
                np.testing.assert_array_equal(labels, alone[mode][2][index])
