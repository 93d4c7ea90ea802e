"""Injects faults into trainings and compares what they leave with undisturbed ones.

.venv/bin/python -m benchmarks.faults --rounds 36 --seed 0      # 216 faults; writes reports/reliability.md
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

# Before PyTorch starts threads, of which none may live when a session is forked; nor is there anything to gain by them.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", MLFLOW_DISABLE_TELEMETRY="true")
os.environ.pop("MLFLOW_TRACKING_URI", None)

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - imported once for all forks
import torch
import torch._inductor  # the deterministic mode imports it

from benchmarks.faults import report, rounds, session


def main() -> None:
    """Command line; exit status 1 if anything was lost or went wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=36, help=f"trainings, of {rounds.FAULTS} faults each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("reports/reliability.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    session.adopt_orphans()
    began, done = time.monotonic(), list[rounds.Round]()
    with tempfile.TemporaryDirectory(prefix="danet-faults-") as name:
        folder = Path(name)
        session.make_template(folder)
        numbers = range(arguments.rounds)
        wanted = {rounds.VARIANTS[number % len(rounds.VARIANTS)] for number in numbers}
        references = {kind: rounds.reference(folder, folder / f"reference-{kind}", kind) for kind in sorted(wanted)}
        for number in numbers:
            expected = references[rounds.VARIANTS[number % len(rounds.VARIANTS)]]
            entry = rounds.run_round(number, arguments.seed, folder, folder / f"round-{number}", expected)
            done.append(entry)
            _show(entry)
    report.write(arguments.out, done, arguments.seed, time.monotonic() - began)
    faults, lost = sum(entry.faults.total() for entry in done), sum(bool(entry.differences) for entry in done)
    complaints = sum(len(entry.complaints) for entry in done)
    print(f"{arguments.out}: {faults} faults in {len(done)} trainings, {lost} results lost, {complaints} complaints")
    sys.exit(1 if lost or complaints else 0)


def _show(entry: rounds.Round) -> None:
    trouble = "; ".join([*entry.differences, *entry.complaints])
    names = ", ".join(entry.faults.elements())
    print(
        f"round {entry.number} ({entry.variant}, {entry.seconds:.0f} s): {names}: {trouble or 'nothing lost'}",
        flush=True,
    )


if __name__ == "__main__":
    main()
