"""Cost, confusion matrices and examples: what they are drawn from, where they go, and what is left out."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from danet.config.params import Params
from danet.config.workspace import Workspace
from danet.core.provenance import device_name
from danet.data.prepared import PreparedDataset
from danet.evaluation.visualise import save_palette_png
from danet.report import write_table
from danet.report.figures import legend_below
from tests.data.samples import camvid_spec, camvid_tree, prepare
from tests.parameters import raw_params
from tests.report import samples
from tests.report.samples import whole

ROOT = Path(__file__).parents[2]
NAMES = ("camvid-r50-d8", "camvid-r101-d8")


@pytest.fixture
def params():
    raw = raw_params(rows=NAMES)
    return Params(raw, Path("params.yaml"))


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def with_confusion(data):
    """Gives every run's single scale a random confusion matrix."""
    size = len(data["classes"])
    random = np.random.default_rng(1)
    for run in data["runs"]:
        matrix = random.integers(0, 50, (size, size))
        matrix[np.arange(size), np.arange(size)] += 900
        matrix[2, 5] = 700
        run["modes"]["ss"]["confusion"] = [" ".join(map(str, line)) for line in matrix.tolist()]
    return matrix


def test_confusion_is_drawn_and_its_largest_share_named(workspace, params):
    row = params.row(NAMES[0])
    folder = samples.write(row, workspace, {0: 55.0}, points=0)
    kept = []
    edit(folder / "evaluation.json", lambda data: kept.append(with_confusion(data)))
    whole("camvid", params, workspace)
    picture = workspace.reports() / "camvid" / f"{row.name}-confusion.png"
    with Image.open(picture) as image:
        assert image.width == 900
    page = (workspace.reports() / "camvid" / f"{row.name}.md").read_text()
    assert picture.name in page
    classes = samples.classes(row)
    first = page.split("Most often taken for another class")[1].splitlines()[4]
    share = 100 * 700 / kept[0][2].sum()
    assert [cell.strip() for cell in first.strip("|").split("|")] == [classes[2], classes[5], f"{share:.1f}"]


@pytest.fixture
def predicted(workspace, params, tmp_path):
    """Random photographs, and for both rows random predictions of the first two; the third has one row's alone."""
    prepared = prepare(camvid_tree(tmp_path / "tree"), camvid_spec(), tmp_path / "work")
    target = workspace.prepared("camvid")
    target.parent.mkdir(parents=True)
    prepared.rename(target)
    dataset = PreparedDataset(target, "test")
    for number, name in enumerate(NAMES):
        row = params.row(name)
        samples.write(row, workspace, {0: 55.0}, points=0)
        for index, image in enumerate(dataset.ids[: 3 - number]):
            mask = np.random.default_rng(index).integers(0, 11, dataset.size(index)).astype(np.uint8)
            path = workspace.evaluation(row) / f"seed0-{image}-prediction.png"
            save_palette_png(path, mask, dataset.palette)
    return list(dataset.ids)


def test_examples_stay_out_of_the_reports_unless_allowed(workspace, params, predicted):
    hidden = workspace.root / "evaluations" / "examples@camvid"
    write_table("camvid", params, workspace)
    drawn = sorted(path.name for path in hidden.iterdir())
    assert drawn == ["examples-camvid-0.png", "examples-camvid-1.png"]  # the images that both rows predicted
    assert not list(workspace.reports().rglob("examples*"))
    with Image.open(hidden / drawn[0]) as image:
        assert image.width > image.height  # it lies across
    write_table("camvid", params, workspace, keep_pictures=True)
    assert not hidden.exists()
    page = (workspace.reports() / "camvid.md").read_text()
    assert all(f"camvid/{name}" in page for name in drawn)
    assert f"{predicted[0]}: image and truth" in page
    write_table("camvid", params, workspace)
    assert not list(workspace.reports().rglob("examples*"))


def test_a_table_may_allow_pictures_for_good(workspace, params, predicted):
    raw = raw_params(rows=NAMES)
    raw["tables"]["camvid"]["pictures"] = True
    write_table("camvid", Params(raw, Path("params.yaml")), workspace)
    assert len(list(workspace.reports().glob("camvid/examples*"))) == 2
    assert predicted


@pytest.mark.parametrize("label", ["iteration", "one training, minutes, CPU\n(Intel Xeon Platinum)"])
def test_legend_keeps_clear_of_the_axis_label(label):
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for name in ("R-50-D8 40k it", "R-101-D8 40k it", "R-101-D16 40k it"):
        axes.plot([0, 1], [0, 1], label=name)
    axes.set_xlabel(label)
    legend_below(axes)
    FigureCanvasAgg(figure).draw()
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y1 < axes.xaxis.label.get_window_extent().y0
    assert legend.get_window_extent().y0 >= 0


@pytest.mark.parametrize(
    ("cpu", "shown"),
    [
        ("Intel(R) Xeon(R) Processor", "CPU (Intel Xeon)"),
        ("Intel(R) Core(TM) i9-9900K CPU @ 3.60GHz", "CPU (Intel Core i9-9900K @ 3.60GHz)"),
        ("AMD EPYC 9654 96-Core Processor", "CPU (AMD EPYC 9654)"),
        ("", None),
        (None, None),
    ],
)
def test_processor_without_trade_marks(cpu, shown):
    assert device_name({"cpu": cpu}) == shown
