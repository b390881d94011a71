"""A hub model's headers over HTTP: what is fetched, what is counted, and every way in which a server fails."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from halfbyte.checkpoint import remote
from halfbyte.checkpoint.headers import LIMIT
from halfbyte.checkpoint.remote import list_hub_model
from halfbyte.errors import CheckpointError
from tests.checkpoint.hostile import HOSTILE
from tests.checkpoint.rangehub import SHA, Fault, RangeHub, serving, use

CONFIG = {"model_type": "llama", "hidden_size": 64}
DATA = 3_000_000  # bytes of weights in each file

Serve = Callable[..., RangeHub]


def file(*names: str, data: int = DATA) -> bytes:
    """A safetensors file whose tensors share `data` bytes of weights."""
    each = data // len(names)
    header = {name: {"dtype": "U8", "shape": [each], "data_offsets": [i * each, (i + 1) * each]}
              for i, name in enumerate(names)}  # fmt: skip
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(each * len(names))


def single() -> dict[str, bytes]:
    return {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": file("a", "b")}


def sharded(shards: int = 3) -> dict[str, bytes]:
    names = [f"model-{i}.safetensors" for i in range(shards)]
    index = {"weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    files = {name: file(f"t{i}") for i, name in enumerate(names)}
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        **files,
    }


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Serve]:
    """serve(files, fault) -> a running hub that huggingface_hub takes for the real one."""
    from contextlib import ExitStack

    monkeypatch.setattr(remote, "_PAUSE", 0.01)
    with ExitStack() as stack:

        def start(files: dict[str, bytes], fault: Fault | None = None) -> RangeHub:
            hub = stack.enter_context(serving(RangeHub(files, fault)))
            use(hub.url, monkeypatch, str(tmp_path))
            return hub

        yield start


def length(content: bytes) -> int:
    return 8 + int(struct.unpack("<Q", content[:8])[0])


@pytest.mark.parametrize("files", [single(), sharded(), sharded(40)], ids=["one file", "3 shards", "40 shards"])
def test_headers_come_without_a_byte_of_the_weights(serve: Serve, files: dict[str, bytes]) -> None:
    hub = serve(files)
    found = list_hub_model("org/model")
    weights = {name: content for name, content in files.items() if name.endswith(".safetensors")}
    assert sum(stored.nbytes for stored in found.tensors.values()) == DATA * len(weights)
    assert found.config == CONFIG and found.revision == SHA
    served = {name: sum(asked.sent for asked in hub.log if asked.file == name) for name in files}
    assert served == {name: length(content) if name in weights else len(content) for name, content in files.items()}
    assert {asked.revision for asked in hub.log[1:]} == {SHA}  # all of one commit
    assert f"{sum(served.values()):,} bytes" in found.notes[0] and f"{DATA * len(weights):,}" in found.notes[0]


def test_a_server_without_ranges_is_left_as_soon_as_the_header_is_there(serve: Serve) -> None:
    large = single() | {"model.safetensors": file("a", data=200_000_000)}
    hub = serve(large, Fault("no ranges"))
    started = time.monotonic()
    assert list(list_hub_model("org/model").tensors) == ["a"]
    assert time.monotonic() - started < 5
    assert hub.sent < 40_000_000  # what the sockets between take in before they notice


def test_a_place_far_in_a_file_is_not_searched_from_its_start(serve: Serve) -> None:
    serve(single(), Fault("no ranges"))
    found = list_hub_model("org/model")
    with pytest.raises(CheckpointError, match="range requests"):
        found.files.read("model.safetensors", LIMIT + 1, 4)


def test_the_token_stays_with_the_hub(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, hub = serve(sharded()), serve(sharded())
    hub.elsewhere = elsewhere
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert len(list_hub_model("org/model").tensors) == 3
    assert {asked.token for asked in hub.log} == {"Bearer hf_secret"}
    assert elsewhere.log and {asked.token for asked in elsewhere.log} == {None}


@pytest.mark.parametrize("kind", ["429", "500", "502", "503", "504", "cut"])
@pytest.mark.parametrize("files", ["config.json", "model-1.safetensors"])
def test_what_passes_is_tried_again(serve: Serve, kind: str, files: str) -> None:
    hub = serve(sharded(), Fault(kind, files, times=2, value="Retry-After=0" if kind == "429" else ""))
    assert len(list_hub_model("org/model").tensors) == 3
    assert len([asked for asked in hub.log if asked.file == files]) == (3 if files == "config.json" else 4)


def test_a_pause_that_is_asked_for_is_made(serve: Serve) -> None:
    serve(single(), Fault("429", "config.json", 1, "Retry-After=1"))
    started = time.monotonic()
    list_hub_model("org/model")
    assert time.monotonic() - started > 0.9


@pytest.mark.parametrize(
    ("kind", "value", "files", "says", "requests"),
    [
        ("429", "Retry-After=3600", "config.json", ("too many requests", "wait some minutes"), 1),
        ("429", "Retry-After=Wed, 21 Oct 2099 07:28:00 GMT", "config.json", ("too many requests",), 1),
        ("429", "", "config.json", ("too many requests", "HTTP 429"), 4),
        ("500", "", "config.json", ("answers with an error", "HTTP 500"), 4),
        ("503", "", "model.safetensors", ("HTTP 503",), 4),
        ("401", "X-Error-Code=GatedRepo", "config.json", ("gated", "accept its terms", "HF_TOKEN"), 1),
        ("403", "X-Error-Code=GatedRepo", "model.safetensors", ("gated", "accept its terms", "HF_TOKEN"), 1),
        ("401", "", "config.json", ("refuses access", "accept its terms", "HF_TOKEN"), 1),
        ("401", "X-Error-Code=RepoNotFound", "config.json", ("no such model", "private or gated", "HF_TOKEN"), 1),
        ("403", "", "config.json", ("refuses access", "accept its terms", "HF_TOKEN"), 1),
        ("404", "", "config.json", ("no config.json", "check the spelling"), 1),
        ("404", "X-Error-Code=RevisionNotFound", "config.json", ("not this revision",), 1),
        ("416", "", "model.safetensors", ("no sound safetensors file", "ends before byte 0"), 1),
        ("204", "", "config.json", ("something else than was asked for", "HTTP 204"), 1),
        ("418", "", "config.json", ("HTTP 418",), 1),
        ("html", "", "config.json", ("text/html", "login page"), 1),
        ("html", "", "model.safetensors", ("text/html", "login page"), 1),
        ("claim", "bytes 9-16/400", "model.safetensors", ("Content-Range 'bytes 9-16/400' for bytes 0-7",), 1),
        ("claim", "bytes 0-7/oops", "model.safetensors", ("Content-Range",), 1),
        ("loop", "", "config.json", ("redirect",), 21),
        ("cut", "", "config.json", ("breaks off", "try again later"), 4),
        ("silent", "1.5", "config.json", ("does not answer in time", "no byte for 1 seconds"), 2),
        ("drip", "", "config.json", ("too slow", "bytes in 3 seconds"), 1),
    ],
)  # fmt: skip
def test_every_failure_is_one_clear_error_after_a_bounded_time(
    serve: Serve, kind: str, value: str, files: str, says: tuple[str, ...], requests: int
) -> None:
    long = json.dumps({**CONFIG, "architectures": ["x" * 200]}).encode()
    hub = serve(single() | {"config.json": long}, Fault(kind, files, value=value))
    started = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        list_hub_model("org/model")
    said = str(caught.value)
    assert all(part in said for part in says), said
    assert "org/model" in said and len(said) < 1000
    asked = [one for one in hub.log if one.file == files]
    assert len(asked) == requests or (kind == "silent" and 2 <= len(asked) <= 3)
    assert time.monotonic() - started < 6
    assert hub.sent < 10_000


def test_no_network_is_said_and_the_cache_helps_where_there_is_one(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use("http://127.0.0.1:1", monkeypatch, str(tmp_path))
    with pytest.raises(CheckpointError, match="can't be reached"):
        list_hub_model("org/model")
    snapshot = tmp_path / "models--org--model" / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--model" / "refs").mkdir()
    (tmp_path / "models--org--model" / "refs" / "main").write_text(SHA)
    for name, content in single().items():
        (snapshot / name).write_bytes(content)
    found = list_hub_model("org/model")
    assert list(found.tensors) == ["a", "b"] and found.revision == SHA and "can't be reached" in found.notes[0]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "switched off" in list_hub_model("org/model").notes[0]
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        list_hub_model("org/another")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.safetensors": None}, "has neither model.safetensors nor model.safetensors.index.json"),
        ({"config.json": b"[]"}, "holds no object"),
        ({"config.json": b'{"a":' * 100_000}, "no valid JSON"),
        ({"config.json": b"<html>"}, "an HTML page"),
        ({"config.json": b"{}"}, "names no model_type"),
        ({"config.json": json.dumps({**CONFIG, "quantization_config": {"quant_method": "gptq"}}).encode()}, "gptq"),
        ({"config.json": json.dumps({**CONFIG, "quantization_config": 3}).encode()}, "not read: 3"),
    ],
)
def test_what_is_no_model_of_the_kind_that_is_read(serve: Serve, changes: dict[str, bytes | None], says: str) -> None:
    files = {name: content for name, content in (single() | changes).items() if content is not None}
    serve(files)
    with pytest.raises(CheckpointError) as caught:
        list_hub_model("org/model")
    assert says in str(caught.value)


@pytest.mark.parametrize("shard", ["../../secret", "http://elsewhere/x", "a/b.safetensors", "gone.safetensors"])
def test_an_index_names_only_files_that_are_there(serve: Serve, shard: str) -> None:
    index = {"weight_map": {"t0": "model-0.safetensors", "x": shard}}
    hub = serve(sharded() | {"model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(CheckpointError, match=r"do not lie beside it|is not on the hub"):
        list_hub_model("org/model")
    assert {asked.file for asked in hub.log} <= {*hub.files, "model.safetensors", "gone.safetensors"}


@pytest.mark.parametrize(("name", "content"), HOSTILE.items(), ids=list(HOSTILE))
def test_hostile_headers_are_refused_from_afar_as_they_are_here(serve: Serve, name: str, content: bytes) -> None:
    hub = serve(single() | {"model.safetensors": content})
    started = time.process_time()
    with pytest.raises(CheckpointError, match="no sound safetensors file") as caught:
        list_hub_model("org/model")
    assert time.process_time() - started < 3 and len(str(caught.value)) < 4000
    assert hub.sent <= len(content) + 100
