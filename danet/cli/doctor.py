"""``danet doctor``: what is here, which rows can run now, and what to do about the others."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from rich.console import Console
from rich.markup import escape

from danet.acquire.sources import Wanted, by_hand, folder_variable, sources, unpacked_folder
from danet.config.params import Dataset, Params, Weights
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.console import output, result_table
from danet.core.errors import ConfigError
from danet.core.provenance import cpu_cores
from danet.core.text import duration
from danet.data.raw import taken, wanted_of
from danet.data.registry import ADAPTERS
from danet.weights.fetch import imagenet_wanted

PACKAGES = ("torch", "torchvision", "mlflow", "dvc", "opencv-python-headless", "numpy", "pandas")

PIXELS = {"cityscapes": 1024 * 2048, "camvid": 360 * 480}
"""Of an image, where all have one size."""


def disk_gb(spec: Dataset) -> dict[str, float]:
    """What a dataset takes on disk: archives, prepared form, and in all while it is converted.

    Raw storage holds three bytes a pixel of an image and one of its mask (the test split has none).
    """
    adapter = ADAPTERS[spec.adapter]
    prepared = adapter.used_gb
    if spec.storage == "raw" and spec.adapter in PIXELS:
        images = sum(spec.counts.values())
        masks = images - (spec.counts.get("test", 0) if spec.adapter == "cityscapes" else 0)
        prepared = PIXELS[spec.adapter] * (3 * images + masks) / 1e9
    return {
        "archives": adapter.archives_gb,
        "prepared": prepared,
        "needed": adapter.archives_gb + adapter.used_gb + prepared,
    }


def examine(workspace: Workspace) -> Iterator[tuple[str, Any]]:
    """The sections of ``danet doctor``, JSON-able, each as soon as it is known.

    Raises:
        ConfigError: if ``params.yaml`` is missing or invalid; nothing can be said about rows then.
    """
    params = workspace.params()
    packages = {name: _version(name) for name in PACKAGES}
    yield "software", {"python": platform.python_version(), "python_ok": sys.version_info >= (3, 11), **packages}
    yield (
        "machine",
        {
            "cpu_cores": cpu_cores(),
            "memory_gb": _memory_gb(),
            "disk_free_gb": round(shutil.disk_usage(workspace.root.resolve()).free / 1e9, 1),
            "link": _link(workspace),
            "mlflow": os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db in the workspace"),
        },
    )
    yield "device", _device()
    datasets = {name: dataset_state(name, spec, workspace) for name, spec in params.datasets.items()}
    yield "datasets", datasets
    yield "weights", {name: _weights(name, spec, workspace) for name, spec in params.weights.items()}
    yield "rows", _rows(params, datasets, workspace)


def _link(workspace: Workspace) -> str | None:
    try:
        workspace.refuse_links()
    except ConfigError as error:
        return str(error)
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory_gb() -> float:
    import psutil

    return round(psutil.virtual_memory().total / 1e9, 1)


def _device() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {
            "kind": "cpu",
            "gpus": [],
            "note": "no GPU: the demo and the -short rows run; full rows would take months",
        }
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append({"name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)})
    return {"kind": "cuda", "gpus": gpus, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]


def dataset_state(name: str, spec: Dataset, workspace: Workspace) -> dict[str, Any]:
    """What is here of a dataset (``state``), or where it would come from and what to do (``how``)."""
    finding: dict[str, Any] = {"title": spec.title, "counts": spec.counts, "gb": disk_gb(spec)}
    if (workspace.prepared(name) / "dataset.json").is_file():
        return {**finding, "state": "prepared", "how": str(workspace.prepared(name))}
    tree = unpacked_folder(name)
    if taken(spec, workspace.raw(name)):
        return {**finding, "state": "downloaded", "how": f"converted by `dvc repro convert@{name}`"}
    if tree is not None:
        variable = folder_variable(name)
        if tree.is_dir():
            return {**finding, "state": "local", "how": f"{variable} names an unpacked copy"}
        return {**finding, "state": "missing", "how": f"{variable}={tree} is not a folder: correct or unset it"}
    found = {archive.file: _first(wanted_of(name, archive), workspace) for archive in spec.archives}
    states = [source["state"] for source in found.values()]
    state = next(state for state in ("missing", "downloadable", "local") if state in states)
    files = [file for file, source in found.items() if source["state"] == state]
    return {**finding, "state": state, "how": f"{', '.join(files)}: {found[files[0]]['how']}"}


def _first(wanted: Wanted, workspace: Workspace) -> dict[str, str]:
    """Where a file would come from."""
    source = next(sources(wanted, workspace.archives()), None)
    if source is None:
        return {"state": "missing", "how": by_hand(wanted, workspace.archives())}
    return {"state": "downloadable" if source.path is None else "local", "how": f"{source.kind}: {source}"}


def _weights(name: str, spec: Weights, workspace: Workspace) -> dict[str, Any]:
    if spec.file is None:
        return {"state": "ready", "how": spec.title}
    if (workspace.weights(name) / "weights.safetensors").is_file():
        return {"state": "ready", "how": str(workspace.weights(name))}

    return _first(imagenet_wanted(spec), workspace)


def _rows(params: Params, datasets: dict[str, Any], workspace: Workspace) -> list[dict[str, Any]]:
    from danet.evaluation.cost import hours_here

    hours = hours_here(workspace, params, params.rows.values())
    rows = []
    for row in params.rows.values():
        needs = None if datasets[row.dataset]["state"] != "missing" else row.dataset
        state = state_of(row, workspace)
        if state == "not run":
            state = "blocked" if needs else "can run"
        rows.append(
            {"row": row.name, "table": row.table, "state": state, "needs": needs, "hours": hours.get(row.name, {})}
        )
    return rows


def state_of(row: Row, workspace: Workspace) -> str:
    """``measured``, ``trained`` or ``not run``, from the files at hand."""
    if workspace.scores(row).is_file():
        return "measured"
    trained = all((workspace.model(row) / f"seed{seed}.safetensors").is_file() for seed in row.seeds)
    return "trained" if trained else "not run"


def print_findings(sections: Iterator[tuple[str, Any]]) -> None:
    """Prints what :func:`examine` finds, for people, as it finds it."""
    out = output()
    found: dict[str, Any] = {}
    printers: dict[str, Callable[[Console, Any, dict[str, Any]], None]] = {
        "software": _print_software,
        "machine": _print_machine,
        "device": _print_device,
        "datasets": _print_datasets,
        "weights": _print_weights,
        "rows": _print_rows,
    }
    for name, section in sections:
        found[name] = section
        printers[name](out, section, found)


def _print_software(out: Console, software: dict[str, Any], found: dict[str, Any]) -> None:
    here = [f"{name} {software[name]}" for name in ("python", *PACKAGES) if software[name]]
    out.print(f"[green]ok[/]       {', '.join(here)}")
    if not software["python_ok"]:
        out.print(f"[red]error[/]    Python {software['python']} is too old; 3.11 or newer is needed")
    if missing := [name for name in PACKAGES if not software[name]]:
        out.print(f"[red]missing[/]  {', '.join(missing)}: run `make setup`")


def _print_machine(out: Console, machine: dict[str, Any], found: dict[str, Any]) -> None:
    out.print(
        f"[green]ok[/]       {machine['cpu_cores']} CPU cores, {machine['memory_gb']} GB memory, "
        f"{machine['disk_free_gb']} GB disk free"
    )
    if machine["link"]:
        out.print(f"[red]error[/]    {escape(machine['link'])}")
    out.print(f"[green]ok[/]       MLflow: {escape(machine['mlflow'])}")


def _print_device(out: Console, device: dict[str, Any], found: dict[str, Any]) -> None:
    for gpu in device["gpus"]:
        out.print(
            f"[green]ok[/]       GPU {gpu['name']}, {gpu['memory_gb']} GB (CUDA {device['cuda']}, "
            f"cuDNN {device['cudnn']})"
        )
    if not device["gpus"]:
        out.print(f"[yellow]note[/]     {device['note']}")


def _print_datasets(out: Console, datasets: dict[str, Any], found: dict[str, Any]) -> None:
    out.print("\n[bold]Data sets[/]")
    shown = result_table("name", "state", "archives", "prepared", "to convert", left=("name", "state"))
    for name, finding in datasets.items():
        gb = finding["gb"]
        enough = finding["state"] == "prepared" or gb["needed"] <= found["machine"]["disk_free_gb"]
        needed = f"{gb['needed']:.3g} GB"
        shown.add_row(
            name,
            _coloured(finding["state"]),
            f"{gb['archives']:.3g} GB",
            f"{gb['prepared']:.3g} GB",
            needed if enough else f"[red]{needed}, not free[/]",
        )
    out.print(shown)
    for name, finding in datasets.items():
        out.print(f"{name}: {_shorter(finding)}", markup=False)


def _print_weights(out: Console, weights: dict[str, Any], found: dict[str, Any]) -> None:
    out.print("\n[bold]ImageNet weights[/]")
    shown = result_table("name", "state", left=("name", "state"))
    shown.add_column("how")
    for name, finding in weights.items():
        shown.add_row(name, _coloured(finding["state"]), escape(_shorter(finding)))
    out.print(shown)


def _print_rows(out: Console, rows: list[dict[str, Any]], found: dict[str, Any]) -> None:
    profiles = [name for name in dict.fromkeys(name for row in rows for name in row["hours"]) if name != "own"]
    states = ("measured", "trained", "can run", "blocked")
    out.print("\n[bold]Rows[/]")
    shown = result_table("table", "rows", *states, *profiles, left=["table"])
    for table in dict.fromkeys(row["table"] for row in rows):
        mine = [row for row in rows if row["table"] == table]
        counts = [sum(row["state"] == state for row in mine) for state in states]
        hours = [sum(row["hours"].get(name, 0) for row in mine) for name in profiles]
        shown.add_row(
            table,
            *(str(n or "-") for n in (len(mine), *counts)),
            *(duration(3600 * each) if each else "-" for each in hours),
        )
    out.print(shown)
    if profiles:
        out.print("[dim]Hours of training and testing here under each profile (reports/cost.md).[/]")
    elif found["device"]["gpus"]:
        out.print("How long the rows take here is not known: `make benchmark` measures it.")
    for name in dict.fromkeys(row["needs"] for row in rows if row["needs"] and row["state"] == "blocked"):
        count = sum(row["needs"] == name and row["state"] == "blocked" for row in rows)
        out.print(f"[red]blocked[/]: {count} rows need {name}, which is missing (above)")
    out.print("Next: `danet rows` names them; `dvc repro evaluate@ROW` runs one.")


def _coloured(state: str) -> str:
    colour = {"missing": "red", "prepared": "green", "ready": "green", "local": "green"}
    return f"[{colour.get(state, 'yellow')}]{state}[/]"


def _shorter(finding: dict[str, Any]) -> str:
    """Of an address that files will be downloaded from, the server; one that a user must open stays whole."""
    how = str(finding["how"])
    return re.sub(r"url: https?://([^/\s]+)\S*", r"from \1", how) if finding["state"] == "downloadable" else how
