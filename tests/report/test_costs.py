"""mIoU against cost over all tables: which rows are in it, what their hours are, what it says when there are none."""

import pytest
from PIL import Image

from danet.config.workspace import Workspace
from danet.report import ALL_COSTS, figures, write_index
from danet.report.costs import EMPTY, cost_name
from danet.results.measured import read
from tests.parameters import PARAMS
from tests.report import samples

CITYSCAPES = ("mmseg-r50-d8-cityscapes-512x1024-40k", "official-dranet-r101-d8-cityscapes")
CAMVID = ("camvid-r50-d16", "camvid-r101-d8")


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were before they became pixels."""
    found = []
    save = figures.save

    def kept(figure, path):
        found.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "save", kept)
    return found


def trained_in(folder, *seeds):
    """Hours, number of GPUs and their kind, of each seed."""
    with samples.edited(folder / "train.json") as data:
        for run, (hours, gpus, gpu) in zip(data["runs"], seeds, strict=True):
            run["hours"] = hours
            run["provenance"].update(gpus=gpus, gpu=gpu)


def marks(figure):
    """``(panel, x, y, marker, face, size)`` of every row."""
    return [
        (
            f"{axes.get_title(loc='left')}; {' '.join(axes.get_xlabel().split())}",
            float(line.get_xdata()[0]),
            round(float(line.get_ydata()[0]), 3),
            str(line.get_marker()),
            str(line.get_markerfacecolor()),
            float(line.get_markersize()),
        )
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() in figures.MARKERS
    ]


def test_every_measured_row_of_every_table_is_in_it(workspace, drawn):
    for name, gpus, hours in zip(CITYSCAPES, (4, 1), (3.0, 20.0), strict=True):
        folder = samples.write(PARAMS.row(name), workspace, {0: 79.0}, points=0)
        trained_in(folder, (hours, gpus, "NVIDIA H200"))
    for name, hours in zip(CAMVID, (0.1, 0.2), strict=True):
        folder = samples.write(PARAMS.row(name), workspace, {0: 22.0}, points=0, gpu=None)
        trained_in(folder, (hours, 0, None))
    page = write_index(PARAMS, workspace).read_text()
    assert f'src="{ALL_COSTS}"' in page
    with Image.open(workspace.reports() / ALL_COSTS) as image:
        assert image.width == 900
    found = marks(drawn[0])
    cpu = "CamVid; one training, hours, CPU (AMD EPYC 9654)"
    assert [point[:3] for point in found] == [
        ("Cityscapes; one training, GPU-hours, NVIDIA H200", 12.0, 79.0),
        ("Cityscapes; one training, GPU-hours, NVIDIA H200", 20.0, 79.0),
        (cpu, 0.1, 22.0),
        (cpu, 0.2, 22.0),
    ]
    assert len({point[3] for point in found}) == 3  # a marker for each table, not its colour alone
    named = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert {PARAMS.tables[table].title for table in ("mmsegmentation", "official", "camvid")} <= set(named)
    assert [point[4] == "white" for point in found] == [True, False, True, False]
    small, large = sorted({point[5] for point in found})
    assert [point[5] for point in found] == [large, large, small, large]
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["DRANet"]


def test_hours_of_different_hardware_are_never_on_one_axis(workspace, drawn):
    for name, gpu in zip(CITYSCAPES, ("NVIDIA H200", "NVIDIA A100-SXM4-80GB"), strict=True):
        folder = samples.write(PARAMS.row(name), workspace, {0: 79.0}, points=0, gpu=gpu)
        trained_in(folder, (3.0, 8, gpu))
    write_index(PARAMS, workspace)
    assert [axes.get_xlabel() for axes in drawn[0].axes] == [
        "one training, GPU-hours, NVIDIA H200",
        "one training, GPU-hours, NVIDIA A100-SXM4-80GB",
    ]
    assert {axes.get_title(loc="left") for axes in drawn[0].axes} == {"Cityscapes"}


def test_seeds_trained_on_different_machines(workspace):
    """Each seed's hours times its own GPUs; both kinds of hardware are named."""
    row = PARAMS.row(CITYSCAPES[0]).model_copy(update={"seeds": (0, 1)})
    folder = samples.write(row, workspace, {0: 79.0, 1: 79.2}, points=0)
    trained_in(folder, (2.0, 8, "NVIDIA H200"), (12.0, 1, "NVIDIA L40S"))
    found = read(row, PARAMS, workspace)
    assert found.costs["device_hours"] == (8 * 2 + 12) / 2
    assert cost_name(found) == "one training, GPU-hours, NVIDIA H200; NVIDIA L40S"


def test_nothing_measured(workspace, drawn):
    write_index(PARAMS, workspace)
    assert [text.get_text() for text in drawn[0].texts] == [EMPTY]
    assert (workspace.reports() / ALL_COSTS).exists()  # an output of the stage, which DVC must find
