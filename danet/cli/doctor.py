"""``danet doctor``: what is here, which rows can run now, and what to do about the others."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from danet.acquire.sources import Wanted, by_hand, folder_variable, sources, unpacked_folder
from danet.config.params import Dataset, Params, Weights
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.console import output, result_table
from danet.core.errors import ConfigError
from danet.core.provenance import cpu_cores, version
from danet.core.text import duration
from danet.data.raw import taken, wanted_of
from danet.data.registry import ADAPTERS

PACKAGES = ("torch", "torchvision", "mlflow", "dvc", "opencv-python-headless", "numpy", "pandas")

STATES = ("measured", "trained", "can run", "blocked")
"""Of rows."""


@dataclass(frozen=True)
class Finding:
    """How a data set or a file stands."""

    state: str
    """``missing``, ``downloadable``, ``local`` (to be taken from a folder), ``downloaded``,
    ``prepared`` or ``ready``."""
    how: str
    """Where it is or would come from, or what to do."""

    @property
    def shown(self) -> str:
        """The state as rich markup: red if something must be done."""
        return f"[red]{self.state}[/]" if self.state == "missing" else self.state


def examine(workspace: Workspace) -> None:
    """Prints each section as soon as it is known; the last two wait for torch.

    Raises:
        ConfigError: if ``params.yaml`` is missing or invalid; nothing can be said about rows then.
    """
    params, out = workspace.params(), output()
    _print_machine(out, workspace)
    datasets = {name: dataset_state(name, spec, workspace) for name, spec in params.datasets.items()}
    _print_datasets(out, params, datasets, workspace)
    _print_weights(out, params, workspace)
    _print_rows(out, params, datasets, workspace)


def _print_machine(out: Console, workspace: Workspace) -> None:
    import psutil

    versions = [f"{name} {version(name) or '[red]missing: run `make setup`[/]'}" for name in PACKAGES]
    out.print(", ".join([f"python {platform.python_version()}", *versions]))
    out.print(
        f"{cpu_cores()} CPU cores, {psutil.virtual_memory().total / 1e9:.1f} GB memory, "
        f"{_disk_free_gb(workspace):.1f} GB disk free"
    )
    try:
        workspace.refuse_links()
    except ConfigError as error:
        out.print(f"[red]error[/] {escape(str(error))}", soft_wrap=True)
    out.print(f"MLflow: {escape(os.environ.get('MLFLOW_TRACKING_URI', 'mlflow.db in the workspace'))}")


def _disk_free_gb(workspace: Workspace) -> float:
    return shutil.disk_usage(workspace.root.resolve()).free / 1e9


def disk_gb(spec: Dataset) -> tuple[float, float, float]:
    """What a dataset takes on disk: its archives, its prepared form, and in all while it is converted.

    Raw storage holds three bytes a pixel of an image and one of its mask (the test split has none).
    """
    adapter = ADAPTERS[spec.adapter]
    prepared = adapter.used_gb
    if spec.storage == "raw":
        images = sum(spec.counts.values())
        masks = images - (spec.counts.get("test", 0) if spec.adapter == "cityscapes" else 0)
        prepared = math.prod(adapter.image_size) * (3 * images + masks) / 1e9
    return adapter.archives_gb, prepared, adapter.archives_gb + adapter.used_gb + prepared


def dataset_state(name: str, spec: Dataset, workspace: Workspace) -> Finding:
    """What is here of a dataset, or where it would come from."""
    if (workspace.prepared(name) / "dataset.json").is_file():
        return Finding("prepared", str(workspace.prepared(name)))
    tree = unpacked_folder(name)
    if taken(spec, workspace.raw(name)):
        return Finding("downloaded", f"converted by `dvc repro convert@{name}`")
    if tree is not None:
        variable = folder_variable(name)
        if tree.is_dir():
            return Finding("local", f"{variable} names an unpacked copy")
        return Finding("missing", f"{variable}={tree} is not a folder: correct or unset it")
    found = {archive.file: _first(wanted_of(name, archive), workspace) for archive in spec.archives}
    # of several archives, the one that is hardest to come by
    state = min((each.state for each in found.values()), key=("missing", "downloadable", "local").index)
    files = [file for file, each in found.items() if each.state == state]
    return Finding(state, f"{', '.join(files)}: {found[files[0]].how}")


def _first(wanted: Wanted, workspace: Workspace) -> Finding:
    """Where a file would come from."""
    source = next(sources(wanted, workspace.archives()), None)
    if source is None:
        return Finding("missing", by_hand(wanted, workspace.archives()))
    return Finding("downloadable" if source.path is None else "local", f"{source.kind}: {source}")


def _print_datasets(out: Console, params: Params, found: Mapping[str, Finding], workspace: Workspace) -> None:
    out.print("\n[bold]Data sets[/]")
    table = result_table("name", "state", "archives", "prepared", "to convert", left=("name", "state"))
    for name, finding in found.items():
        sizes = disk_gb(params.datasets[name])
        cells = [f"{gb:.3g} GB" for gb in sizes]
        if finding.state != "prepared" and sizes[-1] > _disk_free_gb(workspace):
            cells[-1] = f"[red]{cells[-1]}, not free[/]"
        table.add_row(name, finding.shown, *cells)
    out.print(table)
    for name, finding in found.items():
        out.print(f"{name}: {finding.how}", markup=False, soft_wrap=True)


def weights_state(name: str, spec: Weights, workspace: Workspace) -> Finding:
    """Whether ImageNet weights are here, or where they would come from."""
    from danet.weights.fetch import imagenet_wanted

    if spec.file is None:
        return Finding("ready", spec.title)
    if (workspace.weights(name) / "weights.safetensors").is_file():
        return Finding("ready", str(workspace.weights(name)))
    return _first(imagenet_wanted(spec), workspace)


def _print_weights(out: Console, params: Params, workspace: Workspace) -> None:
    found = {name: weights_state(name, spec, workspace) for name, spec in params.weights.items()}
    out.print("\n[bold]ImageNet weights[/]")
    for name, finding in found.items():
        out.print(f"{name}: {finding.shown}, {escape(finding.how)}", soft_wrap=True)


def row_state(row: Row, workspace: Workspace, data: Finding) -> str:
    """One of :data:`STATES`, from the files at hand."""
    if workspace.scores(row).is_file():
        return "measured"
    if all((workspace.model(row) / f"seed{seed}.safetensors").is_file() for seed in row.seeds):
        return "trained"
    return "blocked" if data.state == "missing" else "can run"


def _print_rows(out: Console, params: Params, datasets: Mapping[str, Finding], workspace: Workspace) -> None:
    from danet.evaluation.cost import hours_here

    hours = hours_here(workspace, params, params.rows.values())
    states = {row.name: row_state(row, workspace, datasets[row.dataset]) for row in params.rows.values()}
    profiles = [name for name in dict.fromkeys(name for each in hours.values() for name in each) if name != "own"]
    out.print("\n[bold]Rows[/]")
    _print_gpus(out)
    table = result_table("table", "rows", *STATES, *profiles, left=["table"])
    for name in params.tables:
        rows = [row.name for row in params.table_rows(name)]
        counts = [len(rows), *(sum(states[row] == state for row in rows) for state in STATES)]
        times = [3600 * sum(hours.get(row, {}).get(profile, 0) for row in rows) for profile in profiles]
        table.add_row(name, *(str(n or "-") for n in counts), *(duration(each) if each else "-" for each in times))
    out.print(table)
    if profiles:
        out.print("[dim]Hours of training and testing here under each profile (reports/cost.md).[/]")
    else:
        out.print("How long the rows take here is not known: `make benchmark` measures it.")
    for name in datasets:
        if count := sum(row.dataset == name and states[row.name] == "blocked" for row in params.rows.values()):
            out.print(f"[red]blocked[/]: {count} rows need {name}, which is missing (above)")
    out.print("Next: `danet rows` names them; `dvc repro evaluate@ROW` runs one.")


def _print_gpus(out: Console) -> None:
    import torch

    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        out.print(f"GPU {gpu.name}, {gpu.total_memory / 1e9:.1f} GB ({versions})")
    if not torch.cuda.device_count():
        out.print("no GPU: the demo and the -short rows run; full rows would take months")
