"""The native int8 products (cpu.cpp) behind ctypes. Arguments are contiguous and lie on the CPU."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from halfbyte.kernels import native
from halfbyte.kernels.packed import PackedWeight
from halfbyte.kernels.pool import pool
from halfbyte.kernels.product.cpu import matrix


@functools.cache
def has_vnni() -> bool:
    """Whether the processor multiplies bytes (AVX512-VNNI)."""
    return bool(native.library().halfbyte_has_vnni())


def int8(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, pair: tuple[Tensor, Tensor] | None, transposed: bool,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """x [T, I] W^T + bias + h B^T, or transposed x [T, O] W + h A; I a multiple of 64; bf16 beside the weight."""
    out = pool.empty((x.shape[0], weight.shape[1 if transposed else 0]), x.dtype) if out is None else out
    h, beside = (None, None) if pair is None else pair
    native.library().halfbyte_product_int8(
        ctypes.byref(matrix(weight)), x.data_ptr(), x.shape[0], None if bias is None else bias.data_ptr(),
        None if h is None else h.data_ptr(), None if beside is None else beside.data_ptr(),
        0 if h is None else h.shape[1], out.data_ptr(), transposed, torch.get_num_threads(),
    )  # fmt: skip
    return out
