"""A row that keeps the epoch best on val is evaluated with its weights and with those of the last iteration."""

import pytest
import torch

from danet.config.row import MultiScale, Runtime, Test
from danet.config.workspace import Workspace
from danet.evaluation import evaluate
from danet.evaluation.evaluate import evaluate_row
from danet.results.measured import read
from tests.evaluation.fakes import CLASSES, Shades, stand_in
from tests.parameters import PARAMS, altered
from tests.seeds import keep_seed


def test_both_are_evaluated_and_stand_in_one_run(tmp_path, monkeypatch):
    test, runtime = Test(multi_scale=MultiScale(scales=(1.0,), flip=True)), Runtime(workers=0, overlays=1)
    row = altered(PARAMS.row("camvid-r50-d8"), test=test, runtime=runtime, checkpoint="best-on-val", seeds=(3, 5))
    space = Workspace(tmp_path)

    def load(path, model):
        if "best" in path.name:  # takes sky for sky
            model.levels = model.levels[torch.tensor([0, 1, 3, 2, *range(4, CLASSES)])]

    stand_in(monkeypatch, load)
    monkeypatch.setattr(evaluate, "backbone_sha256", lambda folder: None)
    data = Shades().manifest_hash
    for seed in row.seeds:
        save, best = (lambda path: path.write_bytes(b"last")), b"best %d" % seed
        keep_seed(space, row, seed, save, data=f"{data}+{data}", best=best)
    result = evaluate_row(row, space, device="cpu")
    assert [run.seed for run in result.runs] == [3, 5]
    assert result.means.seeds == 2
    first, second = result.runs
    assert (first.best_on_val.iteration, second.best_on_val.iteration) == (103, 105)
    assert first.modes.accuracies["miou"] == pytest.approx(50) == result.means.miou
    assert first.best_on_val.modes.accuracies["miou"] == first.best_on_val.modes.accuracies["miou_ms_flip"] == 100
    measured = read(row, PARAMS, space)
    assert not measured.problems
    assert measured.best_on_val["miou"] == measured.best_on_val["miou_ms_flip"] == 100
    assert measured.accuracies["miou"].values == (50, 50)
    assert evaluate_row(row, space, device="cpu", reuse=True) == result
