"""Reading weights files that come from elsewhere, and saying what is wrong with them.

Nothing in a file is ever executed: PyTorch files are read with ``weights_only=True``, zips in memory. A tensor must be
plain (dense, of ordinary numbers, on the CPU), and all together must not be much larger than the bytes that the file
has for them: a few bytes can claim a view of terabytes, which only the first use would try to allocate.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from danet.core.errors import CheckpointError

_NUMBERS: Final = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}
MAX_MEMBER_BYTES: Final = 4 * 2**30
"""Largest file unpacked from a zip: four times the largest released checkpoint, and no zip bomb."""
ZIP_DAMAGE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
    OSError,
    struct.error,
)
"""What Python's zip reader raises on damaged ones."""
MAX_VIEW_BYTES: Final = 2**29
"""Of all tensors of a file together, where that is more than twice their stored bytes."""
_SHOWN: Final = 5
_DEFAULT_REMEDY: Final = "delete it and fetch it again"


def read_tensors(file: Path, remedy: str = _DEFAULT_REMEDY) -> dict[str, Tensor]:
    """The tensors of a ``.pth``/``.pt``, ``.safetensors`` or ``.zip`` (of one ``.pth``), by name, on the CPU.

    A ``state_dict`` inside is taken, and ``module.`` (DataParallel) removed from the names.

    Raises:
        CheckpointError: if the file is missing, empty, cut off, a web page, wants to run code, or holds anything but
            named tensors.
    """
    return read_tensors_and_digests(file, (), remedy)[0]


def read_tensors_and_digests(
    file: Path, algorithms: Iterable[str], remedy: str = _DEFAULT_REMEDY
) -> tuple[dict[str, Tensor], dict[str, set[str]]]:
    """:func:`read_tensors`, and per algorithm the hex digests of the file and of the ``.pth`` that a zip holds."""
    data = _read(file, remedy)
    contents = [data]
    if _is_zip_of_checkpoint(data):
        data = _member(file, data, remedy)
        contents.append(data)
    digests = {name: {hashlib.new(name, content).hexdigest() for content in contents} for name in algorithms}
    return _named_tensors(file, _load(file, data, remedy), remedy), digests


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


