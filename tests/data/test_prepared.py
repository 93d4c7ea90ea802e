import json
import multiprocessing
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from danet.core.errors import DataError
from danet.data.prepared import PreparedDataset, format_class_pixels
from tests.data.samples import camvid_spec, camvid_tree, prepare


@pytest.fixture(scope="module", params=["source", "raw"])
def folder(request, tmp_path_factory):
    work = tmp_path_factory.mktemp(request.param)
    camvid_tree(work / "tree", 4, (13, 17))
    return prepare(work / "tree", camvid_spec(4, request.param), work)


@pytest.fixture
def copy(folder, tmp_path):
    """A prepared folder that a test may damage."""
    return shutil.copytree(folder, tmp_path / "camvid")


def truth(folder, split, index):
    """BGR and train ids by Pillow, from the tree that was converted."""
    tree = folder.parent.parent / "tree"
    image = np.array(Image.open(tree / split / f"{split}_{index}.png"))[..., ::-1]
    raw = np.array(Image.open(tree / f"{split}annot" / f"{split}_{index}.png"))
    return image, np.where(raw == 11, 255, raw)


def same(left, right):
    return left is not None and left.dtype == right.dtype and left.shape == right.shape and bool((left == right).all())


def test_pixels_against_pillow(folder):
    for split in ("train", "val", "test"):
        samples = PreparedDataset(folder, split)
        assert samples.ids == [f"{split}_{index}" for index in range(4)]
        assert samples.labelled
        assert samples.labels == {
            int(value) for index in range(len(samples)) for value in np.unique(truth(folder, split, index)[1])
        } - {255}
        assert samples.num_classes == len(samples.classes) == len(samples.palette) == 11
        for index in range(len(samples)):
            image, mask = truth(folder, split, index)
            assert samples.size(index) == (13, 17)
            assert same(samples.image(index), image)
            assert same(samples.mask(index), mask)


def _read(samples, index):
    return samples.image(index).tobytes(), samples.mask(index).tobytes(), os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(folder, method):
    samples = PreparedDataset(folder, "train")
    expected = [_read(samples, index)[:2] for index in range(4)]  # opened before the fork
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.starmap(_read, [(samples, index % 4) for index in range(16)])
    assert [result[:2] for result in results] == expected * 4
    assert all(result[2] != os.getpid() for result in results)
    assert [_read(samples, index)[:2] for index in range(4)] == expected


def test_missing(tmp_path, folder):
    with pytest.raises(DataError, match=r"dvc repro convert@voc2012"):
        PreparedDataset(tmp_path / "voc2012", "train")
    with pytest.raises(DataError, match="no split 'trainaug'; it has train, val, test"):
        PreparedDataset(folder, "trainaug")


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("dataset.json", lambda data: data[:100], "cannot be read"),
        ("dataset.json", lambda data: data.replace(b'"format": 1', b'"format": 99'), "format 1"),
        ("manifest.csv", lambda data: data[:-40], "changed"),
        ("manifest.csv", None, "cannot be read"),
        ("train.zip", lambda data: data[:-40], "of .* bytes"),
        ("train.zip", None, "cannot be read"),
    ],
)
def test_damage_found_on_opening(copy, file, change, problem):
    path = copy / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=problem) as error:
        PreparedDataset(copy, "train")
    assert str(copy) in str(error.value)
    assert "convert@camvid" in str(error.value)
    if file == "train.zip":
        PreparedDataset(copy, "val")  # the other packs are whole


def test_damage_found_on_reading(copy):
    path = copy / "train.zip"
    data = bytearray(path.read_bytes())
    raw = json.loads((copy / "dataset.json").read_text())["storage"] == "raw"
    member = b"images/train_1." + (b"npy" if raw else b"png")
    data[data.index(member) + len(member) + 300] ^= 0xFF
    path.write_bytes(data)
    samples = PreparedDataset(copy, "train")
    samples.image(0)
    if not raw:  # mapped pixels are not checked on every access
        with pytest.raises(DataError, match=r"train_1.*repro -f -s convert@camvid"):
            samples.image(1)


@given(arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_the_manifest_counts_the_pixels_of_each_label(mask):
    values, counts = np.unique(mask, return_counts=True)
    assert format_class_pixels(mask) == " ".join(f"{v}:{n}" for v, n in zip(values, counts, strict=True))
