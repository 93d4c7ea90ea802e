"""Runs as their metrics files describe them: what ``danet show`` prints and what ``danet diff`` compares.

A run is named by a row (all its seeds), ``row:seed``, ``row:released``, or the path of an ``evaluation.json`` or
``verification.json``, whoever made it. Only the files are read: the settings shown are those that were used, not those
that ``params.yaml`` has today.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tabulate import tabulate

from danet.config.workspace import Workspace
from danet.core.errors import ConfigError, DataError
from danet.core.text import fact, number, signed
from danet.results.identity import SETUP, differing, flat
from danet.results.measured import Evaluated, Trained, explain, fact_name
from danet.results.verdict import summarise

RELEASED = -1
"""Stands for the seed of released weights, which no source says."""
METRICS = ("miou", "aacc", "macc")


@dataclass(frozen=True)
class Run:
    """The seeds of one evaluation that a name chose."""

    name: str
    path: Path
    row: str
    row_hash: str
    train_hash: str | None
    dataset: str | None
    split: str | None
    classes: tuple[str, ...]
    settings: Mapping[str, Any] | None
    """As they were; ``None`` in files that do not say."""
    seeds: tuple[Evaluated, ...]
    trained: tuple[Trained, ...] = ()
    weights: Mapping[str, Any] = field(default_factory=dict)
    """Of released weights: where they came from."""

    @property
    def modes(self) -> list[str]:
        """``ss``, and ``ms`` if every seed has it."""
        return [mode for mode in ("ss", "ms") if all(mode in seed.modes for seed in self.seeds)]

    def metric(self, mode: str, metric: str) -> list[float]:
        """Percent, one number per seed."""
        return [float(getattr(seed.modes[mode], metric)) for seed in self.seeds]

    def iou(self, mode: str) -> list[float | None]:
        """Percent by class, mean over the seeds that have the class."""
        columns = zip(*(seed.modes[mode].iou for seed in self.seeds), strict=True)
        present = [[value for value in column if value is not None] for column in columns]
        return [statistics.fmean(values) if values else None for values in present]

    def facts(self) -> dict[str, dict[str, Any]]:
        """Provenance by stage: ``evaluation`` and, where it is known, ``training``; a list where seeds differ."""
        stages: dict[str, dict[str, Any]] = {}
        for stage, runs in (("training", self.trained), ("evaluation", self.seeds)):
            if runs:
                keys = dict.fromkeys(key for run in runs for key in run.provenance)
                stages[stage] = {key: _joined(run.provenance.get(key) for run in runs) for key in keys}
        for run in self.trained[:1]:
            names = ("iterations", "hours", "images_per_second", "peak_memory_gib", "weights_sha256")
            stages["training"] |= {
                name: _joined(getattr(each, name) for each in self.trained)
                for name in names
                if getattr(run, name) is not None
            }
        stages["evaluation"]["fps"] = _joined(seed.fps for seed in self.seeds)
        return stages


def _joined(values: Iterable[Any]) -> Any:
    """The value that all share, else a list of all of them."""
    found = list(values)
    return found[0] if all(value == found[0] for value in found) else found


def load_run(name: str, workspace: Workspace) -> Run:
    """The run of that name.

    Args:
        name: ``ROW``, ``ROW:SEED``, ``ROW:released``, or a path (``PATH:SEED`` for one seed of the file).
        workspace: where rows' metrics files are.

    Raises:
        ConfigError: if there is no such row, file or seed, saying which there are.
        DataError: if the file lacks fields or holds numbers that are not finite.
    """
    subject, _, wanted = name.rpartition(":") if ":" in name else (name, "", "")
    if not _is_seed(wanted) and wanted:  # a colon of the path
        subject, wanted = name, ""
    path = Path(subject)
    if path.suffix != ".json":
        row = workspace.params().row(subject)
        path = workspace.metrics(row) / ("verification.json" if wanted == "released" else "evaluation.json")
        if not path.exists():
            what = f"verify@{row.name}" if wanted == "released" else f"evaluate@{row.name}"
            raise ConfigError(f"{path}: does not exist; run `dvc repro {what}` first")
        wanted = "" if wanted == "released" else wanted
    elif not path.exists():
        raise ConfigError(f"{path}: does not exist; give a row or the path of an evaluation.json")
    data = _json(path)
    seeds = []
    for each in data["runs"]:
        try:
            released = isinstance(each, dict) and "seed" in each and each["seed"] is None
            seeds.append(Evaluated.model_validate(each | {"seed": RELEASED} if released else each))
        except ValidationError as error:
            raise DataError(f"{path}: seed {_seed(each)}: {explain(error)}; evaluate again") from None
    chosen = [seed for seed in seeds if not wanted or str(seed.seed) == wanted]
    if not chosen:
        known = ", ".join(seed_name(seed.seed) for seed in seeds) or "none"
        raise ConfigError(f"{path}: has no seed {wanted or 'at all'}; it has: {known}")
    for seed in chosen:
        for mode, result in seed.modes.items():
            if len(result.iou) != len(data["classes"]):
                raise DataError(
                    f"{path}: seed {seed.seed}, {mode}: {len(result.iou)} IoUs, {len(data['classes'])} classes"
                )
    return Run(
        name,
        path,
        data["row"],
        data["row_hash"],
        data.get("train_hash"),
        data.get("dataset"),
        data.get("split"),
        tuple(data["classes"]),
        data.get("settings"),
        tuple(chosen),
        _training(path.with_name("train.json"), data, chosen),
        data.get("weights") or {},
    )


def seed_name(seed: int) -> str:
    """``0``, or ``released``."""
    return "released" if seed == RELEASED else str(seed)


def _is_seed(text: str) -> bool:
    return text.isdigit() or text == "released"


def _seed(run: Any) -> Any:
    return run.get("seed", "?") if isinstance(run, Mapping) else "?"


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error})") from error
    missing = [key for key in ("row", "row_hash", "classes", "runs") if not isinstance(data, dict) or key not in data]
    if missing or not isinstance(data["runs"], list):
        raise DataError(f"{path}: has no {', '.join(missing) or 'list of runs'}; give an evaluation.json")
    return dict(data)


def _training(path: Path, data: Mapping[str, Any], seeds: Sequence[Evaluated]) -> tuple[Trained, ...]:
    """What ``train.json`` beside it says of the very weights that were evaluated."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["row"] != data["row"] or found["train_hash"] != data.get("train_hash"):
            return ()
        trained = [Trained.model_validate(run) for run in found["runs"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
    evaluated = {seed.seed: seed.provenance.get("weights_sha256") for seed in seeds}
    same = [run for run in trained if run.seed in evaluated and run.weights_sha256 == evaluated[run.seed]]
    return tuple(same) if len(same) == len(seeds) else ()


def describe(run: Run) -> dict[str, Any]:
    """A run as JSON-serialisable data: what ``danet show --format json`` prints."""
    return {
        "run": run.name,
        "row": run.row,
        "row_hash": run.row_hash,
        "train_hash": run.train_hash,
        "dataset": run.dataset,
        "split": run.split,
        "seeds": [None if seed.seed == RELEASED else seed.seed for seed in run.seeds],
        "metrics": {
            mode: {metric: statistics.fmean(run.metric(mode, metric)) for metric in METRICS} for mode in run.modes
        },
        "baseline_miou": run.seeds[0].baseline_miou,
        "iou": {mode: dict(zip(run.classes, run.iou(mode), strict=True)) for mode in run.modes},
        "provenance": run.facts(),
        "weights": dict(run.weights),
        "settings": run.settings,
    }


@dataclass(frozen=True)
class Difference:
    """What differs between two runs, each as ``name -> (first, second)``."""

    settings: dict[str, tuple[Any, Any]]
    settings_known: bool
    """Whether both files say their settings; if not, only the hashes can be compared."""
    provenance: dict[str, tuple[Any, Any]]
    metrics: dict[str, tuple[float, float]]
    """``ss mIoU`` and the like, percent."""
    iou: dict[str, tuple[float | None, float | None]]
    """By class, single scale, percent; the classes that both runs have, largest change first."""
    only: tuple[tuple[str, ...], tuple[str, ...]]
    """Classes that only one of them has."""

    def describe(self) -> dict[str, Any]:
        """As JSON-serialisable data."""
        return {
            "settings": self.settings if self.settings_known else None,
            "provenance": self.provenance,
            "metrics": self.metrics,
            "iou": self.iou,
            "classes_only_in": self.only,
        }


UNCOMPARED = {"date", "wall_seconds", "energy_kj", "fps", "hours", "images_per_second", "peak_memory_gib"}
"""What is measured of a run, not what it was made from: two runs never share it."""
OF_THE_ROW = {"row_hash", "train_hash"}
"""Said of the run once, not of each stage again."""


def compare(first: Run, second: Run) -> Difference:
    """What differs between two runs, and by how much their per-class IoU differs."""
    provenance: dict[str, tuple[Any, Any]] = {}
    for key in ("row", "row_hash", "train_hash", "dataset", "split"):
        if getattr(first, key) != getattr(second, key):
            provenance[key] = (getattr(first, key), getattr(second, key))
    facts = first.facts(), second.facts()
    for stage in ("training", "evaluation"):
        known = [each.get(stage) for each in facts]
        if not all(known):
            if any(known):
                provenance[stage] = tuple("known" if each else "not known" for each in known)  # type: ignore[assignment]
            continue
        changed = differing(*({k: v for k, v in (each or {}).items() if k not in OF_THE_ROW} for each in known))
        provenance |= {f"{stage}: {key}": values for key, values in changed.items() if key not in UNCOMPARED}
    metrics = {}
    for mode in [mode for mode in first.modes if mode in second.modes]:
        for metric, name in zip(METRICS, ("mIoU", "aAcc", "mAcc"), strict=True):
            metrics[f"{name}{', ms+flip' if mode == 'ms' else ''}"] = (
                statistics.fmean(first.metric(mode, metric)),
                statistics.fmean(second.metric(mode, metric)),
            )
    ious = [dict(zip(run.classes, run.iou("ss"), strict=True)) for run in (first, second)]
    shared = [name for name in first.classes if name in ious[1]]
    shared.sort(key=lambda name: -abs((ious[0][name] or 0.0) - (ious[1][name] or 0.0)))
    only = tuple(tuple(name for name in a if name not in b) for a, b in (ious, ious[::-1]))
    return Difference(
        settings=differing(flat(first.settings), flat(second.settings)),
        settings_known=first.settings is not None and second.settings is not None,
        provenance=provenance,
        metrics=metrics,
        iou={name: (ious[0][name], ious[1][name]) for name in shared},
        only=(only[0], only[1]),
    )


def same_setup(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two provenances are of the same hardware, versions and precision, as far as both are known."""
    return all(first.get(key) == second.get(key) for key in SETUP)


def show_text(run: Run) -> str:
    """A run for a terminal: numbers, provenance by stage, IoU by class."""
    seeds = ", ".join(seed_name(seed.seed) for seed in run.seeds)
    of = "released weights" if seeds == "released" else f"seed{'s' if len(run.seeds) > 1 else ''} {seeds}"
    blocks = [f"{run.row}, {of}\n{run.dataset or 'dataset unknown'} {run.split or ''}, from {run.path}".rstrip()]
    lines = []
    for mode in run.modes:
        for metric, name in zip(METRICS, ("mIoU", "aAcc", "mAcc"), strict=True):
            values = run.metric(mode, metric)
            summary = summarise(values)
            assert summary is not None
            each = ", ".join(f"{value:.2f}" for value in values) if len(values) > 1 else ""
            spread = "" if summary.sd is None else f"{summary.sd:.2f}"
            lines.append([name + (", ms+flip" if mode == "ms" else ""), f"{summary.mean:.2f}", spread, each])
    if run.seeds[0].baseline_miou is not None:
        lines.append(["best constant mIoU", f"{run.seeds[0].baseline_miou:.2f}", "", ""])
    width = 4 if len(run.seeds) > 1 else 2
    blocks.append(_table([line[:width] for line in lines], ["%", "mean" if width == 4 else "", "sd", "seeds"][:width]))
    facts = run.facts()
    keys = dict.fromkeys(
        key for stage in facts.values() for key in stage if key not in {"seed", "row_hash", "train_hash"}
    )
    head = ["provenance", *facts]
    lines = [["row hash", run.row_hash], ["training hash", str(run.train_hash)]]
    lines = [[*line, *["same"] * (len(facts) - 1)] for line in lines]
    for key in keys:
        cells = [fact(stage.get(key)) for stage in facts.values()]
        same = len(cells) > 1 and len(set(cells)) == 1 and cells[0] != "-"
        lines.append([fact_name(key), cells[0], *("same" if same else cell for cell in cells[1:])])
    blocks.append(_table(lines, head))
    if run.weights:
        blocks.append(_table([[key, fact(value)] for key, value in run.weights.items()], ["weights", ""]))
    columns = [run.iou(mode) for mode in run.modes]
    lines = [[name, *(number(column[place]) for column in columns)] for place, name in enumerate(run.classes)]
    blocks.append(
        _table(lines, ["IoU, %", *("ms+flip" if mode == "ms" else "single scale" for mode in run.modes)], "r")
    )
    return "\n\n".join(blocks)


def diff_text(first: Run, second: Run, difference: Difference) -> str:
    """What differs between two runs, for a terminal."""
    names = [first.name, second.name]
    blocks = []
    if not difference.settings_known:
        same = first.row_hash == second.row_hash
        blocks.append("Settings: " + ("the same (row hash)." if same else "other ones; a file does not say which."))
    elif difference.settings:
        lines = [[key, *map(fact, values)] for key, values in difference.settings.items() if key != "name"]
        blocks.append(_table(lines, ["settings", *names]) if lines else "Settings: the same.")
    else:
        blocks.append("Settings: the same.")
    lines = [[key.replace("_", " "), *map(fact, values)] for key, values in difference.provenance.items()]
    blocks.append(_table(lines, ["provenance", *names]) if lines else "Provenance: the same.")
    lines = [[key, f"{a:.2f}", f"{b:.2f}", signed(b - a)] for key, (a, b) in difference.metrics.items()]
    blocks.append(_table(lines, ["%", *names, "change"], "r"))
    lines = [
        [name, number(a), number(b), signed(None if a is None or b is None else b - a)]
        for name, (a, b) in difference.iou.items()
        if a is not None or b is not None
    ]
    if lines:
        neither = len(difference.iou) - len(lines)
        rest = f"\nand {neither} classes that are not in the data of either" if neither else ""
        blocks.append(_table(lines, ["IoU by class, %", *names, "change"], "r") + rest)
    for run, only in zip((first, second), difference.only, strict=True):
        if only:
            shown = [*only[:12], f"and {len(only) - 12} more"] if len(only) > 13 else only
            blocks.append(f"Classes of {run.name} alone: {', '.join(shown)}.")
    return "\n\n".join(blocks)


def _table(lines: Sequence[Sequence[str]], head: Sequence[str], align: str = "l") -> str:
    sides = ["left"] + ["right" if align == "r" else "left"] * (len(head) - 1)
    return tabulate(lines, headers=head, tablefmt="plain", colalign=sides, disable_numparse=True)
