"""Phases that show whether a card computes what the processor does: kernels to the bit, and the first losses."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.turns import Phase

ROWS = (1, 4, 16, 64)  # of products: decoding by sums, by tensor cores, and by way of a buffer


@contextmanager
def reference() -> Iterator[None]:
    """halfbyte runs its reference kernels."""
    from halfbyte.kernels.choice import VARIABLE

    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "reference"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def kernels(device: str, matrices: Sequence[Sequence[int]]) -> Phase:
    """A turn for each matrix [out, in]: values that differ from the reference's on the processor in quantising and
    dequantising (none may), and the products' error by that of torch in the same type (2 is allowed)."""
    yield {}
    for rows, columns in matrices:
        dense = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02
        yield {"wrong_values": float(_wrong(dense.bfloat16(), device)), "error_ratio": _error(dense, device)}


def _parts(packed: object) -> list[Tensor]:
    return [value for value in vars(packed).values() if isinstance(value, Tensor)]


def _wrong(dense: Tensor, device: str) -> int:
    from halfbyte.kernels import DTYPES, choose, dequantise, quantise

    wrong = 0
    for weights in ("nf4", "nf4-single", "int8"):
        with reference():
            exact = quantise(dense, weights)
        made = quantise(dense.to(device), weights)
        wrong += getattr(made, "offset", None) != getattr(exact, "offset", None)
        wrong += sum(_differing(mine, its) for mine, its in zip(_parts(made), _parts(exact), strict=True))
        for dtype in DTYPES:
            if choose(device).bf16 or dtype != torch.bfloat16:
                with reference():
                    values = dequantise(exact, dtype)
                wrong += _differing(dequantise(made, dtype), values)
    return wrong


def _differing(mine: Tensor, its: Tensor) -> int:
    return int((mine.cpu().contiguous().view(torch.uint8) != its.contiguous().view(torch.uint8)).sum())


def _error(dense: Tensor, device: str) -> float:
    from halfbyte.kernels import choose, dequantise, linear, quantise

    dtype, worst = torch.bfloat16 if choose(device).bf16 else torch.float16, 0.0
    packed = quantise(dense.to(device), "nf4")
    weight = dequantise(packed, torch.float32).double()
    for rows in ROWS:
        x = torch.randn(rows, dense.shape[1], generator=torch.Generator().manual_seed(rows)).to(device, dtype)
        exact = x.double() @ weight.T
        with reference():
            theirs = (linear(x, packed).double() - exact).abs().max()
        ours = (linear(x, packed).double() - exact).abs().max()
        ratio = float(ours / theirs.clamp_min(torch.finfo(torch.float32).eps * float(exact.abs().max())))
        worst = max(worst, ratio if math.isfinite(ratio) else math.inf)  # max() would pass over NaN
    return worst


def speed(device: str, results: str, matrix: Sequence[int], seconds: float) -> Phase:
    """benchmarks/gpu.py, whose file it writes; all of it in the opening."""
    from benchmarks import gpu

    gpu.main(["--device", device, "--results", results, "--matrix", *map(str, matrix), "--rounds", "10",
              "--seconds", str(seconds)])  # fmt: skip
    yield {}
