"""Documents changed at random places, for property tests of their readers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 255, 256, 2**31, 2**53, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "\n", "../x", "/x", "-rf", "$(x)", "${x}", "\ud800", "\u0430", "a" * 300, "1", "nan", "0:1"),
    *([], {}, [[]], [None], {"": None}, {"x": {}}, ["x", "x"], [0, 0], [1.5, "2"], {"train": {}}, {"format": 1}),
)


def altered(value: Any, data: bytes) -> Any:
    """``value`` with some of its places changed: four bytes of ``data`` choose a place, an act and an odd value."""
    value = copy.deepcopy(value)
    for start in range(0, min(len(data), 40) - 3, 4):
        place, act, odd = int.from_bytes(data[start : start + 2], "big"), data[start + 2], data[start + 3]
        places = [*_places(value)]
        if not places:
            break
        parent, key = places[place % len(places)]
        new = copy.deepcopy(_ODD[odd % len(_ODD)])
        if act % 4 == 0:
            del parent[key]
        elif act % 4 == 1 and isinstance(parent, dict):
            parent[new if isinstance(new, str) else f"extra{odd}"] = parent.pop(key)
        elif act % 4 == 2 and isinstance(parent, list):
            parent.insert(key, parent[key])
        else:
            parent[key] = new
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
