"""The fault-injection harness itself, short: it finds nothing lost, and it finds what is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from benchmarks.faults import kinds
from benchmarks.faults.rounds import Result, compare, newly_torn, torn

ROOT = Path(__file__).parents[2]


def test_a_few_faults_lose_nothing(tmp_path: Path) -> None:
    """In a process of its own, as sessions are forks and may not inherit threads."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--rounds", "2", "--seed", "11", "--out", str(tmp_path / "r.md")],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["faults_total"] >= 12
    assert record["results_lost"] == 0
    assert record["complaints"] == []
    assert sum(record["faults"].values()) == record["faults_total"]
    assert "0 results lost" in (tmp_path / "r.md").read_text()
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 3


def result(**changes: object) -> Result:
    kept = {"weights": "a", "momentum": "b", "curve": [{"loss": "1"}], "metrics": {"final_loss": 1.0}}
    return Result(**{**kept, "tracked": {"loss": [(1, 0.5), (2, 0.25)], "images_per_second": [(1, None)]}, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"weights": "x"}, "weights differ"),
        ({"momentum": "x"}, "momentum differ"),
        ({"curve": []}, "curve differ"),
        ({"metrics": {"final_loss": 1.0000001}}, "metrics differ"),
        ({"tracked": {"loss": [(1, 0.5)], "images_per_second": [(1, None)]}}, "loss: missing [(2, 0.25)]"),
        ({"tracked": {"loss": [(1, 0.5), (2, 0.25), (2, 0.25)], "images_per_second": [(1, None)]}}, "surplus [(2, 0."),
        ({"tracked": {"loss": [(1, 0.5), (2, 0.25)]}}, "images_per_second: missing"),
        ({"problems": ["left behind: a.tmp"]}, "left behind"),
    ],
)
def test_whatever_is_lost_is_noticed(changes: dict[str, object], word: str) -> None:
    assert compare(result(), result()) == []
    assert word in "; ".join(compare(result(), result(**changes)))


def test_damage_is_damage(tmp_path: Path) -> None:
    path, random = tmp_path / "file", Random(0)
    for damage in (kinds.truncate, kinds.flip, kinds.empty):
        path.write_bytes(bytes(range(100)))
        damage(path, random)
        assert path.read_bytes() != bytes(range(100))


def test_a_session_answers_for_the_files_that_it_tore_only(tmp_path: Path) -> None:
    (tmp_path / "whole.json").write_text("{}")
    (tmp_path / "damaged.json").write_text('{"a": ')
    before = torn(tmp_path)
    assert set(before) == {tmp_path / "damaged.json"}
    assert newly_torn(before, tmp_path) == []
    (tmp_path / "whole.json").write_text("")
    (tmp_path / "damaged.json").write_bytes(b"\xff")
    (tmp_path / "new.json").write_text("[")
    assert sorted(newly_torn(before, tmp_path)) == [f"{name}.json is torn" for name in ("damaged", "new", "whole")]


def test_every_kind_of_the_issue_is_there() -> None:
    groups = Counter(kind.group for kind in kinds.KINDS.values())
    assert {"kill", "stop", "fill", "disconnect", "compute"} == set(groups)
    assert set(kinds.BETWEEN) > kinds.AFTER_THE_END
