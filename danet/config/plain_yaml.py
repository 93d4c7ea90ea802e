"""YAML as data and nothing else: what a settings file has no use for is refused before it costs anything.

PyYAML's safe loader runs no code, but it takes the last of two equal keys without a word, builds whatever dates and
binary a tag asks for, and lets a kilobyte of aliases stand for gigabytes, which the first copy or message writes out.
DVC reads the same files and puts their values into commands, so that ``${`` is refused as well.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from danet.core.errors import ConfigError

MAX_BYTES = 4 << 20
MAX_DEPTH = 32
MAX_NODES = 100_000
"""With every alias written out; ``params.yaml`` and all recipes have some thousands."""
MAX_INTEGER = 2**53
"""What JSON and every other reader of the file still hold exactly."""
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null")}
_COLLECTIONS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


class _RefusedError(Exception):
    """What settings have no use for."""

    def __init__(self, mark: yaml.Mark, problem: str) -> None:
        super().__init__(f"line {mark.line + 1}: {problem}")


class _Loader(yaml.SafeLoader):
    """The safe loader with limits."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._nodes = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As the base class, counting."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        alias, before = isinstance(event, yaml.AliasEvent), self._nodes
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _RefusedError(event.start_mark, f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias:
            if id(node) not in self._sizes:
                raise _RefusedError(event.start_mark, f"the alias *{event.anchor} contains itself")
            self._nodes += self._sizes[id(node)]
        else:
            self._nodes += 1
            self._sizes[id(node)] = self._nodes - before
        if self._nodes > MAX_NODES:
            raise _RefusedError(event.start_mark, f"more than {MAX_NODES:,} values with all aliases written out")
        if isinstance(node, yaml.ScalarNode) and not alias:
            _check_scalar(node)
        elif isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            raise _RefusedError(event.start_mark, f"a {_kind(node.tag)}; allowed are lists and mappings")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As the base class; a key that comes twice is refused."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _RefusedError(key.start_mark, "a key must be a name")
            name = (key.tag, key.value)
            if name in seen:
                raise _RefusedError(
                    key.start_mark, f"the key {key.value[:80]!r} comes twice, and one of them would be lost"
                )
            seen.add(name)
        return node


def _kind(tag: str) -> str:
    return tag.removeprefix("tag:yaml.org,2002:")[:80]


def _check_scalar(node: yaml.ScalarNode) -> None:
    value, tag = node.value, node.tag
    shown = repr(value if len(value) <= 80 else f"{value[:77]}...")
    if tag == "tag:yaml.org,2002:merge":
        return
    if tag not in _SCALARS:
        raise _RefusedError(
            node.start_mark, f"{shown} is a {_kind(tag)}; allowed are text (in quotes), numbers, true, false, null"
        )
    if "${" in value:
        raise _RefusedError(node.start_mark, f"{shown} holds ${{, which DVC would fill in")
    for character in value:
        if unicodedata.category(character) in {"Cc", "Cs"} and character not in "\n\t":
            raise _RefusedError(node.start_mark, f"{shown} holds the control character {character!r}")
    digits = value.replace("_", "")
    if tag.endswith(":float"):
        if "inf" in value.lower() or "nan" in value.lower() or len(digits) > 400:
            raise _RefusedError(node.start_mark, f"{shown} is no finite number")
    elif tag.endswith(":int") and len(digits) > 64:
        raise _RefusedError(node.start_mark, f"{shown} is too large; allowed are numbers up to 2^53")


def load_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: naming file, place and problem, if it cannot be read, is no YAML, holds no mapping, or holds what
            no settings need: a key twice, tags other than those of plain values, numbers that are not finite or beyond
            2^53, aliases that multiply, control characters, or ``${``.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path}: has {len(data):,} bytes, allowed are {MAX_BYTES:,}")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); run this in the repository root") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    loader = None
    try:
        loader = _Loader(text)
        raw = loader.get_single_data()
    except _RefusedError as error:
        raise ConfigError(f"{path}: {error}".encode("utf-8", "backslashreplace").decode()) from None
    except Exception as error:  # besides YAMLError what int(), float() and dict() raise for an explicit tag's value
        reason = " ".join(str(error).replace("<unicode string>", path.name).split())
        shown = reason.encode("utf-8", "backslashreplace").decode()[:600]
        raise ConfigError(f"{path}: is not valid YAML: {shown or type(error).__name__}") from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path}: must hold a mapping of sections")
    if (number := _beyond(raw)) is not None:
        raise ConfigError(f"{path}: the number {number!r} is not finite or beyond 2^53")
    return dict(raw)


def _beyond(value: object) -> int | float | None:
    """A number that is finite as text and not as a number (1e999), or beyond 2^53 in any notation."""
    if isinstance(value, Mapping | list):
        entries = value.values() if isinstance(value, Mapping) else value
        return next((found for entry in entries if (found := _beyond(entry)) is not None), None)
    return value if isinstance(value, int | float) and not abs(value) <= MAX_INTEGER else None
