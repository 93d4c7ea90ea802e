"""``danet doctor`` asks the same sources as the stages, and states true sizes."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from danet.cli import doctor
from danet.config.workspace import Workspace
from danet.config.yaml import write_raw
from danet.data.raw import download_dataset
from danet.data.registry import ADAPTERS
from danet.evaluation import cost
from tests.data.samples import camvid_spec, camvid_tree, prepare, zip_of
from tests.parameters import PARAMS, ROOT, raw_params

pytestmark = pytest.mark.usefixtures("no_environment")


def state(workspace, name):
    found = doctor.dataset_state(name, workspace.params().dataset(name), workspace)
    return found.state, found.how


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
    download_dataset("camvid", spec, workspace.raw("camvid"), workspace.archives())
    assert state(workspace, "camvid") == ("downloaded", "converted by `dvc repro convert@camvid`")


def test_sizes(tmp_path, monkeypatch):
    """The size of raw storage is that of what a conversion writes, for images as large as those of Cityscapes."""
    spec = camvid_spec(1, storage="raw")
    monkeypatch.setitem(ADAPTERS, "camvid", replace(ADAPTERS["camvid"], image_size=(512, 1024)))
    out = prepare(camvid_tree(tmp_path / "tree", 1, (512, 1024)), spec, tmp_path)
    written = sum(path.stat().st_size for path in out.iterdir())
    assert doctor.disk_gb(spec)[1] * 1e9 == pytest.approx(written, rel=0.001)
    cityscapes = PARAMS.dataset("cityscapes")
    assert round(doctor.disk_gb(cityscapes)[1]) == 39


def test_the_sections(tmp_path, monkeypatch, capsys):
    """Sizes and states before torch is loaded; rows by table, with the hours of each profile in all."""
    write_raw(raw_params(), tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    names = [row.name for row in Workspace(tmp_path).params().table_rows("camvid")]
    before = []

    def hours_here(workspace, params, rows):
        before.append(capsys.readouterr().out)
        return {name: {"published": float(hours), "own": 0.0, "fast": hours / 10} for hours, name in enumerate(names)}

    monkeypatch.setattr(cost, "hours_here", hours_here)
    doctor.examine(Workspace(tmp_path))
    lines = [*before[0].splitlines(), *capsys.readouterr().out.splitlines()]
    assert "error" not in before[0], "DVC takes a link where there is no Git"
    cells = {line.split()[0]: re.split(" {2,}", line) for line in lines if line}
    assert re.split(" {2,}", before[0][before[0].index("camvid  ") :].splitlines()[0])[1:3] == [
        "downloadable",
        "0.2 GB",
    ]
    assert cells["camvid"] == ["camvid", str(len(names)), "-", "-", str(len(names)), "-", "28 h", "2 h 48 min"]
    assert cells["official"][1:6] == ["2", "-", "-", "-", "2"]  # their data needs a login
    assert any(line.startswith("blocked: 14 rows need cityscapes") for line in lines)
    (tmp_path / ".git").mkdir()
    doctor.examine(Workspace(tmp_path))
    assert f"dvc cache dir --local {tmp_path}/disk" in before[1]


def test_the_first_sections_do_not_wait_for_torch():
    """They need its version alone; loading it takes most of the command's time."""
    code = "import sys, danet.cli.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
