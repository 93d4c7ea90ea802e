"""Does a published number hold for the weights that were published with it? Minutes, where retraining takes days."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from danet.config.params import Released
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, DanetError, DataError
from danet.core.files import sha256
from danet.data.prepared import PreparedDataset
from danet.evaluation.evaluate import evaluate_released
from danet.results.schema import EvaluationFile, MetricsFile, ReleasedFile
from danet.weights.exchange import checksum_state
from danet.weights.fetch import fetch_released, released_of, stored
from danet.weights.ours import metadata_of


@dataclass(frozen=True)
class VerifiedRow:
    """One row of the summary of ``danet verify``."""

    row: str
    state: Literal["measured", "skipped", "failed"]
    reason: str = ""
    metrics: MetricsFile | None = None


def verify_row(
    row: Row,
    workspace: Workspace,
    *,
    weights: Path | None = None,
    device: str | torch.device | None = None,
) -> EvaluationFile:
    """Evaluates released weights by the row's own protocol, single scale and, where it has one, multi-scale + flip.

    Writes ``verification.json`` to ``workspace.metrics(row)``, for the table's *released weights*.
    Without ``weights`` (an imported or raw released file) ``data/released/ROW`` is taken, fetched first if need be.

    Raises:
        CheckpointError: if the file is not the row's released one (its SHA-256 is another than published, or it was
            trained here), or is damaged or of another network.
        DownloadError: if the weights cannot be obtained.
        ConfigError: if there are none in ``params.yaml``.
        DataError: if the data set is not prepared.
    """
    if weights is None:
        spec = released_of(workspace.params(), row.name)
        PreparedDataset(workspace.prepared(row.dataset), row.val_split)  # before a long download
        weights = stored(workspace, row, spec) or fetch_released(workspace, row.name)
    facts = facts_of(weights, row, workspace.params().released.get(row.name))
    return evaluate_released(row, workspace, weights, facts, device=device)


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
        metadata = {"source_file": weights.name, "source_sha256": sha256(weights)}
    elif "source_sha256" not in metadata:
        raise CheckpointError(
            f"{weights}: was trained here (row {metadata.get('row')}), not released; "
            f"use `danet evaluate {row.name} --weights {weights}`"
        )
    digest, file = metadata["source_sha256"], metadata.get("source_file")
    checksum = checksum_state(digest, spec)
    if spec is not None and checksum == "differs":
        raise CheckpointError(
            f"{weights}: its sha256 is {digest}, the released file's begins with {spec.checksum}; fetch "
            f"{spec.file} again, or use `danet evaluate ROW --weights FILE` for other weights"
        )
    return ReleasedFile(file=file, sha256=digest, source=metadata.get("source"), checksum=checksum)


def verify_all(
    workspace: Workspace,
    *,
    device: str | torch.device | None = None,
    report: Callable[[VerifiedRow, int, int], None] | None = None,
) -> list[VerifiedRow]:
    """:func:`verify_row` for every row of the tables with published numbers; a row that cannot be is skipped.

    ``report`` is called after each row with its result, the rows done
    and all rows.

    Returns:
        One entry per row; ``skipped`` and ``failed`` ones with the reason.
    """
    params = workspace.params()
    chosen = [row for row in params.rows.values() if params.tables[row.table].published or row.name in params.released]
    results: list[VerifiedRow] = []
    for row in chosen:
        if row.name in params.released:
            results.append(_verified(row, workspace, device))
        else:
            results.append(VerifiedRow(row.name, "skipped", "its source released no weights"))
        if report is not None:
            report(results[-1], len(results), len(chosen))
    return results


def _verified(row: Row, workspace: Workspace, device: str | torch.device | None) -> VerifiedRow:
    try:
        result = verify_row(row, workspace, device=device)
    except DataError as error:  # also what cannot be downloaded
        return VerifiedRow(row.name, "skipped", str(error))
    except DanetError as error:
        return VerifiedRow(row.name, "failed", str(error))
    return VerifiedRow(row.name, "measured", metrics=result.means)
