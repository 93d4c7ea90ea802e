"""Files on Google Drive: from a link for people to the address that gives the file.

Drive answers a plain request for a large file with a page that asks to go on without a virus scan; its form holds the
address and a token for one download. Any other page (quota, login, removed file) is an error that says so.
"""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import requests
import urllib3

from danet.acquire.download import Patience, check_redirect, is_web_page, open_url
from danet.core.errors import DownloadError

DOWNLOAD = "https://drive.usercontent.google.com/download"
_HOSTS = (".google.com", ".googleusercontent.com")
_ID = re.compile(r"[A-Za-z0-9_-]{10,200}")
_PAGE_BYTES = 1 << 20
"""As much of a page is read; Drive's have some kilobytes."""


def file_id(url: str) -> str | None:
    """The id in a link to Drive (``/open?id=ID``, ``/uc?id=ID``, ``/file/d/ID/view``); None for any other address."""
    parts = urlsplit(url)
    if parts.hostname not in {"drive.google.com", "docs.google.com", "drive.usercontent.google.com"}:
        return None
    found = re.search(r"/d/([^/]+)", parts.path)
    value = found[1] if found else parse_qs(parts.query).get("id", [""])[0]
    return value if _ID.fullmatch(value) else None


def direct_url(
    url: str, remedy: str, *, session: requests.Session | None = None, patience: Patience | None = None
) -> str:
    """The address that gives the file of a Drive link; any other URL as it is.

    Args:
        url: as its owner publishes it.
        remedy: what to do where Drive does not give the file, for the message.
        session: for the request.
        patience: how long to wait, and how often to try again when Drive is out of order.

    Raises:
        DownloadError: if Drive cannot be reached or answers with a page instead of the file.
    """
    identity = file_id(url)
    if identity is None:
        return url
    address = f"{DOWNLOAD}?{urlencode({'id': identity, 'export': 'download'})}"
    page, status = _ask(url, address, remedy, session or requests.Session(), patience or Patience())
    return address if page is None else page_target(url, page, status, remedy, address)


def _ask(url: str, address: str, remedy: str, session: requests.Session, patience: Patience) -> tuple[str | None, int]:
    """The page that Drive answers with (None for the file itself) and its status."""
    for attempt in range(patience.retries + 1):
        if attempt:
            time.sleep(min(patience.backoff_s * 2 ** (attempt - 1), 30.0))
        try:
            with open_url(session, address, {"Accept-Encoding": "identity"}, patience) as response:
                status = response.status_code
                if status == 429 or status >= 500:
                    problem = f"status {status}"
                    continue
                head = response.raw.read(_PAGE_BYTES, decode_content=True)
                html = "text/html" in response.headers.get("Content-Type", "") or is_web_page(head)
                return head.decode("utf-8", "replace") if html or not response.ok else None, status
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            problem = type(error).__name__
    raise DownloadError(f"{url}: Google Drive cannot be reached ({problem}); try again later, or {remedy}")


def page_target(url: str, page: str, status: int, remedy: str, address: str = DOWNLOAD) -> str:
    """The address that the form on one of Drive's pages leads to.

    Args:
        url: the link, for the message.
        page: HTML.
        status: of the answer.
        remedy: for the message.
        address: of the page.

    Raises:
        DownloadError: saying what the page is if it has no such form, or the form leads elsewhere.
    """
    form = _Form()
    form.feed(page)
    if form.action is None or "confirm" not in form.fields:
        raise DownloadError(f"{url}: {_reason(page, status)}; {remedy}")
    try:
        target = urlsplit(urljoin(address, form.action))
        host = target.hostname or ""
    except ValueError:
        raise DownloadError(f"{url}: Google Drive's page leads to no valid address; {remedy}") from None
    if host != urlsplit(address).hostname and not host.endswith(_HOSTS):
        raise DownloadError(f"{url}: Google Drive's page leads to {host}, which is not followed; {remedy}")
    check_redirect(address, target.geturl())
    return target._replace(query=urlencode(form.fields), fragment="").geturl()


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
