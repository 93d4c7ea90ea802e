"""`make report-diff`: what a branch changes in the metrics, through DVC, in a repository made for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from danet.core.errors import ConfigError
from pipelines.report_diff import markdown, metrics_diff

PIPELINE = """
stages:
  evaluate:
    cmd: "true"
    metrics:
      - reports/metrics/toy/row-a/metrics.json: {cache: false}
      - reports/metrics/toy/row-a/train.json: {cache: false}
"""


def test_changes_against_a_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    git("init")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True, capture_output=True)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    folder = tmp_path / "reports" / "metrics" / "toy" / "row-a"
    folder.mkdir(parents=True)
    metrics = {"miou": 70.0, "aacc": 90.0, "fps": 3.5}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "train.json").write_text(json.dumps({"hours": 2.0, "final_loss": 0.5}))
    git("add", ".")
    git("commit", "-m", "base")
    assert markdown("main", metrics_diff("main")) == "No metric differs from `main`.\n"
    (folder / "metrics.json").write_text(json.dumps(metrics | {"miou": 71.25}))
    (folder / "train.json").write_text(json.dumps({"hours": 1.5, "final_loss": 0.5}))
    text = markdown("main", metrics_diff("main"))
    assert "| row-a | miou | 70.00 | 71.25 | +1.25 |" in text
    assert "| row-a | hours | 2.00 | 1.50 | -0.50 |" in text.split("<details>")[1]
    assert "aacc" not in text
    with pytest.raises(ConfigError, match=r"'no-such-branch'.*BASE"):
        metrics_diff("no-such-branch")


def test_new_rows_and_lost_numbers() -> None:
    changes = {
        "reports/metrics/toy/new/metrics.json": {"miou": {"old": None, "new": 41.5}},
        "reports/metrics/toy/old/metrics.json": {"miou_ms_flip": {"old": 40.0, "new": None}},
    }
    text = markdown("v1", changes)
    assert "| new | miou | - | 41.50 | - |" in text
    assert "| old | miou_ms_flip | 40.00 | - | - |" in text
    assert "<details>" not in text
