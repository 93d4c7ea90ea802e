"""The official code's choice of an epoch, against its own arithmetic written out in numpy."""

import numpy as np
import pytest
import torch
from PIL import Image

from danet.core.process import Process
from danet.training.selection import selection_score
from tests.parameters import PARAMS, altered
from tests.training.fakes import tiny_row, trainer

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Photographs:
    """Four noisy images of 1:2, one of them upright; labels of three classes of four, a tenth of them ignored."""

    num_classes = 4

    def __init__(self):
        rng = np.random.default_rng(0)
        sizes = [(48, 96), (96, 48), (33, 71), (40, 40)]
        self.images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
        self.masks = [rng.integers(0, 3, size).astype(np.uint8) for size in sizes]
        for mask in self.masks:
            mask[rng.random(mask.shape) < 0.1] = 255

    def __len__(self):
        return len(self.images)

    def image(self, index):
        return self.images[index]

    def mask(self, index):
        return self.masks[index]


class Channels(torch.nn.Module):
    """Takes the strongest of red, green and blue for the class; the fourth is never seen."""

    def forward(self, x):
        return {"main": torch.cat([x, x[:, :1] - 9], 1)}


@pytest.mark.parametrize("world", [1, 3])
def test_score_is_the_mean_of_pixel_accuracy_and_miou_on_centre_crops(world):
    row = altered(PARAMS.row("official-danet-r101-d8-cityscapes"), augment={"crop_size": (32, 32)})
    data, side = Photographs(), 32
    inter, union, correct, labelled = np.zeros(4), np.zeros(4), 0, 0
    for image, mask in zip(data.images, data.masks, strict=True):
        h, w = mask.shape
        oh, ow = (side, int(1.0 * w * side / h)) if w > h else (int(1.0 * h * side / w), side)
        x1, y1 = int(round((ow - side) / 2.0)), int(round((oh - side) / 2.0))  # noqa: RUF046
        rgb = Image.fromarray(image[..., ::-1].copy()).resize((ow, oh), Image.Resampling.BILINEAR)
        rgb = np.asarray(rgb)[y1 : y1 + side, x1 : x1 + side]
        target = np.asarray(Image.fromarray(mask).resize((ow, oh), Image.Resampling.NEAREST))
        target = target[y1 : y1 + side, x1 : x1 + side]
        predicted = ((rgb / 255 - MEAN) / STD).argmax(-1)
        known = target != 255
        correct, labelled = correct + (predicted == target)[known].sum(), labelled + known.sum()
        for label in range(4):
            inter[label] += ((predicted == label) & (target == label)).sum()
            union[label] += (((predicted == label) & known) | (target == label)).sum()
    expected = (correct / labelled + (inter / (union + np.spacing(1))).mean()) / 2

    counts = []

    class One(Process):
        """One of many; the last adds up what the others counted."""

        def sum(self, value):
            counts.append(value)
            return torch.stack(counts).sum(0)

    for rank in range(world):
        score = selection_score(row, data, One(rank=rank, world=world))(Channels())
    assert score == pytest.approx(100 * expected, abs=1e-9)


def test_the_best_epoch_is_kept_and_stays_kept_when_the_run_is_killed(tmp_path):
    """Twelve iterations, three to an epoch of six images: what is kept is the first of the best epochs."""

    class KilledError(Exception):
        pass

    kept = {}
    row = tiny_row(iterations=12, schedule={"batch_size": 2}, runtime={"checkpoint_interval": 100})
    scores = {3: 10.0, 6: 40.0, 9: 40.0, 12: 30.0}

    def keep(model, iteration, score):
        kept.update(iteration=iteration, score=score, state={k: v.clone() for k, v in model.state_dict().items()})

    def train(folder, kill_at=None):
        def select(model):
            assert not model.training
            if run.iteration == kill_at:
                raise KilledError
            return scores[run.iteration]

        run = trainer(row, folder, select=select, keep_best=keep)
        if kill_at:
            with pytest.raises(KilledError):
                run.run()
        else:
            run.run()
        return run

    whole = train(tmp_path / "whole")
    assert whole.history.best == (6, 40.0)
    undisturbed = dict(kept)
    assert undisturbed["iteration"] == 6
    kept.clear()
    train(tmp_path / "killed", kill_at=9)
    resumed = train(tmp_path / "killed")
    assert resumed.history.resumed == 1
    assert (kept["iteration"], kept["score"]) == tuple(resumed.history.best) == (6, 40.0)
    for key, value in undisturbed["state"].items():
        assert torch.equal(kept["state"][key], value)
    plain = trainer(row, tmp_path / "plain")
    plain.run()
    for key, value in plain.model.state_dict().items():  # to choose moves nothing
        assert torch.equal(whole.model.state_dict()[key], value)
