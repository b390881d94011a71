import json
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from halfbyte.checkpoint.headers import DTYPES, LIMIT, read_header
from halfbyte.errors import CheckpointError
from tests.checkpoint.hostile import HOSTILE


def write(file: Path, header: object, data: int = 0, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return file


def entry(start: int, end: int, dtype: object = "F32", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def test_equals_what_safetensors_wrote(tmp_path: Path) -> None:
    tensors = {
        "a.weight": torch.randn(3, 5).bfloat16(),
        "b": torch.arange(7),
        "c": torch.tensor(0, dtype=torch.uint8),
        "d": torch.randn(0, 4),
        "e": torch.randn(2).half(),
    }
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    content, found = file.read_bytes(), read_header(file)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        info = found[name]
        assert info.shape == tuple(tensor.shape)
        assert f"torch.{info.torch_dtype}" == str(tensor.dtype)
        assert content[info.start : info.end] == bytes(tensor.reshape(-1).view(torch.uint8).numpy())


def test_every_dtype_is_one_of_torch() -> None:
    for name, size in DTYPES.values():
        assert getattr(torch, name).itemsize == size


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"{", 0, "no valid JSON"),
        (b"[]", 0, "no JSON object"),
        (b'{"a":"\xff"}', 0, "no valid JSON"),
        (b"[" * 100_000, 0, "no valid JSON"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
         4, "named twice: a"),
        ({"a": entry(0, 4, "F7")}, 4, "unknown dtype 'F7'"),
        ({"a": entry(0, 4, ["F32"])}, 4, "unknown dtype"),
        ({"a": entry(0, 4, shape=[-1])}, 4, "no shape"),
        ({"a": entry(0, 4, shape=[True])}, 4, "no shape"),
        ({"a": entry(0, 4, shape=[2])}, 4, "takes 8 bytes, its place holds 4"),
        ({"a": entry(0, 4, shape=[2**62, 2**62, 4])}, 4, "its place holds 4"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4, "not described by"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, 4, "no pair of offsets"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4]}}, 4, "no pair of offsets"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "b: overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "b: leaves a gap before it"),
        ({"a": entry(0, 8)}, 4, "it is cut"),
        ({"a": entry(0, 8)}, 9, "belong to none"),
    ],
)  # fmt: skip
def test_what_does_not_hold_together_is_refused(tmp_path: Path, header: object, data: int, says: str) -> None:
    file = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert says in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize(("name", "content"), HOSTILE.items(), ids=list(HOSTILE))
def test_hostile_files_are_refused_at_once_and_without_much_memory(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    started = time.process_time()
    with pytest.raises(CheckpointError, match="no sound safetensors file") as caught:
        read_header(file)
    assert time.process_time() - started < 1
    assert len(str(caught.value)) < 4000 and str(caught.value).replace("\n", "").isprintable()
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        read_header(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000


def test_a_header_of_many_zeros_costs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", LIMIT) + b"{")
        stream.truncate(2 * LIMIT)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="zero bytes"):
        read_header(file)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "x", {"a": entry(0, 4, "F7"), "b": entry(0, 4, shape=[2]), "c": 3}, 4)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert all(f"{name}: " in str(caught.value) for name in "abc")


def test_lengths_are_not_believed(tmp_path: Path) -> None:
    for length, says in ((LIMIT + 1, "over the limit"), (2**63, "over the limit"), (50_000, "the file is cut")):
        with pytest.raises(CheckpointError, match=says):
            read_header(write(tmp_path / "x", {}, length=length))
    for content in (b"", b"1234567"):
        (tmp_path / "short").write_bytes(content)
        with pytest.raises(CheckpointError, match="the header's length alone takes 8"):
            read_header(tmp_path / "short")
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(CheckpointError, match="can't be read"):
            read_header(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x"
    save_file({"a": torch.randn(8), "b": torch.randn(3)}, file)
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_header(file)
