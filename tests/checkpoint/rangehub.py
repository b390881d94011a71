"""A hub that serves ranges, counts the bytes that leave it, and fails in the ways that servers do."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Fault:
    """What goes wrong with the files whose name matches; `times` requests long, then all is well."""

    kind: str
    files: str = ".*"
    times: int = 1_000_000
    value: str = ""


@dataclass
class Asked:
    file: str
    range: str | None
    token: str | None
    revision: str
    sent: int = 0  # bytes of the body


class RangeHub(ThreadingHTTPServer):
    """One model, org/model, of `files`; requests are kept in `log`."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], fault: Fault | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.fault = files, fault
        self.log: list[Asked] = []
        self.elsewhere: RangeHub | None = None  # where files are sent on to
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """A client that has enough closes the connection: no word of it."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def sent(self) -> int:
        return sum(asked.sent for asked in self.log)

    def failing(self, file: str) -> Fault | None:
        """The fault that this request meets."""
        with self.lock:
            fault = self.fault
            if fault is None or fault.times == 0 or not re.fullmatch(fault.files, file):
                return None
            fault.times -= 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    server: RangeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        match = re.fullmatch(r"/org/model/resolve/([^/]+)/(.+)", unquote(urlsplit(self.path).path))
        revision, file = match.groups() if match else ("", self.path)
        self.asked = Asked(file, self.headers["Range"], self.headers["Authorization"], revision)
        if match:  # else something that huggingface_hub wants to know
            self.server.log.append(self.asked)
        fault = self.server.failing(file)
        kind = fault.kind if fault else ""
        if not match:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif fault and kind.isdigit():
            code, _, value = fault.value.partition("=")
            self.answer(int(kind), b"x" * 200, {code: value} if code else {})
        elif file not in self.server.files:
            self.answer(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        elif kind == "html":
            self.answer(200, b"<html><body>Please log in</body></html>", {"Content-Type": "text/html; charset=utf-8"})
        elif kind == "cut":
            self.serve(file, cut=True)
        elif kind == "silent":
            time.sleep(float(fault.value) if fault else 0)
            self.close_connection = True
        elif kind == "drip":
            self.drip(file)
        elif kind == "loop":
            self.answer(302, b"", {"Location": self.path})
        elif self.server.elsewhere is not None:
            self.answer(302, b"", {"Location": self.server.elsewhere.url + self.path, "X-Repo-Commit": SHA})
        else:
            self.serve(file, ranges=kind != "no ranges", claim=fault.value if fault and kind == "claim" else "")

    def serve(self, file: str, *, ranges: bool = True, cut: bool = False, claim: str = "") -> None:
        content, wanted = self.server.files[file], self.headers["Range"]
        if not wanted or not ranges:
            return self.answer(200, content, {"X-Repo-Commit": SHA}, cut=cut)
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        if first >= len(content):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        part = content[first : last + 1]
        said = claim or f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return self.answer(206, part, {"Content-Range": said, "X-Repo-Commit": SHA}, cut=cut)

    def answer(self, status: int, content: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.send(content[: len(content) // 2] if cut else content)
        self.close_connection = cut

    def drip(self, file: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.files[file])))
        self.end_headers()
        for byte in self.server.files[file]:
            self.send(bytes([byte]))
            time.sleep(0.05)

    def send(self, content: bytes) -> None:
        """In small pieces, so that a client that has enough is noticed."""
        try:
            for start in range(0, len(content), 1 << 16):
                piece = content[start : start + (1 << 16)]
                self.wfile.write(piece)
                self.asked.sent += len(piece)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(hub: RangeHub) -> Iterator[RangeHub]:
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def use(url: str, monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    """Let huggingface_hub in this process take `url` for the hub, online, without a token, with an empty cache."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": cache,
        "HF_HUB_DOWNLOAD_TIMEOUT": 1,
        "HF_TOKEN_PATH": f"{cache}/token",
        "HF_STORED_TOKENS_PATH": f"{cache}/tokens",
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    _http.close_session()
