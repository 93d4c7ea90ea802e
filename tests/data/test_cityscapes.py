import pytest

from danet.core.errors import DataError
from danet.data.cityscapes import LABEL_TO_TRAIN, TRAIN_TO_LABEL
from danet.data.registry import ADAPTERS
from tests.data.samples import genuine, pairs_of

SPEC = ADAPTERS["cityscapes"]

# As written in the recipes, from sssegmentation's code.
RECIPE = "7:0 8:1 11:2 12:3 13:4 17:5 19:6 20:7 21:8 22:9 23:10 24:11 25:12 26:13 27:14 28:15 31:16 32:17 33:18"


def tree(images, labels):
    for split, city, number in (
        ("train", "ulm", 0),
        ("train", "aachen", 1),
        ("val", "lindau", 2),
        ("test", "berlin", 3),
    ):
        for root, suffix in ((images / "leftImg8bit", "leftImg8bit"), (labels / "gtFine", "gtFine_labelIds")):
            folder = root / split / city
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{city}_{number:06d}_000019_{suffix}.png").touch()
    (labels / "gtFine" / "train" / "ulm" / "ulm_000000_000019_gtFine_color.png").touch()


def test_label_map_is_the_recipes():
    expected = {int(pair.split(":")[0]): int(pair.split(":")[1]) for pair in RECIPE.split()}
    assert expected == LABEL_TO_TRAIN
    assert {raw: train for raw, train in SPEC.labels.items() if train != 255} == expected
    assert set(SPEC.labels) == set(range(34))
    assert {TRAIN_TO_LABEL[train]: train for train in range(19)} == expected


@pytest.mark.parametrize("apart", [False, True])
def test_pairs(tmp_path, apart):
    tree(tmp_path / "images" if apart else tmp_path / "cs", tmp_path / "labels" if apart else tmp_path / "cs")
    pairs = pairs_of(SPEC, tmp_path)
    assert [key for key, _, _ in pairs["train"]] == ["aachen_000001_000019", "ulm_000000_000019"]
    for split in ("train", "val"):
        for key, image, mask in pairs[split]:
            assert image.name == f"{key}_leftImg8bit.png"
            assert mask is not None
            assert mask.name == f"{key}_gtFine_labelIds.png"
    assert [(key, mask) for key, _, mask in pairs["test"]] == [("berlin_000003_000019", None)]


def test_missing_half_is_named(tmp_path):
    (tmp_path / "leftImg8bit" / "val").mkdir(parents=True)
    with pytest.raises(DataError, match=r"gtFine.*gtFine_trainvaltest\.zip"):
        pairs_of(SPEC, tmp_path)


@pytest.mark.parametrize(
    ("member", "wanted"),
    [
        ("leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png", True),
        ("gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png", True),
        ("gtFine/val/lindau/lindau_000000_000019_gtFine_instanceIds.png", False),
        ("gtFine/val/lindau/lindau_000000_000019_gtFine_polygons.json", False),
        ("gtFine/test/berlin/berlin_000000_000019_gtFine_labelIds.png", False),
        ("leftImg8bit/demoVideo/stuttgart_00/x_leftImg8bit.png", False),
        ("README", False),
    ],
)
def test_wanted_members(member, wanted):
    assert bool(SPEC.wanted.search(member)) is wanted


def test_order_is_that_of_the_official_lists(tmp_path):
    lists = genuine("lists")
    for split, count in (("val", 500), ("train", 2975)):
        lines = [line.split() for line in (lists / f"cityscapes_{split}.lst").read_text().splitlines()]
        for line in lines:
            for name in line:
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        pairs = pairs_of(SPEC, tmp_path)[split]
        assert len(pairs) == count
        found = [
            [str(image.relative_to(tmp_path)), str(mask.relative_to(tmp_path))] for _, image, mask in pairs if mask
        ]
        assert found == sorted(lines)
        assert all(SPEC.wanted.search(name) for line in lines for name in line)
