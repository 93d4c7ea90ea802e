"""How much memory a command and everything that it starts need at most, all processes together.

    python -m benchmarks.memory make demo

Sums the processes' proportional set sizes (what they share is counted once) every half second; needs Linux.
"""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

INTERVAL = 0.5
"""Seconds between two looks; a process that lives shorter than this can be missed."""


def main() -> None:
    """Runs the command, then prints the peak and who held it; exits as the command did."""
    command = sys.argv[1:]
    if not command or command[0].startswith("-"):
        raise SystemExit(f"usage: python -m benchmarks.memory COMMAND ...\n\n{(__doc__ or '').strip()}")
    peak, holders, looks = 0, "", 0
    child = subprocess.Popen(command)
    try:
        while child.poll() is None:
            held = tree_memory(child.pid)
            looks += 1
            if sum(held.values()) > peak:
                peak = sum(held.values())
                holders = ", ".join(f"{name} {bytes_ / 1e9:.2f}" for name, bytes_ in held.items() if bytes_ >= 5e7)
            time.sleep(INTERVAL)
    except KeyboardInterrupt:
        child.wait()
    sys.stdout.write(f"peak memory of `{' '.join(command)}`: {peak / 1e9:.2f} GB in {looks} looks ({holders})\n")
    sys.exit(child.returncode)


def tree_memory(pid: int) -> dict[str, int]:
    """Bytes that a process and its descendants hold now, by command line (of equal ones the sum)."""
    found: dict[str, int] = {}
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for process in processes:
        try:
            name = " ".join(process.cmdline()[1:4]) or process.name()
            found[name] = found.get(name, 0) + process.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return found


if __name__ == "__main__":
    main()
