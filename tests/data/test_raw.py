"""Whole datasets into ``data/raw``."""

import hashlib
import os
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from danet.config.params import Dataset
from danet.config.workspace import Workspace
from danet.core.errors import DataError, DownloadError
from danet.data.raw import download_dataset, refuse_changed_source, taken
from tests.data.samples import camvid_spec, camvid_tree, zip_of

pytestmark = pytest.mark.usefixtures("no_environment")

FILES = {"one.zip": b"first archive", "two.zip": b"second archive"}


@pytest.fixture
def spec():
    archives = [
        {"file": name, "checksum": f"sha256:{hashlib.sha256(data).hexdigest()}"} for name, data in FILES.items()
    ]
    return Dataset.model_validate({"adapter": "camvid", "archives": archives, "counts": {"train": 1}})


@pytest.fixture
def mirror(site, monkeypatch):
    monkeypatch.setenv("DANET_MIRROR", f"{site.url}/mirror")
    site.files = {f"/mirror/{name}": data for name, data in FILES.items()}
    return site


def get(spec, root, tree=None):
    """What lies in data/raw/camvid afterwards, by name."""
    out = root / "data" / "raw" / "camvid"
    download_dataset("camvid", spec, out, root / "data" / "archives", tree=tree)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in taken(spec, out))
    return {path.name: path.read_bytes() for path in out.iterdir()}


def asked(site):
    paths = [path for path, _ in site.asked]
    site.asked.clear()
    return paths


def test_each_archive_from_its_own_source_and_only_once(mirror, spec, tmp_path, monkeypatch):
    folder = tmp_path / "archives"
    (folder / "camvid").mkdir(parents=True)
    (folder / "camvid" / "one.zip").write_bytes(FILES["one.zip"])
    monkeypatch.setenv("DANET_ARCHIVES", str(folder))
    assert get(spec, tmp_path) == FILES
    assert asked(mirror) == ["/mirror/two.zip"]
    monkeypatch.delenv("DANET_ARCHIVES")
    assert get(spec, tmp_path) == FILES
    assert asked(mirror) == []
    damaged = tmp_path / "data/raw/camvid/two.zip"
    damaged.unlink()  # DVC may have linked it: replaced, never written into
    damaged.write_bytes(b"damaged")
    assert get(spec, tmp_path) == FILES
    assert asked(mirror) == ["/mirror/two.zip"]


def test_finished_archives_survive_an_interrupted_run(mirror, spec, tmp_path):
    del mirror.files["/mirror/two.zip"]
    with pytest.raises(DownloadError, match=r"two\.zip could not be obtained.*404"):
        get(spec, tmp_path)
    assert taken(spec, tmp_path / "data/raw/camvid") == []
    mirror.files["/mirror/two.zip"] = FILES["two.zip"]
    mirror.asked.clear()
    assert get(spec, tmp_path) == FILES
    assert asked(mirror) == ["/mirror/two.zip"]


def test_a_refused_download_leaves_no_folder(spec, tmp_path):
    with pytest.raises(DownloadError, match=r"one\.zip could not be obtained"):
        get(spec, tmp_path)
    assert not (tmp_path / "data").exists()


def test_without_a_checksum(mirror, tmp_path):
    """What is whole stays, unless a folder has the archive; what is damaged is taken again."""
    mirror.files["/mirror/archive.zip"] = whole = zip_of(tmp_path / "x.zip", {"a": b"1"}).read_bytes()
    assert get(camvid_spec(), tmp_path) == {"archive.zip": whole}
    assert asked(mirror) == ["/mirror/archive.zip"]
    assert get(camvid_spec(), tmp_path) == {"archive.zip": whole}
    assert asked(mirror) == []
    here = tmp_path / "data/raw/camvid/archive.zip"
    here.unlink()
    here.write_bytes(whole[:-30])
    assert get(camvid_spec(), tmp_path) == {"archive.zip": whole}
    placed = tmp_path / "data/archives/archive.zip"
    placed.parent.mkdir()
    other = zip_of(placed, {"a": bytes(1000), "b": b"2"}).read_bytes()
    assert get(camvid_spec(), tmp_path) == {"archive.zip": other}
    placed.unlink()
    placed.write_bytes(other[:-30])
    del mirror.files["/mirror/archive.zip"]
    with pytest.raises(DownloadError, match=rf"{placed}: is damaged or no archive .*; replace or delete it"):
        get(camvid_spec(), tmp_path)
    placed.write_bytes(other)
    assert get(camvid_spec(), tmp_path) == {"archive.zip": other}


