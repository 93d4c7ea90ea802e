"""Does a published number hold for the weights that were published with it? Minutes, where retraining takes days."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from danet.acquire.http import Patience
from danet.config.params import Params, Released
from danet.config.published import published
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, DanetError
from danet.core.files import sha256
from danet.data.prepared import PreparedDataset
from danet.evaluation.evaluate import RowEvaluation, evaluate_released
from danet.results.schema import MetricsFile, ReleasedFile
from danet.results.verdict import agreement
from danet.weights.exchange import is_imported, refuse_other_file
from danet.weights.fetch import fetch_released, released_of, stored
from danet.weights.ours import metadata_of

QUICK = Patience(retries=1)
"""For many rows at once: a server that does not answer is given up after seconds."""


@dataclass(frozen=True)
class VerifiedRow:
    """One row of the summary of ``danet verify``; percent."""

    row: str
    state: Literal["measured", "kept", "skipped", "failed"]
    """``kept``: the same weights were measured before on the same data by the same protocol."""
    reason: str = ""
    miou: float | None = None
    miou_ms_flip: float | None = None
    published_miou: float | None = None
    published_ms_flip: float | None = None
    band: float = 0.05

    @property
    def verdicts(self) -> tuple[str, str]:
        """Of single scale and of multi-scale + flip, as in the tables; empty where there is nothing to compare."""
        single = agreement(self.miou, self.published_miou, self.band)
        return single, agreement(self.miou_ms_flip, self.published_ms_flip, self.band)


def verify_row(
    row: Row,
    workspace: Workspace,
    *,
    weights: Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    patience: Patience | None = None,
    reuse: bool = False,
) -> RowEvaluation:
    """Evaluates released weights by the row's own protocol, single scale and, where it has one, multi-scale + flip.

    Writes ``verification.json`` to ``workspace.metrics(row)``, for the table's *released weights*.

    Args:
        row: whose number is doubted.
        workspace: with the prepared data set.
        weights: an imported or raw released file; by default ``data/released/ROW``, fetched first if it is not there.
        device: by default the GPU if there is one.
        progress: whether to print progress.
        patience: with servers.
        reuse: see :func:`danet.evaluation.evaluate.evaluate_row`.

    Raises:
        CheckpointError: if the file is not the row's released one (its SHA-256 is another than published, or it was
            trained here), or is damaged or of another network.
        DownloadError: if the weights cannot be obtained.
        DataError: if the data set is not prepared.
    """
    PreparedDataset(workspace.prepared(row.dataset), row.val_split)  # before a long download
    if weights is None:
        spec = released_of(workspace.params(), row.name)
        weights = stored(workspace, row, spec)
        if weights is None:
            weights = fetch_released(workspace, row.name, patience=patience, progress=progress)
    facts = facts_of(weights, row, workspace.params().released.get(row.name))
    return evaluate_released(
        row,
        workspace,
        weights,
        facts,
        device=device,
        progress=progress,
        reuse=reuse,
    )


def facts_of(weights: Path, row: Row, spec: Released | None) -> ReleasedFile:
    """What ``verification.json`` says of the weights.

    Raises:
        CheckpointError: if the file is not what was released for this row, as far as anything tells.
    """
    if not weights.is_file():
        raise CheckpointError(
            f"{weights}: does not exist; give the released file, or one made by `danet import-weights`"
        )
    metadata = metadata_of(weights)
    if metadata is None:
        digest = sha256(weights)
        checksum = refuse_other_file(weights, digest, spec)
        return ReleasedFile(file=weights.name, sha256=digest, source=None, checksum=checksum)
    if not is_imported(metadata):
        raise CheckpointError(
            f"{weights}: was trained here (row {metadata.get('row')}), not released; "
            f"use `danet evaluate {row.name} --weights {weights}`"
        )
    if "incomplete" in metadata:
        raise CheckpointError(
            f"{weights}: was imported although it is not exactly the row's network, so its result would say nothing; "
            f"use `danet evaluate {row.name} --weights {weights}`"
        )
    digest = metadata["source_sha256"]
    return ReleasedFile(
        file=metadata.get("source_file"),
        sha256=digest,
        source=metadata.get("source"),
        checksum=refuse_other_file(weights, digest, spec),
    )


def verify_all(
    workspace: Workspace,
    *,
    device: str | torch.device | None = None,
    again: bool = False,
    report: Callable[[VerifiedRow, int, int], None] | None = None,
) -> list[VerifiedRow]:
    """:func:`verify_row` for every row of the tables with published numbers; a row that cannot be is skipped.

    Args:
        workspace: where everything is.
        device: by default the GPU if there is one.
        again: measure also what was measured before with the same weights, data and protocol.
        report: called after each row with its result, the rows done and all rows.

    Returns:
        One entry per row; ``skipped`` and ``failed`` ones with the reason.
    """
    params = workspace.params()
    chosen = [row for row in params.rows.values() if params.tables[row.table].published or row.name in params.released]
    results: list[VerifiedRow] = []
    for row in chosen:
        result = _verify_one(row, workspace, params, device, again)
        results.append(result)
        if report is not None:
            report(result, len(results), len(chosen))
    return results


def _verify_one(
    row: Row,
    workspace: Workspace,
    params: Params,
    device: str | torch.device | None,
    again: bool,
) -> VerifiedRow:
    spec = params.released.get(row.name)
    if spec is None:
        return VerifiedRow(row.name, "skipped", "its source released no weights")
    try:
        PreparedDataset(workspace.prepared(row.dataset), row.val_split)  # before a long download
        weights = stored(workspace, row, spec) or fetch_released(workspace, row.name, patience=QUICK)
    except DanetError as error:
        return VerifiedRow(row.name, "skipped", str(error))
    try:
        result = verify_row(row, workspace, weights=weights, device=device, reuse=not again)
    except DanetError as error:
        return VerifiedRow(row.name, "failed", str(error))
    return summary_of(row, result.metrics, "kept" if result.kept else "measured", params.bands.released)


def summary_of(row: Row, metrics: MetricsFile, state: Literal["measured", "kept"], band: float) -> VerifiedRow:
    """The summary of an evaluation of released weights."""
    source = published(row.name)
    return VerifiedRow(
        row.name,
        state,
        miou=metrics.miou,
        miou_ms_flip=metrics.miou_ms_flip,
        published_miou=source.released_miou,
        published_ms_flip=source.miou_ms_flip,
        band=band,
    )


def exit_code(results: Iterable[VerifiedRow]) -> int:
    """Of ``danet verify --all``: 2 if a row failed that had weights and data, else 0."""
    return 2 if any(result.state == "failed" for result in results) else 0
