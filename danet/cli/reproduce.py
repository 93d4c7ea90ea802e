"""Does a published table of ours, or of a colleague's, hold here? One row of its JSON is run again and compared."""

from __future__ import annotations

import difflib
import json
import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from danet.config.params import Params
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, ConfigError, DataError
from danet.core.files import sha256, write_text
from danet.core.text import signed
from danet.data.prepared import PreparedDataset
from danet.results.identity import SETUP, differing, flat
from danet.results.runs import same_setup

METRICS = {"miou": "mIoU", "aacc": "aAcc", "macc": "mAcc", "miou_ms_flip": "mIoU, ms+flip", "aacc_ms": "aAcc, ms+flip"}
EXACT = 1e-4
"""Percent: the rounding of metrics files."""

Kind = Literal["evaluation", "training"]


@dataclass(frozen=True)
class Check:
    """A row of a report run again."""

    row: str
    kind: Kind
    agrees: bool
    identical: bool
    """Whether no number differs by more than its rounding."""
    band: float
    """Percent points within which the numbers had to agree."""
    why: str
    """What this band is and why it applies."""
    numbers: dict[str, tuple[float, float]]
    """Reported and here, by metric."""
    setup: dict[str, tuple[Any, Any]]
    """Hardware and versions that differ."""

    def __str__(self) -> str:
        lines = [f"{self.row}: {self.kind} run again"]
        for name, (reported, here) in self.numbers.items():
            lines.append(
                f"  {name:<14} reported {reported:8.4f}   here {here:8.4f}   difference {signed(here - reported, 4)}"
            )
        changed = [f"{key}: {a or '-'} -> {b or '-'}" for key, (a, b) in self.setup.items()]
        lines.append("  hardware and versions: " + ("; ".join(changed) if changed else "the same"))
        if self.identical:
            lines.append("AGREES: every number is the same.")
        elif self.agrees:
            lines.append(f"AGREES within {self.band:g} points ({self.why}).")
        else:
            lines.append(f"DOES NOT AGREE: a number is more than {self.band:g} points away ({self.why}).")
        return "\n".join(lines)


