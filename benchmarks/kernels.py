"""Quantise and dequantise one matrix: every implementation of halfbyte beside bitsandbytes and a copy.

All of them run in this process, on the same random bf16 matrix and number of threads, in turns, after a round that does
not count. bitsandbytes' CPU backend always allocates what it dequantises to; halfbyte is timed so, too, and into a
buffer that is there ("reused"), which is how the layers use it. The limit is a copy of the matrix in bf16.

    python benchmarks/kernels.py --matrix 14336 4096
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks import common
from halfbyte import kernels
from halfbyte.formats import QUANTISED, Weights
from halfbyte.kernels import native
from halfbyte.kernels.choice import VARIABLE

Work = Callable[[], object]
Contender = tuple[str, str, str]  # op, case, who
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FRESH, REUSED = "fresh memory", "reused memory"


def ours(implementation: str, weight: Tensor, reused: dict[str, Tensor]) -> dict[Contender, Work]:
    """What `implementation` ("reference", "cpu-avx2", ...) is timed at; `reused`: buffers to dequantise into."""
    who = f"halfbyte {implementation}"

    def forced(work: Work) -> Work:
        def run() -> object:
            os.environ[VARIABLE] = implementation
            return work()

        return run

    def quantise(weights: Weights) -> Work:
        return lambda: kernels.quantise(weight, weights)

    def dequantise(packed: kernels.PackedWeight, dtype: torch.dtype, out: Tensor | None) -> Work:
        return lambda: kernels.dequantise(packed, dtype, out=out)

    made: dict[Contender, Work] = {("quantise", weights, who): forced(quantise(weights)) for weights in QUANTISED}
    decoded: tuple[Weights, ...] = ("nf4", "int8")
    for weights in decoded:
        packed = kernels.quantise(weight, weights)
        for name, dtype in TYPES.items():
            case = f"{weights} to {name}, "
            made["dequantise", case + FRESH, who] = forced(dequantise(packed, dtype, None))
            made["dequantise", case + REUSED, who] = forced(dequantise(packed, dtype, reused[name]))
    return made


def peer(weight: Tensor) -> dict[Contender, Work]:
    """The same work done by bitsandbytes."""
    import bitsandbytes as bnb
    import bitsandbytes.functional as functional

    def quantise(nested: bool) -> Work:
        return lambda: functional.quantize_4bit(weight, compress_statistics=nested, quant_type="nf4")

    def dequantise(dtype: torch.dtype) -> Work:
        codes, state = functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        state.dtype = dtype
        return lambda: functional.dequantize_4bit(codes, state)

    def int8() -> object:
        return bnb.nn.Int8Params(weight, requires_grad=False).to("cpu")

    def dequantise_int8(dtype: torch.dtype) -> Work:
        packed = bnb.nn.Int8Params(weight, requires_grad=False).to("cpu")
        return lambda: functional.int8_vectorwise_dequant(packed.CB, packed.SCB).to(dtype)

    made: dict[Contender, Work] = {
        ("quantise", "nf4", "peer"): quantise(True),
        ("quantise", "nf4-single", "peer"): quantise(False),
        ("quantise", "int8", "peer"): int8,
    }
    for name, dtype in TYPES.items():
        made["dequantise", f"nf4 to {name}, {FRESH}", "peer"] = dequantise(dtype)
        made["dequantise", f"int8 to {name}, {FRESH}", "peer"] = dequantise_int8(dtype)
    return made


def main(given: Sequence[str] | None = None) -> None:
    common.quiet()
    matrix = {"type": int, "nargs": 2, "default": (14336, 4096), "metavar": ("OUT", "IN")}
    options = common.arguments(__doc__, given, rounds=3, seconds=45.0, matrix=matrix)
    table = common.Table(options.results / "kernels.csv")
    weight = (torch.randn(*options.matrix, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    copy = torch.empty_like(weight)
    work: dict[Contender, Work] = {("copy", "bf16 to bf16", "limit"): lambda: copy.copy_(weight)}
    work |= peer(weight)
    reused = {name: torch.empty(weight.shape, dtype=dtype) for name, dtype in TYPES.items()}
    for implementation in ("reference", *(f"cpu-{isa}" for isa in native.isas())):
        work |= ours(implementation, weight, reused)
    before = os.environ.get(VARIABLE)
    try:
        seconds = common.in_turns(work, options.rounds, options.seconds)
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
    shape = "{}x{}".format(*options.matrix)
    table.add(
        common.Row(op, shape, case, who, "weights_per_second", tuple(weight.numel() / value for value in values))
        for (op, case, who), values in seconds.items()
    )


if __name__ == "__main__":
    main()
