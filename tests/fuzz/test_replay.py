"""What once failed in fuzzing (or was found by reading the readers), and the seeds, replayed without atheris."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from benchmarks.fuzz import targets
from benchmarks.fuzz.targets import TARGETS, Escaped, Guard, run_case
from danet.data.archives import unpack

CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted(path for path in CORPUS.glob("*/*"))


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_failed(path: Path, tmp_path: Path, guard: Guard) -> None:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = b"\0" + gzip.decompress(data)
    run_case(TARGETS[path.parent.name].prepare(tmp_path), data, guard, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read_or_refused_and_every_target_has_both(name: str, tmp_path: Path, guard: Guard) -> None:
    case = TARGETS[name].prepare(tmp_path)
    refused = [run_case(case, seed, guard, tmp_path) for seed in TARGETS[name].seeds()]
    assert not all(refused), "some seed is a valid file"
    assert name in {"metrics", "store", "mat"} or any([*refused, run_case(case, b"\0\0\0", guard, tmp_path)])


def test_shares_are_of_the_whole_and_each_has_twenty_thousand() -> None:
    assert sum(target.share for target in TARGETS.values()) == pytest.approx(1)
    assert min(target.share for target in TARGETS.values()) * 1_000_000 >= 20_000


def test_the_guard_sees_what_leaves_the_folder(tmp_path: Path, guard: Guard) -> None:
    """A harness that could not fail would prove nothing: tarfile's own unpacking is caught, ours is not."""
    inside = tmp_path / "inside"
    inside.mkdir()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))
    (inside / "a.tar").write_bytes(stream.getvalue())

    def trusting(_: bytes) -> None:
        with tarfile.open(inside / "a.tar") as archive:
            archive.extractall(inside, filter="fully_trusted")

    with pytest.raises(Escaped, match="outside"):
        run_case(trusting, b"", guard, inside)
    assert run_case(lambda _: unpack(inside / "a.tar", inside / "out", progress=False) and None, b"", guard, inside)
    for act in (
        "__import__('os').system('true')",
        "open('/tmp/x', 'w')",
        "__import__('socket').create_connection(('::1', 9))",
    ):
        with pytest.raises(Escaped):
            run_case(lambda _, act=act: eval(act), b"", guard, inside)  # type: ignore[misc]


def test_altered_values_differ_and_leave_the_original() -> None:
    value = {"a": [1, {"b": 2}], "c": "x"}
    results = {
        repr(targets.altered(value, bytes([0, place, act, odd])))
        for place in range(5)
        for act in range(4)
        for odd in range(9)
    }
    assert len(results) > 50
    assert value == {"a": [1, {"b": 2}], "c": "x"}
