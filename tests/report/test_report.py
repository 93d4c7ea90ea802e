"""Properties of tables made from made-up metrics files: complete, right, honest about gaps, the same every time."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from danet.config.params import Params
from danet.config.published import load_published
from danet.config.workspace import Workspace
from danet.config.yaml import write_raw
from danet.report import write_index, write_table
from danet.report.labels import short_labels
from danet.report.tables import released, retrained
from danet.results.measured import read
from danet.results.schema import Modes
from tests.data.samples import contents
from tests.parameters import PARAMS, ROOT, raw_params
from tests.report import samples
from tests.report.samples import whole

OFFICIAL = "official-danet-r101-d8-cityscapes"
DRANET = "official-dranet-r101-d8-cityscapes"
TRAINING = samples.identity(PARAMS.row(DRANET), 0)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


@pytest.fixture(scope="session")
def params():
    """Of the repository, with three seeds for the official DANet row and a demo table."""
    raw = raw_params()
    raw["rows"][OFFICIAL]["seeds"] = [0, 1, 2]
    raw["tables"]["toy"] = {"title": "Toy", "published": False, "banner": "DEMO: made-up pictures, no results"}
    raw["rows"]["toy-r50"] = {**raw["rows"]["camvid-r50-d8"], "table": "toy"}
    return Params(raw, Path("params.yaml"))


def cells(page, row):
    """Cells of all table lines that begin with a link to a row."""
    page = page.replace("&nbsp;", " ")
    lines = [line for line in page.splitlines() if re.match(rf"\| \[[^]]*\]\(\w+/{re.escape(row)}\.md\)", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def csv_lines(workspace, table):
    with (workspace.reports() / "tables" / f"{table}.csv").open() as stream:
        return list(csv.DictReader(stream))


def table_json(workspace, table):
    return dict(json.loads((workspace.reports() / "tables" / f"{table}.json").read_text()))


def test_nothing_run(workspace, params):
    report = whole("mmsegmentation", params, workspace)
    page = report.page.read_text()
    assert (report.rows, report.measured, report.problems) == (16, 0, ())
    for row in params.table_rows("mmsegmentation"):
        main = cells(page, row.name)[0]
        assert "not run" in main
        assert f"{load_published()[row.name].miou:.2f}" in main
        assert (workspace.reports() / "mmsegmentation" / f"{row.name}.md").exists()
    assert "**0 of 16 rows measured.**" in page
    assert not list(workspace.reports().rglob("*.png"))
    assert all(row["runs"] == [] for row in table_json(workspace, "mmsegmentation")["rows"])


def test_published_numbers_are_the_files(workspace, params):
    for table in ("mmsegmentation", "sssegmentation", "official", "clusterdanet"):
        write_table(table, params, workspace)
        for row in table_json(workspace, table)["rows"]:
            assert row["published"] == load_published()[row["name"]].model_dump(mode="json")


def test_the_first_edition_keeps_its_one_filled_cell(workspace, params):
    page = write_table("sssegmentation", params, workspace).page.read_text()
    [said] = [line for line in page.splitlines() if "first edition" in line]
    assert re.findall(r"listed (\d+) .* filled (\d+): \[ADE20K R-50-D8\]\(\S+\) ([\d.]+) \(the same now\)", said) == [
        ("12", "1", "42.90")
    ]
    assert "first edition" not in write_table("official", params, workspace).page.read_text()


def test_one_seed_by_hand(workspace, params):
    row = params.row(DRANET)
    samples.write(row, workspace, {0: 81.23})
    report = write_table("official", params, workspace)
    (main, accuracy, cost) = cells(report.page.read_text(), DRANET)
    assert main[0].startswith("[DRANet R-101-D8]")
    assert main[1:] == ["81.63", "81.23", "-", "-0.40", "consistent", "not run"]
    # of IoU x and classes of one size: 2x / (1 + x)
    assert accuracy[1:] == ["96.62", "89.58", "-", "-7.04", "-", "not run"]
    assert cost[1:] == ["-", "-", "-", "14.8 (8)", "12.50", "3 h 15 min", "published", "NVIDIA H200"]
    (other,) = cells(report.page.read_text(), OFFICIAL)[:1]
    assert other[1:] == ["79.93", "not run †", "-", "-", "not run", "not run"]
    record = table_json(workspace, "official")["rows"][1]
    assert record["accuracies"]["miou"]["mean"] == pytest.approx(81.23)
    assert record["accuracies"]["miou"]["difference"] == pytest.approx(-0.40)
    assert "miou_ms_flip" not in record["accuracies"]
    assert tuple(record["iou"]) == samples.classes(row)


def test_three_seeds_by_hand(workspace, params):
    row = params.row(OFFICIAL)
    samples.write(row, workspace, {0: 79.6, 1: 79.9, 2: 79.75}, ms=1.5, points=0)
    page = write_table("official", params, workspace).page.read_text()
    main, ms = cells(page, OFFICIAL)[:2]
    # mean 79.75, sample standard deviation 0.15; the 90 % interval 79.75 +- 2.92 * 0.15 / sqrt(3) = 79.75 +- 0.253
    # lies inside 79.93 +- 0.5
    assert main[1:] == ["79.93", "79.75 ± 0.15 (3) †", "-", "-0.18", "reproduced", "not run"]
    assert ms[1:] == ["81.49", "81.25 ± 0.15 (3) †", "-", "-0.24", "reproduced", "not run"]
    own = (workspace.reports() / "official" / f"{OFFICIAL}.md").read_text().replace("&nbsp;", " ")
    # 95 %: 4.302653 * 0.15 / sqrt(3) = 0.3726
    assert "79.38 to 80.12" in own
    assert "| mIoU | 79.75 ± 0.15 (3) † | 79.60, 79.90, 79.75 |" in own


def test_released_weights_have_their_column(workspace, params):
    samples.verify(params.row(OFFICIAL), workspace, 79.97)
    page = write_table("official", params, workspace).page.read_text()
    main, ms, aacc, _ = cells(page, OFFICIAL)[:4]
    assert main[1:] == ["79.93", "not run †", "-", "-", "not run", "79.97, agrees"]
    assert (ms[1], ms[-1]) == ("81.49", "81.47, agrees")
    assert (aacc[1], aacc[-1]) == ("95.97", "88.80, differs by -7.17")
    assert cells(page, DRANET)[0][-1] == "not run"
    assert "it *agrees* within ± 0.05 points" in page
    record = table_json(workspace, "official")["rows"][0]["released"]
    assert record["accuracies"]["miou"]["difference"] == pytest.approx(0.04)
    assert record["accuracies"]["miou"]["verdict"] == "agrees"
    own = (workspace.reports() / "official" / f"{OFFICIAL}.md").read_text()
    assert "`DANet101.pth.tar`, SHA-256 `abababababab` (none is published)" in own
    assert "| mIoU | 79.93 | 79.97, agrees |" in own
    first = csv_lines(workspace, "official")[0]
    assert (first["miou_released"], first["miou_released_verdict"]) == ("79.97", "agrees")
    clusterdanet = write_table("clusterdanet", params, workspace).page.read_text()
    assert cells(clusterdanet, "clusterdanet-r101-d8-voc2012")[0][-1] == "-"


@pytest.mark.parametrize(
    ("over", "reason"),
    [
        ({"row_hash": "0" * 12}, "stale: of row hash 000000000000"),
        ({"classes": ["one"]}, "19 x 19 counts for 1 classes"),
    ],
)
def test_verifications_that_cannot_be_used(workspace, params, over, reason):
    row = params.row(OFFICIAL)
    samples.verify(row, workspace, 79.97, **over)
    found = read(row, params, workspace)
    assert [reason in problem.reason for problem in found.problems] == [True]
    assert released(found, "miou") == "left out (below)"


def test_checkpoints_chosen_on_val_stand_beside_the_last_ones(workspace, params):
    row = params.row(OFFICIAL)
    assert row.checkpoint == "best-on-val"
    assert params.row(DRANET).checkpoint == "last"
    page = write_table("official", params, workspace).page.read_text()
    assert cells(page, OFFICIAL)[0][2] == "not run †"
    assert cells(page, DRANET)[0][2] == "not run"
    assert "chosen on the images it is tested on" in page.split("## Notes")[1]
    folder = samples.write(row, workspace, {0: 79.5, 1: 79.7}, ms=1.5)
    with samples.edited(folder / "evaluation.json") as document:
        for run, better in zip(document["runs"], (79.85, 79.95), strict=True):
            modes = Modes(ss=samples.mode(row, better), ms=samples.mode(row, better + 1.5)).model_dump(mode="json")
            run["best_on_val"] = {"iteration": 80_000, "score": 75.0, "weights_sha256": "e" * 64, "modes": modes}
    page = write_table("official", params, workspace).page.read_text()
    main, multi = cells(page, OFFICIAL)[:2]
    assert main[3:5] == ["79.90", "-0.33"]  # the difference is of the last iteration: 79.60 and 79.93
    assert multi[3] == "81.40"
    assert "† The source kept" in (workspace.reports() / "official" / f"{OFFICIAL}.md").read_text()
    assert "†" not in write_table("mmsegmentation", params, workspace).page.read_text()


def test_tables_without_published_numbers(workspace, params):
    row = params.row("camvid-r50-d8")
    samples.write(row, workspace, {0: 55.5}, gpu=None, points=0)
    report = write_table("camvid", params, workspace)
    page = report.page.read_text()
    assert "| Published" not in page.split("## Notes")[0].split("there is nothing to compare with")[1]
    main = cells(page, row.name)[0]
    assert main[-5:] == ["55.50", "0.83", "+54.67", "70.41", "70.41"]
    record = table_json(workspace, "camvid")["rows"][0]
    assert set(record["published"].values()) == {None}
    assert str(report).endswith("1 of 8 rows measured")


def test_banner_is_on_every_page(workspace, params):
    samples.write(params.row("toy-r50"), workspace, {0: 50.0}, gpu=None, points=0)
    report = write_table("toy", params, workspace)
    index = write_index(params, workspace)
    for path in (report.page, workspace.reports() / "toy" / "toy-r50.md", index):
        blocks = [block for block in path.read_text().split("\n\n") if not block.startswith("<!--")]
        assert blocks[0] == "**DEMO: made-up pictures, no results**"


def spoil(change, name="evaluation.json"):
    def edit(folder):
        with samples.edited(folder / name) as data:
            change(data)

    return edit


STALE = {
    "stale: of row hash 000000000000": lambda d: d.update(row_hash="0" * 12),
    f"of the training {TRAINING} (weights 0), train.json is of {TRAINING} (ffffffffffff): run `dvc repro evaluate@": (
        lambda d: d["runs"][0].update(weights_sha256="0")
    ),
    f"of the training 000000000000 (weights ffffffffffff), train.json is of {TRAINING} (ffffffffffff): run `dvc ": (
        lambda d: d["runs"][0].update(training="0" * 12)
    ),
    f"its seeds are of different data (a1b2c3d4e5f6, bbbbbbbbbbbb): run `dvc repro evaluate@{DRANET}`": (
        lambda d: d["runs"].append(d["runs"][0] | {"seed": 1, "data": "b" * 64})
    ),
}
OTHER = {
    "its seeds are of different data (a1b2c3d4e5f6, bbbbbbbbbbbb): run `dvc repro train": (
        lambda d: d["runs"].append(d["runs"][0] | {"seed": 1, "data": "b" * 64})
    ),
    "its seeds are of different initial weights (None, bbbbbbbbbbbb): run `dvc repro": (
        lambda d: d["runs"].append(d["runs"][0] | {"seed": 1, "initial_weights": "b" * 64})
    ),
    "stale: of training hash 000000000000": lambda d: d.update(train_hash="0" * 12),
    "--force train@": lambda d: d.update(format=1),
    "final_loss": lambda d: d["runs"][0].update(final_loss=float("nan")),
}
BROKEN = {
    "confusion: field required": lambda d: d["runs"][0]["modes"]["ss"].pop("confusion"),
    "runs.0.fps": lambda d: d["runs"][0].update(fps=float("nan")),
    "belongs to row 'another'": lambda d: d.update(row="another"),
    f"is of format 1, this version reads format 2; run `dvc repro --single-item --force evaluate@{DRANET}`": (
        lambda d: d.update(format=1)
    ),
    "runs": lambda d: d["runs"].clear(),
    "seed 7 is not among": lambda d: d["runs"][0].update(seed=7),
}


@pytest.mark.parametrize(
    ("edit", "file", "reason"),
    [
        *((spoil(edit), "evaluation.json", reason) for reason, edit in (STALE | BROKEN).items()),
        *((spoil(edit, "train.json"), "train.json", reason) for reason, edit in OTHER.items()),
        (lambda f: (f / "evaluation.json").write_text("{"), "evaluation.json", "invalid JSON"),
    ],
)
def test_bad_files_are_named_and_never_used(workspace, params, *, edit, file, reason):
    row = params.row(DRANET)
    edit(samples.write(row, workspace, {0: 81.23}, points=0))
    found = read(row, params, workspace)
    assert found.runs == ()
    assert retrained(found, "miou") == "left out (below)"
    assert (found.accuracies["miou"].mean, found.accuracies["miou"].verdict) == (None, "not run")
    assert found.problems[-1].file == f"reports/metrics/official/{DRANET}/{file}"
    assert reason in " ".join(problem.reason for problem in found.problems)


def test_a_page_says_what_was_left_out(workspace, params):
    folder = samples.write(params.row(DRANET), workspace, {0: 81.23}, points=0)
    (folder / "evaluation.json").write_text("{")
    page = write_table("official", params, workspace).page.read_text()
    assert "81.23" not in page
    assert f"reports/metrics/official/{DRANET}/evaluation.json" in page.split("## Left out")[1]
    record = table_json(workspace, "official")
    assert record["rows"][1]["runs"] == []
    assert DRANET in record["left_out"][0]["file"]
    assert not (workspace.reports() / "official" / "results-cityscapes.png").exists()


@pytest.mark.parametrize(
    ("text", "reason"), [("seed,iteration,loss\n0,1,x\n", "could not convert"), ("a,b\n1,2\n", "'seed'")]
)
def test_a_bad_curve_costs_only_itself(workspace, params, text, reason):
    row = params.row(DRANET)
    folder = samples.write(row, workspace, {0: 81.23}, points=20)
    (folder / "curve.csv").write_text(text)
    measurement = read(row, params, workspace)
    assert measurement.status == "measured"
    assert measurement.accuracies["miou"].values == pytest.approx([81.23], abs=1e-4)
    assert measurement.curves == {}
    assert measurement.trained
    assert [problem.file for problem in measurement.problems] == [f"reports/metrics/official/{DRANET}/curve.csv"]
    assert reason in measurement.problems[0].reason


def test_trained_but_not_evaluated_is_not_run(workspace, params):
    folder = samples.write(params.row(DRANET), workspace, {0: 81.23}, points=0)
    (folder / "evaluation.json").unlink()
    page = whole("official", params, workspace).page.read_text()
    assert cells(page, DRANET)[0][2] == "not run"


def test_same_files_same_bytes(workspace, params, tmp_path):
    samples.write(params.row(OFFICIAL), workspace, {0: 79.6, 1: 79.9, 2: 79.75}, ms=1.5)
    write_table("official", params, workspace)
    write_index(params, workspace)
    first = contents(workspace.reports())
    assert len(first) >= 10
    shutil.rmtree(workspace.reports() / "official")
    (workspace.reports() / "official").mkdir()
    for name in ("old-row.md", "old-row.png"):  # of a row that is gone
        (workspace.reports() / "official" / name).write_text("old")
    write_table("official", params, workspace)
    write_index(params, workspace)
    assert contents(workspace.reports()) == first
    moved = tmp_path / "moved"
    shutil.copytree(workspace.reports() / "metrics", moved / "reports" / "metrics")
    write_table("official", params, Workspace(moved))
    write_index(params, Workspace(moved))
    assert contents(moved / "reports") == first
    everything = b"".join(path.read_bytes() for path in workspace.reports().glob("**/*.md"))
    assert str(tmp_path).encode() not in everything


def test_links_and_pictures_exist_and_pictures_are_plain(workspace, params):
    samples.write(params.row(OFFICIAL), workspace, {0: 79.6}, ms=1.5)
    for table in params.tables:
        write_table(table, params, workspace)
    write_index(params, workspace)
    checked = 0
    for page in workspace.reports().glob("**/*.md"):
        for target in re.findall(r"(?:\]\(|<img src=\")([^)\"]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page}: {target}"
                checked += 1
    assert checked > 100
    pictures = sorted(path.name for path in workspace.reports().glob("official/*.png"))
    assert pictures == [
        *("classes-cityscapes.png", "curves-cityscapes.png", f"{OFFICIAL}-confusion.png", f"{OFFICIAL}.png"),
        "results-cityscapes.png",
    ]
    for path in workspace.reports().glob("official/*.png"):
        with Image.open(path) as image:
            assert image.width == 900
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
            assert not {key for key in image.info if key not in {"dpi", "transparency"}}


def test_index(workspace, params):
    samples.write(params.row(OFFICIAL), workspace, {0: 79.6}, points=0)
    samples.write(params.row("camvid-r50-d8"), workspace, {0: 55.5}, points=0)
    page = write_index(params, workspace).read_text()
    assert "| [Official DANet and DRANet](official.md) | 1 of 2 | 1 consistent | Cityscapes | [csv]" in page
    assert "| 0 of 16 | not run | Cityscapes, ADE20K" in page
    assert "mIoU 55.50" in page


def test_labels_tell_rows_apart(params):
    for table in params.tables:
        rows = params.table_rows(table)
        labels = short_labels(rows)
        assert len(set(labels.values())) == len(rows)
    camvid = short_labels([params.row("camvid-r50-d8"), params.row("camvid-r101-d16")])
    assert list(camvid.values()) == ["R-50-D8", "R-101-D16"]


def test_class_means_skip_absent_ones(workspace, params):
    row = params.row(OFFICIAL)
    folder = samples.write(row, workspace, {0: 79.6, 1: 79.9, 2: 79.75}, points=0)

    def absent(data):
        for number, iou in enumerate((0.5, None, 0.7)):
            matrix = samples.matrix(19, 79.6)
            matrix[:2], matrix[:, :2] = 0, 0
            if iou:
                matrix[0, 0], matrix[0, 2] = 1000 * iou, 1000 * (1 - iou)
            data["runs"][number]["modes"]["ss"]["confusion"] = [" ".join(map(str, line)) for line in matrix.tolist()]

    spoil(absent)(folder)
    found = read(row, params, workspace)
    assert list(found.iou.values())[:2] == [pytest.approx(60.0), None]
    write_table("official", params, workspace)
    assert "| sidewalk | - |" in (workspace.reports() / "official" / f"{OFFICIAL}.md").read_text()


def test_the_report_needs_neither_pytorch_nor_mlflow(tmp_path):
    write_raw(raw_params(), tmp_path)
    script = (
        "import sys; sys.modules['torch'] = sys.modules['mlflow'] = sys.modules['dvc'] = None\n"
        "from danet.config.workspace import Workspace; from danet.report import write_table, write_index\n"
        "w = Workspace(); write_table('official', w.params(), w); write_index(w.params(), w)\n"
        "import danet.results.runs, danet.cli.reproduce\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0
    assert (tmp_path / "reports" / "official.md").exists()


def test_seeds_that_are_missing_show(workspace, params):
    """Two of three planned seeds: a number that is not final says so, and so does the data."""
    row = params.row(OFFICIAL)
    samples.write(row, workspace, {0: 79.6, 2: 79.9}, points=0)
    page = write_table("official", params, workspace).page.read_text()
    assert cells(page, OFFICIAL)[0][2] == "79.75 ± 0.21 (2 of 3) †"
    samples.write(row, workspace, {1: 79.6}, points=0)
    page = write_table("official", params, workspace).page.read_text()
    assert cells(page, OFFICIAL)[0][2] == "79.60 (1 of 3) †"
    first = csv_lines(workspace, "official")[0]
    assert (first["planned_seeds"], first["seeds"]) == ("0 1 2", "1")


def test_published_classes_stand_beside_the_measured(workspace, params):
    row = params.row(OFFICIAL)
    source = load_published()[OFFICIAL].classes
    assert tuple(source.iou) == samples.classes(row)
    assert round(sum(source.iou.values()) / 19, 1) == 81.5  # what the paper gives for the test set
    own = workspace.reports() / "official" / f"{OFFICIAL}.md"
    write_table("official", params, workspace)
    assert "| Class | published, test set |" in own.read_text()
    samples.write(row, workspace, {0: 79.6}, points=0)
    write_table("official", params, workspace)
    text = own.read_text()
    assert "| Class | IoU | accuracy | published, test set |" in text
    assert re.search(r"\| traffic light \| [\d.]+ \| [\d.]+ \| 77\.30 \|", text)
    assert f"Published classes: test set, <{source.url}>. Measured here: `val`." in text
    other = (workspace.reports() / "official" / f"{DRANET}.md").read_text()
    assert "Published classes" not in other
    record = table_json(workspace, "official")["rows"][0]
    assert record["published"]["classes"]["iou"]["road"] == 98.6


def test_csv_has_every_number_of_the_json(workspace, params):
    """Every number of the CSV is the JSON's, under a name that says which."""
    samples.write(params.row(OFFICIAL), workspace, {0: 79.6, 1: 79.9, 2: 79.75}, ms=1.5, points=0)
    write_table("official", params, workspace)
    lines = csv_lines(workspace, "official")
    for line, row in zip(lines, table_json(workspace, "official")["rows"], strict=True):
        assert (line["row"], line["row_hash"], line["status"]) == (row["name"], row["row_hash"], row["status"])
        for name, numbers in row["accuracies"].items():
            for key in ("published", "mean", "sd", "low", "high", "difference"):
                assert line[f"{name}_{key}"] == ("" if numbers[key] is None else str(numbers[key]))
    assert (lines[0]["device_hours"], lines[0]["miou_band"]) == ("3.25", "0.7")


