"""Numbers as people say them."""

import pytest

from danet.core.text import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.25, "0.2 s"), (33, "33 s"), (360, "6 min"), (4200, "70 min"), (11700, "3 h 15 min"), (108_720, "30 h"),
     (345_600, "4 days")],
)  # fmt: skip
def test_durations(seconds, said):
    assert duration(seconds) == said
