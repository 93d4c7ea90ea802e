"""YAML as data and nothing else.

PyYAML's safe loader takes the last of two equal keys without a word. DVC reads the same files and puts their values
into commands, so that ``${`` is refused as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from danet.core.errors import ConfigError
from danet.core.files import write_text

RECIPES = "recipes"
"""Folder beside ``params.yaml`` with one file a recipe."""
BESIDE = {"numerics.yaml": ("revisions", "numerics", "profiles"), "datasets.yaml": ("datasets", "weights")}
"""Files beside ``params.yaml`` and the sections that they hold, so that DVC has less to parse for each stage."""


class _Loader(yaml.CSafeLoader):
    """The safe loader of libyaml (ten times as fast as PyYAML's own), which refuses a key that comes twice."""

    def get_single_node(self) -> yaml.Node | None:
        """As the base class."""
        node = super().get_single_node()
        _refuse_twice(node, set())
        return node


def _refuse_twice(node: yaml.Node | None, known: set[yaml.Node]) -> None:
    if not isinstance(node, yaml.CollectionNode) or node in known:
        return
    known.add(node)
    seen: set[str] = set()
    for child in node.value:
        key, value = child if isinstance(node, yaml.MappingNode) else (None, child)
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} comes twice, and one of them would be lost", key.start_mark
                )
            seen.add(key.value)
        _refuse_twice(value, known)


def load_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: naming file, place and problem, if it cannot be read, is not YAML, holds no mapping, or holds a key
            twice, a tag that makes an object, or ``${``.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        raw = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); run this in the repository root") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2001-13-45 is a ValueError
        reason = " ".join(str(error).replace("<unicode string>", path.name).split())
        raise ConfigError(f"{path}: is not valid YAML: {reason}") from error
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path}: must hold a mapping of sections")
    for number, line in enumerate(text.splitlines(), 1):
        if "${" in line.partition("#")[0]:
            raise ConfigError(f"{path}: line {number} holds ${{, which DVC would fill in")
    return dict(raw)


def read_raw(path: Path) -> dict[str, Any]:
    """``params.yaml`` as it is written, with ``recipes`` (by name of file) and the sections of the files beside it.

    They are files of their own because DVC parses the whole file again for each stage and parameter.

    Raises:
        ConfigError: if a file cannot be read, is not valid YAML, or holds a section that belongs elsewhere.
    """
    raw = load_mapping(path)
    places = {section: file for file, sections in BESIDE.items() for section in sections}
    for section, place in {"recipes": f"{RECIPES}/*.yaml", **places}.items():
        if section in raw:
            raise ConfigError(f"{path}: section {section!r} belongs in {place} beside it")
    raw["recipes"] = {file.stem: load_mapping(file) for file in sorted((path.parent / RECIPES).glob("*.yaml"))}
    for name, sections in BESIDE.items():
        file = path.with_name(name)
        found = load_mapping(file) if file.exists() else {}
        if extra := sorted(str(key) for key in set(found) - set(sections)):
            raise ConfigError(f"{file}: section {extra[0]!r} does not belong here; it has: {', '.join(sections)}")
        raw |= found
    return raw


def write_raw(raw: Mapping[str, Any], folder: Path, note: str = "") -> None:
    """Writes what :func:`read_raw` gave, changed or not, to the same files below ``folder``.

    Files that would not change are left alone. ``note`` becomes a comment at the head of each file.
    """
    elsewhere = {"recipes"}.union(*BESIDE.values())
    files = {"params.yaml": {key: value for key, value in raw.items() if key not in elsewhere}}
    files |= {
        name: {key: raw[key] for key in sections if key in raw} or {sections[0]: {}}
        for name, sections in BESIDE.items()
    }
    files |= {f"{RECIPES}/{name}.yaml": recipe for name, recipe in raw["recipes"].items()}
    for name, content in files.items():
        text = (f"# {note}\n" if note else "") + yaml.safe_dump(content, sort_keys=False)
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
