import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from halfbyte.checkpoint import writer
from halfbyte.checkpoint.headers import read_header
from halfbyte.checkpoint.writer import Entry, Writer

TENSORS = {
    "odd": torch.arange(13, dtype=torch.uint8),
    "weights": torch.randn(64, 33).bfloat16(),
    "small": torch.randn(5),
    "scalar": torch.tensor(3, dtype=torch.uint8),
    "none": torch.zeros(0, 7),
    "long": torch.arange(9),
    "ü": torch.randn(16),
}
NAMES = {torch.uint8: "U8", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}
ENTRIES = [Entry(name, NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in TENSORS.items()]


def test_safetensors_reads_what_is_written_in_any_order(tmp_path: Path) -> None:
    made = Writer(tmp_path, [[entry] for entry in ENTRIES] + [[Entry("late", "U8", (), room=100)]])
    made.write("late", [torch.tensor(list(b"{}"), dtype=torch.uint8)])
    for name, tensor in reversed(TENSORS.items()):
        made.write(name, [tensor])
    size = made.finish()
    file = tmp_path / "model.safetensors"
    assert file.stat().st_size == size and [path.name for path in tmp_path.iterdir()] == [file.name]
    held = load_file(file)
    assert bytes(held.pop("late").numpy()) == b"{}"
    assert {name: tensor.dtype for name, tensor in held.items()} == {n: t.dtype for n, t in TENSORS.items()}
    assert all(torch.equal(held[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}  # transformers asks for it
    for name, info in read_header(file).items():
        assert name == "late" or info.start % TENSORS[name].itemsize == 0
        assert info.nbytes < 64 or info.start % 64 == 0


def test_pieces_and_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_CHUNK", 7)
    whole = torch.randn(6, 5)
    made = Writer(tmp_path, [[Entry("a", "BF16", (6, 5))]])
    made.write("a", [whole[:2], whole[2:]])
    made.finish()
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], whole.bfloat16())


def test_shards_and_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SHARD", 100)
    units = [
        [Entry("a", "U8", (60,)), Entry("a.b", "U8", (30,))],
        [Entry("c", "U8", (20,))],
        [Entry("d", "U8", (500,))],
    ]
    made = Writer(tmp_path, units)
    for name, size in (("a", 60), ("a.b", 30), ("c", 20), ("d", 500)):
        made.write(name, [torch.full((size,), 7, dtype=torch.uint8)])
    made.finish()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    files = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index == {"a": files[0], "a.b": files[0], "c": files[1], "d": files[2]}
    for file in files:
        assert {name for name, place in index.items() if place == file} == set(load_file(tmp_path / file))


def test_it_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    real = writer._File.flush

    def flush(file: writer._File) -> None:
        nonlocal largest
        largest = max(largest, file.dirty)
        real(file)

    monkeypatch.setattr(writer, "FLUSH", 1000)
    monkeypatch.setattr(writer._File, "flush", flush)
    made = Writer(tmp_path, [[Entry("a", "U8", (10_500,))]])
    made.write("a", [torch.zeros(10_500, dtype=torch.uint8)])
    made.finish()
    assert 1000 <= largest < 2000


def test_what_is_announced_must_come(tmp_path: Path) -> None:
    made = Writer(tmp_path, [[Entry("a", "U8", (4,)), Entry("b", "U8", (4,))]])
    with pytest.raises(ValueError, match="3 bytes were written where 4"):
        made.write("a", [torch.zeros(3, dtype=torch.uint8)])
    with pytest.raises(ValueError, match="never written: b"):
        made.finish()
    made.close()
