"""Codes and constants equal bitsandbytes' to the bit, in every implementation; what can't be encoded is refused."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.errors import CheckpointError
from halfbyte.formats import Weights, packed_bytes
from halfbyte.kernels import Int8Weight, NF4Weight, tables
from halfbyte.kernels.quantise import reference

from .cases import DTYPES, Authority, levels_and_bounds, matrices, same_bits


def check_nf4(matrix: Tensor, authority: Authority, nested: bool) -> None:
    ours = kernels.quantise(matrix, "nf4" if nested else "nf4-single")
    codes, state = authority.nf4(matrix, nested)
    assert isinstance(ours, NF4Weight) and ours.shape == tuple(matrix.shape)
    assert same_bits(ours.codes, codes.view(-1))
    assert same_bits(ours.absmax, state.absmax)
    if nested:
        assert ours.nested_absmax is not None
        assert same_bits(ours.nested_absmax, state.state2.absmax)
        assert ours.offset == state.offset.item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nested", [True, False], ids=["double", "single"])
def test_nf4_equals_bitsandbytes(
    implementation: str, threads: int, dtype: torch.dtype, nested: bool, authority: Authority
) -> None:
    for matrix in matrices(dtype).values():
        check_nf4(matrix, authority, nested)


def test_nf4_at_the_bounds(implementation: str, authority: Authority) -> None:
    check_nf4(levels_and_bounds(), authority, True)
    for row in levels_and_bounds():  # a ragged block is divided, not multiplied by a reciprocal: it shows in few blocks
        check_nf4(row[None, :63], authority, False)


def test_nf4_in_many_chunks_and_threads(implementation: str, threads: int, authority: Authority) -> None:
    """Large enough that the reference takes several chunks and the native code several threads."""
    matrix = torch.randn(1111, 1003, generator=torch.Generator().manual_seed(1)).bfloat16()
    check_nf4(matrix, authority, True)


def test_double_quantisation_near_every_step_of_the_lookup(implementation: str, authority: Authority) -> None:
    """absmax values a hair below, at and above each of the 65536 places where the table's index steps."""
    step = ((torch.arange(65536, dtype=torch.float64) + 0.5) / 32767.5 - 1).float().clamp(-1, 1)
    values = torch.cat([step, torch.nextafter(step, torch.tensor(2.0)), torch.nextafter(step, torch.tensor(-2.0))])
    padded = torch.nn.functional.pad(values.clamp(-1, 1), (0, -len(values) % 255)).view(-1, 255)
    absmax = torch.cat([torch.ones(len(padded), 1), padded], dim=1).view(-1)
    for scaled in (absmax, absmax[:1000] * 0.37, absmax[:256] * 2.0**-135, torch.zeros(300)):
        codes, state = authority.functional.quantize_blockwise(scaled, blocksize=256)
        ours, nested = (kernels.native if implementation != "reference" else reference).quantise_absmax(scaled, 0.0)
        assert same_bits(ours, codes) and same_bits(nested, state.absmax)


