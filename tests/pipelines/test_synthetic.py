import numpy as np
import pytest

from danet.config.params import Dataset
from danet.data.convert import convert_dataset
from danet.data.prepared import PreparedDataset
from danet.data.raw import download_dataset
from pipelines.demo.scenes import make_archives


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return folder, make_archives(folder)


@pytest.fixture(scope="module")
def prepared(made):
    folder, entries = made
    folders = {}
    for name, entry in entries.items():
        spec = Dataset.model_validate({"adapter": name, "title": name, **entry})
        raw, folders[name] = folder / "raw" / name, folder / "prepared" / name
        download_dataset(name, spec, raw, folder)
        convert_dataset(name, spec, raw, folders[name])
    return folders


@pytest.mark.parametrize(
    ("name", "train", "classes"), [("voc2012", "trainaug", 5), ("ade20k", "train", 6), ("cityscapes", "train", 6)]
)
def test_scenes_can_be_learned_and_not_guessed(prepared, name, train, classes):
    samples, val = PreparedDataset(prepared[name], train), PreparedDataset(prepared[name], "val")
    count = samples.num_classes
    sums, pixels = np.zeros((count, 3)), np.zeros(count)
    for index in range(len(samples)):
        image, mask = samples.image(index), samples.mask(index)
        assert mask is not None
        for value in set(np.unique(mask).tolist()) - {255}:
            sums[value] += image[mask == value].sum(0)
            pixels[value] += (mask == value).sum()
    present = np.flatnonzero(pixels)
    assert len(present) == classes
    assert pixels[present].min() > 0.03 * pixels.sum(), "every class is met often enough"
    means = sums[present] / pixels[present, None]
    confusion = np.zeros((count, count))
    for index in range(len(val)):
        image, mask = val.image(index).astype(float), val.mask(index)
        assert mask is not None
        guess = present[((image[..., None, :] - means) ** 2).sum(-1).argmin(-1)]
        valid = mask != 255
        np.add.at(confusion, (mask[valid], guess[valid]), 1)
    true = confusion.sum(1)
    assert set(np.flatnonzero(true)) == set(present)
    iou = np.diag(confusion)[present] / (true + confusion.sum(0) - np.diag(confusion))[present]
    assert iou.mean() > 0.9, "the nearest mean colour decides"
    constant = true[present] / true.sum() / len(present)
    assert constant.max() < 0.2, "no constant prediction comes near"
