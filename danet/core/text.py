"""Numbers and facts as a reader sees them, in a terminal and in Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_LONG_HASH = re.compile(r"[0-9a-f]{40,}")


def number(value: float | None, digits: int = 2) -> str:
    """With ``digits`` decimals; a dash for what is unknown."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    """A difference with its sign; zero has none."""
    text = "-" if value is None else f"{value:+.{digits}f}"
    return text[1:] if text[1:] == f"{0:.{digits}f}" else text


def duration(seconds: float) -> str:
    """As people say it: ``33 s``, ``6 min``, ``3 h 15 min``, ``30 h``, ``4 days``."""
    minutes, hours = round(seconds / 60), seconds / 3600
    if seconds < 90:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 10:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours:.0f} h" if hours < 72 else f"{hours / 24:,.0f} days"


def fact(value: object) -> str:
    """A value of any type; entries of a list below each other, of a long hash the beginning (JSON has all of it)."""
    if isinstance(value, list):
        return "\n".join(map(fact, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and _LONG_HASH.fullmatch(value):
        return value[:16]
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None else str(value)


def reason(error: BaseException) -> str:
    """What an error of a library says, in one line; its type if it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def explain(error: ValidationError, where: str = "") -> str:
    """The first fault of a document in one line: its place (below ``where``), what is wrong, the value."""
    first = error.errors()[0]
    place, given = ".".join(str(part) for part in (where, *first["loc"]) if part not in {"", "[key]"}), first["input"]
    if first["type"] == "literal_error" and first["loc"] == ("format",):
        return f"is of format {given}, this version reads format {first['ctx']['expected']}"
    text = "is not a setting" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    shown = f" (given: {repr(given)[:80]})" if isinstance(given, str | int | float) else ""
    return (f"{place}: " if place else "") + text[:1].lower() + text[1:] + shown
