import numpy as np
import pytest
from PIL import Image

from danet.core.errors import DataError
from danet.data.loader import TrainingSet
from danet.data.prepared import PreparedDataset
from danet.evaluation import browse
from danet.evaluation.browse import browse_dataset, browse_row, contact_sheet
from tests.data.samples import camvid_spec, camvid_tree, prepare
from tests.parameters import PARAMS

PALETTE = ((10, 20, 30), (200, 100, 0))
CLASSES = ("first", "second")


def test_sheet_shows_image_and_overlay(tmp_path):
    image = np.zeros((40, 60, 3), np.uint8)
    image[:] = (255, 0, 0)  # BGR: blue
    samples = [(f"sample{index}", image, np.full((40, 60), index % 2, np.uint8)) for index in range(3)]
    contact_sheet(samples, tmp_path / "sheet.png", CLASSES, PALETTE, "a title")
    sheet = np.array(Image.open(tmp_path / "sheet.png").convert("RGB"))
    colours = {tuple(colour) for colour in sheet.reshape(-1, 3).tolist()}
    assert (0, 0, 255) in colours, "images are shown in RGB"
    assert {PALETTE[0], PALETTE[1]} <= colours, "the legend has both classes' colours"
    assert (sheet == (0, 0, 255)).all(-1).sum() > 3 * 200 * 300
    contact_sheet(samples[:1], tmp_path / "one.png", CLASSES, PALETTE, "")
    sheet = np.array(Image.open(tmp_path / "one.png").convert("RGB"))
    colours = {tuple(colour) for colour in sheet.reshape(-1, 3).tolist()}
    assert PALETTE[1] not in colours, "only classes that are present"


def test_browse_dataset(tmp_path):
    out = prepare(camvid_tree(tmp_path / "tree", 5), camvid_spec(5), tmp_path)
    for split, count in (("train", 2), ("val", 100), ("test", 1)):
        browse_dataset(out, split, count, tmp_path / f"{split}.png")
        assert Image.open(tmp_path / f"{split}.png").format == "PNG"
    assert Image.open(tmp_path / "val.png").size[0] > Image.open(tmp_path / "test.png").size[0]
    browse_dataset(out, "train", 2, tmp_path / "again.png")
    browse_dataset(out, "train", 2, tmp_path / "other.png", seed=1)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "train.png").read_bytes()
    assert (tmp_path / "other.png").read_bytes() != (tmp_path / "train.png").read_bytes()
    with pytest.raises(DataError, match="no split 'other'"):
        browse_dataset(out, "other", 1, tmp_path / "x.png")


def test_browse_row_shows_what_the_row_trains_on(tmp_path, monkeypatch):
    out = prepare(camvid_tree(tmp_path / "tree", 5), camvid_spec(5), tmp_path)
    row = PARAMS.row("camvid-r50-d8-short")
    shown = []
    monkeypatch.setattr(browse, "contact_sheet", lambda samples, *_: shown.extend(samples))
    browse_row(row, out, "train", 7, tmp_path / "sheet.png", seed=3)
    dataset = PreparedDataset(out, "train")
    training = TrainingSet(dataset, row.augment, 3)
    for position, (name, image, mask) in enumerate(shown):
        pixels, labels, _ = training[position]
        assert name == dataset.ids[training.index(position)]
        assert (mask == labels).all()
        assert (image == pixels).all()
    assert len(shown) == 7
    monkeypatch.undo()
    browse_row(row, out, "train", 2, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").format == "PNG"
