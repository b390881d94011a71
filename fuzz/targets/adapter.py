"""An adapter in PEFT's format: its configuration, and tensors that may be any."""

from __future__ import annotations

import json

import torch
from torch import nn

from fuzz.check import folder
from halfbyte.checkpoint.headers import DTYPES
from halfbyte.model.adapter import load_adapter
from halfbyte.model.linear import QuantLinear
from tests.checkpoint.hostile import tensor, whole

FOLDER = folder()
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ["up"], "bias": "none"}
KEYS = [f"base_model.model.{layer}.lora_{side}.weight" for layer in ("block.up", "block.down") for side in "AB"]
SHAPES = [(2, 4), (8, 2), (2, 8), (4, 2)]
SEEDS = [bytes([len(changes), *changes]) + json.dumps(config).encode() for config, changes in (
    (CONFIG, (0,) * 4), (CONFIG, (4, 4, 0, 0)), (CONFIG, (0, 1, 5, 0, 0)), (CONFIG, (0, 2, 7, 0, 0)),
    (CONFIG, (0, 0, 0, 0, 1)), (CONFIG, (3, 0, 0, 0)), (CONFIG, (4, 4, 4, 4)),
    ({**CONFIG, "rank_pattern": {"up": 2}, "alpha_pattern": {"block.down": 8}}, (0,) * 4),
    ({**CONFIG, "rank_pattern": {"(a+)+$": 2}}, (0,) * 4), ({**CONFIG, "rank_pattern": {"(": 2}}, (0,) * 4),
    ({**CONFIG, "use_rslora": True}, (0,) * 4), ({**CONFIG, "use_dora": True, "bias": "all"}, (0,) * 4),
    ({**CONFIG, "r": "two"}, (0,) * 4), ({**CONFIG, "r": 0, "lora_alpha": None}, (0,) * 4),
    ({**CONFIG, "lora_alpha": 1e400}, (0,) * 4), ({**CONFIG, "rank_pattern": [1]}, (0,) * 4), ([], (0,)),
)]  # fmt: skip


def _net() -> nn.Module:
    net, block = nn.Module(), nn.Module()
    for name, (out, into) in {"up": (8, 4), "down": (4, 8)}.items():
        linear = nn.Linear(into, out, bias=False)
        block.add_module(name, QuantLinear.from_base(linear, linear.weight.detach(), None))
    net.add_module("block", block)
    return net


NET = _net()


def run(data: bytes) -> None:
    """A count of changes, the changes of each tensor (0 nothing, 1 dtype, 2 shape, 3 a value that is none, 4 gone), of
    the fingerprint, and the text of adapter_config.json."""
    count = min(data[0] if data else 0, 16)
    taken = iter(data[1 : 1 + count])
    header: dict[str, object] = {}
    values = b""
    for key, usual in zip(KEYS, SHAPES, strict=True):
        change, dtype, shape = next(taken, 0) % 8, "F32", list(usual)
        if change == 1:
            dtype = list(DTYPES)[next(taken, 0) % len(DTYPES)]
        if change == 2:
            shape[next(taken, 0) % 2] = next(taken, 0) % 20
        if change == 4:
            continue
        size = shape[0] * shape[1] * DTYPES[dtype][1]
        header[key if change != 5 else key.replace("block", "\u202eblock")] = tensor(
            len(values), len(values) + size, dtype, shape
        )
        values += (b"\0\0\xc0\x7f" if change == 3 else b"\0\0\x80\x3f") * (size // 4) + bytes(size % 4)
    if other := next(taken, 0):
        header["__metadata__"] = {"halfbyte_base_fingerprint": "ab" if other & 1 else "cd"}
    (FOLDER / "adapter_model.safetensors").write_bytes(whole(header) + values)
    (FOLDER / "adapter_config.json").write_bytes(data[1 + count :])
    config = load_adapter(NET, FOLDER, "cd")
    assert config.rank > 0
    assert torch.isfinite(NET.get_submodule("block.up")(torch.ones(1, 4))).all()
