"""``danet doctor``: what is here, which rows can run now, and what to do about the others."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danet.config.rows import Dataset, Params, Weights
from danet.config.workspace import Workspace
from danet.core.errors import DanetError

if TYPE_CHECKING:
    from rich.console import Console

PACKAGES = ("torch", "torchvision", "mlflow", "dvc", "opencv-python-headless", "numpy", "pandas")

DISK_GB = {"voc2012": 6, "ade20k": 5, "cityscapes": 26, "camvid": 1}
"""Free space a dataset needs for its archives, the scratch copy while converting and the prepared form: the archives'
published sizes (2.0, 0.9, 11.8 and 0.2 GB) twice over plus the unpacked files, rounded up."""


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
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "disk_free_gb": round(shutil.disk_usage(workspace.root.resolve()).free / 1e9, 1),
        "datasets": datasets,
        "weights": weights,
        "mlflow": os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db in the workspace"),
        "rows": _rows(params, datasets, weights, workspace),
        "costs": _costs(workspace),
    }


def _costs(workspace: Workspace) -> dict[str, str]:
    """What each row takes on this device, where it has been benchmarked; a damaged benchmark file is no obstacle."""
    from danet.report.cost import estimates

    try:
        return estimates(workspace)
    except DanetError:
        return {}


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
    prepared = (workspace.prepared(name) / "dataset.json").is_file()
    raw = workspace.raw(name)
    tree = os.environ.get(f"DANET_{name.upper()}")
    archives = os.environ.get("DANET_ARCHIVES")
    placed = [a.file for a in spec.archives if _placed(a.file, name, archives)]
    finding: dict[str, Any] = {"title": spec.title, "counts": spec.counts, "needs_gb": DISK_GB.get(spec.adapter, 10)}
    if prepared:
        return {**finding, "state": "prepared", "how": str(workspace.prepared(name))}
    if raw.is_dir() and any(raw.iterdir()):
        return {**finding, "state": "downloaded", "how": f"converted by `dvc repro convert@{name}`"}
    if tree:
        if Path(tree).is_dir():
            return {**finding, "state": "local", "how": f"DANET_{name.upper()} names an unpacked copy"}
        return {**finding, "state": "missing", "how": f"DANET_{name.upper()}={tree} is no folder: correct or unset it"}
    if len(placed) == len(spec.archives):
        return {**finding, "state": "local", "how": "all archives lie in DANET_ARCHIVES"}
    if os.environ.get("DANET_MIRROR"):
        return {**finding, "state": "downloadable", "how": "from the mirror in DANET_MIRROR"}
    if all(a.url for a in spec.archives):
        return {**finding, "state": "downloadable", "how": "public archives, fetched by `dvc repro`"}
    if os.environ.get("CITYSCAPES_USERNAME") and os.environ.get("CITYSCAPES_PASSWORD"):
        return {**finding, "state": "downloadable", "how": "login from CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD"}
    missing = ", ".join(a.file for a in spec.archives if a.file not in placed)
    return {
        **finding,
        "state": "missing",
        "how": "register at cityscapes-dataset.com, then set CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD, "
        f"or put {missing} into a folder and set DANET_ARCHIVES to it",
    }


def _placed(file: str, dataset: str, archives: str | None) -> bool:
    return archives is not None and any((Path(archives) / part / file).is_file() for part in ("", dataset))


def _weights(name: str, spec: Weights, workspace: Workspace) -> dict[str, Any]:
    if spec.file is None:
        return {"state": "ready", "how": spec.title}
    if (workspace.weights(name) / "weights.safetensors").is_file():
        return {"state": "ready", "how": str(workspace.weights(name))}
    if _placed(spec.file, "weights", os.environ.get("DANET_ARCHIVES")):
        return {"state": "local", "how": f"{spec.file} lies in DANET_ARCHIVES"}
    return {
        "state": "downloadable",
        "how": f"fetched by `dvc repro`, or put {spec.file} into a folder and set DANET_ARCHIVES to it",
    }


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
    out.print(f"        {findings['disk_free_gb']} GB disk free")
    out.print(f"        MLflow: {findings['mlflow']}\n")

    table = Table(
        box=None, pad_edge=False, header_style="bold", title="Datasets and ImageNet weights", title_justify="left"
    )
    for title in ("name", "state", "how"):
        table.add_column(title, overflow="fold")
    colour = {"missing": "red", "prepared": "green", "ready": "green", "local": "green"}
    for name, finding in {**findings["datasets"], **findings["weights"]}.items():
        state = finding["state"]
        how = finding["how"]
        if "needs_gb" in finding and state != "prepared" and finding["needs_gb"] > findings["disk_free_gb"]:
            how += f" (needs about {finding['needs_gb']} GB of disk, {findings['disk_free_gb']} GB are free)"
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


def _print_costs(out: Console, findings: dict[str, Any]) -> None:
    if costs := findings["costs"]:
        out.print("\n[bold]Training and testing on this device[/] (reports/cost.md says how it is reckoned)")
        for name, cost in costs.items():
            out.print(f"  {name}: {cost} here")
    elif findings["device"]["gpus"]:
        out.print("\nHow long the rows take here is not known: `make benchmark` measures it.")
