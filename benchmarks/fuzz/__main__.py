"""The command; see the package's docstring."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.fuzz.targets import TARGETS
from danet.files import write_json, write_text
from danet.provenance import collect

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / "build" / "fuzz-env"
OUTPUT = ROOT / "build" / "fuzz"
RESULTS = OUTPUT / "results.json"
REPORT = ROOT / "reports" / "fuzz.md"
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
AT_LEAST = 20_000
RESTARTS = 5
HARD = ("crash-", "timeout-", "oom-", "leak-")
"""Beginnings of the names of libFuzzer's artifacts: the process did not survive."""


def prepare_environment() -> Path:
    """Makes ``build/fuzz-env`` unless it is there with these requirements; returns its Python."""
    requirements = HERE / "requirements.txt"
    host = sysconfig.get_path("purelib")
    digest = hashlib.sha256(requirements.read_bytes() + host.encode() + sys.version.encode()).hexdigest()
    python, mark = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "requirements.sha256"
    if python.exists() and mark.exists() and mark.read_text() == digest:
        return python
    print(f"fuzz: making {ENVIRONMENT.relative_to(ROOT)}", flush=True)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", requirements], check=True)
    purelib = sysconfig.get_path("purelib", vars={"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)})
    (Path(purelib) / "host.pth").write_text(f"{host}\n")  # torch and the others, which need not be installed twice
    mark.write_text(digest)
    return python


def commit() -> str:
    """The commit, and whether what is fuzzed differs from it."""
    facts = collect()
    paths = ["danet/data", "danet/weights", "danet/rows.py", "danet/plain_yaml.py", "benchmarks/fuzz"]
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *paths], cwd=ROOT, check=False).returncode
    return str(facts["commit"])[:12] + (" and uncommitted changes" if changed else "")


