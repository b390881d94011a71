"""bitsandbytes' layout of a packed weight in safetensors, written and read.

NF4, a linear layer `P` of n = out x in weights (blocks of 64: b; blocks of 256 absmax values: c):

    P.weight                                uint8 [ceil(n/2), 1]    codes, two a byte
    P.weight.absmax                         uint8 [b] with double quantisation, fp32 [b] without
    P.weight.quant_map                      fp32 [16]               the code table
    P.weight.nested_absmax                  fp32 [c]                with double quantisation only
    P.weight.nested_quant_map               fp32 [256]              with double quantisation only
    P.weight.quant_state.bitsandbytes__nf4  uint8                   JSON: block sizes, dtype, shape, offset

int8: `P.weight` (int8 [out, in]), `P.SCB` (fp32 [out], each row's absmax), `P.weight_format` (uint8, 0: row by row).

Reading is strict. bitsandbytes could have written other block sizes, tables or types, and codes read with the wrong
ones give a model that runs and babbles; so whatever differs from the above is refused by name. One freedom costs
nothing and is granted: codes stored under another dtype (`bnb_4bit_quant_storage`) are the same bytes.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from halfbyte.checkpoint.headers import shown
from halfbyte.checkpoint.mapped import Mapped
from halfbyte.checkpoint.source import QUANT_STATE
from halfbyte.errors import CheckpointError
from halfbyte.formats import BLOCKSIZE, DYNAMIC_CODE, NESTED_BLOCKSIZE, NF4_CODE, Weights
from halfbyte.kernels.packed import Int8Weight, NF4Weight, PackedWeight

STATE = f"{QUANT_STATE}bitsandbytes__nf4"
STATE_ROOM = 320  # bytes that the JSON of a quant state never exceeds: its keys take 160, its numbers are short
STATE_LIMIT = 65_536  # bytes of a quant state that are read; bitsandbytes' own are about 200
_LARGEST = torch.finfo(torch.float32).max
_KEYS = {"quant_type", "blocksize", "dtype", "shape"}
_NESTED_KEYS = {"nested_blocksize", "nested_dtype", "nested_offset"}

Layout = dict[str, tuple[str, tuple[int, ...]]]  # name: safetensors' dtype, shape


def layout(name: str, weights: Weights, shape: tuple[int, int]) -> Layout:
    """The tensors that a weight `name` [out, in] is stored as; the quant state, whose length depends, has shape ()."""
    rows, columns = shape
    owner = name.removesuffix(".weight")
    if weights == "int8":
        return {name: ("I8", shape), f"{owner}.SCB": ("F32", (rows,)), f"{owner}.weight_format": ("U8", ())}
    blocks = -(-rows * columns // BLOCKSIZE)
    found: Layout = {name: ("U8", (-(-rows * columns // 2), 1))}
    found[f"{name}.absmax"] = ("U8" if weights == "nf4" else "F32", (blocks,))
    found[f"{name}.quant_map"] = ("F32", (len(NF4_CODE),))
    if weights == "nf4":
        found[f"{name}.nested_absmax"] = ("F32", (-(-blocks // NESTED_BLOCKSIZE),))
        found[f"{name}.nested_quant_map"] = ("F32", (len(DYNAMIC_CODE),))
    found[name + STATE] = ("U8", ())
    return found


def tensors(name: str, packed: PackedWeight, dtype: str) -> dict[str, Tensor]:
    """What `layout` announces, with values. `dtype` is torch's name of what bitsandbytes is to dequantise to."""
    owner = name.removesuffix(".weight")
    if isinstance(packed, Int8Weight):
        row_major = torch.tensor(0, dtype=torch.uint8)
        return {name: packed.codes, f"{owner}.SCB": packed.scale, f"{owner}.weight_format": row_major}
    found = {name: packed.codes.view(-1, 1), f"{name}.absmax": packed.absmax}
    found[f"{name}.quant_map"] = torch.tensor(NF4_CODE)
    if packed.nested_absmax is not None:
        found[f"{name}.nested_absmax"] = packed.nested_absmax
        found[f"{name}.nested_quant_map"] = torch.tensor(DYNAMIC_CODE)
    found[name + STATE] = torch.frombuffer(bytearray(quant_state(packed, dtype)), dtype=torch.uint8)
    return found


def quant_state(packed: NF4Weight, dtype: str) -> bytes:
    """The JSON that bitsandbytes keeps with a packed weight, byte for byte."""
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": BLOCKSIZE,
        "dtype": dtype,
        "shape": list(packed.shape),
    }
    if packed.nested_absmax is not None:
        state |= {
            "nested_blocksize": NESTED_BLOCKSIZE,
            "nested_dtype": "float32",
            "nested_offset": packed.offset,
        }
    return json.dumps(state).encode()


def read_at_opening(name: str) -> bool:
    """Whether `read_packed` reads the values of the tensor `name`, and does not just map them."""
    return name.endswith((".quant_map", ".nested_quant_map", ".weight_format")) or QUANT_STATE in name


