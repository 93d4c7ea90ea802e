"""Markdown as GitHub shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Grid = tuple[Sequence[str], Sequence[Sequence[str]], str]
"""Head, lines, and for each column ``l`` or ``r``."""


def escape(text: str) -> str:
    """Text that Markdown leaves as it is, on one line."""
    return re.sub(r"([|<>*_`\[\]])", r"\\\1", " ".join(text.split()))


class Page:
    """Blocks with a blank line between them; empty ones are left out."""

    def __init__(self, comment: str, banner: str = "") -> None:
        self._blocks = [f"<!-- {comment} -->"]
        self.text(f"**{banner}**" if banner else "")

    def heading(self, level: int, text: str) -> None:
        """``#`` to ``######``."""
        self._blocks.append(f"{'#' * level} {text}")

    def text(self, text: str) -> None:
        """A paragraph."""
        if text:
            self._blocks.append(text)

    def bullets(self, items: Iterable[str]) -> None:
        """A list."""
        self.text("\n".join(f"- {' '.join(item.split())}" for item in items))

    def code(self, text: str, language: str) -> None:
        """A block of code."""
        self._blocks.append(f"```{language}\n{text.rstrip()}\n```")

    def figure(self, caption: str, path: str) -> None:
        """A picture over its caption."""
        self._blocks.append(f'<img src="{path}" alt="{caption}" width="600">\n\n*{caption}*')

    def table(self, grid: Grid) -> None:
        """A table."""
        head, lines, align = grid
        rule = ["---:" if side == "r" else "---" for side in align]
        self._blocks.append("\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines)))

    def end(self) -> str:
        """The page."""
        return "\n\n".join(self._blocks) + "\n"
