"""Tracking against a real SQLite store, read back with MLflow's own client."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from danet.config.rows import Row, load_params, write_raw
from danet.config.workspace import Workspace
from danet.core.errors import DanetError, Interrupted
from danet.results import tracking
from tests.parameters import raw_params

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session")
def row() -> Row:
    return load_params(ROOT / "params.yaml").row("camvid-r50-d16")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database without runs: making one takes seconds, copying it nothing."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def workspace(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Workspace(tmp_path)


@pytest.fixture
def unreachable(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A server address where nobody listens."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:secret@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return workspace


def client(workspace: Workspace) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{workspace.root / 'mlflow.db'}")


def runs(workspace: Workspace) -> list[Any]:
    reader = client(workspace)
    experiments = [item.experiment_id for item in reader.search_experiments()]
    return list(reader.search_runs(experiments, order_by=["attributes.start_time ASC"]))


def history(workspace: Workspace, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((item.step, item.value) for item in client(workspace).get_metric_history(run_id, key))


def train(
    workspace: Workspace,
    row: Row,
    metrics: dict[str, list[tuple[int, float]]],
    *,
    params: dict[str, int] | None = None,
    then: BaseException,
) -> None:
    """A training that ends by an exception."""
    with tracking.run(row, "train", 0, workspace) as tracker:
        for key, points in metrics.items():
            for step, value in points:
                tracker.metrics(step, {key: value})
        tracker.params(params or {})
        raise then


def unsent(workspace: Workspace) -> list[dict[str, Any]]:
    files = sorted((workspace.root / tracking.UNSENT).glob("*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def test_a_row_is_one_run_with_everything_in_it(workspace: Workspace, row: Row, tmp_path: Path) -> None:
    write_raw(raw_params(), tmp_path)
    picture = tmp_path / "evaluations" / "confusion.png"
    picture.parent.mkdir()
    picture.write_bytes(b"picture")
    with tracking.run(row, "train", 3, workspace) as tracker:
        for step in range(50, 3050, 50):
            tracker.metrics(step, {"loss": 1 / step, "loss/pam": 2.0, "val_miou": None})
    with tracking.run(row, "evaluate", 3, workspace) as tracker:
        tracker.metrics(6000, {"final/miou": 41.5})
        tracker.artifact(picture, "evaluation")

    (found,) = runs(workspace)
    assert found.info.run_name == "camvid-r50-d16 seed 3"
    assert found.info.status == "FINISHED"
    assert client(workspace).get_experiment(found.info.experiment_id).name == "danet / DANet on CamVid, from scratch"
    wanted = {
        "source": "camvid",
        "dataset": "camvid",
        "backbone": "resnet50",
        "output_stride": "16",
        "stage": "evaluate",
        "row": "camvid-r50-d16",
        "row_hash": row.hash,
        "train_hash": row.train_hash,
        "seed": "3",
        "train.status": "FINISHED",
        "evaluate.status": "FINISHED",
    }
    assert wanted.items() <= found.data.tags.items()
    assert found.data.tags["commit"]
    assert found.data.params["model.stem"] == "deep-32-32-64"
    assert found.data.params["optimizer.lr"] == "0.02"
    assert found.data.params["augment.resize.scale"] == "[360, 480]"
    assert found.data.params["seed"] == "3"
    assert history(workspace, found.info.run_id, "loss") == [(step, 1 / step) for step in range(50, 3050, 50)]
    assert found.data.metrics["final/miou"] == 41.5
    assert "val_miou" not in found.data.metrics
    paths = {item.path for item in client(workspace).list_artifacts(found.info.run_id)}
    assert paths == {"row.yaml", "evaluation"}
    artifacts = workspace.root / "mlruns" / found.info.run_id / "artifacts"
    assert yaml.safe_load((artifacts / "row.yaml").read_text()) == row.model_dump(mode="json")
    assert (artifacts / "evaluation" / "confusion.png").read_bytes() == b"picture"
    assert not unsent(workspace)


def test_flat_params_are_the_whole_row(row: Row) -> None:
    flat = tracking.flat_params(row)
    assert {"name", "weights", "test.score", "numerics.precision", "schedule.iterations", "augment.pad.image"} <= set(
        flat
    )
    assert not {key for key in flat if key.startswith(("seeds", "notes", "protocol"))}
    assert len(flat) <= 2 * tracking.MAX_PARAMS


def test_more_than_one_batch_arrives_whole(workspace: Workspace, row: Row) -> None:
    with tracking.run(row, "train", 0, workspace) as tracker:
        tracker.flush()
        # one buffer larger than MLflow takes at once
        tracker._metrics = [("loss", float(step), 1, step) for step in range(2500)]
    (found,) = runs(workspace)
    assert history(workspace, found.info.run_id, "loss") == [(step, float(step)) for step in range(2500)]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), "FAILED"),
        (Interrupted("x"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_status_says_how_the_stage_ended(workspace: Workspace, row: Row, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)):
        train(workspace, row, {"loss": [(1, 1.0)]}, then=error)
    (found,) = runs(workspace)
    assert found.info.status == found.data.tags["train.status"] == status
    assert found.data.metrics["loss"] == 1.0


def test_a_resumed_training_goes_on_without_duplicates(workspace: Workspace, row: Row) -> None:
    with pytest.raises(Interrupted):
        train(workspace, row, {"loss": [(step, float(step)) for step in range(10, 60, 10)]}, then=Interrupted("stop"))
    with tracking.run(row, "train", 0, workspace) as tracker:  # from the checkpoint at 30
        for step in range(40, 100, 10):
            tracker.metrics(step, {"loss": float(step), "lr": 0.1})
    (found,) = runs(workspace)
    assert found.info.status == "FINISHED"
    assert history(workspace, found.info.run_id, "loss") == [(step, float(step)) for step in range(10, 100, 10)]
    assert history(workspace, found.info.run_id, "lr") == [(step, 0.1) for step in range(40, 100, 10)]


def test_new_training_new_run(workspace: Workspace, row: Row) -> None:
    faster = row.model_copy(update={"optimizer": row.optimizer.model_copy(update={"lr": 0.5})})
    with tracking.run(row, "train", 0, workspace):
        pass
    with tracking.run(row, "train", 0, workspace):  # the same again, for instance dvc repro --force
        pass
    with tracking.run(row, "train", 1, workspace):
        pass
    with tracking.run(faster, "train", 0, workspace):
        pass
    with pytest.raises(Interrupted), tracking.run(row, "train", 2, workspace):
        raise Interrupted("stop")
    with tracking.run(row, "train", 2, workspace, resume=False):  # its checkpoints were removed
        pass
    assert [item.data.tags["seed"] for item in runs(workspace)] == ["0", "0", "1", "0", "2", "2"]
    with tracking.run(row, "evaluate", 0, workspace) as tracker:
        tracker.metrics(1, {"miou": 1.0})
    assert [sorted(item.data.metrics) for item in runs(workspace)] == [[], ["miou"], [], [], [], []]


def test_evaluation_with_other_settings_is_another_run(workspace: Workspace, row: Row) -> None:
    changed = row.model_copy(update={"test": row.test.model_copy(update={"score": "logits"})})
    assert changed.train_hash == row.train_hash
    with tracking.run(row, "train", 0, workspace):
        pass
    for value in (1.0, 2.0):  # evaluated twice: one run, the newest value
        with tracking.run(changed, "evaluate", 0, workspace) as tracker:
            tracker.metrics(0, {"miou": value})
    first, second = runs(workspace)
    assert second.data.tags["trained_in"] == first.info.run_id
    assert (first.data.params["test.score"], second.data.params["test.score"]) == ("softmax", "logits")
    assert (first.data.metrics, second.data.metrics) == ({}, {"miou": 2.0})


def test_released_weights_have_a_run_of_their_own(workspace: Workspace, row: Row) -> None:
    with tracking.run(row, "train", 0, workspace):
        pass
    for stage, value in (("verify", 1.0), ("evaluate", 2.0), ("verify", 3.0)):
        with tracking.run(row, stage, 0, workspace) as tracker:  # type: ignore[arg-type]
            tracker.metrics(0, {"miou": value})
    own, released = runs(workspace)
    assert (own.info.run_name, own.data.metrics, own.data.tags["seed"]) == (f"{row.name} seed 0", {"miou": 2.0}, "0")
    assert (released.info.run_name, released.data.metrics) == (f"{row.name} released", {"miou": 3.0})
    assert released.data.tags["seed"] == "released"
    assert f"dvc repro verify@{row.name}" in released.data.tags["mlflow.note.content"]


def test_a_parameter_that_changes_on_resume_becomes_a_tag(workspace: Workspace, row: Row) -> None:
    with pytest.raises(Interrupted):
        train(workspace, row, {}, params={"processes": 1}, then=Interrupted("stop"))
    with tracking.run(row, "train", 0, workspace) as tracker:
        tracker.params({"processes": 4})
    (found,) = runs(workspace)
    assert found.data.params["processes"] == "1"
    assert found.data.tags["param.processes"] == "4"


def test_unreachable_server(unreachable: Workspace, row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.run(row, "train", 0, unreachable) as tracker:
        for step in range(3):
            tracker.metrics(step, {"loss": float(step)})
            tracker.flush()
        tracker.tags({"a": "b"})
    shown = "".join(capsys.readouterr())
    assert shown.count("MLflow cannot be reached") == 1
    assert "mlflow-unsent" in shown
    assert "secret" not in shown
    lines = unsent(unreachable)
    assert [line["op"] for line in lines] == ["run", "metrics", "metrics", "metrics", "tags", "end"]
    assert lines[0]["tags"]["row_hash"] == row.hash


def test_a_store_that_goes_away_in_mid_run_and_sync(
    workspace: Workspace, row: Row, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking.run(row, "train", 0, workspace) as tracker:
        tracker.metrics(1, {"loss": 1.0})
        tracker.flush()
        assert tracker._client is not None

        def gone(*_: object, **__: object) -> None:
            raise ConnectionError("server is gone")

        monkeypatch.setattr(tracker._client, "log_batch", gone)
        for step in (2, 3):
            tracker.metrics(step, {"loss": float(step)})
            tracker.flush()
    assert "".join(capsys.readouterr()).count("server is gone") == 1
    assert [line["op"] for line in unsent(workspace)] == ["run", "metrics", "metrics", "end"]
    (found,) = runs(workspace)
    assert history(workspace, found.info.run_id, "loss") == [(1, 1.0)]

    assert list(tracking.sync(workspace).values()) == [4]
    (found,) = runs(workspace)
    assert history(workspace, found.info.run_id, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert found.info.status == found.data.tags["train.status"] == "FINISHED"
    assert not list((workspace.root / tracking.UNSENT).iterdir())
    assert tracking.sync(workspace) == {}


def test_sync_of_a_run_that_mlflow_never_saw(
    unreachable: Workspace, row: Row, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "evaluations" / "a.txt"
    file.parent.mkdir()
    file.write_text("text")
    with tracking.run(row, "train", 0, unreachable) as tracker:
        tracker.metrics(1, {"loss": 1.0})
    with tracking.run(row, "evaluate", 0, unreachable) as tracker:
        tracker.metrics(1, {"miou": 2.0})
        tracker.artifact(file.parent, "pictures")
    with pytest.raises(DanetError, match="cannot be sent"):
        tracking.sync(unreachable)
    assert len(unsent(unreachable)) == 7
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    tracking.sync(unreachable)
    (found,) = runs(unreachable)
    assert found.data.metrics == {"loss": 1.0, "miou": 2.0}
    assert found.data.params["optimizer.lr"] == "0.02"
    paths = {item.path for item in client(unreachable).list_artifacts(found.info.run_id, "pictures")}
    assert paths == {"pictures/a.txt"}


def test_locked_and_damaged_databases(
    workspace: Workspace, row: Row, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "TIMEOUT_SECONDS", 0.2)
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with tracking.run(row, "train", 0, workspace) as tracker:
            tracker.metrics(1, {"loss": 1.0})
    assert "database is locked" in "".join(capsys.readouterr())
    (workspace.root / "mlflow.db").write_bytes(b"this is no database at all, whatever its name says" * 10)
    with tracking.run(row, "train", 0, workspace) as tracker:
        tracker.metrics(1, {"loss": 1.0})
    assert "not a database" in "".join(capsys.readouterr())


def test_file_store_is_explained(
    workspace: Workspace, row: Row, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/mlruns")
    with tracking.run(row, "train", 0, workspace):
        pass
    assert "no file store any more" in "".join(capsys.readouterr())


def test_other_processes_of_a_distributed_run_log_nothing(workspace: Workspace, row: Row) -> None:
    with tracking.run(row, "train", 0, workspace, enabled=False) as tracker:
        tracker.metrics(1, {"loss": 1.0})
        tracker.tags({"a": "b"})
        tracker.artifact(workspace.root / "missing.png")
    assert not runs(workspace)
    assert not unsent(workspace)


def test_missing_artifact_is_mentioned(workspace: Workspace, row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.run(row, "evaluate", 0, workspace) as tracker:
        tracker.artifact(workspace.root / "missing.png")
    assert "missing.png" in "".join(capsys.readouterr())
    assert runs(workspace)[0].info.status == "FINISHED"


def test_odd_metric_names_and_values(workspace: Workspace, row: Row) -> None:
    with tracking.run(row, "evaluate", 0, workspace) as tracker:
        tracker.metrics(0, {"iou/door; double door": 1.0, "loss": float("nan")})
    (found,) = runs(workspace)
    assert found.data.metrics["iou/door_ double door"] == 1.0
    assert not unsent(workspace)


def test_two_processes_on_a_fresh_store(tmp_path: Path) -> None:
    """MLflow itself crashes here ("table ... already exists") unless the migrations are serialised."""
    script = (
        "import sys; from pathlib import Path; from danet.results import tracking;"
        "from danet.config.rows import load_params;"
        "from danet.config.workspace import Workspace\n"
        f"row = load_params({str(ROOT / 'params.yaml')!r}).row('camvid-r50-d16')\n"
        "with tracking.run(row, 'train', int(sys.argv[1]), Workspace(Path('.'))) as tracker:\n"
        "    tracker.metrics(1, {'loss': 1.0})\n"
        "sys.exit(0 if tracker.online else 1)\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(ROOT)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(seed)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs == ["", ""]  # quiet: no migration log
    assert sorted(item.data.tags["seed"] for item in runs(Workspace(tmp_path))) == ["0", "1"]


def lose_connection(tracker: tracking.Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("server is gone")

    monkeypatch.setattr(tracker._client, "log_batch", gone)


def test_the_next_session_sends_what_the_last_could_not(
    workspace: Workspace, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while MLflow was gone, and continued from an older step while it is there: one run, each step once."""
    with tracking.run(row, "train", 0, workspace) as tracker:  # of which nothing after this block's last flush arrives
        tracker.metrics(1, {"loss": 1.0})
        tracker.flush()
        lose_connection(tracker, monkeypatch)
        for step in (2, 3, 4):
            tracker.metrics(step, {"loss": float(step)})
            tracker.flush()
        monkeypatch.setattr(tracker, "end", lambda status: None)
    monkeypatch.undo()
    with tracking.run(row, "train", 0, workspace) as tracker:
        for step in (3, 4, 5):
            tracker.metrics(step, {"loss": float(step)})
    (found,) = runs(workspace)
    assert found.info.status == "FINISHED"
    assert history(workspace, found.info.run_id, "loss") == [(step, float(step)) for step in range(1, 6)]
    assert not unsent(workspace)


