"""The demo: every stage of ``dvc.yaml`` on generated data, in minutes on a laptop.

It makes a DVC workspace of its own in ``build/demo`` with the repository's ``dvc.yaml`` and parameters merged from
the repository's and ``pipelines/demo/profile.yaml``. The generated archives have the official names and layouts and are
served by a local web server, so that they pass through the code that fetches, verifies, unpacks and converts the
official ones. Its tables stay in that folder; its MLflow runs go to the repository's
store, in an experiment of their own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from danet.config.params import load_params, merge
from danet.config.yaml import read_raw, write_raw
from danet.core.console import console, report_errors
from danet.core.errors import ConfigError, DanetError
from danet.core.files import sha256, write_json
from pipelines import dvc_environment

REPOSITORY = Path(__file__).resolve().parents[2]


def main() -> None:
    """Prepares the workspace if needed, runs ``dvc repro`` in it and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo", description="Every stage on generated data.")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="train every row with the seeds 0 to N-1")
    parser.add_argument("--dataset", action="append", metavar="NAME", help="only the rows of this dataset (repeatable)")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be positive")
    # other rows or seeds have a workspace of their own, so that the demo's own stays up to date
    parts = sorted(options.dataset or []) + ([f"{options.seeds}-seeds"] if options.seeds > 1 else [])
    folder = REPOSITORY / "build" / "-".join(["demo", *parts])
    started = time.monotonic()
    with report_errors():
        prepare(REPOSITORY, folder, seeds=options.seeds, datasets=options.dataset)
        with serve(folder / "archives") as address:
            code = repro(folder, address)
        if code:
            raise DanetError(
                f"the demo's `dvc repro` in {folder} ended with exit code {code}; the lines above say where"
            )
        show(folder, time.monotonic() - started)


def prepare(repository: Path, folder: Path, *, seeds: int = 1, datasets: Sequence[str] | None = None) -> None:
    """Archives, parameters and DVC workspace; does nothing that is already done.

    Args:
        repository: whose parameters, ``pipelines/demo/profile.yaml`` and ``dvc.yaml`` are used.
        folder: of the workspace.
        seeds: of every row.
        datasets: whose rows; by default all.

    Raises:
        ConfigError: for a dataset that the demo does not have.
    """
    archives = folder / "archives"
    made = archives / "made.json"
    profile_file = repository / "pipelines" / "demo" / "profile.yaml"
    profile = yaml.safe_load(profile_file.read_text(encoding="utf-8"))
    unknown = sorted(set(datasets or ()) - set(profile["train_split"]))
    if unknown:
        raise ConfigError(f"the demo has no dataset {unknown[0]!r}; it has: {', '.join(profile['train_split'])}")
    profile["row"]["seeds"] = list(range(seeds))
    profile["table"]["demo"]["command"] = _command(seeds, datasets)
    profile["train_split"] = {k: v for k, v in profile["train_split"].items() if not datasets or k in datasets}
    generators = ("pipelines/demo/scenes.py", "pipelines/demo/backbones.py")
    stamp = " ".join(sha256(repository / file) for file in generators)
    facts = yaml.safe_load(made.read_text(encoding="utf-8")) if made.exists() else {}
    if facts.get("stamp") != stamp:
        console.print("[bold]demo:[/] generating scenes, packed as the official archives")
        shutil.rmtree(archives, ignore_errors=True)
        facts = {"stamp": stamp, **make_archives(archives)}
        write_json(made, facts)
    params = merge_profile(read_raw(repository / "params.yaml"), profile, facts)
    write_raw(params, folder, note="Written by `make demo` from the parameters and pipelines/demo/profile.yaml.")
    load_params(folder / "params.yaml")
    for name in (
        "dvc.yaml",
        "pipelines",
        "benchmarks/published.yaml",
    ):  # `python -m pipelines.STAGE` runs in this folder
        link = folder / name
        if not link.is_symlink():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(os.path.relpath(repository / name, link.parent))
    (folder / "reports" / "metrics" / "demo").mkdir(parents=True, exist_ok=True)
    if not (folder / ".dvc").exists():
        # A workspace of its own inside Git's ignored build/: no entries in the repository's graph, lock or status.
        dvc(folder, "init", "--quiet", "--no-scm")
        dvc(folder, "config", "core.analytics", "false")
        dvc(folder, "config", "cache.type", "hardlink,symlink")


