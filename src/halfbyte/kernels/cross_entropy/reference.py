"""Cross-entropy of logits and its gradient in plain PyTorch: the specification, and the fallback everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, gradient: bool) -> Tensor:
    """As `halfbyte.kernels.cross_entropy.cross_entropy`; arithmetic in fp32 (for fp64 in fp64)."""
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_shares = torch.log_softmax(logits, dim=-1, dtype=wide)
    losses = -log_shares.gather(1, targets[:, None]).squeeze(1)
    if gradient:
        grad = log_shares.exp_()
        grad[torch.arange(len(targets), device=targets.device), targets] -= 1.0
        logits.copy_(grad)
    return losses.double()
