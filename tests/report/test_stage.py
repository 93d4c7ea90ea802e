"""The report command around the tables: strictness and bands."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from danet.cli.app import app
from danet.config.params import Params
from danet.config.workspace import Workspace
from danet.config.yaml import write_raw
from danet.core.errors import ConfigError
from danet.report import write_table
from tests.parameters import raw_params
from tests.report import samples

NAME = "official-dranet-r101-d8-cityscapes"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_raw(raw_params(), tmp_path)
    return Workspace(tmp_path)


def test_strict_fails_and_names_what_was_left_out(workspace):
    folder = samples.write(workspace.params().row(NAME), workspace, {0: 81.2}, points=0)
    runner, arguments = CliRunner(), ["report", "official", "-C", str(workspace.root)]
    assert runner.invoke(app, [*arguments, "--strict"]).exit_code == 0
    with samples.edited(folder / "evaluation.json") as data:
        data["row_hash"] = "0" * 12
    assert runner.invoke(app, arguments).exit_code == 0
    failed = runner.invoke(app, [*arguments, "--strict"])
    assert failed.exit_code != 0
    assert "had to be left out" in str(failed.exception)
    assert "1 files or parts of files left out" in failed.output
    assert (workspace.reports() / "official.md").exists()


def test_bands_are_declared_by_dataset(tmp_path):
    raw = raw_params(released=False)
    declared = Params(raw, Path("params.yaml")).bands
    assert (declared.of("voc2012"), declared.of("ade20k"), declared.of("cityscapes")) == (0.5, 1.0, 0.7)
    assert declared.released == 0.05
    labels = {}
    for band in (0.3, 0.5):
        raw["bands"] = {"datasets": {"cityscapes": band}}
        params, space = Params(raw, Path("params.yaml")), Workspace(tmp_path / str(band))
        samples.write(params.row(NAME), space, {0: 81.23}, points=0)  # published: 81.63
        write_table("official", params, space)
        row = json.loads((space.reports() / "tables" / "official.json").read_text())["rows"][1]
        labels[row["accuracies"]["miou"]["band"]] = row["accuracies"]["miou"]["verdict"]
        assert f"± {band:g} points" in (space.reports() / "official.md").read_text()
    assert labels == {0.3: "inconsistent", 0.5: "consistent"}
    raw["bands"] = {"trained": 0}
    with pytest.raises(ConfigError, match=r"bands\.trained"):
        Params(raw, Path("params.yaml"))
