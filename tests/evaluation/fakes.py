"""Images whose colours are their labels, and a network that reads them, in the place of photographs and DANet."""

import threading

import numpy as np
import torch
from torch import nn

from danet.evaluation import evaluate, predict
from danet.evaluation.inference import MEAN_RGB, STD_RGB

CLASSES = 4
GREYS = np.array([20, 90, 160, 230], np.uint8)


class Shades:
    """Images of different sizes in which class c is a grey level; the last class is not in any image."""

    classes = ("road", "car", "sky", "moon")
    palette = ((128, 64, 128), (0, 0, 142), (70, 130, 180), (255, 255, 0))
    num_classes = CLASSES
    manifest_hash = "0" * 64
    labels = frozenset({0, 1, 2})

    def __init__(self, folder=None, split="val", count=7):
        self.folder, self.split = folder, split
        self.ids = [f"image_{i:02d}" for i in range(count)]
        self.threads = set()

    def __len__(self):
        return len(self.ids)

    def mask(self, index):
        rng = np.random.default_rng(index)
        mask = rng.integers(0, 3, (3 + index % 3, 4)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        mask[:2] = 255
        return mask

    def image(self, index):
        self.threads.add(threading.current_thread().name)
        mask = self.mask(index)
        mask[mask == 255] = 0
        return GREYS[mask][..., None].repeat(3, axis=2)


class Unlabelled(Shades):
    def mask(self, index):
        return None


class Reader(nn.Module):
    """Reads the class from the grey level, but takes ``sky`` for ``moon``."""

    def __init__(self, num_classes=CLASSES):
        super().__init__()
        levels = GREYS.astype(float).copy()
        levels[[2, 3]] = levels[[3, 2]]
        self.register_buffer("levels", torch.tensor((levels - MEAN_RGB[0]) / STD_RGB[0], dtype=torch.float32))

    def forward(self, x):
        return {"main": -((x[:, :1] - self.levels[None, :, None, None]) ** 2)}


EXPECTED = np.zeros((CLASSES, CLASSES), dtype=np.int64)
for _index in range(7):
    _mask = Shades().mask(_index)
    for _truth, _taken in ((0, 0), (1, 1), (2, 3)):
        EXPECTED[_truth, _taken] += (_mask == _truth).sum()


def stand_in(monkeypatch, load=lambda path, model: None):
    """Evaluations see these images and this network, whose weights are whatever ``load`` makes of a file."""
    monkeypatch.setattr(evaluate, "PreparedDataset", Shades)
    monkeypatch.setattr(predict, "build_model", lambda config, classes, attention: Reader(classes))
    monkeypatch.setattr(predict, "load_any", load)