def test_a_torn_last_line_is_left_out_and_mended(
    unreachable: Workspace, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        train(unreachable, row, {"loss": [(1, 1.0)]}, then=Interrupted("stop"))
    (path,) = (unreachable.root / tracking.UNSENT).glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op": "metrics", "val')
    with tracking.run(row, "train", 0, unreachable) as tracker:
        tracker.metrics(2, {"loss": 2.0})
    assert path.read_bytes().startswith(whole)
    assert [line["op"] for line in unsent(unreachable)] == ["run", "params", "metrics", "end", "run", "metrics", "end"]
    with path.open("ab") as stream:
        stream.write(b'{"op": "me')
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert list(tracking.sync(unreachable).values()) == [7]
    (found,) = runs(unreachable)
    assert history(unreachable, found.info.run_id, "loss") == [(1, 1.0), (2, 2.0)]


def test_what_is_appended_while_it_is_sent_stays(
    workspace: Workspace, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking.run(row, "train", 0, workspace) as tracker:
        tracker.metrics(1, {"loss": 1.0})
        tracker.flush()
        lose_connection(tracker, monkeypatch)
        tracker.metrics(2, {"loss": 2.0})
        tracker.flush()
        monkeypatch.undo()
        apply, late = tracking._apply, iter([3])

        def applying(*arguments: Any) -> None:
            apply(*arguments)
            for step in late:
                tracker.metrics(step, {"loss": float(step)})
                tracker.flush()

        monkeypatch.setattr(tracking, "_apply", applying)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert list(tracking.sync(workspace).values()) == [2]
        assert [line["op"] for line in unsent(workspace)] == ["run", "metrics"]
    tracking.sync(workspace)
    (found,) = runs(workspace)
    assert history(workspace, found.info.run_id, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_values_are_held_back_while_nothing_can_be_written(
    unreachable: Workspace, row: Row, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = unreachable.root / tracking.UNSENT
    blocked.write_text("a file where the folder should be")
    with tracking.run(row, "train", 0, unreachable) as tracker:
        for step in (1, 2):
            tracker.metrics(step, {"loss": float(step)})
            tracker.flush()
        blocked.unlink()
        tracker.metrics(3, {"loss": 3.0})
    assert "".join(capsys.readouterr()).count("held back in memory") == 1
    assert [line["op"] for line in unsent(unreachable)] == ["run", "metrics", "metrics", "metrics", "end"]
