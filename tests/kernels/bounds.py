"""The bound on a kernel's error: at most twice that of PyTorch in the same precision, both against fp64."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_no_worse(ours: Tensor, theirs: Tensor, exact: Tensor, floor: float = 0.0) -> None:
    """Three tensors of one shape, `exact` in fp64. Half an fp32 ulp of the largest value (or of `floor`) is free."""
    assert ours.shape == theirs.shape == exact.shape
    free = torch.finfo(torch.float32).eps * max(float(exact.abs().max()), floor) / 2
    mine, yours = ((made.double() - exact).abs().max() for made in (ours, theirs))
    assert mine <= 2 * yours + free, f"error {mine:.3e}, PyTorch's {yours:.3e}"
