"""The index of a checkpoint in shards: model.safetensors.index.json."""

from __future__ import annotations

import json

from fuzz.check import folder
from halfbyte.checkpoint.source import open_folder
from tests.checkpoint.hostile import tensor, whole

FOLDER = folder() / "model"
FOLDER.mkdir()
INSIDE = {"one.safetensors", "two.safetensors"}
(FOLDER / "config.json").write_text('{"model_type": "llama"}')
(FOLDER / "one.safetensors").write_bytes(whole({"a": tensor(0, 4), "b": tensor(4, 8, "F32", [1])}, 8))
(FOLDER / "two.safetensors").write_bytes(whole({"c": tensor(0, 2, "BF16", [1, 1])}, 2))
(FOLDER.parent / "outside.safetensors").write_bytes(whole({"x": tensor(0, 4)}, 4))
RIGHT = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
SEEDS = [json.dumps(found).encode() for found in (
    {"metadata": {"total_size": 10}, "weight_map": RIGHT},
    {"weight_map": {**RIGHT, "x": "../outside.safetensors"}},
    {"weight_map": {**RIGHT, "d": "three.safetensors", "a": "two.safetensors"}},
    {"weight_map": {"a": 1}}, {"weight_map": {}}, {"weight_map": []}, [],
    {"weight_map": {"x": "/etc/passwd"}}, {"weight_map": {"x": ".."}}, {"weight_map": {"x": "one.safetensors\u0000"}},
)]  # fmt: skip


def run(data: bytes) -> None:
    (FOLDER / "model.safetensors.index.json").write_bytes(data)
    found = open_folder(FOLDER)
    assert {stored.file for stored in found.tensors.values()} <= INSIDE