def reported_row(report: Path, name: str) -> dict[str, Any]:
    """One row of a table's JSON (``reports/tables/<table>.json``), checked for what is needed here.

    Raises:
        ConfigError: if the file is not such a table, or has no such row.
        DataError: if the row was not measured there, or its numbers are missing or not finite.
    """
    try:
        data = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{report}: cannot be read as JSON ({error}); give a table's reports/tables/NAME.json"
        ) from None
    rows = data.get("rows") if isinstance(data, dict) else None
    if not isinstance(rows, list) or data.get("format") != 1 or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{report}: is not a table of format 1; give a table's reports/tables/NAME.json")
    named = {str(row.get("row")): row for row in rows}
    if name not in named:
        close = difflib.get_close_matches(name, named, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else f"it has: {', '.join(named)}"
        raise ConfigError(f"{report}: has no row {name!r}; {hint}")
    row: dict[str, Any] = named[name]
    measured = row.get("measured")
    if not isinstance(measured, Mapping):
        raise DataError(f'{report}: row {name} is "{row.get("status")}" there: it holds no result to compare with')
    for metric in METRICS:
        value = measured.get(metric)
        wrong = value is not None and not (
            isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 100
        )
        if wrong or (value is None and metric == "miou"):
            raise DataError(
                f"{report}: row {name}: measured.{metric} is {value!r}, not a percentage; the report is damaged"
            )
    seeds = measured.get("seeds")
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise DataError(f"{report}: row {name}: measured.seeds is {seeds!r}, not a list; the report is damaged")
    return row


def same_row(reported: Mapping[str, Any], params: Params, report: Path) -> Row:
    """Our row of that name, if it has the settings that were reported.

    Raises:
        ConfigError: if it is unknown here or its settings differ, naming them.
    """
    name = str(reported["row"])
    commits = sorted({str(facts.get("commit")) for facts in reported.get("provenance") or []} - {"None", "unknown"})
    checkout = f"git checkout {commits[0]}" if commits else "check out the code that made the report"
    if name not in params.rows:
        raise ConfigError(f"{params.path}: has no row {name!r}, which {report} reports; {checkout}")
    row = params.rows[name]
    if reported.get("row_hash") != row.hash:
        settings = reported.get("settings")
        changed = differing(flat(settings), flat(row.settings)) if isinstance(settings, Mapping) else {}
        shown = [f"{key} {a!r} there, {b!r} here" for key, (a, b) in list(changed.items())[:6]]
        what = "; ".join(shown) or "the report does not say which"
        raise ConfigError(
            f"row {name} has other settings here (row hash {row.hash}) than in {report} ({reported.get('row_hash')}): "
            f"{what}. {checkout}, or change {params.path} back"
        )
    return row


def check_row(
    report: Path, name: str, workspace: Workspace, *, train: bool = False, device: str | None = None
) -> Check:
    """Runs a reported row again and says whether it agrees. Nothing of the row's own results is overwritten.

    The evaluation uses ``models/<row>``; with the very weights of the report the numbers must agree within
    ``bands.released``, since only the arithmetic can differ. A training, or the evaluation of other weights, is another
    draw of the row's noise and must agree within the dataset's band.

    Args:
        report: a table's JSON.
        name: of the row.
        workspace: whose code, parameters, data and weights are used.
        train: train the reported seeds again, in ``build/reproduce/<row>``, instead of using ``models/<row>``.
        device: by default the GPU if there is one.

    Raises:
        ConfigError, DataError: see :func:`reported_row` and :func:`same_row`.
        CheckpointError: if there are no weights to evaluate.
    """
    reported = reported_row(report, name)
    params = workspace.params()
    row = same_row(reported, params, report)
    seeds: list[int] = reported["measured"]["seeds"]
    row = row.model_copy(update={"seeds": tuple(seeds)})
    stages = reported.get("provenance") or []
    facts = {each.get("seed"): each for each in stages if each.get("stage") == "evaluate"}
    theirs: Mapping[str, Any] = facts.get(seeds[0], {})
    data = PreparedDataset(workspace.prepared(row.dataset), row.val_split)
    if theirs.get("manifest_hash") not in {None, data.manifest_hash}:
        raise DataError(
            f"{workspace.prepared(row.dataset)}: is other data (manifest {data.manifest_hash}) than {report} was "
            f"measured on ({theirs['manifest_hash']}), so the numbers cannot be compared; convert the same archives by "
            "the same code"
        )
    if train:
        runs = _train_and_evaluate(row, workspace, device)
        same_weights = False
    else:
        files = {seed: workspace.model(row) / f"seed{seed}.safetensors" for seed in seeds}
        for seed, path in files.items():
            if not path.is_file():
                raise CheckpointError(
                    f"{path}: does not exist, so seed {seed} cannot be evaluated; fetch the weights (dvc pull), train "
                    f"them (dvc repro train@{name}), or let this command train them (--train)"
                )
        same_weights = all(facts.get(seed, {}).get("weights_sha256") == sha256(path) for seed, path in files.items())
        runs = _evaluate(row, workspace, files, device)
    here = _means(runs)
    numbers = {
        label: (float(reported["measured"][metric]), here[metric])
        for metric, label in METRICS.items()
        if reported["measured"].get(metric) is not None and metric in here
    }
    ours: Mapping[str, Any] = runs[0]["provenance"]
    setup = {key: (theirs.get(key), ours.get(key)) for key in SETUP if theirs.get(key) != ours.get(key)}
    band = params.bands.released if same_weights else params.bands.of(row.dataset)
    if same_weights:
        why = "the same weights: only the arithmetic can differ"
        if same_setup(theirs, ours):
            why += "; on the same hardware and versions it should be nothing, so an operation here is not deterministic"
    elif train:
        why = f"trained again: the band of {row.dataset}"
    else:
        why = f"the weights in models/{name} are not those of the report: the band of {row.dataset}"
    gaps = [abs(here_ - reported_) for reported_, here_ in numbers.values()]
    return Check(
        row=name,
        kind="training" if train else "evaluation",
        agrees=max(gaps) <= band + EXACT,
        identical=max(gaps) <= EXACT,
        band=band,
        why=why,
        numbers=numbers,
        setup=setup,
    )


def _evaluate(row: Row, workspace: Workspace, files: Mapping[int, Path], device: str | None) -> list[dict[str, Any]]:
    from danet.evaluation.evaluate import evaluate_row

    runs = []
    for seed, path in files.items():
        # with a file given, nothing of the row's own results is overwritten
        result = evaluate_row(row.model_copy(update={"seeds": (seed,)}), workspace, weights=path, device=device)
        runs += result.evaluation["runs"]
    return runs


def _train_and_evaluate(row: Row, workspace: Workspace, device: str | None) -> list[dict[str, Any]]:
    from danet.evaluation.evaluate import evaluate_row
    from danet.training.train import train_row

    scratch = Workspace(workspace.root / "build" / "reproduce" / row.name)
    scratch.root.mkdir(parents=True, exist_ok=True)
    data = scratch.root / "data"
    if not data.exists():
        data.unlink(missing_ok=True)
        data.symlink_to(os.path.relpath((workspace.root / "data").resolve(), scratch.root.resolve()))
    text = yaml.safe_dump(row.model_dump(mode="json"), sort_keys=False)
    write_text(scratch.root / "row.yaml", text)
    train_row(row, scratch, device=device)
    runs: list[dict[str, Any]] = evaluate_row(row, scratch, device=device).evaluation["runs"]
    return runs


def _means(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds, under the names of the report's records."""
    means = {}
    for mode, suffixes in (
        ("ss", {"miou": "miou", "aacc": "aacc", "macc": "macc"}),
        ("ms", {"miou": "miou_ms_flip", "aacc": "aacc_ms"}),
    ):
        if all(mode in run["modes"] for run in runs):
            for metric, name in suffixes.items():
                means[name] = statistics.fmean(run["modes"][mode][metric] for run in runs)
    return means
