"""Runs as their metrics files describe them: what ``danet show`` prints and what ``danet diff`` compares.

A run is named by a row (all its seeds), ``row:seed``, ``row:released``, or the path of an ``evaluation.json`` or
``verification.json``, whoever made it. Only the files are read: the settings shown are those that were used, not those
that ``params.yaml`` has today.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from danet.config.published import Published
from danet.config.workspace import Workspace
from danet.core.errors import ConfigError, DataError
from danet.core.text import fact, number, signed
from danet.results.identity import differing, flat
from danet.results.measured import accuracies, class_iou, facts, facts_table
from danet.results.schema import (
    ACCURACIES,
    Accuracy,
    EvaluatedSeed,
    EvaluationFile,
    Facts,
    TrainedSeed,
    TrainingFile,
    load,
)
from danet.results.verdict import BAND

OF_FILE = {"row", "row_hash", "train_hash", "dataset", "split"}
RELEASED = "released"
"""In place of a seed."""


@dataclass(frozen=True)
class NamedRun:
    """The seeds of one evaluation that a name chose."""

    name: str
    path: Path
    file: EvaluationFile
    seeds: tuple[EvaluatedSeed, ...]
    trained: tuple[TrainedSeed, ...] = ()
    """The trainings of these very weights, where ``train.json`` beside the file has them."""

    @property
    def accuracies(self) -> dict[str, Accuracy]:
        """Over the seeds, beside nothing published."""
        return accuracies([seed.modes for seed in self.seeds], Published(), BAND)

    def iou(self) -> dict[str, dict[str, float | None]]:
        """Percent by testing mode and class, mean over the seeds that have the class."""
        modes = {
            mode: [dict(seed.modes.items())[mode] for seed in self.seeds] for mode, _ in self.seeds[0].modes.items()
        }
        return {mode: class_iou(self.file.classes, results) for mode, results in modes.items()}

    def facts(self) -> dict[str, Facts]:
        """See :func:`danet.results.measured.facts`; without ``training`` where that is not known."""
        return facts({"training": self.trained, "evaluation": self.seeds})


def load_run(name: str, workspace: Workspace) -> NamedRun:
    """The run of that name: ``ROW``, ``ROW:SEED``, ``ROW:released``, or a path (``PATH:SEED``).

    Raises:
        ConfigError: if there is no such row, file or seed, saying which there are.
        DataError: if the file is damaged or of another format.
    """
    path, wanted = _find(name, workspace)
    file = load(path, EvaluationFile, "give an evaluation.json, or evaluate again")
    seeds = tuple(seed for seed in file.runs if wanted in ("", seed_name(seed)))
    if not seeds:
        known = ", ".join(map(seed_name, file.runs))
        raise ConfigError(f"{path}: has no seed {wanted}; it has: {known}")
    return NamedRun(name, path, file, seeds, _training(path.with_name("train.json"), file, seeds))


def _find(name: str, workspace: Workspace) -> tuple[Path, str]:
    """The file of a run, and the seed of it that is meant; empty for all."""
    subject, _, wanted = name.rpartition(":")
    if not (subject and (wanted.isdigit() or wanted == RELEASED)):  # no colon, or one of the path
        subject, wanted = name, ""
    path = Path(subject)
    if path.suffix == ".json":
        if not path.exists():
            raise ConfigError(f"{path}: does not exist; give a row or the path of an evaluation.json")
        return path, wanted
    row = workspace.params().row(subject)
    stage, file = ("verify", "verification.json") if wanted == RELEASED else ("evaluate", "evaluation.json")
    path = workspace.metrics(row) / file
    if not path.exists():
        raise ConfigError(f"{path}: does not exist; run `dvc repro {stage}@{row.name}` first")
    return path, wanted


def seed_name(run: EvaluatedSeed) -> str:
    """``0``, or ``released``."""
    return RELEASED if run.seed is None else str(run.seed)


def _training(path: Path, file: EvaluationFile, seeds: Sequence[EvaluatedSeed]) -> tuple[TrainedSeed, ...]:
    try:
        found = load(path, TrainingFile, "train again")
    except DataError:
        return ()
    evaluated = {seed.seed: (seed.training, seed.weights_sha256) for seed in seeds}
    same = tuple(run for run in found.runs if evaluated.get(run.seed) == (run.identity, run.weights_sha256))
    return same if found.row == file.row and len(same) == len(seeds) else ()


def describe(run: NamedRun) -> dict[str, Any]:
    """A run as JSON-serialisable data: what ``danet show --format json`` prints."""
    file = run.file
    return {
        "run": run.name,
        **file.model_dump(include=OF_FILE),
        "seeds": [seed.seed for seed in run.seeds],
        "accuracies": {name: found.mean for name, found in run.accuracies.items()},
        "baseline_miou": run.seeds[0].modes.ss.scores.constant[0],
        "iou": run.iou(),
        "provenance": run.facts(),
        "weights": file.weights.model_dump() if file.weights else {},
        "settings": file.settings,
    }


@dataclass(frozen=True)
class Difference:
    """What differs between two runs, each as ``name -> (first, second)``."""

    settings: dict[str, tuple[Any, Any]]
    provenance: dict[str, tuple[Any, Any]]
    accuracies: dict[str, tuple[float, float]]
    """Percent, of those that both have."""
    iou: dict[str, tuple[float | None, float | None]]
    """By class, single scale, percent; the classes that both runs have, largest change first."""


UNCOMPARED = {
    *("date", "wall_seconds", "energy_kj", "fps", "hours", "images_per_second", "peak_memory_gib"),
    *("final_loss", "data_wait_share", "resumed"),
}
"""What is measured of a run, not what it was made from: two runs never share it."""


def compare(first: NamedRun, second: NamedRun) -> Difference:
    """What differs between two runs, and by how much their per-class IoU differs."""
    means = [{name: found.mean or 0.0 for name, found in run.accuracies.items()} for run in (first, second)]
    ious = [run.iou()["ss"] for run in (first, second)]
    shared = [name for name in ious[0] if name in ious[1]]
    shared.sort(key=lambda name: -abs((ious[0][name] or 0.0) - (ious[1][name] or 0.0)))
    return Difference(
        settings=differing(flat(first.file.settings), flat(second.file.settings)),
        provenance=_differing_facts(first, second),
        accuracies={name: (mean, means[1][name]) for name, mean in means[0].items() if name in means[1]},
        iou={name: (ious[0][name], ious[1][name]) for name in shared},
    )


def _differing_facts(first: NamedRun, second: NamedRun) -> dict[str, tuple[Any, Any]]:
    found = differing(*(run.file.model_dump(include=OF_FILE) for run in (first, second)))
    there, here = first.facts(), second.facts()
    for stage in (stage for stage in there if stage in here):
        changed = differing(there[stage], here[stage])
        found |= {f"{stage}: {key}": values for key, values in changed.items() if key not in UNCOMPARED}
    return found


def show_text(run: NamedRun) -> str:
    """A run for a terminal: numbers, provenance, IoU by class."""
    file = run.file
    seeds = ", ".join(map(seed_name, run.seeds))
    of = "released weights" if seeds == RELEASED else f"seed{'s' if len(run.seeds) > 1 else ''} {seeds}"
    lines = [
        [ACCURACIES[name], number(found.mean), number(found.sd), ", ".join(map(number, found.values))]
        for name, found in run.accuracies.items()
    ]
    lines.append(["best constant mIoU", number(run.seeds[0].modes.ss.scores.constant[0]), "", ""])
    width = 4 if len(run.seeds) > 1 else 2
    numbers = _table([line[:width] for line in lines], ["%", "mean" if width == 4 else "", "sd", "seeds"][:width])
    head, facts = facts_table(run.facts())
    hashes = f"row hash {file.row_hash}, training hash {file.train_hash}"
    blocks = [f"{file.row}, {of}\n{file.dataset} {file.split}, {hashes}\n{run.path}", numbers, _table(facts, head)]
    if file.weights:
        blocks.append(_table([[key, fact(value)] for key, value in file.weights.model_dump().items()], ["weights", ""]))
    by_mode = run.iou()
    lines = [[name, *(number(ious[name]) for ious in by_mode.values())] for name in file.classes]
    head = ["IoU, %", *("ms+flip" if mode == "ms" else "single scale" for mode in by_mode)]
    return "\n\n".join([*blocks, _table(lines, head, "r")])


def diff_text(first: NamedRun, second: NamedRun, difference: Difference) -> str:
    """What differs between two runs, for a terminal."""
    names = [first.name, second.name]
    lines = [[key, *map(fact, values)] for key, values in difference.settings.items() if key != "name"]
    blocks = [_table(lines, ["settings", *names]) if lines else "Settings: the same."]
    lines = [[key, *map(fact, values)] for key, values in difference.provenance.items()]
    blocks.append(_table(lines, ["provenance", *names]) if lines else "Provenance: the same.")
    lines = [[ACCURACIES[key], number(a), number(b), signed(b - a)] for key, (a, b) in difference.accuracies.items()]
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
    return "\n\n".join(blocks)


def _table(lines: Sequence[Sequence[str]], head: Sequence[str], align: str = "l") -> str:
    """At most 80 columns wide: those of a wider table share the room, and long words are broken."""
    sides = ["left"] + ["right" if align == "r" else "left"] * (len(head) - 1)
    first = min(29, max(len(line[0]) for line in (*lines, head)))
    shared = [first] + [(80 - first) // max(1, len(head) - 1) - 2] * (len(head) - 1)
    for widths in (None, shared):
        text = tabulate(
            lines, headers=head, tablefmt="plain", colalign=sides, disable_numparse=True, maxcolwidths=widths,
            maxheadercolwidths=widths,
        )  # fmt: skip
        if max(map(len, text.splitlines())) <= 80:
            break
    return text
