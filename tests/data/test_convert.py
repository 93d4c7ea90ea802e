import errno
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from danet.core.errors import ArchiveError, DataError
from danet.data import convert
from danet.data.convert import convert_dataset
from danet.data.prepared import PreparedDataset
from danet.data.raw import download_dataset
from tests.data.samples import camvid_spec, camvid_tree, contents, generated, prepare


def visible(folder):
    return sorted(path.name for path in folder.iterdir())


def offenders(tree, work, spec=None):
    """The message of a conversion that must fail and leave nothing behind."""
    with pytest.raises(DataError) as error:
        prepare(tree, spec or camvid_spec(), work)
    prepared = work / "prepared"
    assert not prepared.exists() or not visible(prepared)
    text = str(error.value)
    assert str(work) not in text, "paths are shown as they are in the dataset"
    return text


@pytest.mark.parametrize("storage", ["source", "raw"])
def test_same_input_gives_the_same_bytes(tmp_path, monkeypatch, storage):
    tree, spec, out = camvid_tree(tmp_path / "tree"), camvid_spec(storage=storage), tmp_path / "b"
    before = contents(prepare(tree, spec, tmp_path / "a"))
    for cores in (3, 1):  # into a new folder, and over what is there
        monkeypatch.setattr(convert, "cpu_cores", lambda cores=cores: cores)
        counts = convert_dataset("camvid", spec, tmp_path / "a/raw/camvid", out)
        assert counts == {"train": 3, "val": 3, "test": 3}
        assert contents(out) == before
    assert visible(tmp_path) == ["a", "b", "tree"]
    assert sorted(before) == ["dataset.json", "manifest.csv", "test.zip", "train.zip", "val.zip"]


def test_source_images_keep_their_bytes(tmp_path):
    tree = camvid_tree(tmp_path / "tree", suffix=".jpg")
    samples = PreparedDataset(prepare(tree, camvid_spec(), tmp_path), "train")
    for key in samples.ids:
        original = (tree / "train" / f"{key}.jpg").read_bytes()
        assert samples._bytes("train.zip", f"images/{key}.jpg") == original


def test_generated_sets_in_both_storages(tmp_path):
    specs = generated(tmp_path / "made")
    for name, spec in specs.items():
        raw = tmp_path / "raw" / name
        download_dataset(name, spec, raw, tmp_path / "made")
        folders = {}
        for storage in ("source", "raw"):
            chosen = spec.model_copy(update={"storage": storage})
            folders[storage] = tmp_path / storage / name
            assert convert_dataset(name, chosen, raw, folders[storage]) == spec.counts
        for split in spec.counts:
            source, mapped = (PreparedDataset(folder, split) for folder in folders.values())
            assert source.ids == mapped.ids
            for index in range(len(source)):
                assert (source.image(index) == mapped.image(index)).all()
                left, right = source.mask(index), mapped.mask(index)
                assert (left is None) == (right is None) == (split == "test")
                assert left is None or (left == right).all()


def cut(path):
    path.write_bytes(path.read_bytes()[:300])


def empty(path):
    path.write_bytes(b"")


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 12)).save(path, "PNG", exif=exif)


def save(pixels):
    return lambda path: Image.fromarray(pixels).save(path, "PNG")


def deep(path):
    cv2.imwrite(str(path), np.zeros((12, 16, 3), np.uint16))


@pytest.mark.parametrize(
    ("folder", "damage", "problem"),
    [
        ("val", empty, "cannot be decoded"),
        ("val", cut, "cannot be decoded"),
        ("val", save(np.zeros((12, 16), np.uint8)), "is L of 8 bits; images must be 8-bit RGB"),
        ("val", deep, "is RGB of 16 bits; images must be 8-bit RGB"),
        ("val", turned, "EXIF orientation 6"),
        ("val", Path.unlink, "missing"),
        ("valannot", save(np.full((12, 16), 37, np.uint8)), "label id 37 (192 pixels) is none of camvid's"),
        ("valannot", save(np.zeros((12, 16, 3), np.uint8)), "mask is RGB"),
        ("valannot", save(np.zeros((12, 16), np.uint16)), "mask is I;16"),
        ("valannot", save(np.zeros((16, 12), np.uint8)), "is 12x16, but its mask 16x12"),
        ("valannot", Path.unlink, "missing, for the image val_1"),
    ],
)
def test_a_bad_file_is_named(tmp_path, folder, damage, problem):
    tree = camvid_tree(tmp_path / "tree")
    damage(tree / folder / "val_1.png")
    text = offenders(tree, tmp_path)
    assert problem in text
    assert "camvid: 1 problem\n" in text
    assert "/val_1.png: " in text
    assert "split val: 2 usable images, expected 3" in text


