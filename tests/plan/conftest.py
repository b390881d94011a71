"""Small files for the plan's tests, written byte by byte: no torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest

from halfbyte.plan import native

_BYTES = {"BF16": 2, "F32": 4, "U8": 1, "I8": 1}


def write_model(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]] | bytes]
) -> Path:
    """A model folder whose tensors are zeros of (dtype, shape), or uint8 with the bytes given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, data = {}, b""
    for name, what in tensors.items():
        dtype, shape = ("U8", (len(what),)) if isinstance(what, bytes) else what
        content = what if isinstance(what, bytes) else bytes(prod(shape) * _BYTES[dtype])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "tie_word_embeddings": False,
}


@pytest.fixture(autouse=True)
def _products(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Plans don't depend on this processor, but for those that are compared with a loaded model, nor on its disk."""
    monkeypatch.setattr("halfbyte.plan.disk._free", lambda folder: 10**12)
    if request.module.__name__.rpartition(".")[2] not in ("test_native", "test_loaded"):
        monkeypatch.setattr(native, "has_bf16_products", lambda: True)
        monkeypatch.setattr(native, "has_fp32_products", lambda: False)


@pytest.fixture
def llama() -> dict[str, Any]:
    """The config.json of a Llama of one layer: hidden 64, MLP 100, 4 and 2 heads, vocabulary 320, untied."""
    return dict(LLAMA)
