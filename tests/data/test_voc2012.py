import numpy as np
import pytest
from PIL import Image

from danet.core.errors import DataError
from danet.data.registry import ADAPTERS
from danet.data.voc2012 import colour_map
from tests.data.samples import dataset, genuine, open_split, pairs_of, prepare

SPEC = ADAPTERS["voc2012"]


def tree(root, train, val, sbd):
    """An empty devkit with list files only."""
    voc = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for name, ids in (("train", train), ("val", val)):
        (voc / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("".join(f"{key}\n" for key in ids))
    if sbd is not None:
        folder = root / "benchmark_RELEASE" / "dataset"
        (folder / "cls").mkdir(parents=True)
        for name, ids in zip(("train", "val"), sbd, strict=True):
            (folder / f"{name}.txt").write_text("".join(f"{key}\n" for key in ids))
    return root


def test_colour_map_is_the_devkits():
    def devkit(index):
        red = green = blue = 0
        for shift in range(7, -1, -1):
            red |= (index & 1) << shift
            green |= (index >> 1 & 1) << shift
            blue |= (index >> 2 & 1) << shift
            index >>= 3
        return red, green, blue

    assert colour_map(256) == tuple(devkit(index) for index in range(256))
    assert SPEC.palette[:3] == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert SPEC.palette[15] == (192, 128, 128)  # person


def test_splits_follow_the_set_algebra_in_a_fixed_order(tmp_path):
    train, val = ["c", "a"], ["v2", "v1"]
    root = tree(tmp_path, train, val, (["z", "a", "v1"], ["b", "v2", "c"]))
    pairs = pairs_of(SPEC, root)
    ids = {split: [entry[0] for entry in entries] for split, entries in pairs.items()}
    assert ids == {
        "train": ["c", "a"],
        "val": ["v2", "v1"],
        "trainval": ["c", "a", "v2", "v1"],
        "trainaug": ["c", "a", "b", "z"],
    }
    masks = {key: mask.parent.name for key, _, mask in pairs["trainaug"] if mask}
    assert masks == {"c": "SegmentationClass", "a": "SegmentationClass", "b": "cls", "z": "cls"}


def test_tree_may_lie_a_level_up_or_down(tmp_path):
    root = tree(tmp_path / "one" / "two", ["a"], ["b"], None)
    for start in (tmp_path, tmp_path / "one", root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2012"):
        assert [key for key, _, _ in pairs_of(SPEC, start)["train"]] == ["a"]
    assert "trainaug" not in pairs_of(SPEC, root)
    (root / "VOCdevkit" / "VOC2007").mkdir()
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (root / "VOCdevkit" / "VOC2007" / folder).mkdir(parents=True)
    assert [key for key, _, _ in pairs_of(SPEC, root)["train"]] == ["a"]
    with pytest.raises(DataError, match=r"no folder with JPEGImages.*VOCtrainval"):
        pairs_of(SPEC, root / "VOCdevkit" / "VOC2012" / "JPEGImages")


def test_real_lists_give_10582(tmp_path):
    lists = genuine("lists")

    def read(name):
        return (lists / f"{name}.txt").read_text().split()

    train, val, aug, noval = read("train"), read("val"), read("trainaug"), read("train_noval")
    # SBD's own two lists are not among the samples; what is known of them is their union (SOURCES.md): every trainaug
    # id that is not VOC's own, and some of VOC train and val. SBD's train without VOC val is train_noval.
    extra = sorted(set(aug) - set(train))
    rest = sorted(set(extra) - set(noval)) + val[::2]
    root = tree(tmp_path, train, val, (noval + val[1::2], rest))
    ids = [key for key, _, _ in pairs_of(SPEC, root)["trainaug"]]
    assert len(ids) == len(set(ids)) == 10582
    assert set(ids) == set(aug)
    assert ids[:1464] == train
    assert ids[1464:] == extra
    assert not set(ids) & set(val)


def test_genuine_samples(tmp_path):
    source = genuine("voc2012")
    spec = dataset("voc2012", {"train": 50, "val": 50, "trainval": 100, "trainaug": 100})
    out = prepare(source, spec, tmp_path)
    sets = open_split(out, "trainaug")
    voc = source / "VOCdevkit" / "VOC2012"
    own = set((voc / "ImageSets/Segmentation/train.txt").read_text().split())
    for index in range(0, 100, 7):
        key = sets.ids[index]
        folder = "SegmentationClass" if key in own else "SegmentationClassAug"
        expected = np.array(Image.open(voc / folder / f"{key}.png"))
        mask = sets.mask(index)
        assert mask is not None
        assert (mask == expected).all()
        picture = np.array(Image.open(voc / "JPEGImages" / f"{key}.jpg")).astype(int)
        assert sets.size(index) == expected.shape == picture.shape[:2]
        assert np.abs(sets.image(index)[..., ::-1].astype(int) - picture).mean() < 1  # two JPEG decoders
