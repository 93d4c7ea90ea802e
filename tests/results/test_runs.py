"""`danet show` and `danet diff` on made-up metrics files."""

import json

import pytest
from typer.testing import CliRunner

from danet.cli.app import app
from danet.config.workspace import Workspace
from danet.config.yaml import write_raw
from danet.core.errors import ConfigError, DataError
from danet.results.runs import compare, describe, diff_text, load_run, show_text
from tests.parameters import raw_params
from tests.report import samples

NAME, OTHER = "camvid-r50-d8", "camvid-r101-d16"


@pytest.fixture
def workspace(tmp_path):
    raw = raw_params(rows=(NAME, OTHER))
    mious = {NAME: {0: 55.0, 1: 56.0}, OTHER: dict.fromkeys(range(5), 58.5)}
    for name, of_seeds in mious.items():
        raw["rows"][name]["seeds"] = list(of_seeds)
    write_raw(raw, tmp_path)
    space = Workspace(tmp_path)
    for name, of_seeds in mious.items():
        samples.write(space.params().row(name), space, of_seeds, points=0)
    return space


def test_names_of_runs(workspace):
    whole, one = load_run(NAME, workspace), load_run(f"{NAME}:1", workspace)
    path = workspace.metrics(workspace.params().row(NAME)) / "evaluation.json"
    assert [seed.seed for seed in whole.seeds] == [0, 1]
    assert [seed.seed for seed in one.seeds] == [1]
    assert load_run(str(path), workspace).seeds == whole.seeds
    assert load_run(f"{path}:1", workspace).seeds == one.seeds
    assert whole.accuracies["miou"].values == pytest.approx([55.0, 56.0])
    first = [seed.modes.ss.scores.iou[0] for seed in whole.seeds]
    assert whole.iou()["ss"]["sky"] == pytest.approx(sum(first) / 2)


def test_released_weights_are_a_run(workspace):
    samples.verify(workspace.params().row(NAME), workspace, 55.0)
    run = load_run(f"{NAME}:released", workspace)
    assert "released weights" in show_text(run)
    assert "DANet101.pth.tar" in show_text(run)
    assert describe(run)["seeds"] == [None]


def test_show_several_seeds(workspace):
    text = show_text(load_run(NAME, workspace))
    # mean 55.5, sample standard deviation sqrt(0.5)
    assert ["mIoU", "55.50", "0.71", "55.00,", "56.00"] in [line.split() for line in text.splitlines()]
    assert max(map(len, [line for line in text.splitlines() if "evaluation.json" not in line])) <= 80
    assert ", ".join(["58.50"] * 5) in show_text(load_run(OTHER, workspace))  # in one line, as there is room
    assert describe(load_run(NAME, workspace))["provenance"]["evaluation"]["seed"] == [0, 1]


def test_difference_of_two_rows(workspace):
    first, second = load_run(f"{NAME}:0", workspace), load_run(f"{OTHER}:0", workspace)
    found = compare(first, second)
    assert found.settings["model.backbone"] == ("resnet50", "resnet101")
    assert found.settings["model.output_stride"] == (8, 16)
    assert "optimizer.lr" not in found.settings
    assert found.accuracies["miou"] == pytest.approx((55.0, 58.5))
    gaps = [abs(b - a) for a, b in found.iou.values() if a is not None and b is not None]
    assert gaps == sorted(gaps, reverse=True)
    assert len(found.iou) == 11
    name = next(iter(found.iou))
    place = first.file.classes.index(name)
    assert found.iou[name] == (first.seeds[0].modes.ss.scores.iou[place], second.seeds[0].modes.ss.scores.iou[place])
    text = diff_text(first, second, found)
    assert "model.backbone" in text
    assert "+3.50" in text


def test_difference_of_two_seeds_is_no_setting(workspace):
    found = compare(load_run(f"{NAME}:0", workspace), load_run(f"{NAME}:1", workspace))
    assert found.settings == {}
    assert found.provenance["evaluation: seed"] == (0, 1)
    assert not {key for key in found.provenance if "hash" in key or "data" in key}


def test_other_machine_data_and_weights_are_named(workspace):
    folder = workspace.metrics(workspace.params().row(NAME))
    (folder / "copy.json").write_text((folder / "evaluation.json").read_text())
    with samples.edited(folder / "copy.json") as data:
        for run in data["runs"]:
            run |= {"data": "b" * 16, "weights_sha256": "c" * 64}
            run["provenance"].update({"gpu": "NVIDIA A100", "dirty": True})
    found = compare(load_run(NAME, workspace), load_run(str(folder / "copy.json"), workspace))
    assert set(found.provenance) == {f"evaluation: {key}" for key in ("gpu", "data", "weights_sha256", "dirty")}


def test_bad_input(workspace):
    folder = workspace.metrics(workspace.params().row(NAME))
    with pytest.raises(ConfigError, match="has no seed 7; it has: 0, 1"):
        load_run(f"{NAME}:7", workspace)
    with pytest.raises(ConfigError, match="did you mean"):
        load_run("camvid-r50-d9", workspace)
    with pytest.raises(ConfigError, match=r"nowhere\.json: does not exist"):
        load_run("nowhere.json", workspace)
    with pytest.raises(ConfigError, match=f"dvc repro verify@{NAME}"):
        load_run(f"{NAME}:released", workspace)
    with pytest.raises(DataError, match=r"train\.json: .*field required"):
        load_run(str(folder / "train.json"), workspace)
    with samples.edited(folder / "evaluation.json") as data:
        data["runs"][1]["modes"]["ss"]["images"] = "many"
    with pytest.raises(DataError, match=r"runs\.1\.modes\.ss\.images"):
        load_run(NAME, workspace)


def test_on_the_command_line(workspace):
    runner, here = CliRunner(), ["-C", str(workspace.root)]
    shown = json.loads(runner.invoke(app, ["show", f"{NAME}:0", "--format", "json", *here]).output)
    assert shown["accuracies"]["miou"] == pytest.approx(55.0)
    assert shown["provenance"]["training"]["gpu"] == "NVIDIA H200"
    assert shown["settings"]["model"]["backbone"] == "resnet50"
    found = runner.invoke(app, ["diff", NAME, OTHER, *here]).output
    assert ["model.backbone", "resnet50", "resnet101"] in [line.split() for line in found.splitlines()]
