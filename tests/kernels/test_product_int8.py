"""Products in int8: native against the specification, and what they cost in accuracy, measured against fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.errors import ConfigError
from halfbyte.formats import NF4_CODE, Weights
from halfbyte.kernels import product_int8
from halfbyte.kernels.choice import VARIABLE
from halfbyte.kernels.packed import PackedWeight
from halfbyte.kernels.product_int8 import cpu, reference

PACKED: list[Weights] = ["nf4", "nf4-single", "int8"]
# rows and columns of the matrix, rows of x: ragged units and blocks, panels of every height, more than one cut of rows
SHAPES = [(64, 64, 17), (192, 128, 30), (129, 192, 33), (100, 64, 47), (70, 1152, 600), (70, 64, 1020), (1100, 128, 20)]
_LACKING = pytest.param(False, marks=pytest.mark.xfail(run=False, reason="this processor has no AVX512-VNNI"))
# Without the library it is skipped, which is a failure where nothing may be skipped
_THERE = [_LACKING] if kernels.choose("cpu").isa else []
native = pytest.mark.parametrize("vnni", [True] if not product_int8.missing() else _THERE)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def made(rows: int, columns: int, weights: Weights) -> PackedWeight:
    return kernels.quantise(drawn(rows, columns, seed=rows) * 0.02, weights)


def error(value: Tensor, exact: Tensor) -> float:
    """Relative, root mean square."""
    return float((value.double() - exact).norm() / exact.norm())


def errors(weight: PackedWeight, x: Tensor, g: Tensor) -> tuple[float, float]:
    """Of y and dx, against fp64 on the dequantised weight."""
    exact = kernels.dequantise(weight, torch.float32).double()
    y, dx = reference.linear(x, weight), reference.linear_transposed(g, weight)
    return error(y, x.double() @ exact.T), error(dx, g.double() @ exact)


@native
@pytest.mark.parametrize("weights", PACKED)
@pytest.mark.parametrize(("rows", "columns", "count"), SHAPES)
def test_native_is_the_reference(vnni: bool, weights: Weights, rows: int, columns: int, count: int) -> None:
    weight, bias = made(rows, columns, weights), drawn(rows, seed=1)
    x, g, h, a, b = (drawn(*shape, seed=2) for shape in
                     [(count, columns), (count, rows), (count, 5), (5, columns), (rows, 5)])  # fmt: skip
    x[0], x[1, :64], g[2, 3:] = 0, 2.0**-110, 0
    for mine, wanted in (
        (kernels.linear(x, weight, int8=True), reference.linear(x, weight)),
        (kernels.linear(x, weight, bias, (h, b), int8=True), reference.linear(x, weight, bias, (h, b))),
        (kernels.linear_transposed(g, weight, int8=True), reference.linear_transposed(g, weight)),
        (kernels.linear_transposed(g, weight, (h, a), int8=True), reference.linear_transposed(g, weight, (h, a))),
    ):
        assert mine.dtype == torch.bfloat16 and error(mine, wanted.double()) < 2e-4  # a rounding here and there
        torch.testing.assert_close(mine, wanted, rtol=2**-7, atol=1e-6 * float(wanted.abs().max()))


@native
@pytest.mark.parametrize("weights", PACKED)
def test_neither_threads_nor_a_second_run_change_a_bit(vnni: bool, weights: Weights) -> None:
    weight, x, g = made(640, 512, weights), drawn(70, 512), drawn(70, 640)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append((kernels.linear(x, weight, int8=True), kernels.linear_transposed(g, weight, int8=True)))
    torch.set_num_threads(before)
    for y, dx in results[1:]:
        assert torch.equal(y, results[0][0]) and torch.equal(dx, results[0][1])


@native
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so_and_in_its_row(vnni: bool, value: float) -> None:
    weight, x, g = made(128, 128, "nf4"), drawn(20, 128), drawn(20, 128)
    x[3, 70], g[3, 70] = value, value
    for result in (kernels.linear(x, weight, int8=True), kernels.linear_transposed(g, weight, int8=True)):
        assert not result[3].isfinite().any() and result[:3].isfinite().all() and result[4:].isfinite().all()


@native
def test_few_rows_and_ragged_widths_are_multiplied_in_bf16(vnni: bool) -> None:
    weight, x = made(96, 128, "nf4"), drawn(17, 128)
    assert torch.equal(kernels.linear(x[:16], weight, int8=True), kernels.linear(x[:16], weight))
    assert not torch.equal(kernels.linear(x, weight, int8=True), kernels.linear(x, weight))
    ragged, x = made(96, 100, "nf4"), drawn(40, 100)
    assert torch.equal(kernels.linear(x, ragged, int8=True), kernels.linear(x, ragged))
    wide = drawn(40, 128).float()
    assert torch.equal(kernels.linear(wide, weight, int8=True), kernels.linear(wide, weight))


@pytest.mark.parametrize(("weights", "y", "dx"), [("nf4", 0.009, 0.0115), ("int8", 0.007, 0.007)])
def test_error_on_normal_inputs(weights: Weights, y: float, dx: float) -> None:
    of_y, of_dx = errors(made(512, 1024, weights), drawn(40, 1024), drawn(40, 512, seed=1))
    assert of_y < y and of_dx < dx


@pytest.mark.parametrize("weights", PACKED)
def test_outlier_channels_spoil_their_own_blocks_only(weights: Weights) -> None:
    weight, x, g = made(512, 2048, weights), drawn(40, 2048), drawn(40, 512, seed=1)
    x[:, 777] *= 50
    exact = kernels.dequantise(weight, torch.float32).double()
    scale = x.float().abs().amax(1, keepdim=True) / 127  # one a row
    by_row = error((x / scale).round() * scale @ exact.float().T, x.double() @ exact.T)
    of_y, _ = errors(weight, x, g)
    assert of_y < 0.02 and by_row > 3 * of_y


@pytest.mark.parametrize("weights", PACKED)
def test_rows_of_w_of_all_sizes_cost_the_gradient_nothing(weights: Weights) -> None:
    sizes = 10 ** torch.linspace(-3, 3, 512)
    weight = kernels.quantise((drawn(512, 256).float() * sizes.unsqueeze(1)).bfloat16(), weights)
    g = (drawn(40, 512, seed=1) / sizes).bfloat16()
    assert errors(weight, drawn(40, 256), g)[1] < 0.012


@pytest.mark.usefixtures("int8")
@pytest.mark.parametrize("weights", ["nf4-single", "int8"])
def test_a_row_of_w_next_to_nothing_spoils_no_gradient(weights: Weights) -> None:
    dense = drawn(128, 64).clone()
    dense[5] = 1e-39
    weight, g = kernels.quantise(dense, weights), drawn(20, 128, seed=1)
    wanted = kernels.linear_transposed(g, weight).float()
    assert (kernels.linear_transposed(g, weight, int8=True).float() - wanted).norm() < 0.02 * wanted.norm()


def test_the_factor_of_the_levels_is_the_best() -> None:
    levels, weights = torch.tensor(NF4_CODE), torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    scaled = weights / weights.abs().amax(1, keepdim=True)
    levels = levels[torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)]

    def off(factor: float) -> float:
        return float(((levels * factor).round() / factor - levels).norm() / levels.norm())

    assert off(reference.LEVELS) < min(off(factor) for factor in range(64, 128)) < off(127.0)
    assert off(reference.LEVELS) < 0.0048


def _no_vnni(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cpu, "has_vnni", lambda: False)


@pytest.mark.parametrize(
    ("without", "found"),
    [
        (_no_vnni, "AVX512-VNNI|plain PyTorch|native library"),
        (lambda patch: patch.setenv(VARIABLE, "reference"), "forced by"),
        (lambda patch: patch.setenv(VARIABLE, "cpu-portable"), "portable"),
    ],
)
def test_a_processor_without_it_is_refused(
    without: Callable[[pytest.MonkeyPatch], None], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch)
    weight = made(64, 64, "nf4")
    with pytest.raises(ConfigError, match=found):
        kernels.linear(drawn(20, 64), weight, int8=True)
    with pytest.raises(ConfigError, match="use compute: auto"):
        kernels.linear_transposed(drawn(20, 64), weight, int8=True)
    assert product_int8.missing("cuda")
