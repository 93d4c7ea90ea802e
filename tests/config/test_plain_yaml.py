"""Settings files as plain data: what is refused, at what place, and that everything else is what PyYAML reads."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danet.config.plain_yaml import MAX_INTEGER, load_mapping
from danet.config.rows import BESIDE, load_params
from danet.core.errors import ConfigError

ROOT = Path(__file__).parents[2]
LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


def load(folder: Path, text: str | bytes) -> dict[str, Any]:
    path = folder / "a.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_mapping(path)


@pytest.mark.parametrize("file", ["params.yaml", *BESIDE, *(p.name for p in (ROOT / "recipes").glob("*.yaml"))])
def test_our_own_files_are_read_as_pyyaml_reads_them(file: str) -> None:
    path = next(path for path in (ROOT / file, ROOT / "recipes" / file) if path.exists())
    assert load_mapping(path) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!python/object/apply:os.system [echo]", "is a python|a python/object"),
        ("a: !!python/name:os.system x", "is a python/name:os.system"),
        ("a: !!python/object/new:os.system {}", "python/object/new"),
        ("a: !custom x", "is a !custom"),
        ("a: !!binary aGVsbG8=", "is a binary"),
        ("a: 2012-05-11", "'2012-05-11' is a timestamp; allowed are text"),
        ("a: 2001-13-45", "is a timestamp"),
        ("a: !!set {x}", "line 1: a set"),
        ("a: !!omap [x: 1]", "line 1: a omap"),
        ("a: !!int x", "invalid literal"),
        ('a: !!int ""', "index out of range"),
        ("a: !!bool x", "'x'"),
        ("x: 1\na: .nan", "line 2: .*no finite number"),
        ("a: [1, {b: -.inf}]", "no finite number"),
        ("a: 1.0e+999", "not finite"),
        ("a: 9007199254740993", "beyond 2.53"),
        (f"a: {'9' * 5000}", "too large"),
        ("a: 0x" + "f" * 20, "beyond 2.53"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' comes twice"),
        ("a: {b: 1, 'b': 2}", "key 'b' comes twice"),
        ("a: {<<: {x: 1}, <<: {y: 2}}", "comes twice"),
        ("a: {[x]: 1}", "must be a name"),
        ("a: &a [*a]", r"alias \*a contains itself"),
        (LAUGHS, "line 6: more than 100,000 values with all aliases written out"),
        ("a: " + "[" * 100 + "]" * 100, "nested deeper than 32"),
        ("a: " + "{b: " * 5000, "nested deeper than 32"),
        ("a: ${rows}", "DVC would fill in"),
        ("a: {'${x}': 1}", "DVC would fill in"),
        ("a: 'x${'", "DVC would fill in"),
        ('a: "\\x1b[31m"', "control character"),
        ('a: "\\ud800"', "control character"),
        ("- a", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: [1", "line 1"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a: \x00", "special characters are not allowed"),
    ],
)
def test_what_settings_have_no_use_for_is_refused(tmp_path: Path, text: str | bytes, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"a\.yaml: .*({problem})") as error:
        load(tmp_path, text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_bombs_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    """Written out, the aliases are 3 * 10^10 values; a repetition of merges would double at each level."""
    merges = "a0: &a0 {k: v}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60))
    for text in (LAUGHS, merges, "a: " + "[" * 100_000):
        tracemalloc.start()
        start = time.process_time()
        with pytest.raises(ConfigError):
            load(tmp_path, text)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.stop()
        assert time.process_time() - start < 20
    (tmp_path / "a.yaml").write_bytes(b"#" * (5 << 20))
    with pytest.raises(ConfigError, match="5,242,880 bytes"):
        load_mapping(tmp_path / "a.yaml")


def test_the_same_holds_for_every_file_that_params_are_read_from(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    whole = {"params.yaml": "rows: {}\n", "recipes/x.yaml": "a: 1\n"}
    whole |= {file: f"{sections[0]}: {{}}\n" for file, sections in BESIDE.items()}
    for broken in whole:
        for file, text in whole.items():
            (tmp_path / file).write_text(text)
        (tmp_path / broken).write_text("a: !!python/object/apply:os.mkdir [ran]\n")
        with pytest.raises(ConfigError, match=rf"{broken}: .*python/object"):
            load_params(tmp_path / "params.yaml")
        (tmp_path / broken).write_text("a: 1\na: 2\n")
        with pytest.raises(ConfigError, match=rf"{broken}: .*comes twice"):
            load_params(tmp_path / "params.yaml")
    assert not (tmp_path / "ran").exists()


TEXTS = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=12).filter(lambda text: "${" not in text)
SCALARS = (
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.floats(-1e15, 1e15, allow_nan=False) | TEXTS
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=12
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_plain_values_come_back_as_they_were_written(tmp_path: Path, value: dict[str, Any]) -> None:
    assert load(tmp_path, yaml.safe_dump(value, allow_unicode=True)) == value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(["&a ", "*a", "<<: ", "!!int ", "a: ", "[", "]", "{", "}", "\n", "- ", "? ", "1", "${"]),
        max_size=20,
    ).map("".join)
)
def test_any_text_is_plain_data_or_our_error(tmp_path: Path, text: str) -> None:
    try:
        value = load(tmp_path, text.encode("utf-8", "surrogatepass"))
    except ConfigError:
        return
    assert "${" not in json.dumps(value, allow_nan=False)


@pytest.mark.parametrize(("file", "sections"), BESIDE.items())
def test_a_section_in_the_wrong_file_is_refused(tmp_path: Path, file: str, sections: tuple[str, ...]) -> None:
    """DVC would not see it change there."""
    (tmp_path / "params.yaml").write_text(f"{sections[0]}: {{}}\n")
    with pytest.raises(ConfigError, match=rf"section '{sections[0]}' belongs in {file}"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("tables: {}\n")
    (tmp_path / file).write_text("rows: {}\n")
    with pytest.raises(ConfigError, match=rf"{file}: section 'rows' does not belong here; it has: {sections[0]}"):
        load_params(tmp_path / "params.yaml")
