"""The Triton kernels against the reference: bits where the format has them, else the bound of the other products.

Without a card they run in Triton's interpreter. `TRITON_INTERPRET=0 pytest tests/kernels/test_gpu.py` compiles them.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.errors import CheckpointError
from halfbyte.formats import QUANTISED, Weights
from halfbyte.kernels import Int8Weight, NF4Weight, PackedWeight
from halfbyte.kernels.choice import VARIABLE
from halfbyte.kernels.product import reference as product
from halfbyte.kernels.quantise import reference as encode

from .cases import DTYPES, levels_and_bounds, matrices, same_bits

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no triton for this system"),
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="there is no card to compile for"),
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow) encountered:RuntimeWarning"),  # numpy's
]


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "gpu")
    assert kernels.choose(DEVICE).name == "gpu"


@contextmanager
def plain() -> Iterator[None]:
    """The reference, on the CPU."""
    os.environ[VARIABLE] = "reference"
    try:
        yield
    finally:
        os.environ[VARIABLE] = "gpu"


def parts(packed: PackedWeight) -> dict[str, Tensor]:
    names = ("codes", "absmax", "nested_absmax", "scale")
    return {name: part.cpu() for name in names if (part := getattr(packed, name, None)) is not None}


def check(matrix: Tensor, weights: Weights, name: str = "") -> PackedWeight:
    """Quantised here and by the reference: the same bits."""
    ours = kernels.quantise(matrix.to(DEVICE), weights)
    with plain():
        theirs = kernels.quantise(matrix, weights)
    assert ours.device.type == DEVICE.type and ours.shape == theirs.shape
    assert parts(ours).keys() == parts(theirs).keys()
    for part, values in parts(theirs).items():
        assert same_bits(parts(ours)[part], values), (name, part)
    if isinstance(ours, NF4Weight) and isinstance(theirs, NF4Weight):
        assert ours.offset == theirs.offset
    return theirs


def both(packed: PackedWeight, dtype: torch.dtype, rows: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    with plain():
        theirs = kernels.dequantise(packed, dtype, rows=rows)
    return kernels.dequantise(packed.to(DEVICE), dtype, rows=rows).cpu(), theirs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", QUANTISED)
def test_bits_are_the_references_there_and_back(weights: Weights, dtype: torch.dtype) -> None:
    """Ragged and odd ends, one weight, rows that blocks straddle, zeros, subnormals, the largest values."""
    for name, matrix in matrices(dtype).items():
        if weights == "int8" and matrix.abs().max() > 65504:
            continue
        if INTERPRETED:  # of the large ones enough for several programs: a program takes it some milliseconds
            matrix = matrix[: max(1, 12_000 // matrix.shape[1])]
        packed = check(matrix, weights, name)
        for to in DTYPES if dtype == torch.float32 else (dtype,):
            ours, theirs = both(packed, to)
            assert same_bits(ours, theirs), (name, to)


def test_nf4_at_the_bounds() -> None:
    check(levels_and_bounds(), "nf4")
    for row in levels_and_bounds()[:4]:  # a ragged block is divided, not multiplied by a reciprocal
        check(row[None, :63], "nf4-single")


def test_double_quantisation_near_every_step_of_the_lookup() -> None:
    """absmax values a hair below, at and above each of the 65536 places where the table's index steps."""
    from halfbyte.kernels.quantise import gpu

    step = ((torch.arange(65536, dtype=torch.float64) + 0.5) / 32767.5 - 1).float().clamp(-1, 1)
    values = torch.cat([step, torch.nextafter(step, torch.tensor(2.0)), torch.nextafter(step, torch.tensor(-2.0))])
    padded = torch.nn.functional.pad(values.clamp(-1, 1), (0, -len(values) % 255)).view(-1, 255)
    absmax = torch.cat([torch.ones(len(padded), 1), padded], dim=1).view(-1)
    for scaled, offset in ((absmax, 0.0), (absmax[:1000] * 0.37, 0.1), (absmax[:256] * 2.0**-135, 2.0**-136),
                           (torch.zeros(300), 0.0), (torch.full((257,), 0.25), 0.25)):  # fmt: skip
        ours, theirs = gpu.quantise_absmax(scaled.to(DEVICE), offset), encode.quantise_absmax(scaled, offset)
        assert same_bits(ours[0].cpu(), theirs[0]) and same_bits(ours[1].cpu(), theirs[1])


