"""`danet reproduce`: a table made here is run again, with a small model for DANet, and found to agree or not."""

import json

import pytest
from typer.testing import CliRunner

from danet.cli import reproduce
from danet.cli.app import app
from danet.config.workspace import Workspace
from danet.config.yaml import write_raw
from danet.core.errors import CheckpointError, ConfigError, DataError
from danet.evaluation.evaluate import evaluate_row
from danet.report import write_table
from tests.evaluation.fakes import Shades, stand_in
from tests.parameters import raw_params
from tests.seeds import keep_seed

NAME = "camvid-r50-d8"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """One row of two seeds, evaluated and reported; the model reads the class from the grey level."""
    raw = raw_params(rows=(NAME,))
    raw["rows"][NAME]["seeds"] = [3, 5]
    raw["runtime"] |= {"overlays": 0, "workers": 0}
    write_raw(raw, tmp_path)
    space = Workspace(tmp_path)
    row = space.params().row(NAME)
    stand_in(monkeypatch)
    monkeypatch.setattr(reproduce, "PreparedDataset", Shades)
    for seed in row.seeds:
        keep_seed(space, row, seed, lambda path: path.write_bytes(b"weights"), data=Shades.manifest_hash)
    evaluate_row(row, space, device="cpu")
    write_table("camvid", space.params(), space)
    return space


def report(space):
    return space.reports() / "tables" / "camvid.json"


def edit(space, change):
    data = json.loads(report(space).read_text())
    change(data["rows"][0])
    path = space.root / "colleague.json"
    path.write_text(json.dumps(data))
    return path


def test_our_own_report_is_reproduced_to_the_last_digit(workspace):
    before = {p: p.read_bytes() for p in workspace.metrics(workspace.params().row(NAME)).iterdir()}
    check = reproduce.check_row(report(workspace), NAME, workspace, device="cpu")
    assert check.agrees
    assert check.gap <= 1e-4  # the rounding of the report
    assert check.setup == {}
    assert check.band == 0.05
    assert set(check.numbers) == {"mIoU", "aAcc", "mAcc"}
    assert str(check).endswith("AGREES: every number is the same.")
    assert {p: p.read_bytes() for p in before} == before


def test_a_number_outside_the_band_does_not_agree(workspace):
    path = edit(workspace, lambda row: row["accuracies"]["miou"].update(mean=row["accuracies"]["miou"]["mean"] + 0.06))
    check = reproduce.check_row(path, NAME, workspace, device="cpu")
    assert not check.agrees
    assert "more than 0.05 points away (the same weights" in str(check)
    assert "not deterministic" in str(check)
    result = CliRunner().invoke(app, ["reproduce", str(path), NAME, "--device", "cpu", "-C", str(workspace.root)])
    assert result.exit_code == 1
    assert "DOES NOT AGREE" in result.output


def test_other_hardware_is_named_and_has_the_released_band(workspace):
    def elsewhere(row):
        row["accuracies"]["miou"]["mean"] += 0.04
        for stage in row["runs"]:
            stage["provenance"] |= {"gpu": "NVIDIA H200", "torch": "2.12.0"}

    check = reproduce.check_row(edit(workspace, elsewhere), NAME, workspace, device="cpu")
    assert check.agrees
    assert {"gpu", "torch"} <= set(check.setup)
    assert "gpu: NVIDIA H200 -> -" in str(check)


def test_other_weights_have_the_band_of_the_dataset(workspace):
    def other(row):
        row["accuracies"]["miou"]["mean"] += 0.3
        for stage in row["runs"]:
            stage["weights_sha256"] = "0" * 64

    check = reproduce.check_row(edit(workspace, other), NAME, workspace, device="cpu")
    assert check.agrees
    assert check.band == workspace.params().bands.of("camvid")
    assert "not those of the report" in check.why


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda row: row.update(name="camvid-r50-d9"), ConfigError, "it has: camvid-r50-d9"),
        (lambda row: row.update(runs=[], status="not run"), DataError, '"not run" there'),
        (lambda row: row["accuracies"]["miou"].update(mean=float("nan")), DataError, "rows.0.accuracies.miou"),
        (lambda row: row["runs"][0].update(seed=7), CheckpointError, "seed7.safetensors: does not exist"),
        (lambda row: row.update(row_hash="0" * 12), ConfigError, "does not say which"),
        (
            lambda row: (row.update(row_hash="0" * 12), row["settings"]["optimizer"].update(lr=0.5)),
            ConfigError,
            "optimizer.lr 0.5 there, 0.02 here",
        ),
        (lambda row: row["runs"][0].update(data="1" * 64), DataError, "is other data"),
    ],
)
def test_what_cannot_be_compared_is_refused(workspace, change, kind, message):
    with pytest.raises(kind) as raised:
        reproduce.check_row(edit(workspace, change), NAME, workspace, device="cpu")
    assert message in str(raised.value)


@pytest.mark.parametrize("text", ["{", '{"format": 1, "rows": []}'])
def test_a_file_that_is_no_table(workspace, text):
    path = workspace.root / "other.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"other\.json"):
        reproduce.check_row(path, NAME, workspace, device="cpu")


def test_a_row_that_is_unknown_here(workspace):
    def renamed(row):
        row["name"] = "camvid-r34-d8"
        for stage in row["runs"]:
            stage["provenance"]["commit"] = "abc123"

    with pytest.raises(ConfigError, match=r"has no row 'camvid-r34-d8'.*git checkout abc123"):
        reproduce.check_row(edit(workspace, renamed), "camvid-r34-d8", workspace, device="cpu")