def _entries(data: bytes) -> list[zipfile.ZipInfo] | None:
    """The directory of a zip; None for anything else, and for a damaged one (which PyTorch's reader will refuse)."""
    if not data.startswith(b"PK"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.infolist()
    except ZIP_DAMAGE:
        return None


def _is_zip_of_checkpoint(data: bytes) -> bool:
    """A zip that is not itself a PyTorch file (those hold ``<name>/data.pkl``)."""
    entries = _entries(data)
    return entries is not None and not any(PurePosixPath(info.filename).name == "data.pkl" for info in entries)


def _is_torchscript(entries: Iterable[zipfile.ZipInfo]) -> bool:
    """A PyTorch zip with the ``<name>/code/`` of a scripted module."""
    return any(PurePosixPath(info.filename).parts[1:2] == ("code",) for info in entries)


def _is_tar(data: bytes) -> bool:
    """PyTorch's format of before 2017."""
    return data[257:262] == b"ustar"


def _member(file: Path, data: bytes, remedy: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [
            item
            for item in archive.infolist()
            if not item.filename.startswith("__MACOSX/") and item.filename[-1:] != "/"
        ]
        for item in members:
            path = PurePosixPath(item.filename)
            if path.is_absolute() or ".." in path.parts or "\\" in item.filename:
                raise CheckpointError(f"{file}: holds a member with an unsafe name ({item.filename!r}); {remedy}")
        if len(members) != 1 or not members[0].filename.endswith((".pth", ".pt")):
            found = ", ".join(item.filename for item in members[:_SHOWN]) or "nothing"
            raise CheckpointError(f"{file}: must hold exactly one .pth file, holds {found}; {remedy}")
        if members[0].compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise CheckpointError(f"{file}: {members[0].filename!r} is packed by an unusual method; {remedy}")
        if members[0].file_size > MAX_MEMBER_BYTES:
            raise CheckpointError(
                f"{file}: {members[0].filename} unpacks to {members[0].file_size} bytes, allowed are "
                f"{MAX_MEMBER_BYTES}; {remedy}"
            )
        try:
            return archive.read(members[0])
        except ZIP_DAMAGE as error:
            raise CheckpointError(f"{file}: is a damaged zip ({_short(error)}); {remedy}") from error


def _load(file: Path, data: bytes, remedy: str) -> Any:
    if file.suffix == ".safetensors":
        try:
            return load_safetensors(data)
        except (SafetensorError, LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{file}: is not a safetensors file or is cut off ({_short(error)}); {remedy}"
            ) from error
    entries = _entries(data) or []
    if _is_torchscript(entries):
        raise CheckpointError(
            f"{file}: is a TorchScript archive, which is a program, and none is run; take the checkpoint with the "
            "state dict, or re-save module.state_dict() where you trust it"
        )
    if _is_tar(data):
        raise CheckpointError(
            f"{file}: is in PyTorch's tar format of before 2017, which only a reader that runs code can read; re-save "
            "it with today's torch.save where you trust it"
        )
    if sum(info.file_size for info in entries) > len(data):  # a bomb at worst
        raise CheckpointError(f"{file}: has packed records, which PyTorch never writes; {remedy}")
    try:
        with _numpy_scalars(), warnings.catch_warnings(action="ignore"):  # what they warn of is refused or harmless
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if wanted := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{file}: would run code when loaded ({wanted[1]}), which is refused; re-save its state dict as plain "
                "tensors or safetensors where you trust it"
            ) from error
        raise CheckpointError(f"{file}: is no PyTorch file; {remedy}") from error
    except Exception as error:  # PyTorch's readers raise whatever the damaged bytes lead to
        raise CheckpointError(f"{file}: is damaged or cut off ({_short(error)}); {remedy}") from error


def _numpy_scalars() -> AbstractContextManager[None]:
    """Allows plain NumPy numbers, which the official repository's checkpoints keep beside the weights (best score)."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64")}
    allowed = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *kinds]
    context: AbstractContextManager[None] = torch.serialization.safe_globals(allowed)  # type: ignore[arg-type]
    return context


def _named_tensors(file: Path, value: Any, remedy: str) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            value = value[wrapper]
    if isinstance(value, Mapping) and _is_optimizer(value):
        raise CheckpointError(
            f"{file}: holds the state of an optimizer and no weights; take the file with the model's state dict"
        )
    if not isinstance(value, Mapping) or not value:
        raise CheckpointError(f"{file}: holds no state dict but a {type(value).__name__}; {remedy}")
    result: dict[str, Tensor] = {}
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            shown = repr(key)[:200]
            raise CheckpointError(f"{file}: entry {shown} is a {type(tensor).__name__}, not a tensor; {remedy}")
        if problem := _unusual(tensor):
            raise CheckpointError(f"{file}: {key[:200]!r} is {problem}; {remedy}")
        name = key.removeprefix("module.")
        if name in result:
            raise CheckpointError(f"{file}: tensor {name} appears twice, once as {key}; {remedy}")
        result[name] = tensor
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in result.values()}
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in result.values())
    if claimed > max(MAX_VIEW_BYTES, 2 * sum(stored.values())):
        raise CheckpointError(
            f"{file}: its tensors would have {claimed:,} bytes, of which {sum(stored.values()):,} are in it; {remedy}"
        )
    return result


def _unusual(tensor: Tensor) -> str | None:
    """What makes a tensor no plain array of numbers, if anything does."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return "a sparse, quantised or nested tensor"
    if tensor.device.type != "cpu":
        return f"without data (on the device {tensor.device.type})"
    if tensor.dtype not in _NUMBERS:
        return f"of the type {tensor.dtype}"
    return None


def _is_optimizer(value: Mapping[Any, Any]) -> bool:
    """Whether it is a checkpoint without weights: an optimizer's own state dict, or one beside numbers and texts."""
    optimizers = [entry for entry in (value, *value.values()) if isinstance(entry, Mapping) and "param_groups" in entry]
    return bool(optimizers) and not any(isinstance(entry, Tensor) for entry in value.values())


def _short(error: Exception) -> str:
    """The first line of a library's message."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 160 else text[:157] + "..."
