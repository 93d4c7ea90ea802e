"""Damaged, foreign and hostile weights files: each refused with its own reason, none executed."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from danet.core.errors import CheckpointError
from danet.weights.ours import metadata_of, read_model
from danet.weights.reading import MAX_MEMBER_BYTES, check_names, read_tensors, read_tensors_and_digests

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
    from danet.core.files import sha256

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


class Calls:
    """Unpickling this calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def in_legacy_tar(content: bytes) -> bytes:
    """PyTorch's format of before 2017: a tar with three pickles."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def in_legacy_file(content: bytes) -> bytes:
    """PyTorch's format of before 1.6: magic number, version and system, then the object."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return b"".join(pickle.dumps(part, 2) for part in head) + content


def in_new_file(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in (("x/data.pkl", content), ("x/byteorder", b"little"), ("x/version", b"3\n")):
            archive.writestr(name, data)
    return stream.getvalue()


def in_zip(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.pth", in_new_file(content))
    return stream.getvalue()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("around", [bytes, in_legacy_tar, in_legacy_file, in_new_file, in_zip])
@pytest.mark.parametrize("function", [os.system, os.mkdir, eval, subprocess.Popen, getattr, builtins.__import__])
def test_no_function_of_any_protocol_in_any_wrapping_is_called(
    tmp_path: Path, protocol: int, around: Any, function: Any
) -> None:
    trap = tmp_path / "trap"
    argument = {os.mkdir: str(trap), eval: f"__import__('os').mkdir({str(trap)!r})"}.get(function, f"mkdir {trap}")
    hostile = {"state_dict": {"a": Calls(function, argument, *(["x"] if function is getattr else []))}}
    file = tmp_path / f"bad.{'zip' if around is in_zip else 'pth'}"
    file.write_bytes(around(pickle.dumps(hostile, protocol)))
    with pytest.raises(
        CheckpointError, match=r"bad\.(pth|zip): (would run code|is in PyTorch's tar format|is no PyTorch)"
    ):
        read_tensors(file)
    assert not trap.exists()


def test_a_hand_written_pickle_does_not_get_round_it(tmp_path: Path) -> None:
    """STACK_GLOBAL, INST, OBJ, BUILD on a class, extension codes and names with dots, which ``pickle`` never writes."""
    trap = tmp_path / "trap"
    call = f"(V{trap}\ntR.".encode()
    for content in (
        b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + call,
        f"(V{trap}\nios\nmkdir\n.".encode(),
        b"(cos\nmkdir\n" + f"V{trap}\no.".encode(),
        b"cposix\nmkdir\n" + call,
        b"ctorch.serialization\nos.mkdir\n" + call,
        b"ctorch\n_utils.os.mkdir\n" + call,
        b"\x80\x02\x82\x01" + call,
        b"ccollections\nOrderedDict\n)R(V__reduce__\ncos\nsystem\ndb.",
    ):
        for around in (bytes, in_legacy_file, in_new_file):
            (tmp_path / "bad.pth").write_bytes(around(content))
            with pytest.raises(CheckpointError, match=r"bad\.pth: "):
                read_tensors(tmp_path / "bad.pth")
    assert not trap.exists()


def test_tensors_that_are_no_plain_numbers(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    for value, reason in (
        (torch.ones(2).to_sparse(), "is a sparse, quantised or nested tensor"),
        (quantised, "is a sparse, quantised or nested tensor"),
        (torch.ones(2, device="meta"), r"is without data \(on the device meta\)"),
        (torch.ones(2, dtype=torch.complex64), "of the type torch.complex64"),
        (torch.ones(2).to(torch.float8_e4m3fn), "of the type torch.float8"),
        (torch.ones(1).expand(2**40), r"would have 4,398,046,511,104 bytes, of which 4 are in it"),
        (torch.ones(1, dtype=torch.half).expand(2**33), "would have 17,179,869,184 bytes"),
    ):
        with pytest.raises(CheckpointError, match=rf"odd\.pth: .*{reason}.*delete it"):
            read_tensors(saved(tmp_path / "odd.pth", {"a.weight": value}))


def test_storages_that_claim_more_than_is_there(tmp_path: Path) -> None:
    """The pickle says 10^9 numbers, the record has four: nothing behind it is read, and nothing is allocated."""
    whole = saved(tmp_path / "whole.pth", {"a": torch.arange(4.0)}).read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    assert records[name].count(b"K\x04t") == 1
    records[name] = records[name].replace(b"K\x04t", b"J" + (10**9).to_bytes(4, "little") + b"t")
    with zipfile.ZipFile(tmp_path / "odd.pth", "w") as archive:
        for record, data in records.items():
            archive.writestr(record, data)
    with pytest.raises(CheckpointError, match=r"odd\.pth: (is damaged|its tensors would have)"):
        read_tensors(tmp_path / "odd.pth")
    bomb = records | {next(name for name in records if name.endswith("data/0")): bytes(256 << 20)}
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for record, data in bomb.items():
            archive.writestr(record, data)
    with pytest.raises(CheckpointError, match=r"bomb\.pth: has packed records"):
        read_tensors(tmp_path / "bomb.pth")


def safetensors_of(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_of({}, b"", 2**63),
        safetensors_of({}, b"", 2**64 - 1),
        safetensors_of({}, b"", 200_000_000),
        safetensors_of(b"[]"),
        safetensors_of(b"{" * 1000),
        safetensors_of({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}),
        safetensors_of({"a": entry(0, 4, [1]), "b": entry(0, 8, [2])}),
        safetensors_of({"a": entry(4, 8, [1])}),
        safetensors_of({"a": entry(0, 800, [200])}),
        safetensors_of({"a": entry(8, 0, [2])}),
        safetensors_of({"a": entry(0, 8, [3])}),
        safetensors_of({"a": entry(0, 8, [2**62, 8])}),
        safetensors_of({"a": entry(0, 8, [2], "F31")}),
        safetensors_of({"a": entry(0, 8, [-2])}),
        safetensors_of({"a": {"dtype": "F32", "shape": [2]}}),
        safetensors_of({"a": entry(0, 8, [2])}, bytes(9)),
        safetensors_of(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": 1}'),
        safetensors_of({"a": entry(0, 2, [1], "F8_E4M3")}, bytes(2)),
        safetensors_of({"a": entry(0, 1, [1], "F8_E4M3")}, bytes(1)),
        safetensors_of({"a": entry(0, 8, [1], "C64")}),
    ],
)
def test_safetensors_headers_that_lie(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "lies.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"lies\.safetensors: "):
        read_tensors(file)
    with pytest.raises(CheckpointError, match=r"lies\.safetensors: "):
        read_model(file)
    assert metadata_of(file) is None


@pytest.mark.parametrize(
    "metadata",
    ["[]", "5", "null", '{"format": 1}', '{"format": "danet-1", "method": ["danet"]}', "[" * 5000, "{", "NaN"],
)
def test_metadata_that_are_no_texts_by_name(tmp_path: Path, metadata: str) -> None:
    save_file(STATE, tmp_path / "w.safetensors", {"danet": metadata})
    with pytest.raises(CheckpointError, match=r"w\.safetensors: "):
        read_model(tmp_path / "w.safetensors")
    assert metadata_of(tmp_path / "w.safetensors") is None
    assert same(read_tensors(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    state = {"a.weight": torch.ones(2, 3, dtype=dtype), "a.bias": torch.tensor([1.0, bad], dtype=dtype)}
    tensors = read_tensors(saved(tmp_path / "w.pth", state))
    with pytest.raises(
        CheckpointError, match=r"w\.pth: is not it: 1 tensor with NaN or infinite values \(a\.bias\); no"
    ):
        check_names(tmp_path / "w.pth", tensors, state, what="it", remedy="no")


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
