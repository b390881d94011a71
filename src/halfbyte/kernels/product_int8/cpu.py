"""The native int8 products (cpu.cpp) behind ctypes. Arguments are contiguous and lie on the CPU."""

from __future__ import annotations

from torch import Tensor

from halfbyte.kernels import native
from halfbyte.kernels.packed import PackedWeight
from halfbyte.kernels.product.cpu import product
from halfbyte.kernels.product.reference import Pair


def has_vnni() -> bool:
    """Whether the processor multiplies bytes (AVX512-VNNI)."""
    return "avx512vnni" in native.isas()


def int8(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, pair: Pair | None, transposed: bool, out: Tensor | None = None
) -> Tensor:
    """x [T, I] W^T + bias + h B^T, or transposed x [T, O] W + h A; I a multiple of 64; bf16 beside the weight."""
    return product(native.library().halfbyte_product_int8, x, weight, bias, pair, transposed, out)
