"""The speed harness on tiny cases, its arithmetic on made-up times, and operations and cost against closed forms."""

import copy
import json
import subprocess
import sys

import pytest
import torch

from benchmarks import estimates, gpu
from benchmarks.parity import environment
from benchmarks.speed import cases, cost_page, page, results, rounds, worker
from danet.config.row import Numerics, Test
from danet.core import provenance
from danet.core.text import duration
from danet.evaluation import cost, flops

ROOT = provenance.PACKAGE_ROOT
R50 = cases.danet("infer", 50, 8, (64, 64)).model


@pytest.fixture(scope="module")
def params():
    return cases.repository()


@pytest.mark.parametrize(("size", "tflop"), [((512, 512), 0.44), ((512, 1024), 0.92), ((1024, 2048), 4.6)])
def test_operations_of_mmsegmentation_s_network(size, tflop):
    assert flops.count(R50, 19, size).flop / 1e12 == pytest.approx(tflop, rel=0.01)


def test_operations_of_the_heads_follow_from_their_shapes():
    main, every = flops.count(R50, 19, (64, 64), all_heads=False), flops.count(R50, 19, (64, 64))
    positions = 8 * 8
    auxiliary = 2 * positions * 256 * (1024 * 9 + 19)
    assert every.flop - main.flop == auxiliary + 2 * (2 * positions * 512 * 19)  # pam and cam classifiers
    assert flops.count(R50, 19, (64, 64), batch=3).flop == 3 * every.flop
    assert flops.parameters(R50, 19) == 49_846_574
    assert every.bytes > 4 * 49_846_574  # every weight is read


@pytest.mark.slow
def test_kept_counts_are_those_of_today_s_networks(params):
    assert flops.recount(params) == json.loads(flops.KEPT.read_text()), "run `python -m danet.evaluation.flops`"


def test_every_row_has_kept_counts(params, monkeypatch):
    """For each of its sizes. One network is counted again here; the slow test above counts all."""
    kept = json.loads(flops.KEPT.read_text())
    few = copy.copy(params)
    few.rows = {"camvid-r50-d16": params.row("camvid-r50-d16")}
    for name, counted in flops.recount(few).items():
        assert counted.items() <= kept[name].items()
    monkeypatch.setattr(flops, "count", lambda *_: flops.Operations(0, 0))
    monkeypatch.setattr(flops, "parameters", lambda *_: 0)
    sizes = {name: set(counted) for name, counted in flops.recount(params).items()}
    assert sizes == {name: set(counted) for name, counted in kept.items()}, "run `python -m danet.evaluation.flops`"


def test_operations_of_rows_count_windows_and_mirror_images(params):
    sliding = flops.count_row(params.row("mmseg-r50-d8-cityscapes-769x769-40k"), params)
    assert (sliding.passes, sliding.input) == (8, (769, 769))
    official = flops.count_row(params.row("official-danet-r101-d8-cityscapes"), params)
    assert official.passes == 16  # 2 x 4 windows and their mirror images
    assert official.test_flop == 16 * official.crop_flop  # crop and window are 768 x 768


def test_a_row_is_timed_as_its_numbers_were_measured(params):
    """Published: 8 windows of a whole image one after another, training with 2 images on a GPU and explicit maps."""
    row = params.row("mmseg-r50-d8-cityscapes-769x769-40k")
    train, infer = cases.row_cases(row, params, ["train", "infer"])
    assert (train.size, train.batch) == ((769, 769), 2)
    assert (infer.size, infer.test) == ((1024, 2048), row.test)
    found = {each.name: each for each in cases.implementations("infer", "cuda")}
    reference = found.pop("reference")
    assert reference.numerics is not None
    assert (reference.one_by_one, reference.numerics.attention, reference.precision) == (True, "reference", "fp32")
    assert not any(each.one_by_one for each in found.values())
    request = infer.request(reference, "cuda", 1)
    assert (request["input"], request["one_by_one"], request["test"]["window"]) == ((1025, 2049), True, (769, 769))
    measured = results.Measured(infer, reference, [2.0])
    flop = 8 * flops.count(row.model, 19, (769, 769), all_heads=False).flop
    record = results.record(measured, [measured], results.Peaks({"fp32": 1e12}, 1e10))
    assert float(record["tflop"]) == pytest.approx(flop / 1e12, rel=1e-3)
    (voc,) = cases.row_cases(params.row("mmseg-r50-d8-voc2012-20k"), params, ["train"])
    assert voc.batch == 4


def test_the_worker_follows_the_protocol():
    """Resized before the clock starts, two windows, and a label map of the image's own size."""
    test = Test(resize="fit", scale=(32, 48), mode="slide", window=(32, 32), stride=(32, 32))
    case = cases.danet("infer", 50, 16, (48, 72), threads=1, test=test)
    request = json.loads(json.dumps(case.request(cases.implementations("infer", "cpu")[0], "cpu", 1)))
    assert request["input"] == [32, 48]
    threads = torch.get_num_threads()
    labels = worker.build(request)()
    torch.set_num_threads(threads)
    assert labels.shape == (48, 72)


