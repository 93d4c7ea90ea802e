"""dvc.yaml: one parametrised definition per stage, every row in it, and nothing runs more than it needs."""

import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from danet.config.workspace import Workspace
from danet.core.errors import ConfigError
from tests.parameters import PARAMS, ROOT, copy_settings
from tests.pipelines.programs import dvc


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    copy_settings(folder, "dvc.yaml")
    assert dvc(folder, "init", "--quiet", "--no-scm") == 0
    return folder


@pytest.fixture(scope="module")
def stages(workspace):
    return {stage.name: stage for stage in Repo(str(workspace)).index.stages}


def upstream(workspace, target):
    repo = Repo(str(workspace))
    graph, seen = repo.index.graph, set()
    todo = [stage for stage in graph if stage.name == target]
    assert len(todo) == 1
    while todo:
        for following in graph.successors(todo.pop()):
            if following.name not in seen:
                seen.add(following.name)
                todo.append(following)
    return seen


def test_every_row_dataset_and_table_has_its_stages(stages):
    expected = {f"{stage}@{row}" for row in PARAMS.rows for stage in ("train", "evaluate")}
    expected |= {f"{stage}@{name}" for name in PARAMS.datasets for stage in ("download", "convert")}
    expected |= (
        {f"weights@{name}" for name in PARAMS.weights} | {f"report@{name}" for name in PARAMS.tables} | {"index"}
    )
    expected |= {f"{stage}@{row}" for row in PARAMS.released for stage in ("released", "verify")}
    expected |= {f"submit@{row}" for row in PARAMS.submissions}
    assert set(stages) == expected


def test_a_row_needs_its_own_dataset_and_weights_only(workspace):
    row = "ssseg-r50-d16-voc2012"
    assert upstream(workspace, f"train@{row}") == {"download@voc2012", "convert@voc2012", "weights@resnet50_v1c"}
    assert upstream(workspace, f"evaluate@{row}") == {
        "download@voc2012", "convert@voc2012", "weights@resnet50_v1c", f"train@{row}",
    }  # fmt: skip


def test_verifying_a_row_needs_no_training(workspace):
    row = "ssseg-r50-d16-voc2012"
    assert upstream(workspace, f"verify@{row}") == {"download@voc2012", "convert@voc2012", f"released@{row}"}
    assert upstream(workspace, f"released@{row}") == set()
    tables = {name for name in upstream(workspace, "report@official") if name.startswith("verify@")}
    assert tables == {"verify@official-danet-r101-d8-cityscapes", "verify@official-dranet-r101-d8-cityscapes"}


def test_a_table_needs_its_own_rows_only(workspace):
    needed = {name for name in upstream(workspace, "report@clusterdanet") if name.startswith("evaluate@")}
    assert needed == {"evaluate@clusterdanet-r101-d8-voc2012"}
    tables = {name for name in upstream(workspace, "index") if name.startswith("report@")}
    assert tables == {f"report@{name}" for name in PARAMS.tables}


def test_another_python_is_told_to_activate_the_environment(tmp_path):
    """`.venv/bin/dvc` runs the stages with whatever `python` is first in PATH: here one without any package."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pipelines.train"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "activate its environment" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_link_in_place_of_any_folder_of_outputs_is_refused(tmp_path, stages):
    """DVC refuses what lies behind one, but only after the stage's work."""
    cached = {Path(out.def_path).parent for stage in stages.values() for out in stage.outs if out.use_cache}
    assert {Path("data/raw"), Path("models"), Path("submissions")} < cached
    for index, folder in enumerate(sorted({each for path in cached for each in (path, *path.parents[:-1])})):
        (root := tmp_path / str(index)).mkdir()
        (root / ".git").mkdir()
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        (root / folder).symlink_to(tmp_path)
        with pytest.raises(ConfigError, match=f"{folder}: is a symbolic link"):
            Workspace(root).refuse_links()
