import numpy as np
import pytest

from danet.data.prepared import PreparedDataset
from danet.results.scores import constant_baseline, scores
from pipelines.demo.scenes import Sizes
from tests.data.samples import generated, prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of each data set, of the demo's size."""
    folder = tmp_path_factory.mktemp("made")
    return {name: prepare(None, spec, folder) for name, spec in generated(folder, Sizes()).items()}


def labelled(folder, split):
    """Colours and classes of all labelled pixels."""
    samples = PreparedDataset(folder, split)
    colours = np.concatenate([samples.image(i).reshape(-1, 3) for i in range(len(samples))])
    classes = np.concatenate([samples.mask(i).ravel() for i in range(len(samples))])
    return colours[classes != 255].astype(float), classes[classes != 255]


@pytest.mark.parametrize(
    ("name", "train", "classes"), [("voc2012", "trainaug", 5), ("ade20k", "train", 6), ("cityscapes", "train", 6)]
)
def test_scenes_can_be_learned_and_not_guessed(prepared, name, train, classes):
    colours, truth = labelled(prepared[name], train)
    present, pixels = np.unique(truth, return_counts=True)
    assert len(present) == classes
    assert pixels.min() > 0.03 * pixels.sum(), "every class is met often enough"
    means = np.stack([colours[truth == value].mean(0) for value in present])
    colours, truth = labelled(prepared[name], "val")
    assert set(truth) == set(present)
    guess = present[((colours[:, None] - means) ** 2).sum(-1).argmin(-1)]
    matrix = np.zeros((256, 256), np.int64)
    np.add.at(matrix, (truth, guess), 1)
    assert scores(matrix).miou > 90, "the nearest mean colour decides"
    assert constant_baseline(matrix.sum(1))[0] < 20, "no constant prediction comes near"