def read_packed(mapped: Mapped, name: str, shape: tuple[int, ...], weights: Weights) -> PackedWeight:
    """The packed weight `name`, which must be a matrix of `shape` in the format `weights`, over mapped tensors.

    Raises CheckpointError for everything that is missing, of another size or of another kind than the layout above.
    """
    if len(shape) != 2:
        raise CheckpointError(f"{name}: packed, but no matrix in the model: {list(shape)}")
    rows, columns = shape
    return _read_int8(mapped, name, (rows, columns)) if weights == "int8" else _read_nf4(mapped, name, (rows, columns))


def _read_int8(mapped: Mapped, name: str, shape: tuple[int, int]) -> Int8Weight:
    owner = name.removesuffix(".weight")
    codes = _part(mapped, name, "I8", shape)
    scale = _part(mapped, f"{owner}.SCB", "F32", (shape[0],))
    if f"{owner}.weight_format" in mapped.checkpoint.tensors:
        form = mapped.read_bytes(f"{owner}.weight_format").tolist()
        if any(form):
            raise CheckpointError(f"{name}: 8-bit weights in format {form[0]}; only the plain one (row, 0) is read")
    return Int8Weight(shape, codes, scale)


def _read_nf4(mapped: Mapped, name: str, shape: tuple[int, int]) -> NF4Weight:
    state = _read_state(mapped, name)
    nested = mapped.checkpoint.weights == "nf4"
    wanted = {
        "quant_type": ("nf4",),
        "blocksize": (BLOCKSIZE,),
        "dtype": ("bfloat16", "float16", "float32"),
        "shape": (list(shape),),
    }
    if nested:
        wanted |= {"nested_blocksize": (NESTED_BLOCKSIZE,), "nested_dtype": ("float32",)}
    if set(state) != (_KEYS | _NESTED_KEYS if nested else _KEYS):
        raise CheckpointError(
            f"{name}: a quant state with the keys {shown(', '.join(sorted(state)), 300)}, not those of "
            f"{'double' if nested else 'single'} quantisation that config.json announces"
        )
    for key, allowed in wanted.items():
        if state[key] not in allowed:
            raise CheckpointError(
                f"{name}: {key} {shown(repr(state[key]))} is not read, only {', '.join(map(repr, allowed))}"
            )
    count = math.prod(shape)
    blocks = -(-count // BLOCKSIZE)
    if name not in mapped.checkpoint.tensors:
        raise CheckpointError(f"{name}: missing")
    codes = mapped.read_bytes(name)
    if codes.numel() != -(-count // 2):
        raise CheckpointError(f"{name}: {codes.numel()} bytes of codes for {count} weights")
    _check_table(mapped, f"{name}.quant_map", NF4_CODE)
    if not nested:
        return NF4Weight(shape, codes, _part(mapped, f"{name}.absmax", "F32", (blocks,)), None, None)
    _check_table(mapped, f"{name}.nested_quant_map", DYNAMIC_CODE)
    offset = state["nested_offset"]
    if type(offset) not in (int, float) or not abs(offset) <= _LARGEST:
        raise CheckpointError(f"{name}: nested_offset is {shown(repr(offset))}, no fp32 number")
    absmax = _part(mapped, f"{name}.absmax", "U8", (blocks,))
    nested_absmax = _part(mapped, f"{name}.nested_absmax", "F32", (-(-blocks // NESTED_BLOCKSIZE),))
    return NF4Weight(shape, codes, absmax, nested_absmax, float(offset))


def _read_state(mapped: Mapped, name: str) -> dict[str, Any]:
    states = mapped.checkpoint.quant_states.get(name, [])
    if states != [name + STATE]:
        found = ", ".join(other.removeprefix(name) for other in states) or "none"
        raise CheckpointError(f"{name}: needs the quant state {STATE.removeprefix('.')}, has {found}")
    text = mapped.read_bytes(states[0])
    if len(text) > STATE_LIMIT:
        raise CheckpointError(f"{name}: a quant state of {len(text):,} bytes, over the limit of {STATE_LIMIT:,}")
    try:
        state = json.loads(bytes(text.numpy()))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: its quant state is no valid JSON ({shown(str(error))})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{name}: its quant state is no JSON object")
    return state


def _part(mapped: Mapped, name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
    stored = mapped.checkpoint.tensors.get(name)
    if stored is None:
        raise CheckpointError(f"{name}: missing")
    if stored.dtype != dtype or stored.shape != shape:
        raise CheckpointError(f"{name}: stored as {stored.dtype} {list(stored.shape)}, not {dtype} {list(shape)}")
    return mapped.read(name)


def _check_table(mapped: Mapped, name: str, table: tuple[float, ...]) -> None:
    if not torch.equal(_part(mapped, name, "F32", (len(table),)), torch.tensor(table)):
        raise CheckpointError(f"{name}: not the code table of NF4 that bitsandbytes uses")
