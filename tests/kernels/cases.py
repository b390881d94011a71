"""Matrices that tell a right quantiser from a nearly right one, the implementations to try, and the authority."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte.kernels import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IMPLEMENTATIONS = ("reference", *(f"cpu-{isa}" for isa in native.isas()))  # all that this machine can run


def matrices(dtype: torch.dtype) -> dict[str, Tensor]:
    """Random and awkward matrices of `dtype`, by name."""
    make = torch.Generator().manual_seed(7)
    tiny, most = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    # as much of the range as any chain of roundings can leave without overflow in the mean of the absmax values
    scale = 10 ** torch.empty(96, 64).uniform_(-4, 3, generator=make)
    made = {
        "random": torch.randn(300, 256, generator=make) * 0.02,
        "many blocks": torch.randn(700, 128, generator=make),  # several nested blocks, the last one ragged
        "wide range": torch.randn(96, 64, generator=make) * scale,
        "rows of 100": torch.randn(37, 100, generator=make),  # blocks straddle rows; ragged last block
        "odd count": torch.randn(7, 33, generator=make),
        "ragged, odd": torch.randn(5, 13, generator=make) * 3,
        "zeros": torch.zeros(64, 64),
        "zeros, ragged": torch.zeros(3, 23),
        "negative zeros": -torch.zeros(2, 64),
        "constant": torch.full((40, 64), 0.3),
        "1 x 1": torch.tensor([[-2.5]]),
        "1 x 1 zero": torch.zeros(1, 1),
        "1 x 64": torch.randn(1, 64, generator=make),
        "subnormal": torch.randn(16, 100, generator=make) * tiny / 4,
        "smallest": torch.randint(-2, 3, (10, 70), generator=make) * torch.finfo(dtype).smallest_normal / 64,
        "one block of huge values": torch.randn(4, 16, generator=make).clamp(-1, 1) * most,
    }
    outlier = torch.randn(50, 77, generator=make) * 1e-3
    outlier[20, 30] = 60000
    made["one outlier"] = outlier
    some_zero = torch.randn(20, 64, generator=make)
    some_zero[3:9] = 0
    made["blocks of zeros"] = some_zero
    return {name: matrix.to(dtype) for name, matrix in made.items()}


def levels_and_bounds() -> Tensor:
    """Blocks whose scaled weights are the midpoints between levels, and their neighbours to the last bit."""
    from halfbyte.formats import NF4_CODE

    levels = torch.tensor(NF4_CODE)
    bounds = (levels[1:] + levels[:-1]) / 2
    around = [bounds, *(torch.nextafter(bounds, torch.tensor(end)) for end in (-2.0, 2.0)), levels]
    rows = [torch.cat([torch.ones(1), values, torch.zeros(63 - len(values))]) for values in around]
    matrix = torch.stack(rows)
    return torch.cat([matrix * factor for factor in (1.0, 0.7, 3.3e-5, 1.234e4, -0.1, 1.7, 1 / 3)])


class Authority:
    """What bitsandbytes' CPU backend makes of a matrix."""

    def __init__(self) -> None:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is the authority on these formats")
        import bitsandbytes
        import bitsandbytes.functional

        self.nn, self.functional = bitsandbytes.nn, bitsandbytes.functional

    def nf4(self, matrix: Tensor, nested: bool) -> tuple[Tensor, Any]:
        """Codes [n / 2, 1] and quant state."""
        made: tuple[Tensor, Any] = self.functional.quantize_4bit(matrix, compress_statistics=nested, quant_type="nf4")
        return made

    def nf4_dense(self, codes: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
        state.dtype = dtype
        with torch.compiler.set_stance("force_eager"):  # it would compile for odd widths
            dense: Tensor = self.functional.dequantize_4bit(codes, state).reshape(state.shape)
        return dense

    def int8(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and row scales."""
        made = self.nn.Int8Params(matrix.clone(), requires_grad=False).to("cpu")
        return made.CB, made.SCB

    def int8_dense(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        dense: Tensor = self.functional.int8_vectorwise_dequant(codes, scale)
        return dense.to(dtype)


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Equal to the bit, but that their subnormal bf16 may be zero: so it is on processors with AVX512-BF16."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    if not ours.dtype.is_floating_point:
        return torch.equal(ours, theirs)
    kind = torch.int32 if ours.dtype == torch.float32 else torch.int16
    equal = ours.contiguous().view(kind) == theirs.contiguous().view(kind)
    if ours.dtype == torch.bfloat16:
        tiny = torch.finfo(torch.bfloat16).tiny
        equal |= (ours.abs() < tiny) & (theirs == 0)
    return bool(equal.all())
