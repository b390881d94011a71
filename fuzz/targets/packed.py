"""The tensors of packed weights: parts that are missing, of other types and shapes, with any values; what is taken is
dequantised by native code."""

from __future__ import annotations

import json

import torch

from fuzz.check import folder
from halfbyte.checkpoint import bnb
from halfbyte.checkpoint.headers import DTYPES
from halfbyte.checkpoint.mapped import Mapped
from halfbyte.checkpoint.source import open_folder
from halfbyte.formats import DYNAMIC_CODE, NF4_CODE, Weights
from halfbyte.kernels import dequantise
from tests.checkpoint.hostile import tensor, whole

NAME = "model.layers.0.mlp.up_proj.weight"
USUAL = bytes(index * 37 & 127 for index in range(128))
FORMATS: tuple[Weights, ...] = ("nf4", "nf4-single", "int8")
TABLES = {suffix: torch.tensor(code).numpy().tobytes()
          for suffix, code in ((".quant_map", NF4_CODE), (".nested_quant_map", DYNAMIC_CODE))}  # fmt: skip
FOLDERS = {weights: folder() for weights in FORMATS}
for weights, place in FOLDERS.items():
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": weights == "nf4"}
    settings = {"load_in_8bit": True} if weights == "int8" else four
    (place / "config.json").write_text(json.dumps({"model_type": "x", "quantization_config": settings}))
SEEDS = [bytes([kind, rows, columns, *changes]) for kind in range(3) for rows, columns in ((4, 32), (3, 5), (1, 255))
         for changes in ((0,) * 8, (1, 3, 2, 0, 0, 0, 7), (0, 0, 2, 9, 1, 0, 0), (0, 0, 0, 3, 2, 2, 200, 1,
         1))]  # fmt: skip


def run(data: bytes) -> None:
    """Format, rows, columns; then for each part what is changed: 0 nothing, 1 dtype, 2 shape, 3 values, 4 gone."""
    taken = iter(data)
    weights = FORMATS[next(taken, 0) % 3]
    rows, columns = 1 + next(taken, 0), 1 + next(taken, 0)
    header: dict[str, object] = {}
    values = b""
    for name, (kind, usual) in bnb.layout(NAME, weights, (rows, columns)).items():
        dtype, shape, change = kind, list(usual), next(taken, 0) % 8
        if change == 1:
            dtype = list(DTYPES)[next(taken, 0) % len(DTYPES)]
        if change == 2 and shape:
            shape[next(taken, 0) % len(shape)] = next(taken, 0)
        if change == 4:
            continue
        count = DTYPES[dtype][1]
        for size in shape:
            count *= size
        suffix = next((end for end in TABLES if name.endswith(end)), None)
        value = bytes(taken) if change == 3 else b""
        value = value or USUAL
        value = (value * (count // len(value) + 1))[:count]
        if name.endswith(bnb.STATE):
            state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [rows, columns]}
            nested = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}
            value = json.dumps(state | nested if weights == "nf4" else state).encode()
            shape = [len(value)]
        elif name.endswith(".weight_format") and change != 3:
            value = bytes(count)
        elif suffix is not None and change == 0:
            value = TABLES[suffix]
        header[name] = tensor(len(values), len(values) + len(value), dtype, shape)
        values += value
    (FOLDERS[weights] / "model.safetensors").write_bytes(whole(header) + values)
    mapped = Mapped(open_folder(FOLDERS[weights]))
    packed = bnb.read_packed(mapped, NAME, (rows, columns), weights)
    for type_ in (torch.float32, torch.bfloat16):
        assert dequantise(packed, type_).shape == (rows, columns)