def _command(seeds: int, datasets: Sequence[str] | None) -> str:
    """What the user typed, for the pages of the rows."""
    options = [f"--seeds {seeds}"] if seeds > 1 else []
    options += [f"--dataset {name}" for name in datasets or ()]
    return " ".join([".venv/bin/python -m pipelines.demo", *options]) if options else "make demo"


def make_archives(folder: Path) -> dict[str, Any]:
    """Generated data sets and random backbones in the official files' layouts; returns names, checksums and counts."""
    from pipelines.demo import backbones, scenes

    folder.mkdir(parents=True, exist_ok=True)
    return {"datasets": scenes.make_archives(folder), "weights": backbones.make_backbones(folder)}


def merge_profile(params: dict[str, Any], profile: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The demo's parameters: the repository's with the demo's rows, table, data sets and weights."""
    rows: dict[str, Any] = {}
    for dataset, train_split in profile["train_split"].items():
        for backbone, by_stride in profile["iterations"].items():
            for stride, iterations in by_stride.items():
                name = f"demo-{backbone.replace('resnet', 'r')}-d{stride}-{dataset}"
                rows[name] = {
                    **profile["row"],
                    "dataset": dataset,
                    "train_split": train_split,
                    "model": {"backbone": backbone, "output_stride": stride},
                    "schedule": {"iterations": iterations},
                    "weights": f"{backbone}_v1c",
                    "settings": "demo",
                }
    result = {key: params[key] for key in ("revisions", "numerics", "bands")}
    recipe = profile["row"]["recipe"]
    result["recipes"] = {recipe: params["recipes"][recipe] | {"settings": {"demo": profile["settings"]}}}
    result["runtime"] = merge(params["runtime"], profile["runtime"])
    result["datasets"] = {
        name: merge(params["datasets"][name], made)
        for name, made in facts["datasets"].items()
        if name in profile["train_split"]
    }
    result["weights"] = {name: merge(params["weights"][name], made) for name, made in facts["weights"].items()}
    result["titles"] = {name: f"{params['titles'][name]} (generated)" for name in result["datasets"]}
    result["tables"] = profile["table"]
    result["rows"] = rows
    result["submissions"] = {}  # generated scenes have no test server
    result["released"] = {}  # and nobody released weights for them
    return result


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """A web server on the loopback address for the length of the block; yields its address."""
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def repro(folder: Path, address: str) -> int:
    """Runs ``dvc repro`` with the archives' address as mirror; returns its exit code."""
    environment = dvc_environment(without="DANET_") | {"DANET_MIRROR": address}
    environment.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{REPOSITORY / 'mlflow.db'}")
    return subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=folder, env=environment, check=False).returncode


def dvc(folder: Path, *arguments: str) -> None:
    """Runs a DVC command in a folder; raises ``DanetError`` with its words if it fails."""
    result = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise DanetError(f"`dvc {' '.join(arguments)}` in {folder}: {result.stderr.strip()}")


def show(folder: Path, seconds: float) -> None:
    """Prints the table and where everything is."""
    table = folder / "reports" / "demo.md"
    sys.stdout.write(table.read_text(encoding="utf-8").split("\n## ")[0].rstrip() + "\n\n")
    here = Path.cwd()

    def shown(path: Path) -> str:
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

    sys.stdout.write(
        f"Done in {int(seconds // 60)} min {int(seconds % 60)} s. Where things are:\n"
        f"  tables and figures     {shown(table)}, {shown(folder / 'reports' / 'demo')}/\n"
        f"  overlays, confusion    {shown(folder / 'evaluations')}/ROW/\n"
        f"  trained weights        {shown(folder / 'models')}/ROW/\n"
        "  runs in MLflow         `.venv/bin/danet open` here\n"
        f"  the pipeline           cd {shown(folder)} && dvc dag\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
