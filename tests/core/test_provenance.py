"""Provenance: right where it can be checked, silent where things are missing."""

import datetime
import json
import os
import subprocess
import sys

import pytest

from danet.core import provenance


@pytest.fixture
def git(tmp_path, monkeypatch):
    monkeypatch.delenv(provenance.COMMIT_VARIABLE, raising=False)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def call(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True, env=clean
        )
        return done.stdout.strip()

    call("init", "-q")
    for name in ("code.py", "reports/table.md", "demo/dvc.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    call("add", ".")
    call("commit", "-qm", "first")
    return call


def test_all_fields_and_plain_json():
    facts = provenance.collect()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert set(facts) == {
        *("commit", "dirty", "date", "command", "python", "torch", "torchvision", "cuda", "cudnn", "driver", "gpu"),
        *("gpus", "cpu", "cpu_cores", "os"),
    }
    assert facts["python"] == ".".join(str(part) for part in sys.version_info[:3])
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(facts["date"])
    assert abs(age.total_seconds()) < 60
    import torch

    assert facts["torch"] == torch.__version__
    assert (facts["gpu"] is not None) == torch.cuda.is_available()
    assert facts["cpu_cores"] >= 1


def test_commit_and_dirty_flag(git, tmp_path):
    head = git("rev-parse", "HEAD")
    assert provenance.code_version(tmp_path) == (head, False)
    (tmp_path / "untracked.py").write_text("x")
    (tmp_path / "reports/table.md").write_text("2")
    (tmp_path / "demo/dvc.lock").write_text("2")
    assert provenance.code_version(tmp_path) == (head, False)
    (tmp_path / "code.py").write_text("2")
    assert provenance.code_version(tmp_path) == (head, True)
    git("add", ".")
    assert provenance.code_version(tmp_path) == (head, True)


def test_commit_is_the_codes_and_not_the_surroundings(git, tmp_path, monkeypatch):
    package = tmp_path / "site-packages"
    package.mkdir()
    assert provenance.code_version(package) == ("unknown", None)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as inside a hook of another repository
    assert provenance.code_version(package) == ("unknown", None)
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "abc123-dirty")
    assert provenance.code_version(package) == ("abc123", True)


def test_without_git_and_gpu(monkeypatch, tmp_path):
    monkeypatch.delenv(provenance.COMMIT_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert provenance.version("no-such-package") is None
    facts = provenance.collect()
    assert (facts["commit"], facts["dirty"]) == ("unknown", None)
    assert (facts["gpu"], facts["gpus"], facts["driver"]) == (None, 0, None)
    assert provenance.EnergyMeter().kilojoules() is None


def test_command_without_machine_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "orig_argv", ["/somewhere/.venv/bin/python", "-m", "pipelines.train", "row"])
    monkeypatch.setattr(
        sys, "argv", ["/somewhere/pipelines/train.py", "row", "--data=/home/me/camvid", str(tmp_path / "a b")]
    )
    assert provenance.command() == "python -m pipelines.train row --data=.../camvid 'a b'"
    monkeypatch.setattr(sys, "orig_argv", ["/somewhere/.venv/bin/python", "/somewhere/.venv/bin/danet", "train", "row"])
    monkeypatch.setattr(sys, "argv", ["/somewhere/.venv/bin/danet", "train", "row"])
    assert provenance.command() == "danet train row"


@pytest.mark.gpu
def test_energy_and_driver_of_a_gpu():
    import torch

    meter = provenance.EnergyMeter()
    x = torch.randn(4096, 4096, device="cuda")
    for _ in range(50):
        x = torch.softmax(x @ x, dim=0)
    torch.cuda.synchronize()
    assert 0 <= (meter.kilojoules() or -1) < 100
    assert str(provenance.collect()["driver"])[:3].isdigit()
