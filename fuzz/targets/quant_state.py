"""The quant state that bitsandbytes keeps with a packed weight: JSON in a tensor of bytes."""

from __future__ import annotations

import json

import torch

from fuzz.check import folder
from halfbyte.checkpoint import bnb
from halfbyte.checkpoint.mapped import Mapped
from halfbyte.checkpoint.source import open_folder
from halfbyte.formats import DYNAMIC_CODE, NF4_CODE
from halfbyte.kernels import dequantise
from halfbyte.plan.inventory import from_listing
from tests.checkpoint.hostile import tensor, whole

NAME = "model.layers.0.mlp.up_proj.weight"
FOLDERS = {nested: folder() for nested in (True, False)}
for nested, place in FOLDERS.items():
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": nested}
    (place / "config.json").write_text(json.dumps({"model_type": "x", "quantization_config": settings}))
STATE = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 32]}
NESTED = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
SEEDS = [bytes([0 if "nested_offset" in state else 1]) + json.dumps(state).encode() for state in (
    STATE, STATE | NESTED, {**STATE, "shape": [2**62, 2**62]}, {**STATE, "shape": "no"}, {**STATE, "blocksize": 1e400},
    STATE | NESTED | {"nested_offset": 10**400}, STATE | NESTED | {"nested_offset": 1e300}, {**STATE, "dtype": ["x"]},
    STATE | NESTED | {"nested_offset": float("nan")}, {**STATE, "\x1b": 1},
)] + [b"\1[]", b"\0{", b"\1" + b"[" * 5000]  # fmt: skip


def _bytes(*values: float) -> bytes:
    return torch.tensor(values, dtype=torch.float32).numpy().tobytes()


MAP, NESTED_MAP = _bytes(*NF4_CODE), _bytes(*DYNAMIC_CODE)


def run(data: bytes) -> None:
    """The first byte says whether config.json announces double quantisation; the rest is the state."""
    nested, state = not (data[:1] and data[0] & 1), data[1:]
    parts = {NAME: ("U8", [64, 1], bytes(range(64))), f"{NAME}.quant_map": ("F32", [16], MAP)}
    if nested:
        parts |= {f"{NAME}.absmax": ("U8", [2], b"\7\xf0"), f"{NAME}.nested_absmax": ("F32", [1], _bytes(0.5)),
                  f"{NAME}.nested_quant_map": ("F32", [256], NESTED_MAP)}  # fmt: skip
    else:
        parts[f"{NAME}.absmax"] = ("F32", [2], _bytes(0.5, 0.25))
    parts[NAME + bnb.STATE] = ("U8", [len(state)], state)
    header, values = {}, b""
    for name, (dtype, shape, value) in sorted(parts.items(), key=lambda item: item[1][0]):  # fp32 first: it is aligned
        header[name] = tensor(len(values), len(values) + len(value), dtype, shape)
        values += value
    (FOLDERS[nested] / "model.safetensors").write_bytes(whole(header) + values)
    checkpoint = open_folder(FOLDERS[nested])
    packed = bnb.read_packed(Mapped(checkpoint), NAME, (4, 32), "nf4" if nested else "nf4-single")
    assert dequantise(packed, torch.float32).shape == (4, 32)
    from_listing(checkpoint.listing)
