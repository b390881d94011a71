"""The type that everybody computes in, halfbyte, the peer and the limit: the one that halfbyte chooses on this
processor (`halfbyte.kernels.compute`). Where bf16 is emulated, the stock stack in bf16 would take hours and show
nothing."""

from __future__ import annotations

import functools
import os

import torch

VARIABLE = "HALFBYTE_BENCHMARK_COMPUTE"  # what one process has measured holds for those that it starts


@functools.cache
def name() -> str:
    """ "bf16" or "fp32"."""
    from halfbyte.kernels.compute import fastest

    return os.environ.setdefault(VARIABLE, os.environ.get(VARIABLE) or fastest().name)


def dtype() -> torch.dtype:
    from halfbyte.kernels.compute import DTYPES

    return DTYPES[name()]
