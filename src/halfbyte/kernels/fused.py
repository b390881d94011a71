"""Where the ops between the products (norm, gate, cross-entropy) run natively."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.kernels.choice import choose

DTYPES = (torch.bfloat16, torch.float32)


def native_isa(x: Tensor) -> str | None:
    """The instruction set for an op on `x`, or None where the reference runs: not on the CPU, or not bf16 or fp32."""
    return choose(x.device).isa if x.dtype in DTYPES else None
