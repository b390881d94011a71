"""The op `product_int8`: rows times a packed matrix in int8, and its transpose; reference.py specifies it.

It runs only where it was asked for (`compute: int8`) and where the processor has AVX512-VNNI: elsewhere that is an
error, since plain PyTorch would be slower than bf16 and less exact.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from halfbyte.formats import BLOCKSIZE, no_int8
from halfbyte.kernels import native
from halfbyte.kernels.choice import choose
from halfbyte.kernels.packed import PackedWeight
from halfbyte.kernels.product.reference import FrozenWeight
from halfbyte.kernels.product_int8 import cpu


def missing(device: torch.device | str = "cpu") -> str:
    """Why there are no int8 products on `device`; "" where there are."""
    choice = choose(device)
    if not native.reaches(choice.isa, "avx512"):
        return choice.beside
    return "" if cpu.has_vnni() else "this processor has no AVX512-VNNI"


def require(device: torch.device | str = "cpu") -> None:
    """Raise ConfigError where there are no int8 products."""
    if found := missing(device):
        raise no_int8(found)


def is_slower(device: torch.device | str = "cpu") -> bool:
    """Whether bf16 is the faster one on `device`, as it is in AMX tiles."""
    return native.reaches(choose(device).isa, "amx")


def fits(weight: FrozenWeight) -> TypeGuard[PackedWeight]:
    """Whether a frozen weight can be multiplied in int8: packed, and its in-features a multiple of 64."""
    return not isinstance(weight, Tensor) and weight.shape[1] % BLOCKSIZE == 0
