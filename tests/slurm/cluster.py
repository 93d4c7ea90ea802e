"""A Slurm cluster of two nodes, emulated on this machine: real slurmctld and slurmd, state in a temporary folder.

Needs Debian's ``slurm-wlm`` (with munge) and root; no cgroups, no systemd, no database.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.launching import free_ports

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "munge", "munged")
NODES = ("node1", "node2")


class Cluster:
    """Started by :meth:`start`; ``environment`` makes Slurm's commands talk to it."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._began = time.monotonic()

    def say(self, text):
        """A line of the log that the test prints."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    def start(self):
        """Starts munge if need be, the controller and both nodes; skips the test where that cannot work."""
        search = self.environment["PATH"]
        missing = [name for name in PROGRAMS if shutil.which(name, path=search) is None]
        if missing:
            pytest.skip(f"{missing[0]} is missing: apt-get install slurm-wlm")
        if os.geteuid() != 0:
            pytest.skip("slurmd without a service manager needs root")
        self._munge()
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(self._configuration())
        self.run("slurmctld", "-c")
        for node in NODES:
            self.run("slurmd", "-N", node)
        self.wait("both nodes idle", lambda: self.run("sinfo", "-hN", "-o%T").split() == ["idle", "idle"], 30)

    def stop(self):
        """Ends all jobs and daemons."""
        self.run("scancel", "--user=root", check=False)
        time.sleep(2)
        for name in ("ctld", *NODES):
            self._signal(name, signal.SIGTERM)
        for process in self._processes():
            with suppress(psutil.Error):
                process.kill()

    def run(self, *command, check=True, folder=None):
        """Output of a command."""
        result = subprocess.run(
            command, env=self.environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
        if check and result.returncode:
            raise AssertionError(f"{' '.join(command)}: {result.returncode}\n{result.stdout}{result.stderr}")
        return result.stdout

    def wait(self, what, ready, seconds):
        """Until something is so."""
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                queue = self.run("squeue", "--array", check=False)
                raise AssertionError(f"no {what} after {seconds} s\n{queue}\n{self.tail()}")
            time.sleep(0.5)

    def queue(self):
        """State and node of the tasks that are not over, by ``ARRAY_INDEX``."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%F_%K|%T %N").splitlines()
        return dict(line.split("|") for line in lines)

    def take_away(self, node):
        """A node dies: its daemon and all processes of its jobs are killed, and the controller hears of it."""
        self._signal(node, signal.SIGKILL)
        job = self._processes(node)
        for process in [*_daemons_of(job), *job]:
            with suppress(psutil.Error):
                process.kill()
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=taken_away")

    def bring_back(self, node):
        """The node is there again."""
        self.run("slurmd", "-N", node)
        time.sleep(1)
        self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self.wait(f"idle {node}", lambda: "idle" in self.run("sinfo", "-hN", f"-n{node}", "-o%T"), 30)

    def tail(self):
        """The ends of the daemons' logs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]) for log in logs)

    def _processes(self, node=None):
        """What the jobs on a node, or on all, have started."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment = process.environ()
                here = environment.get("SLURMD_NODENAME") in ([node] if node else NODES)
                if here and environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    found.append(process)
        return found

    def _signal(self, name, number):
        with suppress(OSError, ValueError):
            os.kill(int((self.folder / f"{name}.pid").read_text()), number)

    def _munge(self):
        if subprocess.run(["munge", "--no-input"], capture_output=True, check=False).returncode == 0:
            return
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "/usr/sbin/munged"], capture_output=True, check=False)
        time.sleep(1)
        if subprocess.run(["munge", "--no-input"], capture_output=True, check=False).returncode:
            pytest.skip("munge does not run and cannot be started")

    def _configuration(self):
        host, folder = socket.gethostname(), self.folder
        ports = free_ports(3)
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        return f"""
ClusterName=danet
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=30
{nodes}
PartitionName=cpu Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""


def _daemons_of(processes):
    """The slurmstepd above some processes, which would tell the controller how they ended."""
    found = []
    for process in processes:
        with suppress(psutil.Error):
            parent = process.parent()
            if parent is not None and parent.name().startswith("slurmstepd"):
                found.append(parent)
    return found
