"""Nothing grows with the length of a run: memory, files that are open, processes, threads."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import gc, json, pathlib, sys, threading
import psutil, torch
torch.set_num_threads(1)
from danet.evaluation.one_pass import evaluate_model
from tests.training.fakes import Images, tiny_row, trainer

iterations, workers, every = map(int, sys.argv[2:5])
row = tiny_row(
    iterations=iterations, val_interval=every, test={"resize": "none", "scale": None, "multi_scale": None},
    runtime={"workers": workers, "checkpoint_interval": every, "log_interval": every},
)
process, found = psutil.Process(), []

def validate(model):
    score = evaluate_model(model, row, Images(4), "cpu").scores.miou
    gc.collect()
    children = [child.pid for child in process.children(recursive=True)]
    found.append([process.memory_info().rss, process.num_fds(), sorted(children), threading.active_count()])
    return 100 * float(score)

trainer(row, pathlib.Path(sys.argv[1]), workers=workers, validate=validate).run()
left = [child.pid for child in process.children(recursive=True)]
print(json.dumps({"found": found, "left": left}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_grows(tmp_path, workers):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "2000", str(workers), "100"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    warm = record["found"][len(record["found"]) // 4 :]
    memory, files, children, threads = zip(*warm, strict=True)
    assert len(warm) >= 6
    # the allocator's ups and downs are below this; the smallest leak of a batch or a gradient an iteration is above
    assert memory[-1] - memory[0] < 8e6, memory
    assert len({tuple(pids) for pids in children}) == 1
    assert len(children[0]) == workers
    assert max(files) <= files[0] + 1, files
    assert max(threads) <= threads[0], threads
    assert record["left"] == []
