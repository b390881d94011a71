"""The native cross-entropy. Nothing here checks: that is done in `cross_entropy.cross_entropy`."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.kernels import native
from halfbyte.kernels.cross_entropy.reference import Ending


def cross_entropy(logits: Tensor, targets: Tensor, gradient: bool, isa: str, ending: Ending) -> Tensor:
    """As the reference; both are contiguous."""
    rows, columns = logits.shape
    losses = torch.empty(rows, dtype=torch.float64)
    native.library().halfbyte_cross_entropy(
        logits.data_ptr(), targets.data_ptr(), rows, columns, gradient, ending.scale, ending.cap or 0.0,
        losses.data_ptr(), native.DTYPES[logits.dtype], torch.get_num_threads(), native.ISAS.index(isa),
    )  # fmt: skip
    return losses
