"""``danet doctor`` asks the same sources as the stages, and states true sizes."""

import re

import pytest

from danet.cli import doctor
from danet.config.params import load_params
from danet.config.workspace import Workspace
from danet.config.yaml import write_raw
from danet.data.raw import download_dataset
from tests.data.samples import camvid_spec, camvid_tree, prepare, zip_of
from tests.parameters import ROOT, raw_params

pytestmark = pytest.mark.usefixtures("no_environment")


def state(workspace, name):
    found = doctor.dataset_state(name, workspace.params().dataset(name), workspace)
    return found["state"], found["how"]


def test_where_a_dataset_comes_from(tmp_path, monkeypatch):
    raw = raw_params()
    raw["datasets"]["camvid"] |= {"archives": [{"file": "CamVid.zip"}]}
    write_raw(raw, tmp_path)
    workspace = Workspace(tmp_path)
    place = tmp_path / "data/archives/CamVid.zip"
    assert state(workspace, "camvid") == ("missing", f"CamVid.zip: it has no URL: save it as {place}")
    assert state(workspace, "ade20k")[0] == "downloadable"
    files, text = state(workspace, "cityscapes")[1].split(": register")
    assert files == "gtFine_trainvaltest.zip, leftImg8bit_trainvaltest.zip"
    assert "CITYSCAPES_PASSWORD" in text
    monkeypatch.setenv("DANET_MIRROR", "http://mirror")
    assert state(workspace, "camvid") == ("downloadable", "CamVid.zip: mirror: http://mirror/CamVid.zip")
    monkeypatch.delenv("DANET_MIRROR")
    place.parent.mkdir(parents=True)
    zip_of(place, {"a": b"1"})
    assert state(workspace, "camvid") == ("local", f"CamVid.zip: local folder: {place}")
    spec = workspace.params().dataset("camvid")
    download_dataset("camvid", spec, workspace.raw("camvid"), workspace.archives(), progress=False)
    assert state(workspace, "camvid") == ("downloaded", "converted by `dvc repro convert@camvid`")


def test_sizes(tmp_path, monkeypatch):
    """The size of raw storage is that of what a conversion writes, for images as large as those of Cityscapes."""
    spec = camvid_spec(1, storage="raw")
    monkeypatch.setitem(doctor.PIXELS, "camvid", 512 * 1024)
    out = prepare(camvid_tree(tmp_path / "tree", 1, (512, 1024)), spec, tmp_path)
    written = sum(path.stat().st_size for path in out.iterdir())
    assert doctor.disk_gb(spec)["prepared"] * 1e9 == pytest.approx(written, rel=0.001)
    cityscapes = load_params(ROOT / "params.yaml").dataset("cityscapes")
    assert round(doctor.disk_gb(cityscapes)["prepared"]) == 39


def test_a_link_is_told(tmp_path):
    assert doctor._link(Workspace(tmp_path)) is None
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    assert doctor._link(Workspace(tmp_path)) is None, "DVC takes it where there is no Git"
    (tmp_path / ".git").mkdir()
    assert f"dvc cache dir --local {tmp_path}/disk" in str(doctor._link(Workspace(tmp_path)))


def test_sections_come_as_they_are_known_and_hours_per_table(capsys):
    sections = doctor.examine(Workspace(ROOT))
    assert next(sections)[0] == "software"  # nothing else has been looked at yet
    rows = dict(sections)["rows"]
    assert {row["needs"] for row in rows if row["state"] == "blocked"} <= {"cityscapes"}
    for row, hours in zip(rows, range(len(rows)), strict=True):
        row["hours"] = {"published": float(hours), "own": 0.0, "fast": hours / 10}
    doctor.print_findings(iter([("rows", rows)]))
    lines = capsys.readouterr().out.splitlines()
    (camvid,) = [line for line in lines if line.startswith("camvid ")]
    assert re.split(" {2,}", camvid)[-2:] == ["12 days", "28 h"]  # 31 + ... + 38 = 276 h
    assert max(map(len, lines)) <= 80
