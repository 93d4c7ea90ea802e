"""Files on Google Drive: from a link for people to the address that gives the file.

Drive answers a plain request for a large file with a page that asks to go on without a virus scan; its form holds the
address and a token for one download. Any other page (quota, login, removed file) is an error that says so.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import requests

from danet.errors import DownloadError

DOWNLOAD = "https://drive.usercontent.google.com/download"
_HOSTS = (".google.com", ".googleusercontent.com")
_ID = re.compile(r"[\w-]{10,}")


def file_id(url: str) -> str | None:
    """The id in a link to Drive (``/open?id=ID``, ``/uc?id=ID``, ``/file/d/ID/view``); None for any other address."""
    parts = urlsplit(url)
    if parts.hostname not in {"drive.google.com", "docs.google.com", "drive.usercontent.google.com"}:
        return None
    found = re.search(r"/d/([^/]+)", parts.path)
    value = found[1] if found else parse_qs(parts.query).get("id", [""])[0]
    return value if _ID.fullmatch(value) else None


def direct_url(url: str, remedy: str, *, session: requests.Session | None = None, timeout: float = 30.0) -> str:
    """The address that gives the file of a Drive link; any other URL as it is.

    Args:
        url: as its owner publishes it.
        remedy: what to do where Drive does not give the file, for the message.
        session: for the request.
        timeout: in seconds.

    Raises:
        DownloadError: if Drive cannot be reached or answers with a page instead of the file.
    """
    identity = file_id(url)
    if identity is None:
        return url
    address = f"{DOWNLOAD}?{urlencode({'id': identity, 'export': 'download'})}"
    client = session or requests.Session()
    try:
        with client.get(address, stream=True, timeout=timeout) as response:
            if "text/html" not in response.headers.get("Content-Type", "") and response.ok:
                return address
            page = response.text if response.status_code < 500 else ""
            status = response.status_code
    except requests.RequestException as error:
        raise DownloadError(
            f"{url}: Google Drive cannot be reached ({type(error).__name__}); try again later, or {remedy}"
        ) from error
    form = _Form()
    form.feed(page)
    if form.action is not None and "confirm" in form.fields:
        target = urljoin(address, form.action)
        host = urlsplit(target).hostname or ""
        if host != urlsplit(address).hostname and not host.endswith(_HOSTS):
            raise DownloadError(f"{url}: Google Drive's page leads to {host}, which is not followed; {remedy}")
        return f"{target}?{urlencode(form.fields)}"
    raise DownloadError(f"{url}: {_reason(page, status)}; {remedy}")


def _reason(page: str, status: int) -> str:
    text = page.lower()
    if "quota exceeded" in text or "too many users" in text:
        return "Google Drive's daily limit for this file is used up; try again tomorrow"
    if "servicelogin" in text or "accounts.google.com" in text or status in {401, 403}:
        return "Google Drive gives the file only after a login"
    if status == 404:
        return "Google Drive has no such file (any more)"
    return f"Google Drive answered with a web page (status {status}) instead of the file"


class _Form(HTMLParser):
    """The form ``download-form``: its action and hidden fields."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects (called by the base class)."""
        values = {key: value or "" for key, value in attrs}
        if tag == "form":
            self._inside = values.get("id") == "download-form"
            if self._inside:
                self.action = values.get("action")
        elif tag == "input" and self._inside and values.get("name"):
            self.fields[values["name"]] = values.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        """Ends the form."""
        if tag == "form":
            self._inside = False
