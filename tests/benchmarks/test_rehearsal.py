"""The rehearsal without its hours: settings, what is kept and gone on with, what is published."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.rehearsal import __main__ as rehearsal
from benchmarks.rehearsal import page, sources
from benchmarks.rehearsal.sources import PEERS, Run, identity, images, train
from danet.config.params import load_params
from danet.config.published import load_published
from danet.core.errors import ConfigError, DataError, TrainingError
from danet.data.camvid import SPEC

FAKE = """#!{python}
import json, pathlib, sys
folder = pathlib.Path(sys.argv[5])
with (folder.parents[1] / "calls.txt").open("a") as calls:
    calls.write(f"{{folder.name}}\\n")
print("11/26 - Iter(train) [ 5/10]  lr: 1e-2  eta: 0  loss: 6.5  aux.loss_ce: 1.0")
if folder.name == "seed1" and not (folder.parents[1] / "repaired").exists():
    sys.exit("disk full")
(folder / "released.pth").write_bytes(b"weights")
(folder / "result.json").write_text(json.dumps({{"scores": {{"miou": 20.0}}, "config": {{}}, "versions": {{}}}}))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sources, "OUT", tmp_path)
    monkeypatch.setattr(sources, "PACKAGE_ROOT", tmp_path)
    return tmp_path


def row(source: str) -> Any:
    return load_params("params.yaml").row(f"rehearsal-{source}")


def by_type(steps: Any) -> dict[str, dict[str, Any]]:
    return {step["type"]: step for step in steps}


def test_the_row_is_what_mmsegmentation_runs() -> None:
    given, ours = runpy.run_path(str(PEERS / "mmseg_camvid.py")), row("mmsegmentation")
    steps, test = by_type(given["train_pipeline"]), by_type(given["test_pipeline"])
    assert given["_base_"] == "mmseg::danet/danet_r50-d8_4xb4-80k_ade20k-512x512.py"  # compared by `make parity`
    assert given["model"]["backbone"] | {"norm_cfg": 0} == {
        "strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2), "norm_cfg": 0,
    }  # fmt: skip
    assert (ours.model.backbone, ours.model.output_stride, ours.weights) == ("resnet50", 16, "none")
    assert steps["RandomResize"]["scale"][::-1] == ours.augment.resize.scale
    assert steps["RandomResize"]["ratio_range"] == ours.augment.resize.range
    assert steps["RandomCrop"]["crop_size"] == given["crop_size"] == ours.augment.crop_size
    assert steps["RandomCrop"]["cat_max_ratio"] == ours.augment.cat_max_ratio
    assert steps["RandomFlip"]["prob"] == ours.augment.flip
    assert ours.augment.photometric == "mmsegmentation"
    assert test["Resize"] == {"type": "Resize", "scale": ours.test.scale[::-1], "keep_ratio": True}
    assert ours.test.resize == "fit"
    [poly] = given["param_scheduler"]
    schedule = ours.schedule
    assert (poly["end"], poly["eta_min"], poly["power"]) == (schedule.iterations, schedule.min_lr, schedule.power)
    assert (schedule.denominator, given["train_dataloader"]["batch_size"]) == ("T-1", schedule.batch_size)
    assert given["optim_wrapper"]["optimizer"]["lr"] == ours.optimizer.lr
    assert (given["classes"], ours.val_split) == (SPEC.classes, "val")
    assert given["test_dataloader"]["dataset"]["data_prefix"]["img_path"] == "val"


def test_the_row_is_what_sssegmentation_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMVID", "camvid")
    monkeypatch.setenv("REHEARSAL_WORK", "work")
    given, ours = runpy.run_path(str(PEERS / "ssseg_camvid.py"))["SEGMENTOR_CFG"], row("sssegmentation")
    steps, test = (dict(given["dataset"][part]["data_pipelines"]) for part in ("train", "test"))
    assert (given["backbone"]["depth"], given["backbone"]["outstride"]) == (50, ours.model.output_stride)
    assert (given["auxiliary"]["out_channels"], given["align_corners"]) == (ours.model.aux_channels, False)
    assert steps["Resize"]["output_size"][::-1] == ours.augment.resize.scale
    assert steps["Resize"]["scale_range"] == ours.augment.resize.range
    assert steps["RandomCrop"]["crop_size"] == steps["Padding"]["output_size"] == ours.augment.crop_size
    assert steps["RandomCrop"]["one_category_max_ratio"] == ours.augment.cat_max_ratio
    assert steps["RandomFlip"]["prob"] == ours.augment.flip
    assert test["Resize"] == {"output_size": ours.test.scale[::-1], "keep_ratio": True, "scale_range": None}
    weights = {name.rpartition("_")[2]: loss["scale_factor"] for name, loss in given["losses"].items()}
    assert weights == {"aux": ours.loss.aux, "pam": ours.loss.pam, "cam": ours.loss.cam, "pamcam": ours.loss.main}
    plan, schedule = given["scheduler"], ours.schedule
    assert (plan["max_epochs"], plan["power"]) == (schedule.epochs, schedule.power)
    assert plan["optimizer"]["lr"] * 0.01 == schedule.min_lr  # its default
    assert (plan["optimizer"]["lr"], plan["optimizer"]["momentum"]) == (ours.optimizer.lr, ours.optimizer.momentum)
    assert plan["optimizer"]["weight_decay"] == ours.optimizer.weight_decay
    loader = given["dataloader"]["train"]
    assert (loader["batch_size_per_gpu"], loader["drop_last"]) == (schedule.batch_size, True)
    assert (ours.loss.replicas, schedule.replicas, given["dataset"]["test"]["set"]) == (1, 1, ours.val_split)


