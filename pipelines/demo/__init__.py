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

import cv2
import yaml
from dvc.repo import Repo

from danet.config.params import load_params, merge
from danet.config.workspace import Workspace
from danet.config.yaml import read_raw, write_raw
from danet.core.console import console, output, report_errors, result_table
from danet.core.errors import ConfigError, DanetError
from danet.core.files import atomic_write, sha256, write_json
from danet.core.text import duration, number, signed
from danet.data.prepared import PreparedDataset
from danet.results.measured import read
from pipelines import dvc_environment

REPOSITORY = Path(__file__).resolve().parents[2]
FAR = 5.0
"""Points of mIoU from the reference that no processor has been seen to differ by (up to 1.8): worth a look."""


def main() -> None:
    """Prepares the workspace if needed, runs ``dvc repro`` in it and prints the results."""
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
    # `python -m pipelines.STAGE` runs in this folder
    for name in ("dvc.yaml", "pipelines", "benchmarks/published.yaml"):
        link = folder / name
        if not link.is_symlink():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(os.path.relpath(repository / name, link.parent))
    (folder / "reports" / "metrics" / "demo").mkdir(parents=True, exist_ok=True)
    if not (folder / ".dvc").exists():
        # A workspace of its own inside Git's ignored build/: no entries in the repository's graph, lock or status.
        with Repo.init(str(folder), no_scm=True) as repo, repo.config.edit() as config:
            config["core"]["analytics"] = False
            config["cache"]["type"] = "hardlink,symlink"


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
    result = {key: params[key] for key in ("revisions", "numerics", "profiles", "bands")}
    recipe = profile["row"]["recipe"]
    result["recipes"] = {
        recipe: params["recipes"][recipe] | {"settings": {"demo": profile["settings"]}, "protocols": {}}
    }
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
    """Runs ``dvc repro`` with the archives' address as mirror, saying how far it is; returns its exit code."""
    environment = dvc_environment(without="DANET_") | {"DANET_MIRROR": address}
    environment.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{REPOSITORY / 'mlflow.db'}")
    progress = told(Workspace(folder))
    with subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=folder, env=environment) as process:
        while process.poll() is None:
            next(progress)
            time.sleep(1)
    return process.returncode


def told(workspace: Workspace) -> Iterator[None]:
    """At each step says which rows were finished since the last one, and how long the others may take."""
    rows = workspace.params().rows.values()
    # DVC trains all rows, then evaluates them; a training takes about as long as four evaluations
    weights = {"train.json": 4, "evaluation.json": 1}
    before = {path: _changed(path) for name in weights for row in rows if (path := workspace.metrics(row) / name)}
    # what an interrupted demo has finished is not done again
    todo = {path: weights[path.name] for path, changed in before.items() if changed is None}
    todo = todo or {path: weights[path.name] for path in before}
    total, began = sum(todo.values()), time.monotonic()
    while True:
        for path in [each for each in todo if _changed(each) != before[each]]:
            del todo[path]
            row = len(rows) - sum(each.name == path.name for each in todo)
            what = "trained" if path.name == "train.json" else "evaluated"
            rest = sum(todo.values())
            left = duration((time.monotonic() - began) / (total - rest) * rest)
            console.print(f"[bold]demo:[/] row {row} of {len(rows)} {what}, {left} left")
        yield


def _changed(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def show(folder: Path, seconds: float) -> None:
    """Prints the rows' results, and what to look at next."""
    workspace = Workspace(folder)
    params = workspace.params()
    reference = yaml.safe_load((REPOSITORY / "pipelines/demo/profile.yaml").read_text(encoding="utf-8"))["reference"]
    out = output()
    table = result_table("row", "mIoU", "reference", "apart", "best constant", left=["row"])
    apart = []
    for row in params.rows.values():
        found = read(row, params, workspace)
        miou = found.mean("miou")
        if miou is None:
            raise DanetError(f"{row.name}: its metrics files are not those of today's settings; run the demo again")
        expected = reference[row.dataset][row.model.backbone][row.model.output_stride]
        apart.append(abs(miou - expected))
        gap = signed(miou - expected)
        table.add_row(row.name, number(miou), number(expected), gap, number(found.baseline[0]))
    out.print(table)
    out.print(
        "[dim]Reference: another processor. Each adds up in another order, so up to 1.8 points apart have been seen "
        "and are no fault. These numbers say nothing about DANet: generated scenes, a schedule of seconds.[/]"
    )
    if max(apart) > FAR:
        out.print(f"[yellow]note[/]: a row is {max(apart):.1f} points apart, more than {FAR:g}; look at its page")
    here = Path.cwd()

    def shown(path: Path) -> str:
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

    example = next(iter(params.rows.values()))
    picture = folder / "example.png"
    image = PreparedDataset(workspace.prepared(example.dataset), example.val_split).image(0)
    with atomic_write(picture) as temporary:
        temporary.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    out.print(f"\nDone in {int(seconds // 60)} min {int(seconds % 60)} s. What to look at:", highlight=False)
    for title, text in (
        ("tables, figures", f"{shown(folder / 'reports' / 'demo.md')}, {shown(folder / 'reports' / 'demo')}/"),
        ("pictures", f"{shown(folder / 'evaluations')}/ROW/"),
        ("weights", f"{shown(folder / 'models')}/ROW/"),
        ("runs in MLflow", ".venv/bin/danet open"),
        ("a prediction", f".venv/bin/danet predict {shown(picture)} -C {shown(folder)} --row {example.name} "
         f"--force --out {shown(folder / 'predictions')}"),
        ("a run's numbers", f".venv/bin/danet show -C {shown(folder)} {example.name}"),
    ):  # fmt: skip
        out.print(f"  {title:<16} {text}", soft_wrap=True, markup=False)
