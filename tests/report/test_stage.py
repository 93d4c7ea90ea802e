"""The report stage and command around the tables: strictness, MLflow, bands, and the simulated error rates."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import verdict_simulation
from danet.cli.app import app
from danet.config.params import Params
from danet.config.workspace import Workspace
from danet.config.yaml import write_raw
from danet.core.errors import ConfigError
from danet.report import write_table
from pipelines import report as stage
from tests.parameters import raw_params
from tests.report import samples

ROOT = Path(__file__).parents[2]
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
    data = json.loads((folder / "evaluation.json").read_text())
    data["row_hash"] = "0" * 12
    (folder / "evaluation.json").write_text(json.dumps(data))
    assert runner.invoke(app, arguments).exit_code == 0
    failed = runner.invoke(app, [*arguments, "--strict"])
    assert failed.exit_code != 0
    assert "had to be left out" in str(failed.exception)
    assert "1 files or parts of files left out" in failed.output
    assert (workspace.reports() / "official.md").exists()


def test_pages_are_artifacts_of_their_rows_runs(workspace):
    from mlflow import MlflowClient

    samples.write(workspace.params().row(NAME), workspace, {0: 81.2}, points=0)
    stage.main(workspace, "official")
    stage.main(workspace, "clusterdanet")  # nothing measured: nothing to log
    client = MlflowClient(f"sqlite:///{workspace.root / 'mlflow.db'}")
    runs = client.search_runs([item.experiment_id for item in client.search_experiments()])
    assert {run.info.run_name for run in runs} == {NAME, f"{NAME} seed 0"}
    (run,) = [run for run in runs if run.info.run_name == NAME]
    assert f"{NAME}.md" in {item.path for item in client.list_artifacts(run.info.run_id)}


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


def test_simulation_page(tmp_path):
    page = verdict_simulation.page(300)
    largest = re.search(r"Largest share of false verdicts: ([\d.]+)%", page)
    assert largest
    assert float(largest.group(1)) < 5 + 4 * 1.26  # four standard errors of 300 rows
    assert len(re.findall(r"^\| [\d.]+ \|", page, re.MULTILINE)) == 5 * 4 * (4 + 4 + 2)
    assert f"Random seed {verdict_simulation.SEED}; NumPy" in page


def test_looking_again_is_less_sound_than_looking_once():
    """What the page says of adding seeds one at a time is what comes out, at the edge of the band."""
    rows = verdict_simulation.draw((7,), 1.0, 0.3, verdict_simulation.MOST_SEEDS, 1500)
    by_one = sum(verdict_simulation.one_by_one(values) == "reproduced" for values in rows) / len(rows)
    advised = sum(verdict_simulation.as_advised(values) == "reproduced" for values in rows) / len(rows)
    assert 0.05 < advised < 0.13
    assert by_one > advised
