"""The scaling benchmark's arithmetic."""

import pytest

from benchmarks.scaling import __main__ as scaling


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
