"""Does a published table of ours, or of a colleague's, hold here? One row of its JSON is run again and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danet.config.params import Params
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, ConfigError, DataError
from danet.core.text import signed
from danet.data.prepared import PreparedDataset
from danet.results.identity import differing, flat
from danet.results.measured import mean
from danet.results.schema import ACCURACIES, EvaluatedSeed, TableFile, TableRow, load
from danet.results.store import weights_path

EXACT = 1e-4
"""Percent: the rounding of metrics files."""


@dataclass(frozen=True)
class Check:
    """A row of a report run again."""

    row: str
    band: float
    """Percent points within which the numbers have to agree."""
    why: str
    """What this band is and why it applies."""
    numbers: dict[str, tuple[float, float]]
    """Reported and here, by metric."""
    setup: dict[str, tuple[Any, Any]]
    """Hardware and versions that differ."""

    @property
    def gap(self) -> float:
        """The largest difference of a number."""
        return max(abs(here - reported) for reported, here in self.numbers.values())

    @property
    def agrees(self) -> bool:
        """Whether all numbers are within the band."""
        return self.gap <= self.band + EXACT

    def __str__(self) -> str:
        lines = [f"{self.row}: evaluated again"]
        for name, (reported, here) in self.numbers.items():
            lines.append(
                f"  {name:<14} reported {reported:8.4f}   here {here:8.4f}   difference {signed(here - reported, 4)}"
            )
        changed = [f"{key}: {a or '-'} -> {b or '-'}" for key, (a, b) in self.setup.items()]
        lines.append("  hardware and versions: " + ("; ".join(changed) if changed else "the same"))
        if self.gap <= EXACT:
            lines.append("AGREES: every number is the same.")
        elif self.agrees:
            lines.append(f"AGREES within {self.band:g} points ({self.why}).")
        else:
            lines.append(f"DOES NOT AGREE: a number is more than {self.band:g} points away ({self.why}).")
        return "\n".join(lines)


def reported_row(report: Path, name: str) -> TableRow:
    """One measured row of a table's JSON (``reports/tables/<table>.json``).

    Raises:
        DataError: if the file is no such table, or the row was not measured there.
        ConfigError: if it has no such row.
    """
    table = load(report, TableFile, "give a table's reports/tables/NAME.json, made by this version")
    rows = {row.name: row for row in table.rows}
    if name not in rows:
        raise ConfigError(f"{report}: has no row {name!r}; it has: {', '.join(rows)}")
    row = rows[name]
    if not row.runs:
        raise DataError(f'{report}: row {name} is "{row.status}" there: it holds no result to compare with')
    return row


def same_row(reported: TableRow, params: Params, report: Path) -> Row:
    """Our row of that name, if it has the settings that were reported.

    Raises:
        ConfigError: if it is unknown here or its settings differ, naming them.
    """
    name = reported.name
    facts = [run.provenance for run in reported.trained] + [run.provenance for run in reported.runs]
    commits = sorted({each.known_commit for each in facts if each.known_commit})
    checkout = f"git checkout {commits[0]}" if commits else "check out the code that made the report"
    if name not in params.rows:
        raise ConfigError(f"{params.path}: has no row {name!r}, which {report} reports; {checkout}")
    row = params.rows[name]
    if reported.row_hash != row.hash:
        changed = differing(flat(reported.settings), flat(row.settings))
        shown = [f"{key} {a!r} there, {b!r} here" for key, (a, b) in list(changed.items())[:6]]
        raise ConfigError(
            f"row {name} has other settings here (row hash {row.hash}) than in {report} ({reported.row_hash}): "
            f"{'; '.join(shown) or 'the report does not say which'}. {checkout}, or change {params.path} back"
        )
    return row


def check_row(report: Path, name: str, workspace: Workspace, *, device: str | None = None) -> Check:
    """Evaluates a reported row again and says whether it agrees. Nothing of the row's own results is overwritten.

    The weights are those in ``models/<row>``. With the very weights of the report the numbers must agree within
    ``bands.released``, since only the arithmetic can differ. Other weights of the row are another draw of its noise and
    must agree within the dataset's band.

    Raises:
        ConfigError, DataError: see :func:`reported_row` and :func:`same_row`.
        CheckpointError: if there are no weights to evaluate.
    """
    reported = reported_row(report, name)
    params = workspace.params()
    theirs = {run.seed: run for run in reported.runs}
    row = same_row(reported, params, report).model_copy(update={"seeds": tuple(theirs)})
    _same_data(reported, row, workspace, report)
    runs = _evaluate(row, workspace, device)
    setup = differing(reported.runs[0].provenance.setup, runs[0].provenance.setup)
    band, why = params.bands.of(row.dataset), f"the band of {row.dataset}"
    if any(theirs[seed].weights_sha256 != run.weights_sha256 for seed, run in zip(row.seeds, runs, strict=True)):
        why = f"the weights in models/{name} are not those of the report: {why}"
    else:
        band, why = params.bands.released, "the same weights: only the arithmetic can differ"
        if not setup:
            why += "; on the same hardware and versions it should be nothing, so an operation here is not deterministic"
    return Check(name, band, why, _compared(reported, runs), setup)


def _same_data(reported: TableRow, row: Row, workspace: Workspace, report: Path) -> None:
    data = PreparedDataset(workspace.prepared(row.dataset), row.val_split)
    for stage in reported.runs:
        if stage.data != data.manifest_hash:
            raise DataError(
                f"{workspace.prepared(row.dataset)}: is other data (manifest {data.manifest_hash}) than {report} was "
                f"measured on ({stage.data}), so the numbers cannot be compared; convert the same archives by the same "
                "code"
            )


def _compared(reported: TableRow, runs: Sequence[EvaluatedSeed]) -> dict[str, tuple[float, float]]:
    """Reported and here, mean over the seeds, by the accuracy's title."""
    numbers = {}
    for name, title in ACCURACIES.items():
        there = reported.accuracies[name].mean if name in reported.accuracies else None
        here = mean(run.modes.accuracies.get(name) for run in runs)
        if there is not None and here is not None:
            numbers[title] = there, here
    return numbers


def _evaluate(row: Row, workspace: Workspace, device: str | None) -> list[EvaluatedSeed]:
    from danet.evaluation.evaluate import evaluate_row

    runs: list[EvaluatedSeed] = []
    for seed in row.seeds:
        path = weights_path(workspace, row, seed)
        if not path.is_file():
            raise CheckpointError(
                f"{path}: does not exist, so seed {seed} cannot be evaluated; fetch the weights (dvc pull), or train "
                f"them (dvc repro train@{row.name})"
            )
        # with a file given, nothing of the row's own results is overwritten
        one = row.model_copy(update={"seeds": (seed,)})
        runs += evaluate_row(one, workspace, weights=path, device=device).runs
    return runs
