"""Damaged, foreign and hostile weights files: each refused with its own reason, none executed."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from danet.errors import CheckpointError
from danet.weights.reading import MAX_MEMBER_BYTES, read_tensors, read_tensors_and_digests

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "n": torch.tensor(3)}


def saved(path: Path, value: Any = STATE, **kwargs: Any) -> Path:
    torch.save(value, path, **kwargs)
    return path


def same(state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[key], value) for key, value in STATE.items())


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_every_form(tmp_path: Path, legacy: bool) -> None:
    kwargs = {"_use_new_zipfile_serialization": not legacy}
    plain = saved(tmp_path / "plain.pth", **kwargs)
    wrapped = saved(
        tmp_path / "wrapped.pth",
        {
            "epoch": 3,
            "best_pred": np.float64(0.5),
            "state_dict": {f"module.{key}": value for key, value in STATE.items()},
            "meta": {"time": "now"},
        },
        **kwargs,
    )
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(plain, "folder/plain.pth")
        archive.writestr("__MACOSX/folder/._plain.pth", b"resource fork")
    save_file(STATE, tmp_path / "plain.safetensors")
    for file in (plain, wrapped, tmp_path / "zipped.zip", tmp_path / "plain.safetensors"):
        assert same(read_tensors(file)), file


def test_digests_of_a_zip_are_those_of_zip_and_member(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        archive.write(plain, "plain.pth")
    from danet.files import sha256

    _, digests = read_tensors_and_digests(tmp_path / "zipped.zip", ("sha256", "sha1"))
    assert digests["sha256"] == {sha256(plain), sha256(tmp_path / "zipped.zip")}
    assert len(digests["sha1"]) == 2


class Runs:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    trap = tmp_path / "trap"
    file = saved(tmp_path / "bad.pth", {"a": Runs(trap)}, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"bad\.pth: would run code when loaded .*mkdir"):
        read_tensors(file)
    assert not trap.exists()


def test_each_kind_of_damage_is_named(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.pth").read_bytes()
    save_file(STATE, tmp_path / "whole.safetensors")
    tensors = (tmp_path / "whole.safetensors").read_bytes()
    cases: list[tuple[str, bytes, str]] = [
        ("empty.pth", b"", "is empty"),
        ("cut.pth", whole[: len(whole) // 2], "is damaged or cut off"),
        ("page.pth", b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, not weights"),
        ("page.zip", b"<HTML><head></head></HTML>", "is a web page, not weights"),
        ("xml.pth", b'<?xml version="1.0"?><Error>AccessDenied</Error>', "is a web page, not weights"),
        ("text.pth", b"Not found", "is no PyTorch file|is damaged or cut off"),
        ("cut.safetensors", tensors[:-3], "is not a safetensors file or is cut off"),
        ("short.safetensors", tensors[:4], "is not a safetensors file or is cut off"),
        ("pth.safetensors", whole, "is not a safetensors file or is cut off"),
    ]
    for name, content, reason in cases:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: ({reason}).*delete it and fetch it again"):
            read_tensors(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"none\.pth: does not exist"):
        read_tensors(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(tmp_path)


def test_things_that_are_no_state_dict(tmp_path: Path) -> None:
    for value, reason in (
        ([1, 2], "holds no state dict but a list"),
        ({}, "holds no state dict but a dict"),
        ({"state_dict": {"a": 1}}, "entry 'a' is a int, not a tensor"),
        ({"a": torch.ones(1), "module.a": torch.ones(1)}, "tensor a appears twice"),
        ({3: torch.ones(1)}, "entry 3 is a Tensor"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            read_tensors(saved(tmp_path / "odd.pth", value))


def test_checkpoints_without_weights(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1, momentum=0.9).state_dict()
    for value in (optimizer, {"optimizer": optimizer, "epoch": 3, "state_dict": None}):
        with pytest.raises(CheckpointError, match=r"o\.pth: holds the state of an optimizer and no weights"):
            read_tensors(saved(tmp_path / "o.pth", value))
    assert same(read_tensors(saved(tmp_path / "o.pth", {"model": STATE, "optimizer": optimizer})))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_program_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "t.pth")  # type: ignore[no-untyped-call]
    with pytest.raises(CheckpointError, match=r"t\.pth: is a TorchScript archive, which is a program"):
        read_tensors(tmp_path / "t.pth")


@pytest.mark.parametrize("name", ["../up.pth", "/abs.pth", "a/../../b.pth", "c:\\d.pth"])
def test_zip_members_with_unsafe_names(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(CheckpointError, match="unsafe name"):
        read_tensors(tmp_path / "bad.zip")


def test_zips_that_are_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = saved(tmp_path / "plain.pth")

    def zipped(*names: str) -> Path:
        with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(plain, name)
        return tmp_path / "bad.zip"

    with pytest.raises(CheckpointError, match=r"must hold exactly one \.pth file, holds a\.pth, b\.pth"):
        read_tensors(zipped("a.pth", "b.pth"))
    with pytest.raises(CheckpointError, match=r"must hold exactly one \.pth file, holds a\.exe"):
        read_tensors(zipped("a.exe"))
    with pytest.raises(CheckpointError, match="holds nothing"):
        read_tensors(zipped())
    file = zipped("a.pth")
    content = bytearray(file.read_bytes())
    content[60] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is a damaged zip"):
        read_tensors(file)
    assert MAX_MEMBER_BYTES > 2**31
    monkeypatch.setattr("danet.weights.reading.MAX_MEMBER_BYTES", 100)
    with pytest.raises(CheckpointError, match="allowed are 100"):
        read_tensors(zipped("a.pth"))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), legacy=st.booleans(), suffix=st.sampled_from([".pth", ".zip", ".safetensors"]))
def test_any_cut_is_refused(tmp_path: Path, data: st.DataObject, legacy: bool, suffix: str) -> None:
    file = tmp_path / f"cut{suffix}"
    if suffix == ".safetensors":
        save_file(STATE, file)
    else:
        saved(tmp_path / "whole.pth", _use_new_zipfile_serialization=not legacy)
        if suffix == ".zip":
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(tmp_path / "whole.pth", "whole.pth")
        else:
            file = (tmp_path / "whole.pth").rename(file)
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match="cut"):
        read_tensors(file)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".pth", ".zip", ".safetensors"]))
def test_any_rubbish_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"rubbish{suffix}"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="rubbish"):
        read_tensors(file)
