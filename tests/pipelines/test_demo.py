"""The demo end to end on a small row: all stages through DVC, and nothing again when nothing changed."""

import json
from itertools import product
from pathlib import Path

import pytest
from dvc.repo import Repo

from danet.config.params import load_params
from danet.core.errors import ConfigError
from pipelines import demo
from tests.pipelines.programs import dvc
from tests.pipelines.small_sweep import make_workspace

ROWS = ("demo-r50-d16-voc2012",)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """The demo's workspace, cut down to a row of three iterations without pretrained weights."""
    return make_workspace(tmp_path_factory.mktemp("demo"), ROWS, iterations=3)


@pytest.fixture(scope="module")
def done(workspace):
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")
    with demo.serve(workspace / "archives") as address:
        assert demo.repro(workspace, address) == 0
    patch.undo()
    return workspace


def test_every_stage_leaves_its_outputs(done):
    for name in ROWS:
        metrics = json.loads((done / "reports" / "scores" / f"{name}.json").read_text())
        assert 0 <= metrics["miou"] <= 100
        assert 0 < metrics["baseline_miou"] < 100
        assert (done / "models" / name / "seed0.safetensors").is_file()
        assert list((done / "evaluations" / name).rglob("*.png"))
    table = (done / "reports" / "demo.md").read_text()
    assert "DEMO" in table.splitlines()[0] + table.splitlines()[2]
    assert all(name in table for name in ROWS)
    record = json.loads((done / "reports" / "tables" / "demo.json").read_text())
    assert all(value is None for row in record["rows"] for value in row["published"].values())


def test_nothing_runs_when_nothing_changed(done):
    with Repo(str(done)) as repo:
        assert repo.status() == {}


def test_metrics_params_and_plots_are_readable_through_dvc(done):
    with Repo(str(done)) as repo:
        (metrics,) = repo.metrics.show().values()
    assert {Path(file).stem for file in metrics["data"]} == set(ROWS)
    assert dvc(done, "plots", "show", "--out", "plots") == 0
    page = (done / "plots" / "index.html").read_text()
    assert all(f"reports_plots_demo-{name}_csv" in page for name in ("loss", "classes"))


def test_runs_are_in_mlflow(done):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{done / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {(run.data.tags["row"], run.data.tags["seed"]) for run in runs} == {
        (row, seed) for row in ROWS for seed in ("all", "0")
    }
    for run in runs:
        assert run.data.params["model.backbone"] == "resnet50"
        assert "miou" in run.data.metrics
        whole = run.data.tags["seed"] == "all"
        assert ("train/loss" in run.data.metrics) != whole
        assert (f"{run.data.tags['row']}.md" in {file.path for file in client.list_artifacts(run.info.run_id)}) == whole


def test_its_rows_are_the_grid_of_the_results_tables_and_can_be_chosen(workspace, tmp_path):
    (tmp_path / "archives").symlink_to(workspace / "archives")
    with pytest.raises(ConfigError, match="no dataset 'camvid'; it has: voc2012, ade20k, cityscapes"):
        demo.prepare(demo.REPOSITORY, tmp_path, datasets=["camvid"])
    demo.prepare(demo.REPOSITORY, tmp_path)
    rows = load_params(tmp_path / "params.yaml").rows.values()
    assert len(rows) == 12
    grid = product(("resnet50", "resnet101"), (8, 16), ("voc2012", "ade20k", "cityscapes"))
    assert {(row.model.backbone, row.model.output_stride, row.dataset) for row in rows} == set(grid)
    demo.prepare(demo.REPOSITORY, tmp_path, seeds=3, datasets=["ade20k"])
    params = load_params(tmp_path / "params.yaml")
    assert set(params.datasets) == {"ade20k"}
    assert [row.seeds for row in params.rows.values()] == [(0, 1, 2)] * 4
    assert params.tables["demo"].command == ".venv/bin/python -m pipelines.demo --seeds 3 --dataset ade20k"
