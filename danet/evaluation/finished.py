"""Evaluations of seeds that are finished, kept so that a seed added later leaves the others alone.

DVC clears a stage's outputs before it runs, so they lie with the seed's checkpoints, outside every output: what the
metrics file says of the seed, and its pictures. One is used again only where evaluating anew would give the same
numbers: same weights, settings, data, revision of the code, hardware and versions.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from danet.config.rows import Row
from danet.core import provenance
from danet.core.errors import DanetError
from danet.core.files import sha256, write_json
from danet.results.runs import SETUP

FORMAT = 1
RECORD = "evaluation.json"


def identity(
    row: Row, seed: int, *, weights_sha256: str, manifest_hash: str, device: str, processes: int
) -> dict[str, Any]:
    """Everything that the result of a seed's evaluation follows from, JSON-serialisable.

    Args:
        row: its protocol, and how many images are drawn and timed.
        seed: of the weights.
        weights_sha256: of the file that is evaluated.
        manifest_hash: of the prepared split.
        device: ``cpu`` or ``cuda``.
        processes: among which the images are divided.
    """
    facts = provenance.collect(**row.facts, seed=seed, device=device)
    return {
        "format": FORMAT,
        "row": row.name,
        "row_hash": row.hash,
        "seed": seed,
        "weights_sha256": weights_sha256,
        "manifest_hash": manifest_hash,
        "overlays": row.runtime.overlays,
        "benchmark_images": row.runtime.benchmark_images,
        "processes": processes,
        "setup": {key: facts.get(key) for key in SETUP},
    }


def load(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The kept run of that identity, as in ``evaluation.json``; None if there is none or a file of it is damaged."""
    try:
        kept = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if kept["identity"] != wanted:
            return None
        if any(sha256(folder / name) != digest for name, digest in kept["files"].items()):
            return None
        return dict(kept["run"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def take(folder: Path, target: Path) -> None:
    """Copies the pictures and arrays of a kept evaluation into ``target``.

    Raises:
        DanetError: if the disk is full or cannot be written.
    """
    try:
        for path in folder.iterdir():
            if path.name != RECORD:
                shutil.copyfile(path, target / path.name)
    except OSError as error:
        raise DanetError(f"{target}: cannot be written ({error.strerror}); free space, then run again") from error


def keep(folder: Path, identity: Mapping[str, Any], run: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Keeps an evaluation in the place of an earlier one of that seed.

    Args:
        folder: for it alone.
        identity: see :func:`identity`.
        run: of the seed, as in ``evaluation.json``.
        files: pictures and arrays of the seed.

    Raises:
        DanetError: if the disk is full or cannot be written; the earlier one may then be gone.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
        try:
            digests = {}
            for path in files:
                shutil.copyfile(path, staging / path.name)
                digests[path.name] = sha256(path)
            write_json(staging / RECORD, {"identity": identity, "run": run, "files": digests})
            shutil.rmtree(folder, ignore_errors=True)
            staging.chmod(0o755)
            staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise DanetError(f"{folder}: cannot be written ({error.strerror}); free space, then run again") from error
