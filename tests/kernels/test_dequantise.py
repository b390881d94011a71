"""Dequantised values equal bitsandbytes' to the bit, in every implementation, whole and by rows."""

from __future__ import annotations

import pytest
import torch

from halfbyte import kernels
from halfbyte.formats import Weights
from halfbyte.kernels import Int8Weight, NF4Weight

from .cases import DTYPES, Authority, levels_and_bounds, matrices, same_bits


@pytest.mark.parametrize("stored", DTYPES, ids=lambda dtype: f"from {dtype}")
@pytest.mark.parametrize("nested", [True, False], ids=["double", "single"])
def test_nf4_equals_bitsandbytes(
    implementation: str, threads: int, stored: torch.dtype, nested: bool, authority: Authority
) -> None:
    for name, matrix in matrices(stored).items():
        codes, state = authority.nf4(matrix, nested)
        parts = (state.state2.absmax, state.offset.item()) if nested else (None, None)
        packed = NF4Weight((matrix.shape[0], matrix.shape[1]), codes.view(-1), state.absmax, *parts)
        for dtype in DTYPES:
            ours = kernels.dequantise(packed, dtype)
            assert same_bits(ours, authority.nf4_dense(codes, state, dtype)), (name, dtype)


def test_nf4_in_many_chunks_and_threads(implementation: str, threads: int, authority: Authority) -> None:
    matrix = torch.randn(1111, 1004, generator=torch.Generator().manual_seed(1)).bfloat16()
    codes, state = authority.nf4(matrix, True)
    packed = kernels.quantise(matrix, "nf4")
    for dtype in DTYPES:
        assert same_bits(kernels.dequantise(packed, dtype), authority.nf4_dense(codes, state, dtype))


def test_every_byte_in_every_place(implementation: str) -> None:
    """All 256 bytes, at each place of a block."""
    codes = torch.arange(256).repeat(32, 1)
    codes = torch.stack([row.roll(shift) for shift, row in enumerate(codes)]).to(torch.uint8).view(-1)
    packed = NF4Weight((256, 64), codes, torch.rand(256))
    levels = kernels.tables.nf4_levels(torch.device("cpu"))
    nibbles = torch.stack([codes >> 4, codes & 15], dim=1).view(256, 64).int()
    exact = levels[nibbles] * packed.absmax[:, None]
    for dtype in DTYPES:
        assert same_bits(kernels.dequantise(packed, dtype), exact.to(dtype))


@pytest.mark.parametrize("stored", DTYPES, ids=lambda dtype: f"from {dtype}")
def test_int8_equals_bitsandbytes(implementation: str, threads: int, stored: torch.dtype, authority: Authority) -> None:
    for name, matrix in matrices(stored).items():
        if matrix.abs().max() > 65504:
            continue
        codes, scale = authority.int8(matrix)
        packed = Int8Weight((matrix.shape[0], matrix.shape[1]), codes, scale)
        for dtype in DTYPES:
            assert same_bits(kernels.dequantise(packed, dtype), authority.int8_dense(codes, scale, dtype)), (
                name,
                dtype,
            )


@pytest.mark.parametrize("weights", ["nf4", "nf4-single", "int8"])
@pytest.mark.parametrize("shape", [(200, 100), (90, 13), (300, 64), (7, 9)], ids=str)
def test_rows_are_those_of_the_whole(implementation: str, weights: Weights, shape: tuple[int, int]) -> None:
    packed = kernels.quantise(torch.randn(shape), weights)
    for dtype in DTYPES:
        whole = kernels.dequantise(packed, dtype)
        for first in (0, 1, 3, shape[0] // 2, shape[0] - 1, shape[0]):
            for last in {first, min(first + 1, shape[0]), min(first + 5, shape[0]), shape[0]}:
                part = kernels.dequantise(packed, dtype, rows=(first, last))
                assert same_bits(part, whole[first:last])


def test_rows_beyond_the_first_chunk(implementation: str) -> None:
    packed = kernels.quantise(torch.randn(1200, 500), "nf4")
    whole = kernels.dequantise(packed, torch.float32)
    assert same_bits(kernels.dequantise(packed, torch.float32, rows=(777, 1190)), whole[777:1190])


@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_out_is_written_and_nothing_beside_it(implementation: str, weights: Weights) -> None:
    packed = kernels.quantise(torch.randn(33, 35), weights)
    for dtype in DTYPES:
        room = torch.full((35, 35), 7.0, dtype=dtype)
        out = room[1:34]
        made = kernels.dequantise(packed, dtype, out=out)
        assert made is out and same_bits(out, kernels.dequantise(packed, dtype))
        assert (room[0] == 7).all() and (room[34] == 7).all()
        address = out.data_ptr()
        assert kernels.dequantise(packed, dtype, out=out).data_ptr() == address


def test_what_does_not_fit_never_reaches_a_pointer(implementation: str) -> None:
    packed = kernels.quantise(torch.randn(8, 64), "nf4")
    bf16 = torch.bfloat16
    for out in (torch.empty(8, 63, dtype=bf16), torch.empty(8, 64), torch.empty(64, 8, dtype=bf16).T):
        with pytest.raises(ValueError, match="out is"):
            kernels.dequantise(packed, bf16, out=out)
    with pytest.raises(ValueError, match="no type"):
        kernels.dequantise(packed, torch.float64)
    for rows in ((-1, 3), (5, 4), (0, 9)):
        with pytest.raises(ValueError, match="not within"):
            kernels.dequantise(packed, bf16, rows=rows)


def test_absmax_values_beyond_the_output_type(implementation: str, authority: Authority) -> None:
    """What overflows fp16 or rounds past the largest bf16 becomes infinite, as in torch."""
    matrix = levels_and_bounds() * 1e34
    codes, state = authority.nf4(matrix, False)
    packed = kernels.quantise(matrix, "nf4-single")
    for dtype in DTYPES:
        assert same_bits(kernels.dequantise(packed, dtype), authority.nf4_dense(codes, state, dtype))
