"""Several processes of one row: a stage that is asked to becomes ``torchrun`` of itself, on one node or by ``srun``.

The sweep puts the launcher into ``DANET_LAUNCH``. DVC decides whether ``python -m pipelines.train ROW`` must run at all
and starts it as ever; that process then replaces itself. As ``python -m pipelines.sweep.launch EXPECTED ARGUMENT...``
this module is the launcher of a node: it compares the node's versions with those expected, then becomes ``torchrun``.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import danet
from danet.core.console import report_errors
from danet.core.errors import ConfigError

LAUNCH = "DANET_LAUNCH"


def launched(module: str) -> None:
    """First thing in a stage: replaces this process by the launcher, if there is one and this is not its child.

    Stops reach a stage as SIGTERM or SIGINT. Its parents in a sweep ignore them, which children inherit, so they are
    set to their defaults here.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    launcher = os.environ.pop(LAUNCH, None)
    if launcher is None or "WORLD_SIZE" in os.environ:
        return
    command = [*json.loads(launcher), "-m", module, *sys.argv[1:]]
    os.execvp(command[0], command)  # noqa: S606 - arguments as they are, no shell


def launcher(processes: int, *, nodes: int = 1, head: str = "", port: int = 0, identity: str = "") -> list[str] | None:
    """The value for ``DANET_LAUNCH``; ``None`` where a row is one process.

    Args:
        processes: on each node.
        nodes: of the row; more than one are reached by ``srun``, inside a Slurm job that has them.
        head: host on which the processes meet.
        port: of the meeting on ``head``.
        identity: of the meeting, another one for each attempt.
    """
    if processes * nodes == 1:
        return None
    meeting = ["--standalone"]
    before: list[str] = []
    if nodes > 1:
        before = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
        meeting = [
            f"--nnodes={nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={head}:{port}",
            f"--rdzv-id={identity}",
        ]
    node = [sys.executable, "-m", "pipelines.sweep.launch", json.dumps(versions())]
    # a stop is sent to every process of a job: the agent must not send the trainers a second one, which acts at once
    return [*before, *node, *meeting, f"--nproc-per-node={processes}", "--signals-to-handle=SIGHUP"]


def versions() -> dict[str, str]:
    """What must be the same wherever a row is computed: PyTorch, and the library's source (12 digits of its hash).

    The source and not the commit: it shows changes that are not committed, and no commit that leaves it alone.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(danet.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return {"torch": metadata.version("torch"), "code": digest.hexdigest()[:12]}


def check_versions(expected: Mapping[str, str], where: str) -> None:
    """Refuses a node that has other code or another PyTorch than the one that the row started on.

    Args:
        expected: of :func:`versions` those that must agree.
        where: these versions were seen, for the message.

    Raises:
        ConfigError: naming the node and both versions.
    """
    here = versions()
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    for name, value in expected.items():
        if here[name] != value:
            remedy = "install the versions of constraints.txt on it" if name == "torch" else "check out the same commit"
            raise ConfigError(
                f"node {node}: {name} {here[name]}, but {value} {where}: processes of one row must compute alike; "
                f"{remedy} or leave the node out (sbatch's --exclude)"
            )


def main(arguments: Sequence[str]) -> None:
    """Becomes ``torchrun`` on this node."""
    check_versions(json.loads(arguments[0]), "on the node that started the row")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *arguments[1:]])  # noqa: S606


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
