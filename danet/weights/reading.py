"""Reading weights files that come from elsewhere, and saying what is wrong with them.

Nothing in a file is ever executed: PyTorch files are read with ``weights_only=True``. What a training keeps beside its
weights (logs, schedules, NumPy scores) is replaced by :class:`_Inert`.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from danet.core.errors import CheckpointError

_SHOWN: Final = 5
_COUNTER: Final = ".num_batches_tracked"
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "network", "net", "module")
"""Entries under which training code keeps the state dict."""
_PREFIXES: Final = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""What DataParallel, ``torch.compile`` and modules around the network put before every name."""


class _Inert:
    """Stands for any object of a file that is not a tensor or a plain value: takes everything, does nothing."""

    def __new__(cls, *_: object) -> _Inert:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def read_tensors(file: Path, remedy: str = "delete it and fetch it again") -> dict[str, Tensor]:
    """The tensors of a ``.pth``/``.pt`` or ``.safetensors``, by name, on the CPU.

    The state dict inside a training's checkpoint is taken, and prefixes that all names share (``module.``) removed.

    Raises:
        CheckpointError: if the file is missing or damaged, can only be read by running code, or holds no state dict.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: does not exist; fetch it or place it there")
    kind = "safetensors" if file.suffix == ".safetensors" else "PyTorch"
    try:
        value = load_file(file) if kind == "safetensors" else _load(file)
    except Exception as error:  # the readers raise whatever the damaged bytes lead to
        raise CheckpointError(
            f"{file}: is not a {kind} file, is cut off, or can only be read by running code in it, which is refused "
            f"({_short(error)}); {remedy}"
        ) from error
    return _named_tensors(file, value, remedy)


def check_names(
    file: Path, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, what: str, remedy: str
) -> None:
    """Refuses a state dict that is not exactly the expected one, in names, shapes and kind of number.

    A number may have the shape () or (1,), as in code of old PyTorch. ``what`` and ``remedy`` are for the message.

    Raises:
        CheckpointError: with the first missing, unexpected, misshapen or non-finite tensors.
    """
    both = [(key, value, expected[key]) for key, value in given.items() if key in expected]
    shapes = [
        f"{key} {tuple(value.shape)} instead of {tuple(wanted.shape)}"
        for key, value, wanted in both
        if value.shape != wanted.shape and {value.numel(), wanted.numel()} != {1}
    ]
    kinds = [
        f"{key} {value.dtype}" for key, value, wanted in both if value.is_floating_point() != wanted.is_floating_point()
    ]
    problems = [
        _listed("missing", [key for key in expected if key not in given]),
        _listed("unexpected", [key for key in given if key not in expected]),
        _listed("of another shape", shapes),
        _listed("of another type", kinds),
    ]
    if not any(problems):  # reads every value, so last
        bad = [key for key, value in given.items() if not bool(value.isfinite().all())]
        problems = [_listed("with NaN or infinite values", bad)]
    text = "; ".join(problem for problem in problems if problem)
    if text:
        raise CheckpointError(f"{file}: is not {what}: {text}; {remedy}")


def translated(
    file: Path,
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    names: Mapping[str, str],
    *,
    what: str,
    remedy: str,
) -> dict[str, Tensor]:
    """The tensors of a file as our state dict ``wanted``, in its shapes and types.

    ``names`` has the file's name of each of ours. Everything must be there, and nothing more; only batch counters,
    which files of old PyTorch lack altogether, are then 0.

    Raises:
        CheckpointError: as :func:`check_names`.
    """
    expected = {names[key]: value for key, value in wanted.items()}
    if not any(key.endswith(_COUNTER) for key in given):
        zero = torch.zeros((), dtype=torch.int64)
        given = {**given, **{key: zero for key in expected if key.endswith(_COUNTER)}}
    check_names(file, given, expected, what=what, remedy=remedy)
    return {key: given[names[key]].to(value.dtype).reshape(value.shape) for key, value in wanted.items()}


def _listed(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} {title} ({', '.join(names[:_SHOWN])}{more})"


def _load(file: Path) -> Any:
    """What a PyTorch file holds; classes and functions that PyTorch does not know become :class:`_Inert`."""
    inert: list[Any] = []
    while True:
        try:
            with torch.serialization.safe_globals(inert), warnings.catch_warnings(action="ignore"):
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            name = found[1] if found and "." in found[1] else f"builtins.{found[1]}" if found else ""
            if not name or any(name == known for _, known in inert):
                raise
            inert.append((type(name, (_Inert,), {}), name))


def _state_dict(value: Any) -> Mapping[Any, Any] | None:
    """The tensors by name that a checkpoint holds, under however many wrappings."""
    if not isinstance(value, Mapping):
        return None
    for wrapper in _WRAPPERS:
        if (found := _state_dict(value.get(wrapper))) is not None:
            return found
    return value if any(isinstance(entry, Tensor) for entry in value.values()) else None


def _named_tensors(file: Path, value: Any, remedy: str) -> dict[str, Tensor]:
    state = _state_dict(value)
    if state is None:
        found = f"a {type(value).__name__}"
        if isinstance(value, Mapping):
            found = f"the entries {', '.join(str(key)[:80] for key in list(value)[:_SHOWN]) or '(none)'}"
        raise CheckpointError(
            f"{file}: no state dict was found in it, but {found}; take the file with the model's state dict, or save "
            "model.state_dict() alone"
        )
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{file}: entry {repr(key)[:200]} is a {type(tensor).__name__}, not a tensor; {remedy}"
            )
    names = [name.replace("._orig_mod.", ".") for name in state]
    while prefix := next((text for text in _PREFIXES if all(name.startswith(text) for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, state.values(), strict=True))


def _short(error: Exception) -> str:
    """The first line of a library's message that says something."""
    told = str(error).rpartition("WeightsUnpickler error: ")[2].rpartition("from a trusted source.")[2].strip()
    text = told.splitlines()[0] if told else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
