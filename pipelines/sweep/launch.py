"""Several processes of one row: a stage that is asked to becomes ``torchrun`` of itself.

DVC decides whether ``python -m pipelines.train ROW`` must run at all and starts it as ever; the number of processes
comes in the environment.
"""

from __future__ import annotations

import os
import signal
import sys

PROCESSES = "DANET_PROCESSES"
"""Environment variable: how many, one for each GPU of the row."""
SAVE_SECONDS = 600
"""How long torchrun waits for its trainers to save, after it has passed a stop on."""


def launched(module: str) -> None:
    """First thing in a stage: becomes ``torchrun`` of ``module`` if it was asked for several processes.

    A row's job ignores SIGTERM, which children inherit, so signals are set to their defaults first. Slurm sends SIGTERM
    to every process of a job, so torchrun must not pass it on (a second one acts at once); SIGINT it does pass on.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    processes = int(os.environ.get(PROCESSES, "1"))
    if processes == 1 or "WORLD_SIZE" in os.environ:  # the second: this is one of torchrun's already
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    options = ["--standalone", f"--nproc-per-node={processes}"]
    options += ["--signals-to-handle=SIGINT", f"--shutdown-timeout={SAVE_SECONDS}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", module, *sys.argv[1:]]
    os.execv(sys.executable, command)  # noqa: S606 - arguments as they are, no shell
