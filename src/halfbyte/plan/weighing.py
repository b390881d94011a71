"""What a model weighs in each format: shapes decide it, exact to the byte."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from halfbyte.formats import BLOCKSIZE, NESTED_BLOCKSIZE, QUANTISED, PackedBytes, Weights, packed_bytes
from halfbyte.plan.inventory import Inventory


def packed_sizes(inventory: Inventory) -> dict[Weights, PackedBytes]:
    """The bytes of all linear layers that are quantised, in each format that quantises."""
    return {format_: _together(format_, inventory.quantised.values()) for format_ in QUANTISED}


def _together(weights: Weights, matrices: Iterable[tuple[int, int]]) -> PackedBytes:
    """The bytes of all matrices together, each of them packed by itself."""
    parts = [(packed_bytes(weights, *shape), count) for shape, count in Counter(matrices).items()]
    return PackedBytes(
        codes=sum(count * part.codes for part, count in parts),
        absmax=sum(count * part.absmax for part, count in parts),
        nested_absmax=sum(count * part.nested_absmax for part, count in parts),
        tables=sum(count * part.tables for part, count in parts),
    )


def stored_bytes(inventory: Inventory, packed: dict[Weights, PackedBytes]) -> dict[str, int | None]:
    """fp32 and bf16 in full; int8 and nf4 as codes and the 16-bit rest, without the constants."""
    total = inventory.parameters
    if total is None:
        return {"fp32": None, "bf16": None, "int8": None, "nf4": None}
    rest = 2 * (total - sum(rows * columns for rows, columns in inventory.quantised.values()))
    return {"fp32": 4 * total, "bf16": 2 * total, "int8": packed["int8"].codes + rest,
            "nf4": packed["nf4"].codes + rest}  # fmt: skip


def mapped_of(weights: Weights, weights_bytes: dict[str, int | None], constants: dict[Weights, int]) -> int | None:
    """What is memory-mapped while a model in the format `weights` is in use."""
    base = weights_bytes["nf4" if weights == "nf4-single" else weights]
    return None if base is None else base + constants.get(weights, 0)


def state_bytes(weights: Weights, matrices: Iterable[tuple[int, int]]) -> int:
    """About what the quant states take in the file: JSON for 4 bits (the digits of the offset vary), a byte for 8."""
    total = 0
    for (rows, columns), count in Counter(matrices).items():
        if weights == "int8":
            total += count
            continue
        state = {"quant_type": "nf4", "blocksize": BLOCKSIZE, "dtype": "bfloat16", "shape": [rows, columns]}
        if weights == "nf4":
            state |= {"nested_blocksize": NESTED_BLOCKSIZE, "nested_dtype": "float32", "nested_offset": 1 / 60}
        total += count * len(json.dumps(state))
    return total


def mapped_bytes(inventory: Inventory, weights: Weights) -> int | None:
    """What is memory-mapped while the model is in use in the format `weights`."""
    packed = packed_sizes(inventory)
    constants = {format_: total.constants for format_, total in packed.items()}
    return mapped_of(weights, stored_bytes(inventory, packed), constants)


def gb(size: int) -> str:
    """A size for people: decimal units, three digits."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            value = size / scale
            return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:#.3g} {unit}"
    return f"{size} B"
