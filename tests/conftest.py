"""Fixtures that more than one folder uses, and settings for all tests."""

import signal

from hypothesis import settings

from tests.acquire.server import no_environment, site

__all__ = ["no_environment", "site"]

settings.register_profile("any machine", deadline=None)  # how fast it is is not tested
settings.load_profile("any machine")

# a shell that starts the tests in the background has them ignore Ctrl-C, and so would every process that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
