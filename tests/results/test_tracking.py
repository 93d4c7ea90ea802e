"""MLflow against real SQLite stores, read back with MLflow's own client."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from danet.config.published import published
from danet.config.workspace import Workspace
from danet.config.yaml import write_raw
from danet.core.errors import ConfigError, DanetError, Interrupted
from danet.results import mlflow_store, tracking
from tests.launching import free_ports
from tests.parameters import ROOT, altered, raw_params
from tests.report import samples

NAME = "mmseg-r50-d8-cityscapes-769x769-40k"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Settings and a migrated database without runs: making one takes seconds, copying it nothing."""
    folder = tmp_path_factory.mktemp("template")
    raw = raw_params()
    raw["rows"][NAME]["seeds"] = [0, 1, 2]
    write_raw(raw, folder)
    mlflow_store.connect(Workspace(folder))
    return folder


@pytest.fixture
def workspace(tmp_path, template, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workspace(shutil.copytree(template, tmp_path / "workspace"))


@pytest.fixture
def row(workspace):
    return workspace.params().row(NAME)


@pytest.fixture
def server_gone(workspace, monkeypatch):
    """An address where nobody listens."""
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:secret@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def client(workspace):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{workspace.root / 'mlflow.db'}")


def runs(workspace, seed=None):
    """Runs of seeds, oldest first; those of one seed, of all together (``all``) or of released weights."""
    reader = client(workspace)
    experiments = [item.experiment_id for item in reader.search_experiments()]
    found = list(reader.search_runs(experiments, order_by=["attributes.start_time ASC"]))
    return [run for run in found if (run.data.tags["seed"] == str(seed) if seed is not None else True)]


def curve(workspace, run, key="train/loss"):
    return sorted((item.step, item.value) for item in client(workspace).get_metric_history(run.info.run_id, key))


def everything(workspace):
    """All that the database says of runs, but not when."""
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as connection:
        tables = ("metrics", "params", "tags", "inputs", "datasets")
        return [sorted(map(str, connection.execute(f"SELECT * FROM {table}"))) for table in tables]


def train(workspace, row, steps, then=None):
    with tracking.run(row, 0, workspace, samples.identity(row, 0)) as tracker:
        for step, loss in steps.items():
            tracker.metrics(step, {"loss": loss, "lr": 0.1})
        if then is not None:
            raise then


def test_a_row_says_what_was_found(workspace, row):
    source = published(NAME)
    samples.write(row, workspace, {0: 78.0, 1: 78.3, 2: 78.9}, ms=1.5, points=5)
    page = workspace.reports() / row.table / f"{NAME}.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("# page")
    tracking.send([row], workspace)

    (parent,) = runs(workspace, "all")
    assert parent.info.run_name == NAME
    assert parent.data.metrics["miou"] == pytest.approx(78.4, abs=1e-4)
    assert parent.data.metrics["miou_sd"] == pytest.approx(0.4583, abs=1e-4)
    assert parent.data.metrics["miou_published"] == source.miou
    assert parent.data.metrics["miou_difference"] == pytest.approx(78.4 - source.miou, abs=1e-4)
    # 78.4 ± 2.92 * 0.458 / sqrt(3) = 77.63 to 79.17, with the edge of the band, 78.88 - 0.7, between
    assert parent.data.tags["verdict"].startswith("undecided")
    assert parent.data.tags["hardware"] == "NVIDIA H200"
    note = parent.data.tags["mlflow.note.content"]
    assert "mIoU 78.40** ± 0.46, published" in note
    address = f"#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}/artifacts/{NAME}.md"
    assert f"({address})" in note
    assert [item.path for item in client(workspace).list_artifacts(parent.info.run_id)] == [f"{NAME}.md"]

    children = [run for run in runs(workspace) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.info.run_name for run in children} == {f"{NAME} seed {seed}" for seed in range(3)}
    (first,) = runs(workspace, 0)
    assert first.data.metrics["miou"] == 78.0
    assert "miou_sd" not in first.data.metrics
    assert first.data.tags["weights_sha256"] == "f" * 64
    assert len(curve(workspace, first)) == 5
    (data,) = [item.dataset for item in first.inputs.dataset_inputs]
    assert (data.name, data.digest) == ("cityscapes", "a1b2c3d4e5f60718")
    assert first.data.params["optimizer.lr"] == str(row.optimizer.lr)
    shared = set(first.data.tags) & {*first.data.params, *first.data.metrics}
    assert not shared, "a fact stands once"


def test_the_address_opens_with_columns_of_numbers(workspace, row):
    """The form in which MLflow's pages read a shared view; look at them again before another version is allowed."""
    import mlflow

    assert mlflow.__version__.startswith("3.17.")
    with pytest.raises(ConfigError, match="danet sync"):
        mlflow_store.address(workspace, row.table, "")
    samples.write(row, workspace, {0: 78.0}, points=5)
    tracking.send([row], workspace)
    (run,) = runs(workspace, "all")
    for table in (row.table, None):
        address = mlflow_store.address(workspace, table, "http://127.0.0.1:5000/")
        start = f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs?"
        assert address == f"{start}workflowType=machine_learning&viewStateShareKey=danet"
    view = json.loads(client(workspace).get_experiment(run.info.experiment_id).tags["mlflow.sharedViewState.danet"])
    shown = {name.partition(".")[2].strip("`") for name in view["selectedColumns"]}
    assert {"miou", "miou_published", "miou_difference", "verdict"} <= shown
    assert shown <= {*run.data.metrics, *run.data.tags, "Duration", "Created", "miou_sd", "miou_ms_flip"}
    bundle = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    pages = "".join(path.read_text(encoding="utf-8") for path in bundle.glob("*.js"))
    for word in ("mlflow.sharedViewState.", "viewStateShareKey", "workflowType", *view):
        assert word in pages, word


def test_sending_again_changes_nothing(workspace, row):
    samples.write(row, workspace, {0: 78.0, 1: 78.3}, points=5)
    faster = altered(row, optimizer={"lr": 0.5})
    assert tracking.send([faster], workspace) == {}, "files of other settings"
    assert tracking.send([row], workspace)[NAME] == 3
    before = everything(workspace)
    assert tracking.send(workspace.params().rows.values(), workspace) == {NAME: 0}
    assert everything(workspace) == before


def test_final_metrics_are_at_the_last_step_and_the_duration_is_of_the_work(workspace):
    row = next(row for row in workspace.params().rows.values() if row.schedule.epochs)
    folder = samples.write(row, workspace, {row.seeds[0]: 70.0}, points=5)
    with samples.edited(folder / "train.json") as document:
        document["runs"][0]["iterations"] = 1234
    tracking.send([row], workspace)
    (run,) = runs(workspace, row.seeds[0])
    (point,) = client(workspace).get_metric_history(run.info.run_id, "miou")
    assert point.step == 1234
    assert run.info.end_time - run.info.start_time == 3.25 * 3600 * 1000


def test_a_number_that_fell_or_is_gone_is_not_shown_any_more(workspace, row):
    samples.write(row, workspace, {0: 78.0, 1: 78.3}, ms=1.5, points=5)
    tracking.send([row], workspace)
    folder = samples.write(row, workspace, {0: 70.0}, points=5)  # tested again, and one seed was taken away
    tracking.send([row], workspace)
    (parent,), (first,) = runs(workspace, "all"), runs(workspace, 0)
    assert first.data.tags["mlflow.parentRunId"] == parent.info.run_id
    for run in (parent, first):
        assert run.data.metrics["miou"] == 70.0
        assert run.data.metrics["miou_difference"] < 0
        assert not {"miou_ms_flip", "miou_sd"} & set(run.data.metrics)
        assert "verdict_ms_flip" not in run.data.tags
    assert len(curve(workspace, first)) == 5
    assert tracking.send([row], workspace) == {NAME: 0}

    with samples.edited(folder / "evaluation.json") as document:
        document["row_hash"] = "0" * 12  # of another protocol
    tracking.send([row], workspace)
    (parent,) = runs(workspace, "all")
    assert "miou" not in parent.data.metrics
    assert "verdict" not in parent.data.tags


def test_a_resumed_training_is_one_run_without_duplicates(workspace, row):
    with pytest.raises(Interrupted):
        train(workspace, row, {step: float(step) for step in range(10, 60, 10)}, Interrupted("stop"))
    (run,) = runs(workspace, 0)
    assert run.info.status == "KILLED"
    train(workspace, row, {step: float(step) for step in range(40, 100, 10)})  # from the checkpoint at 30
    (run,) = runs(workspace, 0)
    assert run.info.status == "FINISHED"
    assert curve(workspace, run) == [(step, float(step)) for step in range(10, 100, 10)]


def test_the_files_complete_a_training_that_was_followed_in_part(workspace, row):
    samples.write(row, workspace, {0: 78.0}, points=5)
    file = [(int(line["iteration"]), line["loss"]) for line in samples.curve(row, [0], 5)]
    train(workspace, row, {file[0][0]: file[0][1]})
    tracking.send([row], workspace)
    (run,) = runs(workspace, 0)
    assert curve(workspace, run) == file
    assert (run.data.metrics["miou"], run.info.status) == (78.0, "FINISHED")
    train(workspace, row, {1: 1.0})  # its weights are known, so this is another training
    assert len(runs(workspace, 0)) == 2


def test_other_settings_seeds_and_weights_are_other_runs(workspace, row):
    faster = altered(row, optimizer={"lr": 0.5})
    for each, seed in ((row, 0), (row, 1), (faster, 0)):
        with tracking.run(each, seed, workspace):
            pass
    assert sorted(run.data.tags["seed"] for run in runs(workspace)) == ["0", "0", "1", "all", "all"]
    with tracking.run(row, 0, workspace, "of-other-data"):
        pass
    assert len(runs(workspace, 0)) == 3


def test_released_weights_have_a_run_of_their_own(workspace, row):
    samples.verify(row, workspace, published(NAME).miou)
    tracking.send([row], workspace)
    (released,), (parent,) = runs(workspace, "released"), runs(workspace, "all")
    assert released.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert released.data.tags["verdict"] == "agrees"
    assert "miou" not in parent.data.metrics
    assert released.data.tags["weights_sha256"] == "f" * 64
    assert f"dvc repro verify@{NAME}" in released.data.tags["mlflow.note.content"]


@pytest.mark.parametrize(("error", "status"), [(ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_status_says_how_the_training_ended(workspace, row, error, status):
    with pytest.raises(type(error)):
        train(workspace, row, {1: 1.0}, error)
    assert {run.info.status for run in runs(workspace)} == {status}
    assert runs(workspace, 0)[0].data.metrics["train/loss"] == 1.0


@pytest.mark.usefixtures("server_gone")
def test_an_unreachable_server_is_one_line_and_sync_sends_later(workspace, row, capsys, monkeypatch):
    train(workspace, row, {1: 1.0, 2: 2.0})
    samples.write(row, workspace, {0: 78.0}, points=5)
    tracking.log([row], workspace)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80
    assert all("127.0.0.1" in line and "danet sync" in line and "secret" not in line for line in lines)
    with pytest.raises(DanetError):
        tracking.send([row], workspace)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    tracking.send([row], workspace)
    assert runs(workspace, 0)[0].data.metrics["miou"] == 78.0


def test_without_mlflow_a_training_goes_on(workspace, row, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    train(workspace, row, {1: 1.0})
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_store_that_fails_in_mid_run_costs_nothing(workspace, row, capsys):
    with tracking.run(row, 0, workspace) as tracker:
        (workspace.root / "mlflow.db").write_bytes(b"this is not a database at all, whatever its name says" * 1000)
        for step in (1, 2):
            tracker.metrics(step, {"loss": 1.0})
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_artifacts_follow_a_workspace_that_is_moved(workspace, row, tmp_path):
    picture = workspace.evaluation(row) / "seed0-image-panels.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"before")
    samples.write(row, workspace, {0: 78.0}, points=5)
    tracking.send([row], workspace)
    moved = Workspace(workspace.root.rename(tmp_path / "moved"))
    picture = moved.evaluation(row) / "seed0-another-panels.png"
    picture.write_bytes(b"after")
    command = [sys.executable, "-m", "danet.cli", "sync", "-C", str(moved.root)]  # MLflow keeps places in memory
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{NAME}: nothing was missing\n"
    assert not workspace.root.exists()
    (run,) = runs(moved, 0)
    artifacts = moved.root / "mlruns" / run.info.run_id / "artifacts"
    assert run.info.artifact_uri == artifacts.as_uri()
    for name, content in (("seed0-image-panels.png", b"before"), ("seed0-another-panels.png", b"after")):
        assert (artifacts / "evaluation" / name).read_bytes() == content
    with tracking.run(row, 1, moved) as tracker:
        assert tracker.run_id
        new = client(moved).get_run(tracker.run_id).info
    assert new.artifact_uri.startswith((moved.root / "mlruns").as_uri())


@pytest.mark.slow
def test_two_processes_on_a_fresh_store(tmp_path, template, monkeypatch):
    """MLflow itself crashes here ("table ... already exists") unless the migrations are serialised."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlflow.db*"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = (
        "import sys; from danet.results import tracking; from danet.config.workspace import Workspace\n"
        "workspace = Workspace()\n"
        f"with tracking.run(workspace.params().row({NAME!r}), int(sys.argv[1]), workspace) as tracker:\n"
        "    tracker.metrics(1, {'loss': 1.0})\n"
        "sys.exit(0 if tracker.run_id else 1)\n"
    )
    whole = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", script, str(seed)], **whole) for seed in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs == ["", ""]  # quiet: no migration log
    assert {run.data.tags["seed"] for run in runs(Workspace(tmp_path))} == {"0", "1", "all"}


@pytest.mark.slow
def test_ctrl_c_ends_the_pages_without_a_traceback(workspace, row, tmp_path):
    samples.write(row, workspace, {0: 78.9}, points=0)
    tracking.send([row], workspace)
    (port,) = free_ports(1)
    log = tmp_path / "log"
    with log.open("w") as stream:
        command = [sys.executable, "-m", "danet.cli", "open", "--port", str(port), "--workspace", workspace.root]
        pages = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream)
    deadline = time.monotonic() + 120
    while "Uvicorn running" not in log.read_text():
        assert pages.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    pages.send_signal(signal.SIGINT)
    assert pages.wait(60) == 0
    assert "Traceback" not in log.read_text()
    with closing(socket.socket()) as again:
        assert again.connect_ex(("127.0.0.1", port)), "the server lives on"
