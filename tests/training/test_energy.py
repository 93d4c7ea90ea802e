"""Energy over a run: the sum over its parts, or nothing where a part is not known."""

import pytest

from danet.core.errors import Interrupted
from danet.training.stop import StopRequest
from tests.training.fakes import TinyNet, tiny_row, trainer
from tests.training.test_loop import stopping


class Meter:
    """Stands for NVML's counter, which only a GPU has."""

    def __init__(self, kilojoules):
        self.value = kilojoules

    def kilojoules(self):
        return self.value


@pytest.mark.parametrize(("first", "second", "total"), [(5.0, 7.25, 12.25), (None, 7.25, None), (5.0, None, None)])
def test_parts_add_up(tmp_path, first, second, total):
    row = tiny_row()
    with StopRequest() as stop:
        stopped = trainer(row, tmp_path, model=stopping(TinyNet(), 4), stop=stop)
        stopped._meter = Meter(first)
        with pytest.raises(Interrupted):
            stopped.run()
    resumed = trainer(row, tmp_path)
    resumed._meter = Meter(second)
    assert resumed.run().energy_kj == total