def test_int8_rounds_to_fp16_first_and_ties_to_even() -> None:
    half = torch.arange(0, 0x7BFF, 97, dtype=torch.int16).view(torch.float16).float()
    above = torch.arange(1, 0x7C00, 97, dtype=torch.int16)[: len(half)].view(torch.float16).float()
    middle = (half + above) / 2
    rows = [middle, torch.nextafter(middle, torch.tensor(0.0)), -torch.nextafter(middle, torch.tensor(1e6))]
    rows += [row * 2.0**-12 for row in rows]
    rows.append(torch.arange(len(half)) % 255 / 2 - 63.5)
    check(torch.stack(rows), "int8")


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("place", [0, 64 * 100 + 5, -1], ids=["first", "inner", "last"])
def test_nan_and_infinity_are_refused_by_name(weights: Weights, place: int) -> None:
    for dtype, value, said in ((torch.bfloat16, math.nan, "1 NaN"), (torch.float16, math.inf, "1 infinite"),
                               (torch.float32, -math.inf, "1 infinite")):  # fmt: skip
        matrix = torch.ones(67, 99, dtype=dtype)
        matrix.view(-1)[place] = value
        with pytest.raises(CheckpointError) as caught:
            kernels.quantise(matrix.to(DEVICE), weights, name="layers.3.q_proj.weight")
        row, column = divmod(place % matrix.numel(), 99)
        assert "layers.3.q_proj.weight" in str(caught.value) and said in str(caught.value)
        assert f"row {row}, column {column}" in str(caught.value)


def test_what_a_format_can_not_hold_is_refused() -> None:
    matrix = torch.zeros(4, 64)
    matrix[2, 7] = -65504.0
    check(matrix, "int8")
    matrix[2, 7] = -65505.0
    with pytest.raises(CheckpointError, match="too large for int8"):
        kernels.quantise(matrix.to(DEVICE), "int8")
    with pytest.raises(CheckpointError, match="overflows"):
        kernels.quantise(torch.full((2, 64), 3e38, device=DEVICE), "nf4")


