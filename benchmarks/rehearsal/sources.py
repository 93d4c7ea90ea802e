"""The sources' side: each seed is one process of ``build/parity-env``, whose scores are kept with what made them."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danet.core.console import console
from danet.core.errors import ConfigError, DataError, TrainingError
from danet.core.files import sha256, write_json
from danet.core.provenance import PACKAGE_ROOT, collect
from danet.data import camvid
from pipelines import dvc_environment

SOURCES = {"mmsegmentation": "mmseg", "sssegmentation": "ssseg"}
"""Rows of the table are ``rehearsal-SOURCE``; the peers' files begin with the value."""
OUT = PACKAGE_ROOT / "build" / "rehearsal"
PEERS = Path(__file__).parent / "peers"
STEP = re.compile(r"Iter\(train\) \[ *(\d+)/.*?  loss: ([\d.]+)|'cur_iter': (\d+),.*'loss_total': ([\d.]+)")
"""Iteration and loss, as mmsegmentation or sssegmentation logs them."""


@dataclass(frozen=True)
class Run:
    """One seed of a source."""

    source: str
    seed: int

    @property
    def folder(self) -> Path:
        """Checkpoint, log and scores."""
        return OUT / self.source / f"seed{self.seed}"

    @property
    def log(self) -> Path:
        """Everything that the source's program printed."""
        return self.folder / "log.txt"

    def steps(self) -> list[tuple[int, float]]:
        """Logged iterations and their loss."""
        text = self.log.read_text(errors="replace")
        return [(int(a or c), float(b or d)) for a, b, c, d in STEP.findall(text)]

    def finished(self, identity: str) -> dict[str, Any] | None:
        """The scores, if they were made of what is asked for today."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "scores.json").read_text())
        except (OSError, ValueError):
            return None
        whole = found.get("identity") == identity and (self.folder / "released.pth").exists()
        return found if whole else None


def images(folder: str | None) -> tuple[Path, dict[str, str]]:
    """The folder with ``train``, ``trainannot``, ``val`` and ``valannot``, and the SHA-256 of every file in them.

    Raises:
        ConfigError: if no folder is named.
        DataError: if it is not CamVid, or a file is another than when the first run was made.
    """
    if not folder or not Path(folder).expanduser().is_dir():
        raise ConfigError(
            f"CAMVID={folder or ''}: is not a folder; give the one that holds train, trainannot, val, ...: "
            "make rehearsal CAMVID=folder"
        )
    root = camvid.locate(Path(folder).expanduser().resolve())[camvid.FOLDER]
    parts = [root / part for split in ("train", "val") for part in (split, f"{split}annot")]
    files = sorted(path for part in parts for path in part.iterdir())
    found = {path.relative_to(root).as_posix(): sha256(path) for path in files}
    record = OUT / "images.json"
    if record.exists():
        known = json.loads(record.read_text())
        if changed := sorted(name for name in {*known, *found} if known.get(name) != found.get(name)):
            raise DataError(
                f"{root / changed[0]}: differs from what the runs in build/rehearsal were made with ({len(changed)} "
                "files do); restore it, or remove build/rehearsal to run everything on the new images"
            )
    else:
        write_json(record, found)
    return root, found


def identity(source: str, files: dict[str, str]) -> str:
    """What the runs of a source follow from, besides the seed: configuration, package versions, images."""
    peer = SOURCES[source]
    parity = PEERS.parents[1] / "parity"
    configs = [PEERS / f"{peer}_camvid.py", *sorted((parity / "peers").glob(f"{peer}_danet.py"))]
    texts = [*configs, *sorted(parity.glob("requirements*.txt"))]
    parts = [text.read_bytes() for text in texts] + [json.dumps(files, sort_keys=True).encode()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:12]


def call(run: Run, python: Path, root: Path, log: Path, *weights: Path) -> dict[str, Any]:
    """One process of a source's program: trains the seed, or scores weights. Returns its ``result.json``.

    Raises:
        TrainingError: if it fails, with its last line.
    """
    folder = log.parent
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("result.json", "scores.json"):
        (folder / old).unlink(missing_ok=True)
    command: list[str | Path] = [
        python,
        "-W",
        "ignore",
        "-m",
        f"benchmarks.rehearsal.peers.{SOURCES[run.source]}_peer",
        folder,
        *weights,
    ]
    asked = {"CAMVID": str(root), "REHEARSAL_WORK": str(folder), "REHEARSAL_SEED": str(run.seed)}
    with log.open("w") as stream:
        done = subprocess.run(
            command,
            cwd=PACKAGE_ROOT,
            env=dvc_environment() | asked | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE_ROOT)},
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode or not (folder / "result.json").exists():
        last = (log.read_text(errors="replace").strip() or "no output").splitlines()[-1]
        raise TrainingError(
            f"{run.source}, seed {run.seed}: its program stopped ({last[:200]}); the whole log is "
            f"{log.relative_to(PACKAGE_ROOT)}; `make rehearsal` goes on with the runs that are missing"
        )
    text = (folder / "result.json").read_text().replace(str(folder), "WORK").replace(str(root), "CAMVID")
    result: dict[str, Any] = json.loads(text)
    return result


def train(runs: Iterable[Run], python: Path, root: Path, files: dict[str, str], jobs: int) -> dict[Run, dict[str, Any]]:
    """The scores of the runs; those that are missing train first, ``jobs`` at a time, each on one thread."""

    def one(run: Run) -> dict[str, Any]:
        of = identity(run.source, files)
        if (found := run.finished(of)) is not None:
            return found
        facts, start = collect(), time.monotonic()
        console.print(
            f"{run.source}, seed {run.seed}: trains by its own program; its log: {run.log.relative_to(PACKAGE_ROOT)}"
        )
        result = call(run, python, root, run.log)
        scores = {
            "source": run.source,
            "seed": run.seed,
            "identity": of,
            **result,
            "curve": run.steps(),
            "released_sha256": sha256(run.folder / "released.pth"),
            "commit": facts["commit"] + ("-dirty" if facts["dirty"] else ""),
            "cpu": facts["cpu"],
            "threads": 1,
            "date": facts["date"],
            "seconds": round(time.monotonic() - start),
        }
        write_json(run.folder / "scores.json", scores)
        return scores

    with ThreadPoolExecutor(jobs) as pool:
        futures = {run: pool.submit(one, run) for run in runs}
    return {run: future.result() for run, future in futures.items()}
