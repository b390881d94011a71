"""The hub, played by a server of this test that speaks its routes; huggingface_hub runs in processes of its own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save_file

from halfbyte.checkpoint.hub import hub_error
from tests.checkpoint.conftest import Make

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"
STRAY = {"pytorch_model.bin": b"x", "consolidated.safetensors": b"x", "onnx/model.onnx": b"x"}

CODE = """
import json, sys
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.errors import HalfbyteError
try:
    found = open_checkpoint(sys.argv[1], sys.argv[2] or None)
    files = sorted(path.name for path in found.path.iterdir())
    print(json.dumps({"name": found.name, "revision": found.revision, "files": files, "finger": found.fingerprint}))
except HalfbyteError as error:
    print(json.dumps({"error": str(error)}))
"""


class Hub(ThreadingHTTPServer):
    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.log: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.cut = False  # break off the first answer for the weights half-way

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.log.append((self.command, path, self.headers["Range"]))
        owner, _, rest = path.removeprefix("/api/models/").lstrip("/").partition("/")
        name, _, rest = rest.partition("/")
        if refusal := self.refusal(f"{owner}/{name}"):
            self.refuse(*refusal)
        elif path.startswith("/api/models/") and rest.partition("/")[0] in ("revision", "tree"):
            kind, _, revision = rest.partition("/")
            if revision not in ("main", SHA):
                self.refuse(404, "RevisionNotFound", "Revision not found")
            elif kind == "revision":
                siblings = [{"rfilename": file} for file in self.server.files]
                self.answer(json.dumps({"id": f"{owner}/{name}", "sha": SHA, "siblings": siblings}).encode())
            else:
                entries = [
                    {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for file, content in self.server.files.items()
                ]
                self.answer(json.dumps(entries).encode())
        elif rest.startswith("resolve/"):
            self.resolve(rest.split("/", 2)[2])
        else:
            self.refuse(404, "EntryNotFound", "no such route")

    do_HEAD = do_GET

    def refusal(self, model: str) -> tuple[int, str, str] | None:
        if model == "org/gated":
            return 403, "GatedRepo", "Access to model org/gated is restricted"
        if model == "org/private" and self.headers["Authorization"] != f"Bearer {TOKEN}":
            return 401, "RepoNotFound", "Repository not found"
        if model == "org/down":
            return 503, "", "maintenance"
        return None if model in ("org/model", "org/private") else (404, "RepoNotFound", "Repository not found")

    def resolve(self, file: str) -> None:
        content = self.server.files[file]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        wanted = self.headers["Range"]
        if wanted and self.command == "GET":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            stop = int(last) + 1 if last else len(content)
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(content)}"
            self.answer(content[int(first) : stop], headers, 206)
        elif self.server.cut and file == "model.safetensors" and self.command == "GET":
            self.server.cut = False
            self.answer(content, headers, cut=True)
        else:
            self.answer(content, headers)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(b"{}", {"X-Error-Code": code, "X-Error-Message": message}, status)

    def answer(
        self, content: bytes, headers: dict[str, str] | None = None, status: int = 200, *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tiny: Make) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in tiny("qwen3").iterdir()} | {"README.md": b"# a model"}
    server = Hub(files | STRAY)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def opened(hub_url: str, home: Path, model: str, revision: str = "", **environment: str) -> dict[str, object]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", CODE, model, revision]
    done = subprocess.run(command, env=plain | own | environment, cwd=home.parent, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_downloaded_once_then_offline(hub: Hub, tiny: Make, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = opened(hub.url, home, "org/model")
    assert (first["name"], first["revision"]) == ("org/model", SHA)
    assert first["files"] == sorted(set(hub.files) - set(STRAY))
    hub.log.clear()
    assert opened(hub.url, home, "org/model") == first
    assert not [entry for entry in hub.log if "/resolve/" in entry[1]]
    hub.log.clear()
    assert opened(hub.url, home, "org/model", HF_HUB_OFFLINE="1") == first
    assert opened(hub.url, home, "org/model", SHA, HF_HUB_OFFLINE="1") == first
    assert not hub.log
    assert opened("http://127.0.0.1:1", home, "org/model") == first  # no network, but a cache


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    large = tmp_path / "large"  # the client keeps what it got in steps of 10 MB
    save_file({"a": torch.zeros(13_000_000, dtype=torch.bfloat16)}, large)
    hub.files["model.safetensors"] = large.read_bytes()
    hub.cut = True
    found = opened(hub.url, tmp_path / "home", "org/model")
    assert "error" not in found
    ranges = [entry[2] for entry in hub.log if entry[1].endswith("/model.safetensors") and entry[2]]
    assert ranges and all(int(wanted.removeprefix("bytes=").rstrip("-")) >= 10_000_000 for wanted in ranges)


def test_the_token_is_sent(hub: Hub, tmp_path: Path) -> None:
    refused = opened(hub.url, tmp_path / "home", "org/private")
    assert "no such model" in str(refused["error"]) and "HF_TOKEN" in str(refused["error"])
    assert opened(hub.url, tmp_path / "home", "org/private", HF_TOKEN=TOKEN)["revision"] == SHA


@pytest.mark.parametrize(
    ("model", "revision", "environment", "says"),
    [
        ("org/missing", "", {}, ("shows no such model", "check the spelling", "no folder 'org/missing'")),
        ("org/gated", "", {}, ("gated", "accept its terms", "HF_TOKEN")),
        ("org/model", "v9", {}, ("not this revision", "org/model@v9")),
        ("org/down", "", {}, ("HTTP 503",)),
        ("org/model", "", {"HF_HUB_OFFLINE": "1"}, ("switched off", "HF_HUB_OFFLINE")),
        ("org/model", "", {"HF_ENDPOINT": "http://127.0.0.1:1"}, ("can't be reached", "HF_ENDPOINT")),
    ],
)
def test_what_goes_wrong_is_said_in_words(
    hub: Hub, tmp_path: Path, model: str, revision: str, environment: dict[str, str], says: tuple[str, ...]
) -> None:
    said = str(opened(hub.url, tmp_path / "home", model, revision, **environment)["error"])
    assert all(part in said for part in says), said


def test_a_full_disk_and_a_cache_that_is_not_ours() -> None:
    wrapped = RuntimeError("while downloading")
    wrapped.__cause__ = OSError(28, "No space left on device")
    assert "disk is full" in str(hub_error("org/model", None, wrapped))
    assert "can't be written" in str(hub_error("org/model", None, PermissionError(13, "Permission denied")))