def test_every_byte_in_every_place_and_what_overflows() -> None:
    """All 256 bytes at each place of a block, with scales beyond fp16 and the largest bf16 (infinite, as in torch)."""
    codes = torch.stack([torch.arange(256).roll(shift) for shift in range(32)]).to(torch.uint8).view(-1)
    absmax = torch.cat([torch.rand(128), torch.rand(64) * 1e6, torch.full((32,), 3.4e38), torch.rand(32) * 1e-40])
    for dtype in DTYPES:
        ours, theirs = both(NF4Weight((256, 64), codes, absmax), dtype)
        assert same_bits(ours, theirs)


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("shape", [(90, 13), (300, 64), (5, 1100)], ids=str)
def test_rows_are_those_of_the_whole_and_nothing_else_is_written(weights: Weights, shape: tuple[int, int]) -> None:
    packed = kernels.quantise(torch.randn(shape, device=DEVICE), weights)
    whole = kernels.dequantise(packed, torch.bfloat16)
    for first, last in {(0, 1), (1, 4), (shape[0] // 2, shape[0]), (3, 3), (0, shape[0])}:
        room = torch.full((last - first + 2, shape[1]), 7.0, dtype=torch.bfloat16, device=DEVICE)
        made = kernels.dequantise(packed, torch.bfloat16, out=room[1:-1], rows=(first, last))
        assert same_bits(made.cpu(), whole[first:last].cpu())
        assert (room[0] == 7).all() and (room[-1] == 7).all()


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.cpu().double() - truth).abs().max())


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(37, 192), (33, 97)], ids=str)
def test_products_are_as_good_as_torchs(weights: Weights, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """One to 17 rows, with a bias and a LoRA pair; rows that are no whole blocks; outputs that end within a tile."""
    draw = torch.Generator().manual_seed(shape[0])
    rows, columns = shape
    packed = kernels.quantise(torch.randn(shape, generator=draw).to(dtype).to(DEVICE), weights)
    with plain():
        truth = kernels.dequantise(packed.to("cpu"), torch.float32).double()
    for count, rank in (
        ((1, 40), (4, 1), (16, 20), (17, 8)) if INTERPRETED else ((1, 5), (3, 40), (4, 1), (5, 16), (16, 20), (17, 8))
    ):
        x, h, b, bias = (torch.randn(size, generator=draw).to(dtype) for size in
                         ((count, columns), (count, rank), (rows, rank), (rows,)))  # fmt: skip
        wanted = x.double() @ truth.T + bias.double() + h.double() @ b.double().T
        with plain():
            allowed = 2 * error(product.linear(x, packed.to("cpu"), bias, (h, b)), wanted)
        allowed += 1e-4 if dtype == torch.float32 else 0.0
        x, h, b, bias = (tensor.to(DEVICE) for tensor in (x, h, b, bias))
        out = torch.full((count, rows), 7.0, dtype=dtype, device=DEVICE)
        assert kernels.linear(x, packed, bias, (h, b), out) is out and error(out, wanted) <= allowed
        assert error(kernels.linear(x, packed), x.cpu().double() @ truth.T) <= allowed


@pytest.mark.parametrize("count", [1, 4, 16])
def test_a_second_run_changes_no_bit(count: int) -> None:
    packed = kernels.quantise(torch.randn(40, 128, device=DEVICE), "nf4")
    x = torch.randn(count, 128, device=DEVICE).bfloat16()
    assert torch.equal(kernels.linear(x, packed), kernels.linear(x, packed))


def test_an_adapter_and_the_backward_product_run_through_the_same_kernels() -> None:
    packed = kernels.quantise(torch.randn(48, 128, device=DEVICE) / 8, "nf4")
    x, a, b = (torch.randn(size, device=DEVICE).bfloat16() / 8 for size in ((3, 128), (8, 128), (48, 8)))
    dense = kernels.dequantise(packed, torch.float32).double()
    truth = x.double() @ dense.T + (x.double() @ a.double().T) @ b.double().T
    assert error(kernels.adapted(x, packed, None, (a, b)), truth.cpu()) <= 2**-7 * float(truth.abs().max())
    g = torch.randn(20, 48, device=DEVICE).bfloat16()
    truth = g.double() @ dense
    assert error(kernels.linear_transposed(g, packed), truth.cpu()) <= 2**-7 * float(truth.abs().max())


def test_an_infinite_input_shows_and_a_view_is_read_where_it_lies() -> None:
    packed, whole = kernels.quantise(torch.randn(32, 64, device=DEVICE), "nf4"), torch.randn(6, 128, device=DEVICE)
    assert torch.equal(kernels.linear(whole[::2, 64:], packed), kernels.linear(whole[::2, 64:].contiguous(), packed))
    x = torch.ones(3, 64, device=DEVICE)
    x[1, 5] = math.inf
    assert kernels.linear(x, packed).isfinite().all(dim=1).tolist() == [True, False, True]


def test_which_product_runs_is_said() -> None:
    packed, odd = (kernels.quantise(torch.randn(16, width, device=DEVICE), "nf4") for width in (64, 72))
    few, many = (torch.ones(count, 64, device=DEVICE).bfloat16() for count in (16, 17))
    assert kernels.product_of(few, packed) == kernels.choose(DEVICE)
    assert "reused buffer" in kernels.product_of(many, packed).reason
    assert kernels.product_of(few[:4].float(), packed).name == "gpu"
    assert "reused buffer" in kernels.product_of(few[:5].float(), packed).reason
    assert "no whole blocks" in kernels.product_of(torch.ones(1, 72, device=DEVICE), odd).reason
    assert "dense" in kernels.product_of(few, torch.ones(16, 64, device=DEVICE)).reason


def test_many_rows_share_one_buffer() -> None:
    product.scratch.clear()
    layers = [kernels.quantise(torch.randn(16, 64, device=DEVICE), weights) for weights in QUANTISED]
    x = torch.randn(17, 64, device=DEVICE)
    for layer in layers:
        kernels.linear(x, layer)
    (buffer,) = product.scratch._buffers.values()
    assert buffer.numel() == 16 * 64
    assert isinstance(layers[2], Int8Weight)
