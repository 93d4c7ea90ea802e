"""What the scaling benchmark counts and estimates: against closed forms and by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import estimate
from benchmarks.scaling.estimate import Link, Step, makespan, step_seconds
from danet.config.params import load_params
from danet.core.errors import DanetError
from danet.models.segmentor import build_model

ROOT = Path(__file__).resolve().parents[2]
NETWORK = Step(flops=6 * 10**12, parameters=50_000_000, norms=(64, 256))


def test_a_step_counts_what_the_network_has():
    """Convolutions and attention by their closed forms, forward once and backward twice; the published size."""
    params = load_params()
    row = params.row("mmseg-r50-d8-cityscapes-512x1024-40k")
    counted = estimate.step(params, row)
    assert counted.parameters == 49_846_574  # the published size, RECIPES
    sizes = []
    with torch.device("meta"):
        model = build_model(row.model, 19).train()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda m, _, out: sizes.append((m, out.shape)))
        model(torch.zeros(1, 3, 512, 1024))
    forward = sum(2 * m.weight.numel() // m.groups * n * h * w for m, (n, _, h, w) in sizes)
    positions, scores, values = 64 * 128, 64, 512
    attention = 2 * positions**2 * (scores + values) + 4 * values**2 * positions
    assert counted.flops == pytest.approx(3 * (forward + attention), rel=0.03)
    assert counted.statistics == 2 * sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_bytes_by_hand():
    assert NETWORK.gradient_bytes == 200_000_000
    assert NETWORK.buckets == 1 + 8  # 1 MiB, then 25 MiB each
    assert NETWORK.statistics == 4
    assert NETWORK.statistics_bytes == 4 * ((129 + 128) + (513 + 512))


def test_seconds_by_hand():
    link = Link("test", bandwidth=1e9, latency=1e-3)
    assert step_seconds(NETWORK, 8, 1, 1e13, link) == (4.8, 4.8)
    statistics = 1.5 * 5128 / 1e9 + 4e-3
    gradients = 1.5 * 0.2 + 9e-3
    assert step_seconds(NETWORK, 8, 4, 1e13, link) == pytest.approx((1.2 + statistics, 1.2 + statistics + gradients))
    best, worst = step_seconds(NETWORK, 8, 4, 1e15, link)  # too fast to hide the gradients
    assert best == pytest.approx(0.012 + statistics + gradients - 0.008)
    assert worst == pytest.approx(0.012 + statistics + gradients)


def test_makespan_is_within_the_known_bound_of_the_best():
    """Longest first is at most 4/3 - 1/(3m) of the optimum (Graham 1969), and exact for one lane or enough of them."""
    jobs = [7.0, 6.0, 5.0, 5.0, 4.0, 3.0, 2.0]
    assert makespan(jobs, 1) == sum(jobs)
    assert makespan(jobs, 7) == makespan(jobs, 20) == 7
    for lanes in (2, 3):
        ends = []
        for places in itertools.product(range(lanes), repeat=len(jobs)):
            loads = [0.0] * lanes
            for job, place in zip(jobs, places, strict=True):
                loads[place] += job
            ends.append(max(loads))
        assert min(ends) <= makespan(jobs, lanes) <= min(ends) * (4 / 3 - 1 / (3 * lanes))


def run(world, losses, started=0):
    return {"world": world, "started": started, "curve": [[i + 1, loss] for i, loss in enumerate(losses)]}


def test_the_report_shows_the_largest_difference():
    found = {
        "curves": [run(1, [2.0, 1.0]), run(2, [2.0, 1.0001])],
        "resumed": [run(4, [2.0, 0.9])],
        "control": run(1, [2.0, 1.0]),
    }
    differences = scaling.differences(found)
    assert differences == pytest.approx(
        {"1 process": 0, "2 processes": 1e-4, "2, then 4": 0.1, "1 process, 2 threads": 0}
    )
    assert scaling.curve_table(found).splitlines()[-1].split(" | ")[2:4] == ["1.0e-04", "1.0e-01"]
    assert scaling.curve_csv(found).splitlines()[2] == "2,1.0,1.0001,0.9,1.0"


def test_blocks_are_filled_and_others_kept():
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    names = ("curves", "speed", "sent", "step", "efficiency", "sweep")
    once = scaling.fill(text, dict.fromkeys(names, "| a |"))
    assert once.count("| a |") == len(names)
    assert scaling.fill(once, dict.fromkeys(names, "| a |")) == once
    with pytest.raises(DanetError, match="<!-- curves -->"):
        scaling.fill("nothing", {"curves": ""})
