"""Reading weights files that come from elsewhere, and saying what is wrong with them.

Nothing in a file is ever executed: PyTorch files are read with ``weights_only=True``, zips in memory. What a training
keeps beside its weights (logs, schedules, NumPy scores) is replaced by :class:`_Inert`.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from danet.core.errors import CheckpointError

_SHOWN: Final = 5
_DEFAULT_REMEDY: Final = "delete it and fetch it again"
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


def read_tensors(file: Path, remedy: str = _DEFAULT_REMEDY) -> dict[str, Tensor]:
    """The tensors of a ``.pth``/``.pt``, ``.safetensors`` or ``.zip`` (of one ``.pth``), by name, on the CPU.

    The state dict inside a training's checkpoint is taken, and prefixes that all names share (``module.``) removed.

    Raises:
        CheckpointError: if the file is missing, empty, cut off, a web page, can only be read by running code, or holds
            no state dict.
    """
    return read_tensors_and_digests(file, (), remedy)[0]


def read_tensors_and_digests(
    file: Path, algorithms: Iterable[str], remedy: str = _DEFAULT_REMEDY
) -> tuple[dict[str, Tensor], dict[str, set[str]]]:
    """:func:`read_tensors`, and per algorithm the hex digests of the file and of the ``.pth`` that a zip holds."""
    data = _read(file, remedy)
    contents = [data]
    try:
        if (member := _zipped_checkpoint(file, data, remedy)) is not None:
            data = member
            contents.append(data)
        value = load_safetensors(data) if file.suffix == ".safetensors" else _load(data)
    except CheckpointError:
        raise
    except Exception as error:  # the readers raise whatever the damaged bytes lead to
        kind = "safetensors" if file.suffix == ".safetensors" else "PyTorch"
        raise CheckpointError(
            f"{file}: is not a {kind} file, is cut off, or can only be read by running code in it, which is refused "
            f"({_short(error)}); {remedy}"
        ) from error
    digests = {name: {hashlib.new(name, content).hexdigest() for content in contents} for name in algorithms}
    return _named_tensors(file, value, remedy), digests


def check_names(
    file: Path,
    given: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    what: str,
    remedy: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Refuses a state dict that is not exactly the expected one, in names, shapes and kind of number.

    Args:
        file: named in the message.
        given: what was read.
        expected: a state dict of the wanted shapes (may be on the meta device).
        what: the wanted network, for the message.
        remedy: what to do about it, for the message.
        names: our name to the file's own, where they differ, so that the message names what is in the file.

    Raises:
        CheckpointError: with the first missing, unexpected, misshapen or non-finite tensors.
    """
    shown = names or {}
    shapes = [
        f"{shown.get(key, key)} {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
        for key, value in given.items()
        if key in expected and value.shape != expected[key].shape
    ]
    kinds = [
        f"{shown.get(key, key)} {value.dtype}"
        for key, value in given.items()
        if key in expected and value.is_floating_point() != expected[key].is_floating_point()
    ]
    problems = [
        _listed("missing", [shown.get(key, key) for key in expected if key not in given]),
        _listed("unexpected", [shown.get(key, key) for key in given if key not in expected]),
        _listed("of another shape", shapes),
        _listed("of another type", kinds),
    ]
    if not any(problems):  # reads every value, so last
        bad = [shown.get(key, key) for key, value in given.items() if not bool(value.isfinite().all())]
        problems = [_listed("with NaN or infinite values", bad)]
    text = "; ".join(problem for problem in problems if problem)
    if text:
        raise CheckpointError(f"{file}: is not {what}: {text}; {remedy}")


def _listed(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} {title} ({', '.join(names[:_SHOWN])}{more})"


def _read(file: Path, remedy: str) -> bytes:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{file}: does not exist; fetch it or place it there") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}); make it a readable file") from error
    if not data:
        raise CheckpointError(f"{file}: is empty; {remedy}")
    if data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{file}: is a web page, not weights (the server answered with an error or login); {remedy}"
        )
    return data


def _pickle_of(archive: zipfile.ZipFile) -> str | None:
    """The member ``<name>/data.pkl`` that every PyTorch zip has."""
    return next((name for name in archive.namelist() if PurePosixPath(name).name == "data.pkl"), None)


def _zipped_checkpoint(file: Path, data: bytes, remedy: str) -> bytes | None:
    """The one ``.pth`` in a zip that is not itself a PyTorch file; None for any other file."""
    if not data.startswith(b"PK"):
        return None
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if _pickle_of(archive) is not None:
            return None
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX/") and not name.endswith("/")]
        if len(names) != 1 or not names[0].endswith((".pth", ".pt")):
            found = ", ".join(names[:_SHOWN]) or "nothing"
            raise CheckpointError(f"{file}: must hold exactly one .pth file, holds {found}; {remedy}")
        return archive.read(names[0])


def _load(data: bytes) -> Any:
    """What a PyTorch file holds; classes and functions that PyTorch does not know become :class:`_Inert`."""
    inert = [(type(name, (_Inert,), {}), name) for name in sorted(set(_globals(data)))]
    with torch.serialization.safe_globals(inert), warnings.catch_warnings(action="ignore"):  # type: ignore[arg-type]
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _globals(data: bytes) -> Iterator[str]:
    """Every class and function that a PyTorch file names, as Python 3 calls it. PyTorch's own ones go before them."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            stream, pickles = io.BytesIO(archive.read(_pickle_of(archive) or "data.pkl")), 1
    else:  # before PyTorch 1.6: magic number, version, system and the object, one pickle after the other
        stream, pickles = io.BytesIO(data), 4
    for _ in range(pickles):
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name == "GLOBAL":
                module, name = str(argument).split(" ", 1)
                module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                yield f"{module}.{name}"


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
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"{file}: {key[:200]!r} is sparse, quantised or without data; {remedy}")
    names = [name.replace("._orig_mod.", ".") for name in state]
    while prefix := next((text for text in _PREFIXES if all(name.startswith(text) for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, state.values(), strict=True))


def _short(error: Exception) -> str:
    """The first line of a library's message that says something."""
    told = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    text = told.splitlines()[0] if told else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
