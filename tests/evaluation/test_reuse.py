"""A seed that is evaluated is not evaluated again when seeds are added, and is whenever anything else changed."""

import shutil

import pytest

from danet.config.row import Runtime, Test
from danet.core import provenance
from danet.evaluation import subject
from danet.evaluation.evaluate import evaluate_row
from tests.data.samples import contents
from tests.evaluation.fakes import Shades
from tests.parameters import PARAMS, altered
from tests.seeds import keep_seed


@pytest.fixture
def row():
    runtime = Runtime(workers=0, overlays=1, benchmark_images=2)
    return altered(PARAMS.row("camvid-r50-d8"), test=Test(), runtime=runtime, seeds=(3,))


@pytest.fixture
def passes(monkeypatch):
    """The seeds' weights that a network was really built and run for."""
    found = []
    original = subject.evaluate_model

    def counted(*args, **options):
        found.append("pass")
        return original(*args, **options)

    monkeypatch.setattr(subject, "evaluate_model", counted)
    return found


def keep(space, row, seed, weights):
    keep_seed(space, row, seed, lambda path: path.write_bytes(weights), data=Shades.manifest_hash)


def as_the_stage(row, workspace):
    """DVC removes the metrics files before it starts the stage, and keeps the evaluation's folder."""
    shutil.rmtree(workspace.metrics(row), ignore_errors=True)
    return evaluate_row(row, workspace, device="cpu", reuse=True)


def test_an_added_seed_leaves_the_finished_one_alone(row, workspace, passes):
    first = as_the_stage(row, workspace)
    pictures = contents(workspace.evaluation(row))
    assert len(passes) == 1
    both = altered(row, seeds=(3, 5))
    second = as_the_stage(both, workspace)
    assert len(passes) == 2
    assert [run.seed for run in second.runs] == [3, 5]
    # to the second and the digit what was found then, not only the same mIoU
    assert second.runs[0] == first.runs[0]
    after = contents(workspace.evaluation(row))
    assert pictures.items() <= after.items()
    assert {name.replace("seed3", "seed5") for name in pictures} == set(after) - set(pictures)


def other_weights(workspace, row, _):
    keep(workspace, row, 3, b"trained again")
    return row


def other_data(workspace, row, monkeypatch):
    monkeypatch.setattr(Shades, "manifest_hash", "1" * 64)
    keep(workspace, row, 3, b"weights")  # the split tested is the one trained on here
    return row


def other_protocol(_, row, __):
    return altered(row, test={"absent_class": "zero"})


def other_versions(_, row, monkeypatch):
    collect = provenance.collect
    monkeypatch.setattr(provenance, "collect", lambda *a, **k: {**collect(*a, **k), "torch": "99.0"})
    return row


def other_revision(_, row, __):
    return altered(row, revisions={"evaluate": 7})


def lost_picture(workspace, row, _):
    next(workspace.evaluation(row).glob("*-confusion.png")).unlink()
    return row


def damaged_record(workspace, row, _):
    path = workspace.evaluation(row) / "seed3.json"
    path.write_text(path.read_text()[:-20])
    return row


@pytest.mark.parametrize(
    "change",
    [*(other_weights, other_data, other_protocol, other_versions, other_revision), *(lost_picture, damaged_record)],
)
def test_anything_else_that_changed_is_evaluated_anew(row, workspace, passes, monkeypatch, change):
    as_the_stage(row, workspace)
    as_the_stage(row, workspace)
    assert len(passes) == 1
    changed = change(workspace, row, monkeypatch)
    result = as_the_stage(changed, workspace)
    assert len(passes) == 2
    assert result.row_hash == changed.hash
    as_the_stage(changed, workspace)  # and that one is kept in its turn
    assert len(passes) == 2
