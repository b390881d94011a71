"""Products in fp32 with a frozen matrix, for processors with AVX2: tiles, panels, few rows."""

from __future__ import annotations

import sys

import pytest
import torch

from halfbyte import kernels
from halfbyte.kernels import native
from halfbyte.kernels.product import reference
from tests.kernels.test_product import WEIGHTS, Guarded, error, exact, guarded_copy, made


@pytest.fixture
def fp32_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products of any number of rows in fp32; without them, what runs here."""
    if kernels.FP32[0] in native.isas():  # those of the others are the same code
        monkeypatch.setenv("HALFBYTE_KERNELS", f"cpu-{kernels.FP32[0]}")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(37, 192), (130, 320), (64, 2100), (2100, 65), (16, 1088), (97, 33)])
def test_many_rows_in_fp32(fp32_kernels: None, weights: str, shape: tuple[int, int]) -> None:
    """Tiles and panels of every height, columns that end within a panel, more steps than are laid out at once, more
    rows than go at once; in them each row is what it is among others, whatever the threads."""
    weight, truth = made(*shape, weights), exact(made(*shape, weights))
    draw, native_runs = torch.Generator().manual_seed(2), kernels.FP32[0] in native.isas()
    whole, g = (torch.randn(1030, width, generator=draw) for width in (shape[1], shape[0]))
    bias = torch.randn(shape[0], generator=draw)
    wanted, wanted_dx = whole.double() @ truth.T + bias.double(), g.double() @ truth
    allowed = 2 * error(reference.linear(whole, weight, bias, None), wanted) + 1e-5
    allowed_dx = 2 * error(reference.linear_transposed(g, weight, None), wanted_dx) + 1e-5
    y, dx = kernels.linear(whole, weight, bias), kernels.linear_transposed(g, weight)
    assert error(y, wanted) <= allowed and error(dx, wanted_dx) <= allowed_dx
    before = torch.get_num_threads()
    for threads, count in ((1, 1030), (3, 1030), (2, 513), (1, 40), *((2, count) for count in range(9, 30))):
        torch.set_num_threads(threads)
        part, part_dx = kernels.linear(whole[:count], weight, bias), kernels.linear_transposed(g[:count], weight)
        torch.set_num_threads(before)
        if native_runs:
            assert torch.equal(part, y[:count]) and torch.equal(part_dx, dx[:count])
        else:
            assert error(part, wanted[:count]) <= allowed and error(part_dx, wanted_dx[:count]) <= allowed_dx


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(37, 192), (16, 320), (5, 64), (48, 1088), (33, 97), (9, 4160)])
def test_every_small_number_of_rows_in_fp32(fp32_kernels: None, weights: str, shape: tuple[int, int]) -> None:
    """As in bf16, and each row is what it is alone, whatever the threads."""
    weight, truth = made(*shape, weights), exact(made(*shape, weights))
    whole = torch.randn(8, shape[1], generator=torch.Generator().manual_seed(5))
    bias, before = torch.randn(shape[0]), torch.get_num_threads()
    wanted = whole.double() @ truth.T + bias.double()
    allowed = 2 * error(reference.linear(whole, weight, bias, None), wanted) + 1e-5
    alone = torch.cat([kernels.linear(whole[r : r + 1], weight, bias) for r in range(8)])
    assert error(alone, wanted) <= allowed
    for count in range(1, 9):
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            together = kernels.linear(whole[:count], weight, bias)
            torch.set_num_threads(before)
            assert error(together, wanted[:count]) <= allowed
            if kernels.FP32[0] in native.isas():
                assert torch.equal(together, alone[:count])


@pytest.mark.skipif(sys.platform == "win32", reason="there is no mprotect")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("columns", [64, 192, 97])
def test_nothing_is_read_beyond_a_matrix_in_fp32(fp32_kernels: None, weights: str, columns: int) -> None:
    weight, x, g = made(33, columns, weights), torch.randn(20, columns), torch.randn(20, 33)
    guarded = guarded_copy(weight)
    for count in (1, 3, 8, 9, 20):
        rows, back = Guarded(x[:count]), Guarded(g[:count])
        assert torch.equal(kernels.linear(rows.tensor, guarded), kernels.linear(x[:count], weight))
        assert torch.equal(
            kernels.linear_transposed(back.tensor, guarded), kernels.linear_transposed(g[:count], weight)
        )