def test_environment_has_the_facts_of_every_stage_and_seed(workspace, params):
    row = params.row(OFFICIAL)
    folder = samples.write(row, workspace, {0: 79.6, 1: 79.9, 2: 79.75}, points=0)
    for name, stage in (("train", 0), ("evaluation", 1)):
        with samples.edited(folder / f"{name}.json") as data:
            for run in data["runs"]:
                run["weights_sha256"] = str(run["seed"]) * 64  # the same weights are trained and evaluated
                run["provenance"].update(command=f"stage {stage}")
            data["runs"][1]["provenance"].update(driver=None if stage else "580.95.05")
    whole("official", params, workspace)
    own = (workspace.reports() / "official" / f"{OFFICIAL}.md").read_text()
    facts = dict(line.strip("| ").split(" | ", 1) for line in own.splitlines() if line.count("|") == 4)
    assert facts["torch"] == "2.15.0+cu130 | 2.15.0+cu130"
    assert facts["command"] == "stage 0 | stage 1"
    weights = "<br>".join(str(seed) * 16 for seed in range(3))
    assert facts["weights\\_sha256"] == f"{weights} | {weights}"
    assert facts["driver"] == "580.95.05 | 580.95.05<br>-<br>580.95.05"  # what is missing is not made up


def test_a_row_is_reproduced_by_its_stages_or_by_what_makes_its_table(workspace, params):
    row = params.row("camvid-r50-d8")
    samples.write(row, workspace, {0: 55.5}, points=0)
    for command, expected in (("", f"dvc repro evaluate@{row.name} "), ("make demo", "make demo ")):
        params.tables["camvid"] = params.tables["camvid"].model_copy(update={"command": command})
        write_table("camvid", params, workspace)
        commands = (workspace.reports() / "camvid" / f"{row.name}.md").read_text().split("```bash\n")[1].split("```")[0]
        assert commands.splitlines()[-1].startswith(expected)