def fuzz(name: str, cases: int, python: Path, deadline: float, before: dict[str, Any] | None) -> dict[str, Any]:
    """Runs one target until it has had its cases or the time is up, starting again after a crash of the process.

    ``before`` is what an earlier call returned, to go on from there.
    """
    folder = OUTPUT / name
    if before is None:
        shutil.rmtree(folder, ignore_errors=True)
        before = {"cases": 0, "refused": 0, "seconds": 0.0, "growth_mb": 0}
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done, refused, growth = before["cases"], before["refused"], before["growth_mb"]
    start = time.monotonic()
    for _ in range(RESTARTS + 1):
        seconds = int(deadline - time.monotonic())
        if done >= cases or seconds < 5:
            break
        (folder / "stats.json").unlink(missing_ok=True)
        command: list[str | Path] = [python, "-m", "benchmarks.fuzz.worker", name, str(cases - done), folder]
        with (folder / "log.txt").open("ab") as log:
            limit = f"-max_total_time={seconds}"
            subprocess.run([*command, limit], cwd=ROOT, env=environment, check=False, stdout=log, stderr=log)
        try:
            stats = json.loads((folder / "stats.json").read_text())
        except FileNotFoundError:
            break
        done, refused = done + stats["cases"], refused + stats["refused"]
        growth = max(growth, stats["peak_mb"] - stats["start_mb"])
    found = folder / "findings"
    findings = [path.read_text().partition("\n")[0] for path in sorted(found.glob("*.txt"))]
    findings += [path.name.partition("-")[0] for path in sorted(found.glob("*-*")) if path.name.startswith(HARD)]
    spent = round(before["seconds"] + time.monotonic() - start, 1)
    print(f"fuzz: {name}: {done:,} of {cases:,} cases in {spent:.0f} s, {len(findings)} findings", flush=True)
    return {
        "cases": done,
        "wanted": cases,
        "refused": refused,
        "inputs_kept": len(list((folder / "corpus").glob("*"))),
        "seconds": spent,
        "growth_mb": growth,
        "findings": findings,
        "commit": commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def report(results: dict[str, dict[str, Any]], facts: dict[str, Any]) -> str:
    """The Markdown page."""
    total = sum(result["cases"] for result in results.values())
    found = sum(len(result["findings"]) for result in results.values())
    commits = sorted({result["commit"] for result in results.values()})
    lines = [
        "# Fuzzing of the readers",
        "",
        "Written by `make fuzz` (`python -m benchmarks.fuzz`); do not edit.",
        "",
        f"**{total:,} cases over {len(results)} readers: {found or 'no'} finding{'' if found == 1 else 's'}.**",
        "A finding is any exception but our own errors, a file or folder outside the reader's own, a process or",
        "connection that is started, more than 20 seconds for a case, or a process that grows by more than 1 GB.",
        "",
        "| | |",
        "|-|-|",
        *(f"| {key} | {value} |" for key, value in (("commit", ", ".join(commits)), *facts.items())),
        "",
        "| reader | | cases | refused | inputs kept | time | growth | findings |",
        "|-|-|-:|-:|-:|-:|-:|-|",
    ]
    for name in (name for name in TARGETS if name in results):
        result = results[name]
        lines.append(
            f"| {name} | {TARGETS[name].what} | {result['cases']:,} | {result['refused']:,} "
            f"| {result['inputs_kept']:,} | {result['seconds']:.0f} s | {result['growth_mb']} MB "
            f"| {'; '.join(result['findings']) or 'none'} |"
        )
    replayed = sorted(path for path in CORPUS.glob("*/*") if path.is_file())
    lines += [
        "",
        "*Refused* counts the cases that ended with one of our errors; `metrics` and `store` note what they leave out",
        "instead of raising. *Inputs kept* reached code that no earlier input had. *Growth* is the largest resident",
        "size of the process less that at its start.",
        "",
        "## What once failed",
        "",
        f"{len(replayed)} inputs that crashed a reader, or that it took without a word, before it was mended: found by",
        "the fuzzer or by reading the code. `tests/fuzz` replays them with every run of the tests.",
        "",
        *(f"- `{path.relative_to(CORPUS)}`" for path in replayed),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the targets; 0 if nothing was found and all have had their cases."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description="Fuzz every reader of foreign files."
    )
    parser.add_argument("--cases", type=int, default=1_000_000, help="over all targets (default 1,000,000)")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), help="these only; the others' results stay")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop then, whatever is done (default 60)")
    parser.add_argument("--resume", action="store_true", help="go on with what an earlier run left undone")
    arguments = parser.parse_args()
    python = prepare_environment()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    if RESULTS.exists() and (arguments.targets or arguments.resume):
        results = json.loads(RESULTS.read_text())
    least = AT_LEAST if arguments.cases >= 1_000_000 else 1
    deadline = time.monotonic() + 60 * arguments.minutes
    with ThreadPoolExecutor(arguments.jobs) as pool:
        started = {}
        for name in arguments.targets or TARGETS:
            before = results.get(name) if arguments.resume else None
            cases = max(round(arguments.cases * TARGETS[name].share), least)
            if before is None or before["cases"] < cases:
                started[pool.submit(fuzz, name, cases, python, deadline, before)] = name
        for future in as_completed(started):
            results[started[future]] = future.result()
            write_json(RESULTS, results)
    results = {name: results[name] for name in TARGETS if name in results}
    atheris = (HERE / "requirements.txt").read_text().strip().replace("==", " ")
    facts = collect()
    told = {
        "date": ", ".join(sorted({result["date"] for result in results.values()})[:: max(1, len(results) - 1)]),
        "versions": f"Python {platform.python_version()}, torch {facts['torch']}, {atheris}",
        "processor": facts["cpu"],
    }
    write_json(REPORT.with_suffix(".json"), {"format": 1, **told, "targets": results})
    write_text(REPORT, report(results, told))
    total, found = sum(r["cases"] for r in results.values()), sum(len(r["findings"]) for r in results.values())
    short = [name for name in TARGETS if name not in results or results[name]["cases"] < results[name]["wanted"]]
    print(f"fuzz: {total:,} cases, {found} findings; {REPORT.relative_to(ROOT)}")
    if short:
        print(f"fuzz: not run to the end: {', '.join(short)}", file=sys.stderr)
    return 1 if found or short else 0


if __name__ == "__main__":
    raise SystemExit(main())
