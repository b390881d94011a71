"""The library itself. That it was built is a test of its own, so that no other test passes on the reference alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from halfbyte import kernels
from halfbyte.kernels import native


def test_the_native_library_was_built() -> None:
    library, reason = native.load()
    if library is None and shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip(reason)
    assert library is not None, reason
    assert native.isas()[0] == "portable"


def test_two_runs_agree_to_the_bit(threads: int) -> None:
    matrix = torch.randn(3000, 400)
    first, second = kernels.quantise(matrix, "nf4"), kernels.quantise(matrix, "nf4")
    assert isinstance(first, kernels.NF4Weight) and isinstance(second, kernels.NF4Weight)
    assert torch.equal(first.codes, second.codes) and torch.equal(first.absmax, second.absmax)
    assert first.offset == second.offset


def test_inputs_need_no_alignment(implementation: str) -> None:
    """A checkpoint's tensors may start at any byte of a mapped file."""
    matrix = torch.randn(50, 70).bfloat16()
    room = torch.zeros(matrix.nbytes + 1, dtype=torch.uint8)
    room[1:] = matrix.view(-1).view(torch.uint8)
    odd = torch.frombuffer(room.numpy(), dtype=torch.bfloat16, offset=1, count=matrix.numel()).view(50, 70)
    assert odd.data_ptr() % 2 == 1
    for weights in ("nf4", "int8"):
        straight, shifted = kernels.quantise(matrix, weights), kernels.quantise(odd, weights)
        assert torch.equal(straight.codes, shifted.codes)
    packed = kernels.quantise(matrix, "nf4-single")
    assert isinstance(packed, kernels.NF4Weight)
    room = torch.zeros(packed.absmax.nbytes + 1, dtype=torch.uint8)
    room[1:] = packed.absmax.view(torch.uint8)
    absmax = torch.frombuffer(room.numpy(), dtype=torch.float32, offset=1)
    moved = kernels.NF4Weight(packed.shape, packed.codes, absmax)
    expected = kernels.dequantise(packed, torch.bfloat16)
    assert torch.equal(kernels.dequantise(moved, torch.bfloat16), expected)


@pytest.mark.skipif(not native.isas() or not Path("/proc/self/statm").exists(), reason="needs the library on Linux")
def test_a_watch_ends_once_however_often_it_is_told() -> None:
    watch = native.Watch(0.001)
    assert watch.take() > 2**20
    watch.end()
    watch.end()
