import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from danet.acquire.sources import Places
from danet.config.params import Dataset
from danet.core.files import sha256
from danet.data.convert import convert_dataset
from danet.data.prepared import PreparedDataset
from danet.data.raw import download_dataset
from pipelines.demo.scenes import make_archives
from tests.data.samples import SMALL


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
        download_dataset(name, spec, raw, places=Places(folder), progress=False)
        convert_dataset(name, spec, raw, folders[name], progress=False)
    return folders


def test_names_checksums_and_counts(made):
    folder, entries = made
    assert {name: [archive["file"] for archive in entry["archives"]] for name, entry in entries.items()} == {
        "voc2012": ["VOCtrainval_11-May-2012.tar", "benchmark.tgz"],
        "ade20k": ["ADEChallengeData2016.zip"],
        "cityscapes": ["gtFine_trainvaltest.zip", "leftImg8bit_trainvaltest.zip"],
    }
    for entry in entries.values():
        for archive in entry["archives"]:
            assert archive["checksum"] == f"sha256:{sha256(folder / archive['file'])}"
    assert entries["voc2012"]["counts"] == {"train": 24, "val": 16, "trainval": 40, "trainaug": 48}
    assert entries["cityscapes"]["counts"] == {"train": 48, "val": 16, "test": 4}


def test_seed_decides_the_bytes(tmp_path):
    first, again = make_archives(tmp_path / "a", 3, SMALL), make_archives(tmp_path / "b", 3, SMALL)
    other = make_archives(tmp_path / "c", 4, SMALL)
    assert first == again
    checksums = [
        {archive["checksum"] for entry in run.values() for archive in entry["archives"]} for run in (first, other)
    ]
    assert not checksums[0] & checksums[1]


def test_formats_are_the_official_ones(made):
    from scipy.io import loadmat

    folder, _ = made
    with tarfile.open(folder / "VOCtrainval_11-May-2012.tar") as archive:
        root = "VOCdevkit/VOC2012"
        mask = Image.open(io.BytesIO(_member(archive, f"{root}/SegmentationClass/2007_000001.png")))
        assert mask.mode == "P"
        assert mask.getpalette()[45:48] == [192, 128, 128]
        assert 255 in np.array(mask)
        assert Image.open(io.BytesIO(_member(archive, f"{root}/JPEGImages/2007_000001.jpg"))).format == "JPEG"
        train = _member(archive, f"{root}/ImageSets/Segmentation/train.txt").decode().split()
        val = _member(archive, f"{root}/ImageSets/Segmentation/val.txt").decode().split()
        voc_ids = np.array(mask)
    with tarfile.open(folder / "benchmark.tgz") as archive:
        root = "benchmark_RELEASE/dataset"
        listed = [set(_member(archive, f"{root}/{name}.txt").decode().split()) for name in ("train", "val")]
        mat = loadmat(io.BytesIO(_member(archive, f"{root}/cls/2007_000001.mat")))["GTcls"]
    assert set(mat.dtype.names) == {"Boundaries", "Segmentation", "CategoriesPresent"}
    segmentation = mat["Segmentation"][0, 0]
    assert (segmentation == voc_ids)[voc_ids != 255].all()
    assert sorted(mat["CategoriesPresent"][0, 0].ravel()) == sorted(set(np.unique(segmentation)) - {0})
    assert mat["Boundaries"][0, 0].shape == (20, 1)
    # The sets overlap as the real ones do.
    assert not listed[0] & listed[1]
    for part in listed:
        assert part & set(train)
        assert part & set(val)
        assert part - set(train) - set(val)
    with zipfile.ZipFile(folder / "gtFine_trainvaltest.zip") as archive:
        names = archive.namelist()
    assert any(name.startswith("gtFine/test/berlin/") for name in names)
    assert any(name.endswith("_polygons.json") for name in names)


def _member(archive, name):
    stream = archive.extractfile(name)
    assert stream is not None
    return stream.read()


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


def test_ignored_pixels_are_there(prepared):
    for name in ("voc2012", "ade20k", "cityscapes"):
        samples = PreparedDataset(prepared[name], "val")
        assert all((samples.mask(index) == 255).any() for index in range(len(samples)))