def test_tree_is_packed_the_same_every_time(tmp_path):
    tree = camvid_tree(tmp_path / "somewhere" / "CamVid", 2)
    (tree / "notes.txt").write_text("not needed")
    elsewhere = tmp_path / "elsewhere.png"
    (tree / "train" / "train_0.png").rename(elsewhere)
    (tree / "train" / "train_0.png").symlink_to(elsewhere)
    (tree / "loop").symlink_to(tree)
    first = get(camvid_spec(2), tmp_path / "a", tree=tree)
    for path in tree.rglob("*.png"):
        os.utime(path, (1, 1))
    assert get(camvid_spec(2), tmp_path / "b", tree=tree.parent) == first
    with zipfile.ZipFile(tmp_path / "a/data/raw/camvid/tree.zip") as archive:
        names = archive.namelist()
        assert archive.read("CamVid/train/train_0.png") == elsewhere.read_bytes()
    assert names == sorted(names)
    assert len(names) == 12
    assert all(name.startswith("CamVid/") and name.endswith(".png") for name in names)


def test_a_folder_is_taken_again_and_an_archive_after_it(tmp_path, monkeypatch):
    tree = camvid_tree(tmp_path / "tree")
    monkeypatch.setenv("DANET_CAMVID", str(tree))
    before = get(camvid_spec(), tmp_path)
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(tree / "train" / "train_1.png")
    after = get(camvid_spec(), tmp_path)
    assert after.keys() == before.keys() == {"tree.zip"}
    assert after != before
    monkeypatch.delenv("DANET_CAMVID")
    placed = tmp_path / "data/archives/archive.zip"
    placed.parent.mkdir()
    data = zip_of(placed, {"a": b"1"}).read_bytes()
    assert get(camvid_spec(), tmp_path) == {"archive.zip": data}


def test_tree_of_something_else(tmp_path, monkeypatch):
    (tmp_path / "tree").mkdir()
    with pytest.raises(DataError, match=rf"{tmp_path}/tree: holds no folder with train and trainannot"):
        get(camvid_spec(), tmp_path, tree=tmp_path / "tree")
    assert taken(camvid_spec(), tmp_path / "data/raw/camvid") == []
    monkeypatch.setenv("DANET_CAMVID", str(tmp_path / "nowhere"))
    with pytest.raises(DownloadError, match=r"nowhere: no such folder; correct or unset DANET_CAMVID"):
        get(camvid_spec(), tmp_path)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace of one data set, CamVid, without checksums."""
    params = SimpleNamespace(dataset=lambda name: camvid_spec())
    monkeypatch.setattr(Workspace, "params", lambda self: params)
    return Workspace(tmp_path / "w")


def test_a_folder_that_changed_is_noticed(workspace, tmp_path, monkeypatch):
    """By content: another file of the same size counts, a copy elsewhere does not."""
    monkeypatch.setenv("DANET_CAMVID", str(camvid_tree(tmp_path / "tree")))
    get(camvid_spec(), workspace.root)
    refuse_changed_source(workspace, "camvid")
    again = camvid_tree(tmp_path / "copy")
    monkeypatch.setenv("DANET_CAMVID", str(again))
    refuse_changed_source(workspace, "camvid")
    mask = again / "trainannot" / "train_1.png"
    data = bytearray(mask.read_bytes())
    data[-20] ^= 1
    mask.write_bytes(data)
    with pytest.raises(DataError, match=r"1 files, as CamVid/trainannot/train_1\.png.*dvc repro -f -s download@camvid"):
        refuse_changed_source(workspace, "camvid")
    get(camvid_spec(), workspace.root)  # what the message says, as the stage does it
    refuse_changed_source(workspace, "camvid")
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(again / "train" / "more.png")
    with pytest.raises(DataError, match=r"CamVid/train/more\.png"):
        refuse_changed_source(workspace, "camvid")
    monkeypatch.setenv("DANET_CAMVID", str(tmp_path / "unmounted"))
    refuse_changed_source(workspace, "camvid")  # what is here can be used
    monkeypatch.delenv("DANET_CAMVID")
    refuse_changed_source(workspace, "camvid")


def test_an_archive_that_changed_is_noticed(workspace, tmp_path, monkeypatch):
    placed = workspace.archives() / "archive.zip"
    placed.parent.mkdir(parents=True)
    zip_of(placed, {"a": b"1"})
    get(camvid_spec(), workspace.root)
    refuse_changed_source(workspace, "camvid")
    placed.unlink()
    refuse_changed_source(workspace, "camvid")
    zip_of(placed, {"a": b"2"})
    with pytest.raises(DataError, match=rf"{placed} is not the archive that was taken.*download@camvid"):
        refuse_changed_source(workspace, "camvid")
    get(camvid_spec(), workspace.root)
    refuse_changed_source(workspace, "camvid")
    monkeypatch.setenv("DANET_CAMVID", str(camvid_tree(tmp_path / "tree")))
    with pytest.raises(DataError, match=r"DANET_CAMVID names .* was not taken from a folder"):
        refuse_changed_source(workspace, "camvid")
