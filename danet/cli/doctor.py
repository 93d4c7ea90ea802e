"""``danet doctor``: what is here, which rows can run now, and what to do about the others."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

from danet.acquire.sources import (
    Places,
    Wanted,
    by_hand,
    folder_variable,
    sources,
    unpacked_folder,
)
from danet.config.params import Dataset, Params, Weights
from danet.config.workspace import Workspace
from danet.core.errors import ConfigError, DanetError
from danet.core.provenance import cpu_cores
from danet.data.raw import changed_source, wanted_of
from danet.weights.fetch import imagenet_wanted

if TYPE_CHECKING:
    from rich.console import Console

PACKAGES = ("torch", "torchvision", "mlflow", "dvc", "opencv-python-headless", "numpy", "pandas")

ARCHIVES_GB = {"voc2012": 3.4, "ade20k": 0.97, "cityscapes": 11.9, "camvid": 0.2}
"""Of the official archives, by adapter."""
USED_GB = {"voc2012": 1.1, "ade20k": 0.97, "cityscapes": 12.0, "camvid": 0.2}
"""Of the images and masks in them that a row uses, as they come; about."""
PIXELS = {"cityscapes": 1024 * 2048, "camvid": 360 * 480}
"""Of an image, where all have one size."""


def disk_gb(spec: Dataset) -> dict[str, float]:
    """What a dataset takes on disk: archives, prepared form, and in all while it is converted.

    Raw storage holds three bytes a pixel of an image and one of its mask (the test split has none).
    """
    prepared = USED_GB[spec.adapter]
    if spec.storage == "raw" and spec.adapter in PIXELS:
        images = sum(spec.counts.values())
        masks = images - (spec.counts.get("test", 0) if spec.adapter == "cityscapes" else 0)
        prepared = PIXELS[spec.adapter] * (3 * images + masks) / 1e9
    archives = ARCHIVES_GB[spec.adapter]
    return {"archives": archives, "prepared": prepared, "needed": archives + USED_GB[spec.adapter] + prepared}


def examine(workspace: Workspace) -> dict[str, Any]:
    """Everything ``danet doctor`` reports, as JSON-able data.

    Raises:
        ConfigError: if ``params.yaml`` is missing or invalid; nothing can be said about rows then.
    """
    params = workspace.params()
    datasets = {name: _dataset(name, spec, workspace) for name, spec in params.datasets.items()}
    weights = {name: _weights(name, spec, workspace) for name, spec in params.weights.items()}
    return {
        "python": platform.python_version(),
        "python_ok": sys.version_info >= (3, 11),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": _device(),
        "cpu_cores": cpu_cores(),
        "memory_gb": _memory_gb(),
        "disk_free_gb": round(shutil.disk_usage(workspace.root.resolve()).free / 1e9, 1),
        "link": _link(workspace),
        "datasets": datasets,
        "weights": weights,
        "mlflow": os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db in the workspace"),
        "rows": _rows(params, datasets, weights, workspace),
        "costs": _costs(workspace),
    }


def _costs(workspace: Workspace) -> dict[str, str]:
    """What each row takes on this device, where it has been benchmarked; a damaged benchmark file is skipped."""
    from danet.report.cost import estimates

    try:
        return estimates(workspace)
    except DanetError:
        return {}


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
            "note": "no GPU found: the demo and the -short rows run; full rows would take months",
        }
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append({"name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)})
    return {"kind": "cuda", "gpus": gpus, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]


def _dataset(name: str, spec: Dataset, workspace: Workspace) -> dict[str, Any]:
    finding: dict[str, Any] = {"title": spec.title, "counts": spec.counts, "gb": disk_gb(spec)}
    changed = changed_source(workspace, name, contents=False)
    if changed is not None:
        return {**finding, "state": "changed", "how": f"{changed}; run `dvc repro -f -s download@{name}` to use it"}
    if (workspace.prepared(name) / "dataset.json").is_file():
        return {**finding, "state": "prepared", "how": str(workspace.prepared(name))}
    raw, tree = workspace.raw(name), unpacked_folder(name)
    if raw.is_dir() and any(raw.iterdir()):
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
    places = Places.here(workspace.archives())
    source = next(sources(wanted, places), None)
    if source is None:
        return {"state": "missing", "how": by_hand(wanted, places)}
    return {"state": "downloadable" if source.path is None else "local", "how": f"{source.kind}: {source}"}


def _weights(name: str, spec: Weights, workspace: Workspace) -> dict[str, Any]:
    if spec.file is None:
        return {"state": "ready", "how": spec.title}
    if (workspace.weights(name) / "weights.safetensors").is_file():
        return {"state": "ready", "how": str(workspace.weights(name))}
    return _first(imagenet_wanted(spec), workspace)


def _rows(
    params: Params, datasets: dict[str, Any], weights: dict[str, Any], workspace: Workspace
) -> list[dict[str, Any]]:
    rows = []
    for row in params.rows.values():
        missing = []
        if datasets[row.dataset]["state"] == "missing":
            missing.append(f"dataset {row.dataset}: {datasets[row.dataset]['how']}")
        trained = all((workspace.model(row) / f"seed{seed}.safetensors").is_file() for seed in row.seeds)
        measured = (workspace.metrics(row) / "metrics.json").is_file()
        state = "measured" if measured else "trained" if trained else "blocked" if missing else "can run"
        rows.append({"row": row.name, "table": row.table, "state": state, "missing": missing})
    return rows


def print_findings(findings: dict[str, Any]) -> None:
    """Prints what :func:`examine` found, for people."""
    from rich.console import Console
    from rich.table import Table

    out = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    mark = {True: "[green]ok[/]     ", False: "[red]missing[/]"}
    out.print(f"{mark[findings['python_ok']]} Python {findings['python']} (3.11 or newer)")
    for name, version in findings["packages"].items():
        remedy = "" if version else "  run `make setup`"
        out.print(f"{mark[version is not None]} {name} {version or ''}{remedy}")
    device = findings["device"]
    if device["gpus"]:
        for gpu in device["gpus"]:
            versions = f"CUDA {device['cuda']}, cuDNN {device['cudnn']}"
            out.print(f"{mark[True]} GPU {gpu['name']}, {gpu['memory_gb']} GB ({versions})")
    else:
        out.print(f"[yellow]note[/]    {device['note']}")
    out.print(f"        {findings['cpu_cores']} CPU cores, {findings['memory_gb']} GB memory")
    out.print(
        f"        {findings['disk_free_gb']} GB disk free; data take their size once where `dvc config cache.type`"
    )
    out.print("        prints hardlink,symlink, as .dvc/config has it, and may take it twice with any other value")
    out.print(f"[red]error[/]   {findings['link']}\n" if findings["link"] else "", end="")
    out.print(f"        MLflow: {findings['mlflow']}\n")

    table = Table(
        box=None, pad_edge=False, header_style="bold", title="Datasets and ImageNet weights", title_justify="left"
    )
    for title in ("name", "state", "how"):
        table.add_column(title, overflow="fold")
    colour = {"missing": "red", "changed": "red", "prepared": "green", "ready": "green", "local": "green"}
    for name, finding in {**findings["datasets"], **findings["weights"]}.items():
        state = finding["state"]
        how = finding["how"]
        if "gb" in finding and state != "prepared":
            how += f" ({_sizes(finding['gb'], findings['disk_free_gb'])})"
        table.add_row(name, f"[{colour.get(state, 'yellow')}]{state}[/]", how)
    out.print(table)

    out.print("\n[bold]Rows[/]")
    by_state: dict[str, list[str]] = {}
    for row in findings["rows"]:
        by_state.setdefault(row["state"], []).append(row["row"])
    meaning = {
        "measured": "in the tables already",
        "trained": "next: dvc repro evaluate@ROW",
        "can run": "next: dvc repro evaluate@ROW",
        "blocked": "something is missing",
    }
    for state, text in meaning.items():
        if names := by_state.get(state):
            out.print(f"  [bold]{state}[/] ({len(names)}; {text}): {', '.join(names)}")
    _print_costs(out, findings)
    for reason in sorted({reason for row in findings["rows"] for reason in row["missing"]}):
        out.print(f"  [red]missing[/] {reason}")


def _sizes(gb: dict[str, float], free: float) -> str:
    text = (
        f"{gb['archives']:.3g} GB archives + {gb['prepared']:.3g} GB prepared, {gb['needed']:.3g} GB while converting"
    )
    return f"[red]{text}: more than is free[/]" if gb["needed"] > free else text


def _print_costs(out: Console, findings: dict[str, Any]) -> None:
    if costs := findings["costs"]:
        out.print("\n[bold]Training and testing on this device[/] (reports/cost.md says how it is reckoned)")
        for name, cost in costs.items():
            out.print(f"  {name}: {cost} here")
    elif findings["device"]["gpus"]:
        out.print("\nHow long the rows take here is not known: `make benchmark` measures it.")