def test_losses_are_read_from_both_logs(here: Path) -> None:
    run = Run("mmsegmentation", 0)
    run.folder.mkdir(parents=True)
    run.log.write_text(
        "Iter(train) [ 5/90]  lr: 9.6e-03  eta: 0:01  time: 1.0  loss: 6.9906  decode.pam_cam.loss_ce: 1.95\n"
        "Iter(val) [ 5/233]  eta: 0:01\n"
        "{'cur_epoch': 1, 'cur_iter': 10, 'max_iters': 90, 'loss_aux': 0.9, 'loss_total': 7.4549}\n"
    )
    assert run.steps() == [(5, 6.9906), (10, 7.4549)]


def test_a_failed_run_costs_no_other(here: Path) -> None:
    python = here / "python"
    python.write_text(FAKE.format(python=sys.executable))
    python.chmod(0o755)
    runs = [Run("mmsegmentation", seed) for seed in (0, 1, 2)]
    with pytest.raises(TrainingError, match=r"mmsegmentation, seed 1: .*disk full.*seed1/log\.txt.*`make rehearsal`"):
        train(runs, python, here, {"a": "1"}, 1)
    of = identity("mmsegmentation", {"a": "1"})
    assert [bool(run.finished(of)) for run in runs] == [True, False, True]
    (here / "repaired").touch()
    train(runs, python, here, {"a": "1"}, 1)
    assert (here / "calls.txt").read_text().split() == ["seed0", "seed1", "seed2", "seed1"]
    kept = runs[1].finished(of)
    assert kept is not None
    assert (kept["scores"], kept["curve"], kept["seed"]) == ({"miou": 20.0}, [[5, 6.5]], 1)
    train(runs, python, here, {"a": "2"}, 1)  # of other images: all again
    assert len((here / "calls.txt").read_text().split()) == 7


def test_images_are_those_of_the_first_run(here: Path) -> None:
    with pytest.raises(ConfigError, match="make rehearsal CAMVID=folder"):
        images(None)
    for part in ("train", "trainannot", "val", "valannot"):
        (here / "CamVid" / part).mkdir(parents=True)
        (here / "CamVid" / part / "0001.png").write_bytes(part.encode())
    root, found = images(str(here / "CamVid"))
    assert images(str(root)) == (root, found)
    assert sorted(found) == [f"{part}/0001.png" for part in ("train", "trainannot", "val", "valannot")]
    (root / "val" / "0001.png").write_bytes(b"another")
    with pytest.raises(DataError, match=r"val/0001\.png: differs .* restore it, or remove build/rehearsal"):
        images(str(root))


def scored(miou: float) -> dict[str, Any]:
    scores = {"miou": miou, "macc": 30.0, "aacc": 60.0, "iou": [miou / 100] * 11}
    facts = {
        "versions": {"torch": "2"},
        "commit": "0" * 40,
        "date": "today",
        "cpu": "a CPU",
        "threads": 1,
        "seconds": 90,
    }
    ours = {"ours": scores | {"iou": [miou] * 11}, "ours_there": scores, "ours_curve": [[5, 7.0], [10, 6.1]]}
    return {"source": "s", "seed": 0, "scores": scores, "curve": [[5, 7.0], [10, 6.0]], "here": scores} | ours | facts


def test_what_is_published_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "published.yaml"
    path.write_text("clusterdanet-r101-d8-voc2012: {miou: null}\n" + rehearsal.MARK + "rehearsal-a: {miou: null}\n")
    monkeypatch.setattr(rehearsal, "PUBLISHED", path)
    assert rehearsal.MARK in Path("benchmarks/published.yaml").read_text()
    runs = {source: [scored(20.0), scored(20.5)] for source in sources.SOURCES}
    rehearsal.publish(runs)
    assert list(yaml.safe_load(path.read_text())) == [
        "clusterdanet-r101-d8-voc2012", "rehearsal-mmsegmentation", "rehearsal-sssegmentation",
    ]  # fmt: skip
    entry = load_published(path)["rehearsal-sssegmentation"]
    assert (entry.miou, entry.seeds, entry.released_miou) == (20.25, (20.0, 20.5), 20.0)
    assert entry.classes is not None
    assert entry.classes.iou["sky"] == 20.25
    shown = page.text(json.loads(json.dumps(runs)))
    assert "| sssegmentation | 0 | 20.50 | 20.50 | 20.50 | 20.50 |" in shown
    page.draw(runs, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
