"""Starts functions in several processes that find each other as torchrun's do."""

import contextlib
import multiprocessing
import os
import pickle
import socket
import tempfile
from pathlib import Path

import torch
import torch.multiprocessing as mp

from danet.core.errors import DanetError


def free_ports(count):
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def launch(world, function, *arguments):
    """What a function of a module returns in each of ``world`` processes, by rank; a DanetError as such."""
    (port,) = free_ports(1)
    # torch is imported and the parameters are read once: all are forked from a process that has done nothing else
    multiprocessing.set_forkserver_preload(["torch", "danet.training.train", "tests.parameters"])
    with tempfile.TemporaryDirectory() as folder:
        call = (world, port, folder, function, arguments)
        mp.start_processes(_run, args=call, nprocs=world, start_method="forkserver")
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world)]


def _run(rank, world, port, folder, function, arguments):
    torch.set_num_threads(1)
    names = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}
    try:
        result = function(*arguments)
    except DanetError as error:
        result = type(error)(str(error))
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(result))
