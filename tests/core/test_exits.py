"""Every exit of a command is a result or one message: files, memory, the keyboard, terminals, notebooks."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from danet.config.workspace import Workspace
from danet.core.console import report_errors
from danet.core.errors import DanetError, out_of_memory
from danet.core.files import refuse_existing, write_text
from tests.parameters import ROOT


def python(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="latin-1" if "PYTHONIOENCODING" in environment else "utf-8",
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/here/params.yaml"), "/here/params.yaml: Permission denied"),
        (OSError(36, "File name too long", "n" * 300), "n" * 200 + "...: File name too long"),
        (OSError(30, "Read-only file system"), "Read-only file system"),
        (MemoryError("Unable to allocate 8 TiB"), "the memory is too small (Unable to allocate 8 TiB)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "the memory is too small (CUDA out of memory."),
        (DanetError("said by us"), "said by us"),
    ],
)
def test_what_the_system_refuses_is_one_line(error, message, capsys):
    with pytest.raises(SystemExit) as stop, report_errors():
        raise error
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_bugs_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"), report_errors():
        raise RuntimeError("a bug")
    assert not out_of_memory(RuntimeError("a bug"))


STAGE = "import pipelines\ndef work(*_):\n    wait()\npipelines.stage(work)"
COMMAND = (
    "import sys\nfrom danet.cli import app\napp.app.command('wait')(wait)\nsys.argv = ['danet', 'wait']\napp.main()"
)


@pytest.mark.parametrize(("entry", "code"), [(STAGE, -signal.SIGINT), (COMMAND, 130)], ids=["stage", "command"])
def test_ctrl_c_is_one_line(entry, code):
    # a signal just before a long sleep would not end it
    wait = "def wait():\n    print('started', flush=True)\n    for _ in range(600):\n        time.sleep(0.1)\n"
    program = python(f"import time\n{wait}{entry}")
    assert program.stdout.readline() == "started\n"
    program.send_signal(signal.SIGINT)
    _, shown = program.communicate(timeout=60)
    assert shown == "stopped by the keyboard\n"
    assert program.returncode == code


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_that_cannot_print_a_name(encoding):
    code = "import sys\nfrom danet.cli import app\nsys.argv = ['danet', 'rows', '\\u4e2d\\u6587']\napp.main()"
    _, shown = python(code, PYTHONIOENCODING=encoding).communicate(timeout=120)
    assert shown.startswith("error: unknown row")
    assert "Traceback" not in shown


@pytest.mark.parametrize("entry", ["danet.cli.app", "pipelines"])
def test_the_backend_of_a_notebook_is_not_used(entry):
    """Colab, Kaggle and Jupyter set it; a command started from a cell inherits it."""
    code = (
        f"import {entry}\nimport danet.evaluation.visualise, danet.report.figures, matplotlib\n"
        "from matplotlib.figure import Figure\nFigure().savefig('/dev/null', format='png')\n"
        "print(matplotlib.get_backend())"
    )
    process = python(code, MPLBACKEND="module://no_such_module.backend_inline")
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert shown.strip().lower() == "agg"


def test_a_file_that_is_there_is_refused(tmp_path):
    there, new, link = tmp_path / "there.png", tmp_path / "new.png", tmp_path / "link"
    write_text(there, "a label")
    link.symlink_to(tmp_path / "nowhere")
    refuse_existing([new], force=False)
    refuse_existing([new, there], force=True)
    for path in (there, link):
        with pytest.raises(DanetError, match=rf"{path.name}: is there already.*--force"):
            refuse_existing([new, path], force=False)
    with pytest.raises(DanetError, match="is a folder"):
        refuse_existing([tmp_path], force=True)


def test_weights_of_one_name_are_evaluated_into_two_places(tmp_path):
    row = Workspace().params().row("camvid-r50-d8")
    files = [tmp_path / folder / "latest.pth" for folder in ("a", "b", "c")]
    for path, content in zip(files, ("1", "2", "1"), strict=True):
        write_text(path, content)
    first, second, third = (Workspace(tmp_path).evaluation_of(row, path) for path in files)
    assert first.parent == tmp_path / "evaluations"
    # printf 1 | sha256sum
    assert first.name == "camvid-r50-d8@latest-6b86b273"
    assert second != first
    assert third == first
