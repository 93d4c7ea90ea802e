"""The login of the Cityscapes site, for archives that it gives to registered people only."""

from __future__ import annotations

import os

import requests

from danet.acquire.http import TIMEOUT_S, cause
from danet.core.errors import DownloadError

SITE = "https://www.cityscapes-dataset.com"


def has_credentials() -> bool:
    """Whether ``CITYSCAPES_USERNAME`` and ``CITYSCAPES_PASSWORD`` are set."""
    return bool(os.environ.get("CITYSCAPES_USERNAME") and os.environ.get("CITYSCAPES_PASSWORD"))


def log_in() -> requests.Session:
    """A session that is logged in with ``CITYSCAPES_USERNAME`` and ``CITYSCAPES_PASSWORD``.

    Raises:
        DownloadError: if the site refuses, never naming the password.
    """
    user = os.environ["CITYSCAPES_USERNAME"]
    session = requests.Session()
    form = {"username": user, "password": os.environ["CITYSCAPES_PASSWORD"], "submit": "Login"}
    try:
        # the redirect after a good login is not followed: the session has its cookie then
        response = session.post(f"{SITE}/login/", data=form, timeout=TIMEOUT_S, allow_redirects=False)
    except requests.RequestException as error:
        raise DownloadError(f"{SITE}/login/: {cause(error)}; try again later") from error
    if not response.ok or not session.cookies:
        raise DownloadError(
            f"{SITE}/login/: the login of {user!r} was refused (status {response.status_code}); check "
            "CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD"
        )
    return session
