"""What the README says: its counts are those of the metrics files, its example runs, its links lead somewhere."""

import re
import runpy

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from danet.evaluation.predict import predict_files
from danet.models import build_model
from danet.weights.ours import save_model
from tests.parameters import PARAMS, ROOT, copy_settings

README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PUBLISHED = yaml.safe_load((ROOT / "benchmarks/published.yaml").read_text())
TABLES = ("mmsegmentation", "sssegmentation", "official", "clusterdanet")
DATASETS = ("cityscapes", "ade20k", "voc2012")


def measured(table, file):
    return len(list((ROOT / "reports/metrics" / table).glob(f"*/{file}")))


def test_the_first_screen_counts_what_is_there():
    params = PARAMS
    rows, retrained, verified = (
        sum(len(params.table_rows(table)) for table in TABLES),
        sum(measured(table, "evaluation.json") for table in TABLES),
        sum(measured(table, "verification.json") for table in TABLES),
    )
    expected = f"{rows} published rows; retrained here: {retrained}; verified by released weights: {verified}."
    assert expected in README, f"the README must say: {expected}"


def test_camvid_is_given_as_in_the_reports():
    [line] = [line for line in (ROOT / "reports/README.md").read_text("utf-8").splitlines() if "](camvid.md)" in line]
    [span] = re.findall(r"mIoU [\d.]+ to [\d.]+", line)
    assert span in README.replace("\n", " "), f"the README must say: {span}"


@pytest.mark.parametrize("table", TABLES)
def test_published_and_measured(table):
    rows = PARAMS.table_rows(table)
    cells = [str(len(rows))]
    for dataset in DATASETS:
        here = [row.name for row in rows if row.dataset == dataset]
        numbers = sorted(value for name in here if (value := PUBLISHED[name]["miou"]) is not None)
        cells.append(f"{numbers[0]:.2f} to {numbers[-1]:.2f}" if numbers else "none" if here else "-")
    cells += [str(measured(table, "evaluation.json")), str(measured(table, "verification.json"))]
    line = f"| [{table}](reports/{table}.md) | {' | '.join(cells)} |"
    assert line in README, f"the README must say: {line}"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    copy_settings(tmp_path)
    row = PARAMS.row("ssseg-r50-d16-voc2012")
    torch.manual_seed(0)
    save_model(tmp_path / "weights.pth", build_model(row.model, 21), {})
    (tmp_path / "images").mkdir()
    images = [tmp_path / "images" / f"{name}.png" for name in "ab"]
    for path in images:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(path)
    # the command's own results as the masks: all right but for the top third of b, where each pixel is another class
    predict_files(row, weights=tmp_path / "weights.pth", images=images, out=tmp_path / "masks", adapter="voc2012")
    wrong = np.array(Image.open(tmp_path / "masks/b.png"))
    wrong[:20] = (wrong[:20] + 1) % 21
    Image.fromarray(wrong).save(tmp_path / "masks/b.png")

    (tmp_path / "example.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py")
    assert "aAcc 83.33" in capsys.readouterr().out  # 1 - 1/6


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", path.read_text(encoding="utf-8")):
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path.name}: {target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{path.name}: {target} has no heading for #{anchor}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path):
    if path.name.startswith("adding-a-"):  # their files are the reader's to write; tests/pipelines/test_guides.py does
        return
    named = re.findall(r"`((?:\.ci|benchmarks|danet|docs|pipelines|recipes|tests)/[\w./-]+)`", path.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists() and "NAME" not in name] == []
