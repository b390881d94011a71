"""The native gate. Nothing here checks shapes or types: that is done in `gate.gated`.

gate and up are [T, I] matrices whose elements are contiguous in a row; both have the same stride from row to row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.kernels import native
from halfbyte.kernels.gate.reference import ACTS, Act
from halfbyte.kernels.pool import pool


def gated(gate: Tensor, up: Tensor, act: Act, isa: str) -> Tensor:
    """act(gate) * up [T, I], contiguous."""
    rows, columns = gate.shape
    out = pool.empty((rows, columns), gate.dtype)
    native.library().halfbyte_gate(
        gate.data_ptr(), up.data_ptr(), rows, columns, gate.stride(0), out.data_ptr(), ACTS.index(act),
        native.DTYPES[gate.dtype], torch.get_num_threads(), native.ISAS.index(isa),
    )  # fmt: skip
    return out


def gated_backward(
    grad: Tensor, gate: Tensor, up: Tensor, grad_gate: Tensor, grad_up: Tensor, act: Act, isa: str
) -> None:
    """From `grad` [T, I] (contiguous) the gradients of gate and up, written to tensors of their strides."""
    rows, columns = gate.shape
    native.library().halfbyte_gate_backward(
        grad.data_ptr(), gate.data_ptr(), up.data_ptr(), rows, columns, gate.stride(0), grad_gate.data_ptr(),
        grad_up.data_ptr(), ACTS.index(act), native.DTYPES[gate.dtype], torch.get_num_threads(),
        native.ISAS.index(isa),
    )  # fmt: skip
