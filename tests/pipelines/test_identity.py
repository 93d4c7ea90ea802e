"""A number is what it says it is: the stages under real DVC, after the data, a seed or the machine has changed."""

import json
import shutil

import cv2
import numpy as np
import pytest
import yaml

from danet.config.yaml import write_raw
from danet.results.identity import TrainingIdentity
from tests.data.samples import camvid_tree
from tests.parameters import ROOT, raw_params
from tests.pipelines.programs import NO_MLFLOW, dvc

ROW = "camvid-r50-d16-short"


def make_workspace(folder):
    raw = raw_params(rows=(ROW,))
    raw["tables"] = {"camvid": raw["tables"]["camvid"]}
    raw["datasets"] = {"camvid": raw["datasets"]["camvid"] | {"counts": {"train": 2, "val": 2, "test": 2}}}
    raw["weights"] = {"none": raw["weights"]["none"]}
    raw["rows"][ROW] |= {
        "schedule": {"iterations": 2, "batch_size": 2, "warmup_iterations": 0},
        "augment": {"resize": {"scale": [48, 64]}, "crop_size": [48, 64]},
        "test": {"resize": "none"},
    }
    raw["runtime"] |= {"workers": 0, "overlays": 0, "benchmark_images": 1}
    write_raw(raw, folder)
    (folder / "benchmarks").mkdir()
    for name in ("dvc.yaml", "pipelines", "benchmarks/published.yaml"):
        (folder / name).symlink_to(ROOT / name)


def seeds(folder, *wanted):
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["rows"][ROW]["seeds"] = list(wanted)
    path.write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture
def run(tmp_path, capfd):
    """Runs DVC in a folder; returns what the stages printed, in one line."""

    def command(folder, text):
        capfd.readouterr()
        code = dvc(folder, *text.split(), DANET_CAMVID=str(tmp_path / "camvid"), MLFLOW_TRACKING_URI=NO_MLFLOW)
        said = " ".join(" ".join(capfd.readouterr()).split())
        assert code == 0, said[-2000:]
        return said

    return command


def record(folder, seed=0):
    return json.loads((folder / "models" / ROW / f"seed{seed}.json").read_text())


def digest(found):
    return TrainingIdentity.model_validate(found["identity"]).digest


def evaluated(folder):
    path = folder / "reports" / "metrics" / "camvid" / ROW / "evaluation.json"
    return json.loads(path.read_text())["runs"]


def test_relabelled_data_an_added_seed_and_another_machine(tmp_path, run):
    data, here = camvid_tree(tmp_path / "camvid", count=2, size=(48, 64)), tmp_path / "here"
    here.mkdir()
    make_workspace(here)
    run(here, "init --quiet --no-scm")
    run(here, f"repro evaluate@{ROW}")
    first, weights = record(here), (here / "models" / ROW / "seed0.safetensors").read_bytes()

    # labels are corrected: two classes were swapped
    for path in (data / "trainannot").iterdir():
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(labels == 3, 0, np.where(labels == 0, 3, labels)).astype(np.uint8))
    run(here, "repro -f -s download@camvid")
    said = run(here, f"repro evaluate@{ROW}")
    second = record(here)
    assert f"training data {first['identity']['data'][:12]}, now {second['identity']['data'][:12]}" in said
    assert first["identity"]["data"] != second["identity"]["data"]
    assert (here / "models" / ROW / "seed0.safetensors").read_bytes() != weights
    (shown,) = evaluated(here)
    assert shown["training"] == digest(second) != digest(first)

    # a seed is added: it trains alone
    seeds(here, 0, 1)
    said = run(here, f"repro evaluate@{ROW}")
    assert "seed 0: already trained" in said
    assert "seed 0: already evaluated" in said
    assert record(here) == second
    assert [each["seed"] for each in evaluated(here)] == [0, 1]
    assert evaluated(here)[0] == shown

    # another machine pulls what was made, and adds one more
    run(here, f"remote add --default store {tmp_path / 'store'}")
    run(here, "push --quiet")
    there = tmp_path / "there"
    shutil.copytree(
        here,
        there,
        symlinks=True,
        ignore=shutil.ignore_patterns("models", "data", "evaluations", "cache", "checkpoints"),
    )
    run(there, f"pull train@{ROW} convert@camvid weights@none download@camvid evaluate@{ROW}")
    seeds(there, 0, 1, 2)
    said = run(there, f"repro train@{ROW}")
    assert "seed 0: already trained" in said
    assert "seed 1: already trained" in said
    assert "seed 2: 2 iterations" in said
    assert record(there) == second