def test_all_offenders_are_listed_at_once(tmp_path):
    tree = camvid_tree(tmp_path / "tree", 30)
    for index in range(25):
        empty(tree / "train" / f"train_{index}.png")
    cut(tree / "val" / "val_3.png")
    save(np.full((12, 16), 200, np.uint8))(tree / "testannot" / "test_7.png")
    text = offenders(tree, tmp_path, camvid_spec(30))
    assert "27 problems\n" in text
    for index in range(25):
        assert f"CamVid/train/train_{index}.png: cannot be decoded" in text
    assert "CamVid/val/val_3.png: cannot be decoded" in text
    assert "CamVid/testannot/test_7.png: label id 200 (192 pixels)" in text
    assert "split train: 5 usable images, expected 30" in text
    assert "split val: 29 usable images, expected 30" in text


def test_one_id_in_two_splits(tmp_path):
    tree = camvid_tree(tmp_path / "tree")
    for folder in ("", "annot"):
        shutil.copy(tree / f"train{folder}" / "train_1.png", tree / f"val{folder}" / "train_1.png")
    text = offenders(tree, tmp_path)
    assert "the id 'train_1' is also that of" in text


def test_grey_images_of_ade20k_are_kept(tmp_path):
    spec = generated(tmp_path / "made")["ade20k"]
    with zipfile.ZipFile(tmp_path / "made" / "ADEChallengeData2016.zip") as archive:
        archive.extractall(tmp_path / "tree")
    path = tmp_path / "tree" / "ADEChallengeData2016/images/training/ADE_train_00000002.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48), np.uint8)).save(path, quality=95)
    image = PreparedDataset(prepare(tmp_path / "tree", spec, tmp_path), "train").image(1)
    assert (image == image[..., :1]).all()
    assert np.abs(image[..., 0].astype(int) - np.array(Image.open(path))).max() <= 1


def test_missing_archives_and_sbd(tmp_path):
    specs = generated(tmp_path / "made")
    spec = specs["voc2012"]
    with pytest.raises(DataError, match=r"benchmark\.tgz; run `dvc repro download@voc2012`"):
        convert_dataset("voc2012", spec, tmp_path / "raw", tmp_path / "out")
    raw = tmp_path / "raw"
    alone = spec.model_copy(update={"archives": spec.archives[:1]})
    download_dataset("voc2012", alone, raw, tmp_path / "made")
    with pytest.raises(DataError, match="split trainaug: 0 usable images, expected 8"):
        convert_dataset("voc2012", alone, raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failure_leaves_the_old_result(tmp_path, monkeypatch):
    tree = camvid_tree(tmp_path / "tree")
    out = prepare(tree, camvid_spec(), tmp_path)
    before = contents(out)
    raw = tmp_path / "raw/camvid"
    with pytest.raises(DataError, match="expected 4"):
        convert_dataset("camvid", camvid_spec(4), raw, out)

    def full(text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert, "format_manifest", full)
    with pytest.raises(DataError, match="No space left"):
        convert_dataset("camvid", camvid_spec(), raw, out)
    (raw / "tree.zip").write_bytes((raw / "tree.zip").read_bytes()[:-100])
    with pytest.raises(ArchiveError, match=r"tree\.zip.*dvc repro -f -s download@camvid"):
        convert_dataset("camvid", camvid_spec(), raw, out)
    assert contents(out) == before
    assert visible(out.parent) == ["camvid"]
