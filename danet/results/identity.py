"""What a result follows from. It is written beside each artefact and compared wherever one is used again.

Nothing is taken for the same by its name, its seed or its settings alone: the same row trained on other labels, or from
other ImageNet weights, is another run. What the reader is told (notes, titles, published numbers) is not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

from pydantic import BaseModel, ConfigDict

from danet.config.row import Row, identifying

SETUP = ("device", "gpu", "gpus", "cpu", "driver", "cuda", "cudnn", "torch", "precision")
"""Facts under which the same weights and images give the same numbers to the last digit, where all are equal."""


class _Identity(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainingIdentity(_Identity):
    """What trained weights follow from."""

    settings: dict[str, Any]
    """Complete (:attr:`danet.config.row.Row.training_settings`), with the revision of the code."""
    seed: int
    data: str
    """SHA-256 over the images and labels of the training split, in their order; where the checkpoint is chosen on the
    tested split, that of its images and labels too (:func:`trained_on`)."""
    initial_weights: str | None
    """SHA-256 of the ImageNet weights; null for a random start."""

    @classmethod
    def of(cls, row: Row, seed: int, *, data: str, initial_weights: str | None) -> TrainingIdentity:
        """The identity of a seed of a row."""
        return cls(settings=row.training_settings, seed=seed, data=data, initial_weights=initial_weights)

    @property
    def digest(self) -> str:
        """12 hex digits: equal for equal trainings, whenever their settings were written."""
        facts = [identifying(self.settings), self.seed, self.data, self.initial_weights]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]

    def changes(self, now: TrainingIdentity) -> list[str]:
        """What is another ``now``, in words with both values; empty if it is the same training."""
        if self.digest == now.digest:
            return []
        then, today = flat(identifying(self.settings)), flat(identifying(now.settings))
        found = [f"{key} {a!r}, now {b!r}" for key, (a, b) in differing(then, today).items()]
        if self.seed != now.seed:
            found.append(f"seed {self.seed}, now {now.seed}")
        if self.data != now.data:
            pairs = zip_longest(self.data.split("+"), now.data.split("+"), fillvalue="none")
            a, b = next((a, b) for a, b in pairs if a != b)
            found.append(f"training data {a[:12]}, now {b[:12]}")
        if self.initial_weights != now.initial_weights:
            a, b = ((value or "none")[:12] for value in (self.initial_weights, now.initial_weights))
            found.append(f"initial weights {a}, now {b}")
        return found


class EvaluationIdentity(_Identity):
    """What the result of evaluating weights follows from."""

    row_hash: str
    """Of all settings that move results."""
    weights: str
    """SHA-256 of the weights file."""
    data: str
    """SHA-256 over the images and labels of the tested split, in their order."""
    processes: int
    setup: dict[str, Any]
    """Hardware and versions (:data:`SETUP`)."""


def trained_on(row: Row, manifest_hash: Callable[[str], str]) -> str:
    """The data that a row's trained weights follow from, by the hash of a prepared split."""
    splits = [row.train_split] + ([row.val_split] if row.checkpoint == "best-on-val" else [])
    return "+".join(map(manifest_hash, splits))


def flat(settings: Mapping[str, Any] | None, prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``section.field``."""
    result: dict[str, Any] = {}
    for key, value in (settings or {}).items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which two flat mappings differ, with both values (``None`` where one lacks it)."""
    keys = dict.fromkeys([*first, *second])
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}
