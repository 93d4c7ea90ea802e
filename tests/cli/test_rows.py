"""``danet rows``: nothing that a reader came for is cut, and what is measured stands beside what is published."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from danet.cli.app import app
from danet.config.yaml import write_raw
from tests.parameters import PARAMS, ROOT, raw_params


def rows(*options):
    result = CliRunner().invoke(app, ["rows", "--workspace", str(ROOT), *options])
    assert result.exit_code == 0, result.exception
    return result.output


def test_names_and_numbers_are_whole():
    """On a real terminal of 80 columns; every row's name and published mIoU stand on one line of it."""
    columns = 80
    command = f"stty cols {columns}; {sys.executable} -m danet.cli rows"
    result = subprocess.run(
        ["script", "-qec", command, "/dev/null"], cwd=ROOT, capture_output=True, text=True, check=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    lines = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout).splitlines()
    assert max(map(len, lines)) <= columns
    records = json.loads(rows("--format", "json"))
    assert len(records) == len(PARAMS.rows)
    for record in records:
        (line,) = [line.split() for line in lines if line.split()[:1] == [record["name"]]]
        if (miou := record["published"]["miou"]) is not None:
            assert line[1] == f"{miou:.2f}"


def test_measured_numbers_are_those_of_the_metrics_files():
    records = json.loads(rows("--measured", "--sort", "measured", "--format", "json"))
    scores = [path for path in ROOT.glob("reports/scores/*.json") if not path.stem.endswith("-released")]
    files = {path.stem: json.loads(path.read_text()) for path in scores}
    found = [(record["name"], record["accuracies"]["miou"]["mean"]) for record in records]
    assert {name: pytest.approx(value, abs=1e-4) for name, value in found} == {
        name: metrics["miou"] for name, metrics in files.items()
    }
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
    tables = [json.loads(path.read_text()) for path in ROOT.glob("reports/tables/*.json")]
    told = {row["name"]: row for table in tables for row in table["rows"] if row["runs"]}
    assert {record["name"]: record for record in records} == told


def test_a_row_tells_where_it_stands_and_is_yaml(tmp_path):
    text = rows("camvid-r50-d8-short")
    head, settings = text.split("\n\n", 1)
    metrics = ROOT / "reports" / "scores" / "camvid-r50-d8-short.json"
    assert f"{json.loads(metrics.read_text())['miou']:.2f}" in head
    assert "danet show camvid-r50-d8-short" in head
    assert yaml.safe_load(text) == yaml.safe_load(settings)
    assert yaml.safe_load(settings)["name"] == "camvid-r50-d8-short"
    assert "dvc repro evaluate@ssseg-r50-d16-voc2012" in rows("ssseg-r50-d16-voc2012")


def test_an_unknown_row_gets_three_names():
    result = CliRunner().invoke(app, ["rows", "--workspace", str(ROOT), "mmseg-r50"])
    hint = str(result.exception).partition("did you mean ")[2].rstrip("?").split(", ")
    assert len(hint) == 3
    assert set(hint) <= set(PARAMS.rows)


def test_a_row_of_the_demo_is_found_where_it_is(tmp_path):
    write_raw(raw_params(), tmp_path)
    (tmp_path / "build/demo").mkdir(parents=True)
    result = CliRunner().invoke(app, ["show", "--workspace", str(tmp_path), "demo-r50-d8-voc2012"])
    assert f"-C {tmp_path}/build/demo" in str(result.exception)
