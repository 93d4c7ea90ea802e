"""Fixtures that more than one folder uses."""

from tests.acquire.server import no_environment, site

__all__ = ["no_environment", "site"]
