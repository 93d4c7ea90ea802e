"""Small stand-ins: a network of a few hundred parameters, images in memory, a row to train them by."""

import torch
from torch import nn

from danet.config.row import Row
from danet.models.dropout import Dropout2d
from danet.models.numerics import seed_initialisation
from danet.results.identity import TrainingIdentity
from danet.training.checkpoint import CheckpointStore
from danet.training.loop import Trainer
from tests.data.test_transforms import labels, picture
from tests.parameters import PARAMS, altered

CLASSES = 5
ROW = PARAMS.row("mmseg-r50-d8-voc2012-20k")


class TinyNet(nn.Module):
    """Convolution, batch norm, dropout; outputs at half resolution like a segmentor's."""

    num_classes = CLASSES
    config = ROW.model  # is written beside the weights

    def __init__(self, norm=True, dropout=True):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
        self.backbone = nn.Sequential(*layers)
        self.dropout = Dropout2d(0.5 if dropout else 0.0)
        self.main, self.pam, self.cam, self.aux = (nn.Conv2d(8, CLASSES, 1) for _ in range(4))

    def forward(self, images):
        features = self.backbone(images)
        return {
            "main": self.main(self.dropout(features)),
            "pam": self.pam(features),
            "cam": self.cam(features),
            "aux": self.aux(features),
        }


class Images:
    """A dataset in memory."""

    num_classes = CLASSES
    manifest_hash = "0" * 64
    folder, split = "images", "train"
    labels = frozenset(range(CLASSES))

    def __init__(self, count=6):
        self.ids = [f"image{i}" for i in range(count)]

    def __len__(self):
        return len(self.ids)

    def image(self, i):
        return picture(40, 60, i)

    def mask(self, i):
        return labels(40, 60, i)


def identity(row, seed=0, data=Images.manifest_hash):
    """Of a training on :class:`Images` from a random start."""
    return TrainingIdentity.of(row, seed, data=data, initial_weights=None)


def tiny_row(iterations=8, **sections):
    """A row at test size; ``numerics={"accumulate": 2}`` and the like change single settings."""
    row = altered(
        ROW,
        name="tiny",
        schedule={"iterations": iterations, "batch_size": 4},
        augment={"resize": {"scale": (32, 48)}, "crop_size": (24, 24)},
        optimizer={"lr": 0.05, "head_lr_multiplier": 2.0},
        runtime={"workers": 0, "log_interval": 3, "checkpoint_interval": 3},
    )
    return Row.model_validate(altered(row, **sections).model_dump())


def in_float64(model):
    """The same network, in place. Two ways to compute one training then differ by some 1e-13 on every processor.

    In float32 an activation within rounding of a ReLU's kink would come out on either side of it, and the two ways
    would part by as much as a gradient.
    """
    model.double().register_forward_pre_hook(lambda _, images: (images[0].double(),))
    return model


def trainer(row, folder, seed=0, model=None, double=False, **more):
    seed_initialisation(seed)
    model = TinyNet() if model is None else model
    if double:
        in_float64(model)
    return Trainer(
        row, seed, model, more.pop("dataset", Images()), CheckpointStore(folder, identity(row, seed)), **more
    )


def state(trainer):
    """Weights, statistics and momentum."""
    tensors = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    for index, values in trainer.optimizer.state_dict()["state"].items():
        tensors[f"momentum{index}"] = values["momentum_buffer"].clone()
    return tensors


def identical(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
