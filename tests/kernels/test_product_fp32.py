"""Products in fp32 with a frozen matrix, for processors with AVX2 and AVX-512: tiles, panels, few rows, pairs."""

from __future__ import annotations

import sys

import pytest
import torch

from halfbyte import kernels
from halfbyte.kernels import native
from halfbyte.kernels.product import reference
from halfbyte.kernels.product.reference import FrozenWeight
from tests.kernels import test_product as common
from tests.kernels.test_product import Guarded, error, exact, guarded_copy

WEIGHTS = [*common.WEIGHTS, "fp32", "fp16"]
HERE = [isa for isa in ("avx2", "avx512") if isa in native.isas()]  # those of the others are the same code


def made(rows: int, columns: int, weights: str) -> FrozenWeight:
    if weights not in ("fp32", "fp16"):
        return common.made(rows, columns, weights)
    dense = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    return dense if weights == "fp32" else dense.half()


@pytest.fixture(params=HERE or ["none"])
def fp32_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The products of any number of rows in fp32; without them, what runs here."""
    if request.param != "none":
        monkeypatch.setenv("HALFBYTE_KERNELS", f"cpu-{request.param}")


@pytest.mark.skipif(len(HERE) < 2, reason="it takes two instruction sets")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(100, 192), (33, 2500), (16, 320)])
def test_avx512_gives_the_bits_of_avx2(weights: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    weight, found = made(*shape, weights), []
    for isa in HERE:
        monkeypatch.setenv("HALFBYTE_KERNELS", f"cpu-{isa}")
        for count in (1, 5, 40):
            x, g = (torch.randn(count, width, generator=torch.Generator().manual_seed(1)) for width in shape[::-1])
            found.append((kernels.linear(x, weight), kernels.linear_transposed(g, weight)))
    for one, other in zip(found[:3], found[3:], strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.skipif(sys.platform == "win32", reason="there is no mprotect")
@pytest.mark.parametrize("count", [3, 20])
def test_nothing_is_read_beyond_a_pair_in_fp32(fp32_kernels: None, count: int) -> None:
    weight, h, g, x = made(33, 97, "nf4"), torch.randn(count, 5), torch.randn(count, 33), torch.randn(count, 97)
    b, a = torch.randn(33, 5), torch.randn(5, 97)
    pair, back = (Guarded(h).tensor, Guarded(b).tensor), (Guarded(h).tensor, Guarded(a).tensor)
    assert torch.equal(kernels.linear(x, weight, None, pair), kernels.linear(x, weight, None, (h, b)))
    assert torch.equal(kernels.linear_transposed(g, weight, back), kernels.linear_transposed(g, weight, (h, a)))


@pytest.mark.parametrize("count", [1, 8, 9, 70])
def test_a_pair_is_added_in_fp32(fp32_kernels: None, count: int) -> None:
    weight, truth = made(70, 130, "nf4"), exact(made(70, 130, "nf4"))
    draw = torch.Generator().manual_seed(3)
    x, g, h = (torch.randn(count, width, generator=draw) for width in (130, 70, 20))
    a, b, bias = (torch.randn(*shape, generator=draw) for shape in ((20, 130), (70, 20), (70,)))
    y, dx = kernels.linear(x, weight, bias, (h, b)), kernels.linear_transposed(g, weight, (h, a))
    assert error(y, x.double() @ truth.T + bias.double() + h.double() @ b.double().T) < 1e-4
    assert error(dx, g.double() @ truth + h.double() @ a.double()) < 1e-4


@pytest.mark.parametrize("shapes", [((70, 33), (33, 5)), ((5, 70), (70, 200)), ((6, 4), (4, 6)), ((700, 4), (4, 16))])
def test_the_products_of_an_adapter_in_fp32(
    fp32_kernels: None, shapes: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    """As in bf16: wider than high and higher than wide, and of views."""
    x, w = (torch.randn(shape, generator=torch.Generator().manual_seed(6)) for shape in shapes)
    wanted = x.double() @ w.double()
    for y in (kernels.matmul_small(x, w), kernels.matmul_small(x.T.contiguous().T, w), kernels.linear_small(x, w.T)):
        assert error(y, wanted) <= 1e-5 and y.shape == wanted.shape and y.is_contiguous()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(37, 192), (130, 320), (64, 2100), (2100, 65), (16, 1088), (97, 33)])
def test_many_rows_in_fp32(fp32_kernels: None, weights: str, shape: tuple[int, int]) -> None:
    """Tiles and panels of every height, columns that end within a panel, more steps than are laid out at once, more
    rows than go at once; in them each row is what it is among others, whatever the threads."""
    weight, truth = made(*shape, weights), exact(made(*shape, weights))
    draw, native_runs = torch.Generator().manual_seed(2), bool(HERE)
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
            if HERE:
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
