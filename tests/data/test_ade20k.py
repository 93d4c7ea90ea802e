import numpy as np
import pytest
from PIL import Image

from danet.core.errors import DataError
from danet.data.registry import ADAPTERS
from tests.data.samples import dataset, genuine, open_split, pairs_of, prepare

SPEC = ADAPTERS["ade20k"]


def tree(root, train=2, val=2):
    for split, folder, count in (("train", "training", train), ("val", "validation", val)):
        for kind in ("images", "annotations"):
            (root / kind / folder).mkdir(parents=True)
        for number in range(1, count + 1):
            (root / "images" / folder / f"ADE_{split}_{number:08d}.jpg").touch()
            (root / "annotations" / folder / f"ADE_{split}_{number:08d}.png").touch()
    return root


def test_labels():
    assert SPEC.labels[0] == 255
    assert all(SPEC.labels[index] == index - 1 for index in range(1, 151))
    assert 151 not in SPEC.labels
    assert SPEC.classes[0] == "wall"
    assert SPEC.classes[-1] == "flag"
    assert SPEC.palette[0] == (120, 120, 120)
    assert SPEC.palette[-1] == (92, 0, 255)


def test_pairs_one_level_up_or_down(tmp_path):
    root = tree(tmp_path / "ADEChallengeData2016", 3, 2)
    for start in (tmp_path, root):
        pairs = pairs_of(SPEC, start)
        assert [key for key, _, _ in pairs["train"]] == [f"ADE_train_{number:08d}" for number in (1, 2, 3)]
        key, image, mask = pairs["val"][1]
        assert (key, image.parent.name) == ("ADE_val_00000002", "validation")
        assert mask == root / "annotations" / "validation" / "ADE_val_00000002.png"
    with pytest.raises(DataError, match=r"ADEChallengeData2016\.zip"):
        pairs_of(SPEC, root / "images")


def test_genuine_samples(tmp_path):
    source = genuine("ade20k")
    out = prepare(source, dataset("ade20k", {"train": 3, "val": 3}), tmp_path)
    names = [
        line.split("\t")[-1].split(",")[0].strip()
        for line in (source / "objectInfo150.txt").read_text().splitlines()[1:]
    ]
    assert list(SPEC.classes) == names
    for split, folder in (("train", "training"), ("val", "validation")):
        samples = open_split(out, split)
        for index, key in enumerate(samples.ids):
            raw = np.array(Image.open(source / "annotations" / folder / f"{key}.png")).astype(int)
            expected = np.where(raw == 0, 255, raw - 1)
            mask = samples.mask(index)
            assert mask is not None
            assert (mask == expected).all()
