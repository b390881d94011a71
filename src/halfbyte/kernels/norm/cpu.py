"""The native RMSNorm. Nothing here checks shapes or types: that is done in `norm.rms_norm`."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.kernels import native
from halfbyte.kernels.norm.reference import Style
from halfbyte.kernels.pool import pool


def rms_norm(x: Tensor, weight: Tensor, eps: float, style: Style, isa: str) -> tuple[Tensor, Tensor]:
    """As the reference, and rstd fp32 [rows]: what x was multiplied with. `x` and `weight` are contiguous."""
    columns = x.shape[-1]
    rows = x.numel() // columns
    y = pool.empty(x.shape, x.dtype)
    rstd = torch.empty(rows, dtype=torch.float32)
    native.library().halfbyte_rms_norm(
        x.data_ptr(), weight.data_ptr(), rows, columns, eps, float(style == "shifted"), style == "narrow", y.data_ptr(),
        rstd.data_ptr(), native.DTYPES[x.dtype], torch.get_num_threads(), native.ISAS.index(isa),
    )  # fmt: skip
    return y, rstd


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, style: Style, isa: str) -> Tensor:
    """The gradient of x, of its type, from `grad`, that of the result (contiguous)."""
    columns = x.shape[-1]
    grad_x = pool.empty(x.shape, x.dtype)
    native.library().halfbyte_rms_norm_backward(
        grad.data_ptr(), x.data_ptr(), weight.data_ptr(), rstd.data_ptr(), len(rstd), columns,
        float(style == "shifted"), grad_x.data_ptr(), native.DTYPES[x.dtype], torch.get_num_threads(),
        native.ISAS.index(isa),
    )  # fmt: skip
    return grad_x