def test_the_dynamic_table_is_the_authority(authority: Authority) -> None:
    assert same_bits(tables.dynamic_levels(torch.device("cpu")), authority.functional.create_dynamic_map())
    assert same_bits(tables.nf4_levels(torch.device("cpu")), authority.functional.get_4bit_type("nf4", "cpu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int8_equals_bitsandbytes(implementation: str, threads: int, dtype: torch.dtype, authority: Authority) -> None:
    for name, matrix in matrices(dtype).items():
        if matrix.abs().max() > 65504:
            assert name == "one block of huge values"
            continue
        ours = kernels.quantise(matrix, "int8")
        codes, scale = authority.int8(matrix)
        assert isinstance(ours, Int8Weight)
        assert same_bits(ours.codes, codes), name
        assert same_bits(ours.scale, scale), name


def test_int8_rounds_to_fp16_as_bitsandbytes_does(implementation: str, authority: Authority) -> None:
    """Midpoints between neighbouring fp16 values, normal and subnormal, and ties of the rounding to integers."""
    half = torch.arange(0, 0x7BFF, 7, dtype=torch.int16).view(torch.float16).float()
    above = torch.arange(1, 0x7C00, 7, dtype=torch.int16)[: len(half)].view(torch.float16).float()
    middle = (half + above) / 2
    rows = [middle, torch.nextafter(middle, torch.tensor(0.0)), -torch.nextafter(middle, torch.tensor(1e6))]
    rows += [row * 2.0**-12 for row in rows]
    rows.append(torch.arange(len(half)) % 255 / 2 - 63.5)
    matrix = torch.stack(rows)
    ours = kernels.quantise(matrix, "int8")
    codes, scale = authority.int8(matrix)
    assert isinstance(ours, Int8Weight) and same_bits(ours.codes, codes) and same_bits(ours.scale, scale)


@pytest.mark.parametrize("weights", ["nf4", "nf4-single", "int8"])
@pytest.mark.parametrize("place", [0, 64 * 100 + 5, -1], ids=["first", "inner", "last"])
def test_nan_and_infinity_are_refused_by_name(implementation: str, weights: Weights, place: int) -> None:
    for dtype in DTYPES:
        for value, said in ((math.nan, "1 NaN"), (math.inf, "1 infinite"), (-math.inf, "1 infinite")):
            matrix = torch.ones(131, 99, dtype=dtype)
            matrix.view(-1)[place] = value
            with pytest.raises(CheckpointError) as caught:
                kernels.quantise(matrix, weights, name="layers.3.q_proj.weight")
            row, column = divmod(place % matrix.numel(), 99)
            assert "layers.3.q_proj.weight" in str(caught.value) and said in str(caught.value)
            assert f"row {row}, column {column}" in str(caught.value)


def test_int8_refuses_what_fp16_can_not_hold(implementation: str) -> None:
    matrix = torch.zeros(4, 64)
    matrix[2, 7] = -65504.0
    kernels.quantise(matrix, "int8")
    matrix[2, 7] = -65505.0
    with pytest.raises(CheckpointError, match="too large for int8") as caught:
        kernels.quantise(matrix, "int8", name="head.weight")
    assert "head.weight" in str(caught.value) and "row 2, column 7" in str(caught.value)
    kernels.quantise(matrix, "nf4")


def test_an_offset_that_overflows_is_refused(implementation: str) -> None:
    matrix = torch.full((2, 64), 3e38)
    with pytest.raises(CheckpointError, match="overflows") as caught:
        kernels.quantise(matrix, "nf4", name="huge.weight")
    assert "huge.weight" in str(caught.value)
    assert kernels.quantise(matrix, "nf4-single").weights == "nf4-single"


def test_what_is_no_matrix_is_refused() -> None:
    for matrix in (torch.ones(64), torch.ones(2, 2, 2), torch.ones(0, 64), torch.ones(4, 64, dtype=torch.float64)):
        with pytest.raises(CheckpointError, match="only a matrix") as caught:
            kernels.quantise(matrix, "nf4", name="odd.weight")
        assert "odd.weight" in str(caught.value)
    with pytest.raises(ValueError, match="no quantised format"):
        kernels.quantise(torch.ones(2, 64), "bf16")


def test_views_and_parameters_are_taken_as_they_are_seen(implementation: str) -> None:
    base = torch.randn(64, 96)
    straight = kernels.quantise(base.T.contiguous(), "nf4")
    turned = kernels.quantise(torch.nn.Parameter(base).T, "nf4")
    assert isinstance(straight, NF4Weight) and isinstance(turned, NF4Weight)
    assert torch.equal(straight.codes, turned.codes)


@pytest.mark.parametrize("weights", ["nf4", "nf4-single", "int8"])
def test_bytes_are_those_of_the_plan(weights: Weights) -> None:
    planned = packed_bytes(weights, 37, 101)
    made = kernels.quantise(torch.randn(37, 101), weights)
    assert made.nbytes == planned.codes + planned.constants and made.weights == weights


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the resident memory from /proc")
@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_temporary_memory_is_bounded(implementation: str, weights: Weights, tmp_path: Path) -> None:
    """A mapped bf16 matrix of 32 MiB: beside the result, less memory than a half of it; fp32 would be twice."""
    n = 2**24
    file = tmp_path / "weight"
    file.write_bytes(torch.randn(n // 64).bfloat16().view(torch.uint8).numpy().tobytes() * 64)
    matrix = torch.from_file(str(file), shared=False, size=n, dtype=torch.bfloat16).view(4096, -1)
    kernels.quantise(matrix[:512], weights)  # whatever is made once
    peak, stop, before = 0, threading.Event(), _anonymous_bytes()

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, _anonymous_bytes())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    made = kernels.quantise(matrix, weights)
    stop.set()
    watcher.join()
    constants = n // 16 if weights == "nf4" else 0  # the absmax values in fp32
    assert peak - before < made.nbytes + constants + 16 * 2**20
