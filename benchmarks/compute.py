"""The type that the peer and the limit compute in: torch's faster one on this processor. Where torch emulates bf16, the
stock stack in bf16 would take hours and show nothing. halfbyte computes in what it chooses itself
(`halfbyte.kernels.compute`): bf16 where it has native products for it, fp32 elsewhere."""

from __future__ import annotations

import functools
import os
import time

import torch

VARIABLE = "HALFBYTE_BENCHMARK_COMPUTE"  # what one process has measured holds for those that it starts
_ROWS, _SIZE, _ROUNDS = 512, 1024, 5


@functools.cache
def name() -> str:
    """ "bf16" or "fp32", of the peer and the limit."""
    return os.environ.setdefault(VARIABLE, os.environ.get(VARIABLE) or _faster())


def dtype() -> torch.dtype:
    from halfbyte.kernels.compute import DTYPES

    return DTYPES[name()]


def own_name() -> str:
    """ "bf16" or "fp32", of halfbyte: never wider than the others'."""
    from halfbyte.kernels.compute import fastest

    return name() if name() == "bf16" else fastest().name


def own() -> torch.dtype:
    from halfbyte.kernels.compute import DTYPES

    return DTYPES[own_name()]


def _faster() -> str:
    took = {"bf16": _seconds(torch.bfloat16), "fp32": _seconds(torch.float32)}
    return min(took, key=lambda kind: took[kind])


def _seconds(dtype: torch.dtype) -> float:
    """Of torch's product, the best of some."""
    x, weight, best = torch.ones(_ROWS, _SIZE, dtype=dtype), torch.ones(_SIZE, _SIZE, dtype=dtype), float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        torch.mm(x, weight)
        best = min(best, time.perf_counter() - started)
    return best
