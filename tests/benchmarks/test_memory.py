"""The memory of a process tree, against processes of known size."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory import tree_memory

HOLD = "import sys; held = bytearray(b'x') * {size}; print('ready', flush=True); sys.stdin.read()"
PARENT = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {hold!r}], stdin=sys.stdin); child.wait()"
)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_children_of_children_are_counted():
    """100 MB in a grandchild are seen from the top, and nothing is left once it has ended."""
    hold = HOLD.format(size=100_000_000)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(hold=hold)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdout.readline()
        assert 100e6 < sum(tree_memory(parent.pid).values()) < 200e6
        parent.stdin.close()
    assert tree_memory(parent.pid) == {}
