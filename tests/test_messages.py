"""``docs/messages.md`` shows the messages as they are."""

from __future__ import annotations

import warnings

import pytest

from benchmarks import messages
from danet.errors import DanetError


def test_the_page_is_up_to_date() -> None:
    """Provokes all of them again. If this fails because a message was improved: make messages."""
    with warnings.catch_warnings(action="ignore"):
        found = messages.page().splitlines()
    written = messages.PAGE.read_text(encoding="utf-8").splitlines()
    assert found == written


def test_every_kind_of_error_is_among_the_examples() -> None:
    text = messages.PAGE.read_text(encoding="utf-8")
    for kind in messages._kinds():
        if kind is not DanetError:
            assert f"(`{kind.__name__}`, exit code {kind.exit_code})" in text


def test_an_example_that_raises_nothing_or_something_else_fails() -> None:
    with pytest.raises(AssertionError, match="raised nothing"):
        messages.provoke(lambda folder: None)
    with pytest.raises(ZeroDivisionError):
        messages.provoke(lambda folder: 1 / 0)
