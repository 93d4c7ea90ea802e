"""``reports/reliability.md``, with the rounds as CSV and everything as JSON beside it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.kinds import BETWEEN, KINDS
from benchmarks.faults.rounds import Round
from benchmarks.faults.session import INTERVAL, ITERATIONS
from danet.core import provenance
from danet.core.files import write_json, write_text

GROUPS = {
    "kill": "killed",
    "stop": "told to stop",
    "corrupt": "files damaged",
    "fill": "disk full or gone",
    "disconnect": "MLflow disconnected",
    "compute": "memory or a loader lost",
}


def write(path: Path, rounds: Sequence[Round], seed: int, seconds: float) -> None:
    """Writes the page at ``path``, and ``.csv`` (a line a round) and ``.json`` beside it."""
    facts = provenance.collect()
    faults = sum((entry.faults for entry in rounds), Counter[str]())
    lost = sum(bool(entry.differences) for entry in rounds)
    record: dict[str, Any] = {
        "format": 1,
        "seed": seed,
        "rounds": len(rounds),
        "faults": dict(sorted(faults.items())),
        "faults_total": faults.total(),
        "results_lost": lost,
        "complaints": [f"round {entry.number}: {text}" for entry in rounds for text in entry.complaints],
        "differences": [f"round {entry.number}: {text}" for entry in rounds for text in entry.differences],
        "sessions": sum(entry.sessions for entry in rounds),
        "iterations_repeated": sum(entry.repeated for entry in rounds),
        "seconds": round(seconds, 1),
        "provenance": facts,
    }
    write_json(path.with_suffix(".json"), record)
    write_text(path.with_suffix(".csv"), _lines(rounds))
    write_text(path, page(record, rounds))


def _lines(rounds: Sequence[Round]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["round", "variant", "faults", "sessions", "workers", "iterations_repeated", "lost", "seconds"])
    for entry in rounds:
        names = "; ".join(f"{name} x{count}" if count > 1 else name for name, count in entry.faults.items())
        workers = " ".join(map(str, entry.workers))
        writer.writerow(
            [entry.number, entry.variant, names, entry.sessions, workers, entry.repeated, len(entry.differences),
             f"{entry.seconds:.1f}"]
        )  # fmt: skip
    return text.getvalue()


def page(record: dict[str, Any], rounds: Sequence[Round]) -> str:
    """The page as markdown."""
    facts, faults = record["provenance"], record["faults"]
    commit = facts["commit"] if facts["commit"] == "unknown" else f"`{facts['commit'][:10]}`"
    commit += " with uncommitted changes" if facts["dirty"] else ""
    trouble = [*record["differences"], *record["complaints"]]
    parts = [
        "<!-- Made by `python -m benchmarks.faults`; do not edit. -->",
        "# Reliability under faults",
        f"**{record['faults_total']} faults in {record['rounds']} trainings: {record['results_lost']} results lost, "
        f"{len(record['complaints'])} complaints about a single session.**",
        f"Each training is {ITERATIONS} iterations with a checkpoint every {INTERVAL}, a validation every 10 and "
        "MLflow, by the project's own loop, data, checkpoints and tracking; only the network is narrow. It suffers six "
        "or more faults at random points and is started again after each, with 0, 1 or 4 loader processes as it comes. "
        "At the end `danet sync` runs, and weights, statistics of the batch normalisation, momentum, curve, training "
        "metrics and every step of every metric in MLflow are compared with those of a training that was left alone, "
        "to the bit (measured times: only their steps). A result is lost if anything differs, is missing, is there "
        "twice or is left over. A complaint is a wrong exit status, a traceback, a missing message, a torn file, more "
        f"iterations lost than the interval of {INTERVAL} (none, where the training was told to stop), or a loader "
        "process that outlives its trainer.",
        "## Faults",
        _faults(faults),
        f"{record['sessions']} sessions; {record['iterations_repeated']} iterations were done again, of "
        f"{record['rounds'] * ITERATIONS}. Variants: "
        + ", ".join(f"{n} {v}" for v, n in sorted(Counter(entry.variant for entry in rounds).items()))
        + ".",
        "## What went wrong",
        "\n".join(f"- {text}" for text in trouble) if trouble else "Nothing.",
        "## What is said",
        "An example of each message; paths are relative to the workspace.",
        _messages(rounds),
        "## Not covered here",
        "A full `/dev/shm`: with loaders the limit on file sizes is set after they have begun, so that it stands for a "
        "full disk only; `tests/data/test_loader.py` has the other.\n\n"
        "GPUs; several processes; power loss (files and folders are flushed before and after each rename, but no power "
        "was cut); a `dvc` that is killed (`tests/pipelines/test_orphans.py` kills a real one).",
        "## Provenance",
        f"Commit {commit}, {facts['date']}, seed {record['seed']}, {record['seconds']:.0f} s. PyTorch "
        f"{facts['torch']}, Python {facts['python']}, {facts['cpu']} ({facts['cpu_cores']} cores), {facts['os']}. "
        f"Again: `python -m benchmarks.faults --rounds {record['rounds']} --seed {record['seed']}` (`make faults`).",
    ]
    return "\n\n".join(parts) + "\n"


def _faults(faults: dict[str, int]) -> str:
    rows = ["| fault | where | times |", "|---|---|---:|"]
    listed = [(name, kind.group, kind.text) for name, kind in KINDS.items()]
    listed += [(name, "corrupt", text) for name, (text, _) in BETWEEN.items()]
    for group, title in GROUPS.items():
        mine = [(name, text) for name, of, text in listed if of == group]
        rows.append(f"| **{title}** | | **{sum(faults.get(name, 0) for name, _ in mine)}** |")
        rows += [f"| {name} | {text} | {faults.get(name, 0)} |" for name, text in mine]
    return "\n".join(rows)


def _messages(rounds: Sequence[Round]) -> str:
    examples: dict[str, str] = {}
    for entry in rounds:
        for name, text in entry.messages.items():
            if text:
                examples.setdefault(name, text)
    return "\n".join(f"- {name}: `{text}`" for name, text in sorted(examples.items()))
