"""Settings files as plain data: what is refused, at what place, and that everything else is what PyYAML reads."""

import pytest
import yaml

from danet.config.params import load_params
from danet.config.yaml import BESIDE, load_mapping
from danet.core.errors import ConfigError
from tests.parameters import ROOT


def load(folder, text):
    path = folder / "a.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_mapping(path)


@pytest.mark.parametrize("file", ["params.yaml", *BESIDE, *(p.name for p in (ROOT / "recipes").glob("*.yaml"))])
def test_our_own_files_are_read_as_pyyaml_reads_them(file):
    path = next(path for path in (ROOT / file, ROOT / "recipes" / file) if path.exists())
    assert load_mapping(path) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!python/object/apply:os.system [echo]", "python/object"),
        ("a: 1\nb: 2\na: 3", "'a' comes twice.*line 3"),
        ("a: {[x]: 1}", "unhashable key"),
        ("b: 1\na: ${rows}", "line 2 .*DVC would fill in"),
        ("- a", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: [1", "line 1"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_what_cannot_be_a_setting_is_refused(tmp_path, text, problem):
    with pytest.raises(ConfigError, match=rf"a\.yaml: .*({problem})"):
        load(tmp_path, text)


def test_merged_keys_are_no_duplicates(tmp_path):
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\n"
    assert load(tmp_path, text) == {"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 1}, "c": {"x": 2, "y": 3}}


def test_the_same_holds_for_every_file_that_params_are_read_from(tmp_path):
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


@pytest.mark.parametrize(("file", "sections"), BESIDE.items())
def test_a_section_in_the_wrong_file_is_refused(tmp_path, file, sections):
    """DVC would not see it change there."""
    (tmp_path / "params.yaml").write_text(f"{sections[0]}: {{}}\n")
    with pytest.raises(ConfigError, match=rf"section '{sections[0]}' belongs in {file}"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("tables: {}\n")
    (tmp_path / file).write_text("rows: {}\n")
    with pytest.raises(ConfigError, match=rf"{file}: section 'rows' does not belong here; it has: {sections[0]}"):
        load_params(tmp_path / "params.yaml")