def line(name, seconds, what="infer", numerics=Numerics()):  # noqa: B008
    case = cases.danet(what, 50, 8, (64, 64), 2 if what == "train" else 1)
    implementation = cases.Implementation(name, numerics)
    return results.Measured(case, implementation, seconds, peak_gb=1.5, torch="9.9")


def test_ratios_are_taken_round_by_round():
    # the machine is three times as slow in the second round, for both
    lines = [line("fast", [1.0, 3.0, 1.0]), line(cases.PEER, [2.0, 6.0, 2.2], numerics=None)]
    assert results.against_peer(lines[0], lines) == pytest.approx(2.0)
    lines.append(line(f"{cases.PEER} AMP", [1.5, 4.5, 1.4], numerics=None))
    assert float(results.record(lines[0], lines, results.Peaks({}, 0.0))["against_amp"]) == pytest.approx(1.5)
    lines[1].rounds.clear()
    assert results.against_peer(lines[0], lines) is None


def test_record_of_a_measurement_is_the_roofline_s_arithmetic():
    lines = [line("fast", [1.0, 2.0, 3.0, 4.0, 5.0], "train"), line(cases.PEER, [6.0] * 5, "train", None)]
    peaks = results.Peaks({"fp32": 1e10}, 1e9)
    record = results.record(lines[0], lines, peaks)
    work = flops.count(R50, 19, (64, 64), 2)
    roofline = max(3 * work.flop / 1e10, 3 * work.bytes / 1e9)
    assert float(record["median_s"]) == 3.0
    assert float(record["iqr_s"]) == 2.0
    assert float(record["images_per_second"]) == pytest.approx(2 / 3, rel=1e-3)
    assert float(record["roofline_share"]) == pytest.approx(roofline / 3.0, abs=2e-3)
    assert float(record["tflop_per_s"]) == pytest.approx(3 * work.flop / 3.0 / 1e12, rel=1e-3)


