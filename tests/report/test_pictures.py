"""Examples across rows: what they are drawn from and where they go; how a processor is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from danet.config.params import Params
from danet.config.workspace import Workspace
from danet.data.prepared import PreparedDataset
from danet.evaluation.visualise import save_palette_png
from danet.report import write_table
from danet.results.schema import Provenance
from tests.data.samples import camvid_spec, camvid_tree, prepare
from tests.parameters import raw_params
from tests.report import samples

NAMES = ("camvid-r50-d8", "camvid-r101-d8")


@pytest.fixture
def params():
    raw = raw_params(rows=NAMES)
    return Params(raw, Path("params.yaml"))


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


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


def test_pictures_stay_out_of_the_reports_unless_allowed(workspace, params, predicted):
    hidden = workspace.root / "evaluations" / "examples@camvid"
    overlay = workspace.evaluation(params.row(NAMES[0])) / f"seed0-{predicted[0]}-panels.png"
    Image.new("RGB", (4, 4)).save(overlay)
    write_table("camvid", params, workspace)
    drawn = sorted(path.name for path in hidden.iterdir())
    assert drawn == ["examples-camvid-0.png", "examples-camvid-1.png"]  # the images that both rows predicted
    assert not [path for kind in ("examples", "panels") for path in workspace.reports().rglob(f"*{kind}*")]
    with Image.open(hidden / drawn[0]) as image:
        assert image.width > image.height  # it lies across
    raw = raw_params(rows=NAMES)
    raw["tables"]["camvid"]["pictures"] = True
    write_table("camvid", Params(raw, Path("params.yaml")), workspace)
    assert not hidden.exists()
    page = (workspace.reports() / "camvid.md").read_text()
    assert all(f"camvid/{name}" in page for name in drawn)
    assert f"{predicted[0]}: image and truth" in page
    (copied,) = workspace.reports().glob("camvid/*panels*")
    assert copied.name in (workspace.reports() / "camvid" / f"{NAMES[0]}.md").read_text()
    write_table("camvid", params, workspace)
    assert not [path for kind in ("examples", "panels") for path in workspace.reports().rglob(f"*{kind}*")]


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
    assert Provenance(cpu=cpu).hardware == shown
