import json
import struct
from pathlib import Path

import pytest
import torch

from halfbyte.checkpoint import mapped
from halfbyte.checkpoint.files import Folder
from halfbyte.checkpoint.mapped import Mapped
from halfbyte.checkpoint.source import Checkpoint, Stored, _one_file
from halfbyte.errors import CheckpointError

TENSORS = {
    "u8": torch.arange(5, dtype=torch.uint8),
    "bf16": torch.randn(3, 4).bfloat16(),
    "fp16": torch.randn(7).half(),
    "fp32": torch.randn(2, 2),
    "i8": torch.arange(-3, 3, dtype=torch.int8),
    "i64": torch.arange(3),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(7, dtype=torch.uint8),
}
NAMES = {torch.uint8: "U8", torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int8: "I8",
         torch.int64: "I64"}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A file whose tensors lie in the order above, so that most of them start at odd places."""
    header, data = {}, b""
    for name, tensor in TENSORS.items():
        content = bytes(tensor.reshape(-1).view(torch.uint8).numpy())
        place = [len(data), len(data) + len(content)]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return Checkpoint("x", tmp_path, {}, _one_file(Folder(tmp_path)), None, "bfloat16")


def test_values_of_every_dtype_and_alignment(checkpoint: Checkpoint) -> None:
    files = Mapped(checkpoint)
    for name, tensor in TENSORS.items():
        read = files.read(name)
        assert read.dtype == tensor.dtype and torch.equal(read, tensor)
        assert torch.equal(mapped.read(checkpoint, name), tensor)
        assert torch.equal(files.read_bytes(name), tensor.reshape(-1).view(torch.uint8))
        assert read.untyped_storage().nbytes() == tensor.nbytes  # its own bytes, not the file's


def test_writing_to_a_tensor_leaves_the_file_alone(checkpoint: Checkpoint) -> None:
    file = checkpoint.path / "model.safetensors"
    before = file.read_bytes()
    tensor = Mapped(checkpoint).read("u8")
    tensor.fill_(9)
    del tensor
    assert file.read_bytes() == before


def test_a_tensor_outlives_whoever_mapped_it(checkpoint: Checkpoint) -> None:
    tensor = Mapped(checkpoint).read("i8")
    assert tensor.tolist() == TENSORS["i8"].tolist()


def test_a_file_that_went_away_or_became_shorter(checkpoint: Checkpoint) -> None:
    file = checkpoint.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="shorter"):
        Mapped(checkpoint).read("i64")
    file.unlink()
    with pytest.raises(CheckpointError, match="can't be mapped"):
        Mapped(checkpoint).read("i64")


def test_a_mapping_larger_than_memory(tmp_path: Path) -> None:
    """A sparse file of 1 TB: opening reserves nothing."""
    file = tmp_path / "model.safetensors"
    size = 10**12
    with file.open("wb") as stream:
        try:
            stream.truncate(size)
        except OSError:
            pytest.skip("this file system holds no file of 1 TB, not even a sparse one")
        stream.seek(size - 4)
        stream.write(struct.pack("<f", 2.5))
    stored = Stored(file.name, "F32", (size // 8,), size // 2, size)
    tensor = mapped.view(mapped.map_file(file), stored)
    assert tensor[-1].item() == 2.5 and tensor[0].item() == 0
