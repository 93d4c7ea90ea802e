"""A training killed for real, just before any change to its files, loses at most the interval and ends the same."""

import multiprocessing
import os
import shutil
import signal
import sys

import pytest
import torch

from tests.training.fakes import identical, state, tiny_row, trainer

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def session(folder, kill_at):
    """Trains on in ``folder``, and sends itself SIGKILL before its ``kill_at``-th change there (0: never)."""
    torch.set_num_threads(1)
    seen = 0

    def count(event, arguments):
        nonlocal seen
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    run = trainer(tiny_row(), folder)
    run.run()
    (folder.parent / "changes").write_text(str(seen))
    torch.save({"started": run.history.resumed, "state": state(run)}, folder.parent / "end.pt")


def run_session(folder, kill_at=0):
    """Exit status of a session in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.fakes"])
    process = context.Process(target=session, args=(folder, kill_at))
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.slow
def test_a_kill_at_any_file_changes_no_bit(tmp_path):
    folder = tmp_path / "whole" / "seed0"
    folder.parent.mkdir()
    assert run_session(folder) == 0
    expected = torch.load(folder.parent / "end.pt")["state"]
    changes = int((folder.parent / "changes").read_text())
    assert changes > 10
    resumed = 0
    for at in range(1, changes + 1):
        folder = tmp_path / str(at) / "seed0"
        folder.parent.mkdir()
        assert run_session(folder, kill_at=at) == -signal.SIGKILL
        assert run_session(folder) == 0
        end = torch.load(folder.parent / "end.pt")
        assert identical(end["state"], expected), at
        resumed += end["started"]
        shutil.rmtree(folder.parent)
    assert resumed > 0
