"""Whole datasets into ``data/raw``, and what has changed since."""

import hashlib
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from danet.acquire.sources import Places
from danet.config.params import Dataset
from danet.config.workspace import Workspace
from danet.config.yaml import write_raw
from danet.core.errors import DataError, DownloadError
from danet.data.raw import changed_source, download_dataset, refuse_changed_source
from tests.data.samples import camvid_spec, camvid_tree, zip_of
from tests.parameters import raw_params

pytestmark = pytest.mark.usefixtures("no_environment")


def spec_of(files, **fields):
    archives = [
        {"file": name, "checksum": f"sha256:{hashlib.sha256(data).hexdigest()}", **fields}
        for name, data in files.items()
    ]
    return Dataset.model_validate(
        {"adapter": "camvid", "title": "CamVid", "archives": archives, "counts": {"train": 1}}
    )


FILES = {"one.zip": b"first archive", "two.zip": b"second archive"}


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def get(spec, root, tree=None, mirror=None, archives=None):
    out = root / "data" / "raw" / "camvid"
    places = Places(root / "data" / "archives", archives, mirror) if mirror or archives else None
    download_dataset("camvid", spec, out, places=places, tree=tree, progress=False)
    source = json.loads((out / "SOURCE.json").read_text())
    assert left(out) == sorted(["SOURCE.json", *(entry["file"] for entry in source["archives"])])
    assert left(out.parent) == ["camvid"]
    for entry in source["archives"]:
        data = (out / entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["bytes"] == len(data)
    assert str(root) not in json.dumps(source), "machine paths stay out of what is shared"
    return {entry["file"]: entry for entry in source["archives"]}


def test_each_archive_from_its_own_source(site, tmp_path):
    folder = tmp_path / "archives"
    (folder / "camvid").mkdir(parents=True)
    (folder / "camvid" / "one.zip").write_bytes(FILES["one.zip"])
    site.files = {f"/mirror/{name}": data for name, data in FILES.items()}
    got = get(spec_of(FILES), tmp_path, archives=folder, mirror=f"{site.url.replace('//', '//me:secret@')}/mirror/")
    assert [got[name]["from"] for name in FILES] == ["local folder", "mirror"]
    assert got["two.zip"]["url"] == f"{site.url}/mirror/two.zip", "without the password"
    assert [path for path, _ in site.asked] == ["/mirror/two.zip"]


def test_present_archives_are_not_fetched_again_and_the_record_stays(site, tmp_path):
    spec = spec_of(FILES)
    site.files = {f"/{name}": data for name, data in FILES.items()}
    get(spec, tmp_path, mirror=site.url)
    out = tmp_path / "data/raw/camvid"
    record = (out / "SOURCE.json").read_text()
    site.asked.clear()
    get(spec, tmp_path, mirror=site.url)
    assert site.asked == []
    assert (out / "SOURCE.json").read_text() == record
    (out / "two.zip").unlink()  # DVC may have linked it: replaced, never written into
    (out / "two.zip").write_bytes(b"damaged")
    get(spec, tmp_path, mirror=site.url)
    assert [path for path, _ in site.asked] == ["/two.zip"]
    assert (out / "two.zip").read_bytes() == FILES["two.zip"]


def test_without_checksum_the_hash_is_recorded_and_checked(site, tmp_path):
    spec = camvid_spec()
    site.files["/archive.zip"] = zip_of(tmp_path / "x.zip", {"a": b"1"}).read_bytes()
    get(spec, tmp_path, mirror=site.url)
    site.asked.clear()
    get(spec, tmp_path, mirror=site.url)
    assert site.asked == []
    out = tmp_path / "data/raw/camvid/archive.zip"
    out.unlink()
    out.write_bytes(b"cut")
    get(spec, tmp_path, mirror=site.url)
    assert out.read_bytes() == site.files["/archive.zip"]


def test_finished_archives_survive_an_interrupted_run(site, tmp_path):
    spec = spec_of(FILES)
    site.files["/one.zip"] = FILES["one.zip"]
    with pytest.raises(DownloadError, match=r"two\.zip could not be obtained.*404"):
        get(spec, tmp_path, mirror=site.url)
    assert not (tmp_path / "data/raw/camvid").exists()
    site.files["/two.zip"] = FILES["two.zip"]
    site.asked.clear()
    get(spec, tmp_path, mirror=site.url)
    assert [path for path, _ in site.asked] == ["/two.zip"]


def test_tree_is_packed_the_same_every_time(tmp_path):
    tree = camvid_tree(tmp_path / "somewhere" / "CamVid", 2)
    (tree / "notes.txt").write_text("not needed")
    elsewhere = tmp_path / "elsewhere.png"
    (tree / "train" / "train_0.png").rename(elsewhere)
    (tree / "train" / "train_0.png").symlink_to(elsewhere)
    (tree / "loop").symlink_to(tree)
    spec = camvid_spec(2)
    first = get(spec, tmp_path / "a", tree=tree)["tree.zip"]
    for path in tree.rglob("*.png"):
        os.utime(path, (1, 1))
    second = get(spec, tmp_path / "b", tree=tree.parent)["tree.zip"]
    assert first["sha256"] == second["sha256"]
    with zipfile.ZipFile(tmp_path / "a/data/raw/camvid/tree.zip") as archive:
        names = archive.namelist()
        assert archive.read("CamVid/train/train_0.png") == elsewhere.read_bytes()
    assert names == sorted(names)
    assert len(names) == 12
    assert all(name.startswith("CamVid/") and name.endswith(".png") for name in names)


def test_tree_of_something_else(tmp_path, monkeypatch):
    (tmp_path / "tree").mkdir()
    with pytest.raises(DataError, match=rf"{tmp_path}/tree: holds no folder with train/"):
        get(camvid_spec(), tmp_path, tree=tmp_path / "tree")
    assert not (tmp_path / "data/raw/camvid").exists()
    monkeypatch.setenv("DANET_CAMVID", str(tmp_path / "nowhere"))
    with pytest.raises(DownloadError, match=r"nowhere: no such folder; correct or unset DANET_CAMVID"):
        get(camvid_spec(), tmp_path)


@pytest.fixture
def workspace(tmp_path):
    raw = raw_params()
    raw["datasets"]["camvid"] |= {"archives": [{"file": "archive.zip"}], "counts": {"train": 3, "val": 3, "test": 3}}
    (tmp_path / "w").mkdir()
    write_raw(raw, tmp_path / "w")
    return Workspace(tmp_path / "w")


def take(workspace: Workspace) -> None:
    download_dataset("camvid", workspace.params().dataset("camvid"), workspace.raw("camvid"), progress=False)


def test_a_folder_that_changed_is_noticed(workspace, tmp_path, monkeypatch):
    """By content: another file of the same size and time counts, a copy elsewhere does not."""
    tree = camvid_tree(tmp_path / "tree")
    monkeypatch.setenv("DANET_CAMVID", str(tree))
    take(workspace)
    refuse_changed_source(workspace, "camvid")
    again = camvid_tree(tmp_path / "copy")
    monkeypatch.setenv("DANET_CAMVID", str(again))
    refuse_changed_source(workspace, "camvid")
    mask = again / "trainannot" / "train_1.png"
    data, times = bytearray(mask.read_bytes()), (mask.stat().st_atime_ns, mask.stat().st_mtime_ns)
    data[-20] ^= 1
    mask.write_bytes(data)
    os.utime(mask, ns=times)
    with pytest.raises(DataError, match=r"1 files, as CamVid/trainannot/train_1\.png.*dvc repro -f -s download@camvid"):
        refuse_changed_source(workspace, "camvid")
    take(workspace)  # what the message says, as the stage does it
    refuse_changed_source(workspace, "camvid")
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(again / "train" / "more.png")
    assert "CamVid/train/more.png" in str(changed_source(workspace, "camvid"))
    monkeypatch.setenv("DANET_CAMVID", str(tmp_path / "unmounted"))
    assert changed_source(workspace, "camvid") is None, "what is here can be used"


def test_an_archive_that_changed_is_noticed(workspace, tmp_path, monkeypatch):
    placed = workspace.archives() / "archive.zip"
    placed.parent.mkdir(parents=True)
    zip_of(placed, {"a": b"1"})
    take(workspace)
    refuse_changed_source(workspace, "camvid")
    placed.unlink()
    refuse_changed_source(workspace, "camvid")
    zip_of(placed, {"a": b"2"})
    with pytest.raises(DataError, match=rf"{placed} is not the archive that was taken.*download@camvid"):
        refuse_changed_source(workspace, "camvid")
    take(workspace)
    refuse_changed_source(workspace, "camvid")
    assert (workspace.raw("camvid") / "archive.zip").read_bytes() == placed.read_bytes()
    monkeypatch.setenv("DANET_CAMVID", str(camvid_tree(tmp_path / "tree")))
    with pytest.raises(DataError, match=r"DANET_CAMVID names .* was not taken from a folder"):
        refuse_changed_source(workspace, "camvid")


def test_a_cut_archive_is_named_where_it_lies_and_not_taken(workspace):
    placed = workspace.archives() / "archive.zip"
    placed.parent.mkdir(parents=True)
    whole = zip_of(placed, {"a": bytes(1000), "b": b"2"}).read_bytes()
    placed.write_bytes(whole[:-30])
    with pytest.raises(DownloadError, match=rf"{placed}: is damaged or no archive .*; replace or delete it"):
        take(workspace)
    placed.write_bytes(whole)
    take(workspace)
