"""A server that fails in every way in which one can, for the tests of downloads."""

from __future__ import annotations

import dataclasses
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from danet.acquire import http


@dataclasses.dataclass
class Site:
    """What the test server serves, and what it was asked."""

    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    status: dict[str, int] = dataclasses.field(default_factory=dict)
    cut: list[int] = dataclasses.field(default_factory=list)
    """Bytes after which the next connections break off."""
    ranges: bool = True
    hang: bool = False
    chunked: bool = False
    asked: list[tuple[str, dict[str, str]]] = dataclasses.field(default_factory=list)
    posted: list[str] = dataclasses.field(default_factory=list)
    login: bool = True
    url: str = ""

    def ranges_asked(self):
        return [headers.get("Range") for _, headers in self.asked]


class Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.site.posted.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.answer(200, **({"Set-Cookie": "session=good; Path=/"} if self.site.login else {}))

    def do_GET(self):
        site, path = self.site, self.path
        site.asked.append((path, dict(self.headers)))
        if path in site.status:
            self.answer(site.status[path])
        elif path.startswith("/file-handling") and "session=good" not in self.headers.get("Cookie", ""):
            self.answer(200, b"<!DOCTYPE html><html>log in</html>", Content_Type="text/html; charset=utf-8")
        elif path in site.files:
            self.serve(site.files[path])
        else:
            self.send_error(404)

    def serve(self, data):
        site = self.site
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and site.ranges else 0
        if start and start >= len(data):
            self.answer(416, Content_Range=f"bytes */{len(data)}")
            return
        self.send_response(206 if start else 200)
        headers = dict(site.headers)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if site.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(data) - start)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        body = data[start:]
        if site.hang:
            time.sleep(1.0)
            self.close_connection = True
            return
        if site.cut:
            body = body[: site.cut.pop(0)]
            self.wfile.write(f"{len(body) + 9:x}\r\n".encode() + body if site.chunked else body)
            self.close_connection = True
            return
        if site.chunked:
            self.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
            return
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        pass  # clients hang up on purpose


@pytest.fixture
def site():
    site = Site()
    handler = type("ThisHandler", (Handler,), {"site": site})
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And servers are given up soon."""
    monkeypatch.setattr(http, "TIMEOUT_S", (2.0, 0.3))
    monkeypatch.setattr(http, "RETRIES", 2)
    monkeypatch.setattr(http, "PAUSE_S", 0.01)
    for name in list(os.environ):
        if name.startswith(("DANET_", "CITYSCAPES_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