def test_tables_pages_and_cost_are_made_from_the_files(tmp_path, params):
    lines = [line("fast", [1.0]), line("fast", [2.0], "train"), line(cases.PEER, [4.0], numerics=None)]
    failed = line("reference", [])
    failed.error = "RuntimeError: no | memory"
    facts = provenance.collect() | {
        "device": "cpu", "threads": 2, "repeat": 1, "cpu": "Test CPU", "torch": "9.9.0+cu1", "load": 0.0,
        "peer": {"name": "mmsegmentation 1.2.2", "torch": "8.8"},
    }  # fmt: skip
    written = results.write(tmp_path, [*lines, failed], results.Peaks({"fp32": 1e12}, 1e10), facts)
    assert {path.name for path in written} == {
        "infer-test-cpu-2-cores-torch9.9.0.csv",
        "train-test-cpu-2-cores-torch9.9.0.csv",
    }
    page.finish(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "Not run: `make gpu`" in text.split("## GPU")[1]
    assert "| 4.00 |" in text  # one second against four
    assert r"failed: RuntimeError: no \| memory" in text
    assert len(list(tmp_path.glob("*.png"))) == 2

    (measured,) = cost.rates(tmp_path)
    per_image = flops.count(R50, 19, (64, 64)).flop
    rate = measured.at("train", 1e15)
    assert rate == pytest.approx(3 * 2 * per_image / 2.0, rel=1e-3)
    row = params.row("mmseg-r50-d8-voc2012-20k")
    reckoned = cost.row_cost(row, params, measured)
    forward = flops.count(row.model, 21, (512, 512)).flop
    assert reckoned.train_hours == pytest.approx(3 * forward * 20_000 * 16 / rate / 3600, rel=1e-6)
    few = copy.copy(params)
    few.rows = {name: params.rows[name] for name in (row.name, "camvid-r50-d16-short")}
    text = cost_page.cost_page(few, [measured])
    assert "No GPU has been measured" in text
    assert "Test CPU, 2 cores" in text
    hours = reckoned.train_hours + reckoned.test_hours
    assert f"| {duration(3600 * hours)} |" in text
    assert cost.row_cost(row, params, None).hours is None


def test_a_row_has_the_hours_of_a_profile_that_computes_as_it_does(params):
    """Of half the precision alone no profile is: neither compiled nor channels_last, it is far slower than `fast`."""
    row = params.row("mmseg-r50-d8-voc2012-20k")
    found = {}
    for name, changes in {
        "as it is": {},
        "fast": params.profiles["fast"].model_dump(),
        "half": {"precision": "bf16"},
        "uncompiled": params.profiles["fast"].model_dump() | {"compile": False},
        "accumulated": {"accumulate": 2},
    }.items():
        numerics = row.numerics.model_copy(update=changes)
        found[name] = cost.own_profile(row.model_copy(update={"numerics": numerics}), params)
    assert found == {"as it is": "published", "fast": "fast", "half": "", "uncompiled": "", "accumulated": "published"}


def test_estimates_count_what_the_network_computes():
    """On fake tensors, as on the meta device: a prediction's operations, and of a step at most three times as many."""
    for what, batch in (("infer", 1), ("train", 2)):
        case = cases.danet(what, 50, 8, (64, 128), batch)
        work = estimates.plain(case)
        forward = flops.count(R50, 19, (64, 128), batch, all_heads=what == "train").flop
        assert work.flop == forward if what == "infer" else 2.9 * forward < work.flop < 3 * forward
        assert sum(work.seconds.values()) > estimates.seconds(work.flop, work.bytes)  # as each takes the longer of two
        gains = dict(estimates.parts(case, work))
        assert 0 < max(gains.values()) < work.total


def test_worker_answers_and_reports_what_fails():
    case = cases.danet("infer", 50, 16, (32, 32), threads=1)
    implementation = cases.implementations("infer", "cpu")[0]
    requests = [
        {"op": "prepare", "case": case.request(implementation, "cpu", 1)}, {"op": "time"}, {"op": "finish"},
        {"op": "prepare", "case": {"what": "nonsense", "device": "cpu", "threads": 1}}, {"op": "time"},
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.worker"],
        input="\n".join(map(json.dumps, requests)), capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    facts, *answers = [json.loads(text) for text in done.stdout.splitlines()]
    assert facts["name"] == "ours"
    assert answers[1]["seconds"] > 0
    assert answers[2]["peak_gb"] is None or answers[2]["peak_gb"] > 0.05  # 24 million weights in float32 at least
    assert "KeyError" in answers[3]["error"]
    assert "error" in answers[4]


def test_without_a_network_mmsegmentation_alone_is_left_out(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise subprocess.CalledProcessError(1, ["pip"])

    monkeypatch.setattr(environment, "ENVIRONMENT", tmp_path)
    monkeypatch.setattr(environment.venv, "create", no_network)
    monkeypatch.setattr(rounds.importlib.util, "find_spec", lambda name: None)
    said = []
    assert rounds.peer_command(said.append) is None
    assert "is there a network" in said[0]


SLEEP = "import time; time.sleep(1000)"


def test_a_slow_implementation_is_stopped(monkeypatch):
    monkeypatch.setattr(rounds, "limit", lambda device: 0.5)
    with rounds.Worker([sys.executable, "-c", SLEEP], "cpu") as slow:
        assert "took more than" in slow.facts["error"]
        assert not slow.alive


KILLED = """
import os, signal, sys
for answer in ("{}", "{}", '{"seconds": 1.0}'):
    print(answer, flush=True)
    sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_the_system_kills_says_so():
    """Between two rounds, because memory ran out; another is not started in its place."""
    lost = cases.Implementation("fast", Numerics())
    with rounds.Worker([sys.executable, "-c", KILLED], "cpu") as worker:
        [found] = rounds._rounds(line("fast", []).case, [lost], lambda _: worker, "cpu", 3, 1)
    assert found.rounds == [1.0]
    assert found.error == "the process ended with status -9 (out of memory?)"


def test_a_step_of_make_gpu_that_is_cut_says_so_and_tests_that_ended_count(tmp_path):
    script = tmp_path / "script.py"
    said = "tests/a.py::test_one PASSED [ 25%]\n[gw1] [ 50%] FAILED tests/a.py::test_two[x-1] \ntests/a.py::test_three "
    script.write_text(f"print({said!r}, flush=True)\n{SLEEP}")
    assert "took more" in gpu.perform(gpu.Step("tests", 1, str(script)), tmp_path, 9)
    found = json.loads((tmp_path / "tests.json").read_text())
    assert {line["test"]: line["ok"] for line in found["lines"]} == {
        "tests/a.py::test_one": True, "tests/a.py::test_two[x-1]": False,
    }  # fmt: skip
    page = gpu.page(tmp_path, tmp_path)
    assert "| tests | took more than 9 s |" in page
    assert "prediction of 1024x2048: times mmsegmentation's fps | not measured" in page


def test_cases_know_whether_mmsegmentation_has_their_network(params):
    peers = {name: cases.Case("infer", name, (8, 8), model=row.model).has_peer for name, row in params.rows.items()}
    assert peers["mmseg-r101-d8-ade20k-80k"]
    assert not peers["official-dranet-r101-d8-cityscapes"]
    assert not peers["ssseg-r50-d8-voc2012"]  # no biases in the attention
    fused = [each for each in cases.implementations("attention", "cuda") if each.numerics]
    assert {each.numerics.attention for each in fused} == {"fused", "reference"}
    grid = cases.shapes("cuda", ["infer", "train"])
    assert len(grid) == 2 * 4 * 4 + 1  # and a larger batch
    assert {case.size for case in grid} == {(512, 512), (512, 1024), (769, 769), (1024, 2048)}
