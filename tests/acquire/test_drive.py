"""Google Drive's pages, as a local server sends them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danet.acquire import drive
from danet.acquire.download import Patience, fetch_file
from danet.acquire.drive import direct_url, file_id, page_target
from danet.config.rows import load_params
from danet.core.errors import DownloadError

ROOT = Path(__file__).resolve().parents[2]
LINK = "https://drive.google.com/open?id=1XmpFEF-tbPH0Rmv4eKRxYJngr3pTbj6p"
WARNING = """<!DOCTYPE html><html><body><p>Google Drive can't scan this file for viruses.</p>
<form id="search"><input name="q" value="no"></form>
<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="1Xmp"><input type="hidden" name="confirm" value="t">
<input type="hidden" name="uuid" value="a&amp;b"></form></body></html>"""

Answer = tuple[int, str, str]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], str]]:
    """Starts Drive with one answer to a request without token; with the token of the page it sends the file."""
    answers: list[Answer] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            allowed = query.get("confirm") == ["t"] and query.get("uuid") == ["a&b"]
            status, kind, body = (200, "application/octet-stream", "weights") if allowed else answers[-1]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        threading.Thread(target=instance.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{instance.server_port}/download"
        monkeypatch.setattr(drive, "DOWNLOAD", base)

        def start(answer: Answer) -> str:
            answers.append(answer)
            return base

        yield start
        instance.shutdown()


def test_ids_in_links() -> None:
    released = load_params(ROOT / "params.yaml").released
    assert file_id(released["official-danet-r101-d8-cityscapes"].url or "") == "1XmpFEF-tbPH0Rmv4eKRxYJngr3pTbj6p"
    assert file_id(released["official-dranet-r101-d8-cityscapes"].url or "") == "1xCl2N0b0rVFH4y30HCGfy7RY3-ars7Ce"
    assert file_id("https://drive.google.com/uc?export=download&id=1XmpFEF-tbPH0Rm") == "1XmpFEF-tbPH0Rm"
    assert file_id("https://example.org/open?id=1XmpFEF-tbPH0Rmv4eKRx") is None
    assert direct_url("https://example.org/w.pth", "") == "https://example.org/w.pth"


def test_the_page_before_a_large_file_is_confirmed(server: Callable[[Answer], str], tmp_path: Path) -> None:
    base = server((200, "text/html; charset=utf-8", WARNING.format(action="/download")))
    url = direct_url(LINK, "place it by hand")
    assert url == f"{base}?id=1Xmp&confirm=t&uuid=a%26b"
    fetch_file(url, None, tmp_path / "w.pth", progress=False, patience=Patience(retries=0))
    assert (tmp_path / "w.pth").read_text() == "weights"


def test_a_small_file_comes_at_once(server: Callable[[Answer], str]) -> None:
    base = server((200, "application/octet-stream", "weights"))
    assert direct_url(LINK, "") == f"{base}?id=1XmpFEF-tbPH0Rmv4eKRxYJngr3pTbj6p&export=download"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, "text/html", "<title>Google Drive - Quota exceeded</title>"), "daily limit for this file is used up"),
        ((200, "text/html", '<a href="https://accounts.google.com/ServiceLogin">'), "only after a login"),
        ((404, "text/html", "<h1>404</h1>"), "no such file"),
        ((200, "text/html", "<h1>Hello</h1>"), "answered with a web page"),
        ((200, "text/html", WARNING.format(action="https://evil.example/x")), "leads to evil.example"),
    ],
)
def test_other_pages_are_errors_that_say_what_they_are(
    server: Callable[[Answer], str], answer: Answer, message: str
) -> None:
    server(answer)
    with pytest.raises(DownloadError, match=rf"1XmpFEF.*{message}.*place it by hand"):
        direct_url(LINK, "place it by hand")


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "DOWNLOAD", "http://127.0.0.1:9/download")
    with pytest.raises(DownloadError, match=r"Google Drive cannot be reached.*place it by hand"):
        direct_url(LINK, "place it by hand", patience=Patience(retries=1, backoff_s=0.01))


def test_a_drive_out_of_order_is_asked_again(server: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch) -> None:
    base = server((503, "text/html", "busy"))
    pauses: list[float] = []
    monkeypatch.setattr(drive.time, "sleep", lambda seconds: (pauses.append(seconds), server((200, "x/y", "weights"))))
    assert direct_url(LINK, "").startswith(f"{base}?id=1Xmp")
    assert pauses == [1.0]
    monkeypatch.setattr(drive.time, "sleep", pauses.append)
    server((503, "text/html", "busy"))
    with pytest.raises(DownloadError, match=r"cannot be reached \(status 503\)"):
        direct_url(LINK, "", patience=Patience(retries=3))
    assert pauses == [1.0, 1.0, 2.0, 4.0]


def test_a_page_named_as_a_file_and_an_endless_one(server: Callable[[Answer], str]) -> None:
    server((200, "application/octet-stream", "<html>Quota exceeded</html>"))
    with pytest.raises(DownloadError, match="daily limit"):
        direct_url(LINK, "")
    server((200, "text/html", "x" * (3 << 20) + WARNING.format(action="/download")))
    with pytest.raises(DownloadError, match="answered with a web page"):
        direct_url(LINK, "")


@pytest.mark.parametrize("action", ["http://drive.usercontent.google.com/download", "ftp://drive.google.com/x"])
def test_the_form_never_leads_from_https_to_http(action: str) -> None:
    with pytest.raises(DownloadError, match="redirects to the insecure"):
        page_target(LINK, WARNING.format(action=action), 200, "place it by hand", "https://drive.google.com/uc")
    with pytest.raises(DownloadError, match="no valid address"):
        page_target(
            LINK, WARNING.format(action="https://[half"), 200, "place it by hand", "https://drive.google.com/uc"
        )


@given(st.text(max_size=400), st.integers(200, 599))
def test_any_page_gives_an_address_of_drive_or_our_error(page: str, status: int) -> None:
    for text in (page, WARNING.replace("{action}", page)):
        try:
            target = page_target(LINK, text, status, "place it by hand")
        except DownloadError:
            continue
        assert urlsplit(target).scheme == "https"
        assert (urlsplit(target).hostname or "").endswith((".google.com", ".googleusercontent.com"))
