"""Products with a frozen matrix against fp64, bounded by what torch's product in the same precision makes of it."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import sys

import pytest
import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.formats import QUANTISED
from halfbyte.kernels import native
from halfbyte.kernels.gate import Act, gated
from halfbyte.kernels.product import reference
from halfbyte.kernels.product.reference import FrozenWeight

WEIGHTS = ["nf4", "nf4-single", "int8", "bf16"]
# rows and columns of the matrix, rows of x: whole blocks, blocks that straddle rows, odd sizes, more than a stretch of
# the contraction (8192, in tiles 16384) either way; more rows than are laid out at once, more sums than are held
SHAPES = [(64, 64, 1), (192, 128, 5), (96, 192, 16), (100, 72, 33), (129, 101, 3), (257, 130, 40), (66, 9000, 20),
          (9000, 66, 20), (40, 16500, 20), (16500, 40, 20), (70, 64, 600), (16500, 64, 3)]  # fmt: skip


@pytest.fixture(params=[isa for isa in native.isas() if isa in kernels.BF16] or ["none"])
def bf16_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each instruction set that multiplies any number of rows, forced; without one, what runs here."""
    if request.param != "none":
        monkeypatch.setenv("HALFBYTE_KERNELS", f"cpu-{request.param}")


def made(rows: int, columns: int, weights: str) -> FrozenWeight:
    dense = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).bfloat16()
    return kernels.quantise(dense, weights) if weights in QUANTISED else dense  # type: ignore[arg-type]


def exact(weight: FrozenWeight) -> Tensor:
    return reference.decode(weight, torch.float32).double().clone()


class Guarded:
    """A copy of a tensor that ends at a page that can't be read."""

    def __init__(self, tensor: Tensor) -> None:
        size = -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.memory = mmap.mmap(-1, size + mmap.PAGESIZE)
        whole = torch.frombuffer(memoryview(self.memory), dtype=torch.uint8)
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        assert protect(ctypes.c_void_p(whole.data_ptr() + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        bits = whole[size - tensor.nbytes : size]
        self.tensor = bits.copy_(tensor.contiguous().view(torch.uint8).flatten()).view(tensor.dtype).view(tensor.shape)


def guarded_copy(weight: FrozenWeight) -> FrozenWeight:
    """`weight` with each of its parts `Guarded`."""
    if isinstance(weight, Tensor):
        return Guarded(weight).tensor
    names = [name for name in ("codes", "absmax", "nested_absmax", "scale") if getattr(weight, name, None) is not None]
    return dataclasses.replace(weight, **{name: Guarded(getattr(weight, name)).tensor for name in names})


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).abs().max())


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("rows", "columns", "count"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_are_as_good_as_torchs(
    implementation: str, weights: str, rows: int, columns: int, count: int, dtype: torch.dtype
) -> None:
    weight, truth = made(rows, columns, weights), exact(made(rows, columns, weights))
    draw = torch.Generator().manual_seed(1)
    x, g, h, a, b, bias = (
        torch.randn(shape, generator=draw).to(dtype)
        for shape in [(count, columns), (count, rows), (count, 6), (6, columns), (rows, 6), (rows,)]
    )
    wanted = x.double() @ truth.T + bias.double() + h.double() @ b.double().T
    floor = 1e-4 if dtype == torch.float32 else 0.0
    allowed = 2 * error(reference.linear(x, weight, bias, (h, b)), wanted) + floor
    assert error(kernels.linear(x, weight, bias, (h, b)), wanted) <= allowed
    assert error(kernels.linear(x, weight), x.double() @ truth.T) <= allowed
    wanted = g.double() @ truth + h.double() @ a.double()
    allowed = 2 * error(reference.linear_transposed(g, weight, (h, a)), wanted) + floor
    assert error(kernels.linear_transposed(g, weight, (h, a)), wanted) <= allowed


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(37, 192), (16, 320), (5, 64), (48, 1088), (33, 97)])
def test_every_small_number_of_rows(bf16_kernels: None, weights: str, shape: tuple[int, int]) -> None:
    """Each has code of its own; lines and blocks that end a row, fewer columns than there are lanes."""
    weight, truth = made(*shape, weights), exact(made(*shape, weights))
    draw = torch.Generator().manual_seed(2)
    whole, h = (torch.randn(35, width, generator=draw).bfloat16() for width in (shape[1], 5))
    b, bias = (torch.randn(size, generator=draw).bfloat16() for size in ((shape[0], 5), (shape[0],)))
    wanted = whole.double() @ truth.T + bias.double() + h.double() @ b.double().T
    allowed = 2 * error(reference.linear(whole, weight, bias, (h, b)), wanted)
    for count in range(1, 36):
        assert error(kernels.linear(whole[:count], weight, bias, (h[:count], b)), wanted[:count]) <= allowed


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(1043, 4160), (301, 14272), (2050, 64), (515, 1024)])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_decoding_a_large_matrix(bf16_kernels: None, weights: str, shape: tuple[int, int], count: int) -> None:
    """Parts of several threads that end within 16 rows; rows of an odd number of blocks, so that the two of a line may
    have different nested constants; a change of these within a row."""
    weight, truth = made(*shape, weights), exact(made(*shape, weights))
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(count, shape[1], generator=draw).bfloat16()
    wanted, before = x.double() @ truth.T, torch.get_num_threads()
    allowed = 2 * error(reference.linear(x, weight, None, None), wanted)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(kernels.linear(x, weight))
    torch.set_num_threads(before)
    assert error(results[0], wanted) <= allowed
    assert all(torch.equal(one, results[0]) for one in results[1:])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("count", [1, 30])
def test_outlier_channels_cost_no_more_than_in_torch(bf16_kernels: None, weights: str, count: int) -> None:
    """As language models have them: some channels that are a hundred times as large as those beside them (Dettmers et
    al. 2022, arXiv:2208.07339), in x and in g."""
    weight, truth = made(257, 1024, weights), exact(made(257, 1024, weights))
    draw = torch.Generator().manual_seed(5)
    x, g = (torch.randn(count, width, generator=draw) for width in (1024, 257))
    x[:, ::170] *= 100
    g[:, ::60] *= 100
    x, g = x.bfloat16(), g.bfloat16()
    wanted, wanted_dx = x.double() @ truth.T, g.double() @ truth
    assert error(kernels.linear(x, weight), wanted) <= 2 * error(reference.linear(x, weight, None, None), wanted)
    plain = reference.linear_transposed(g, weight, None)
    assert error(kernels.linear_transposed(g, weight), wanted_dx) <= 2 * error(plain, wanted_dx)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("columns", [320, 4096])
def test_rows_of_any_size(bf16_kernels: None, weights: str, columns: int) -> None:
    """Whatever an implementation multiplies in, a row near the end of bf16's range, a tiny one, one of zeros and one
    with a value far above the others lose nothing by it, nor by their neighbours; infinities and NaN go through."""
    weight, truth = made(37, columns, weights), exact(made(37, columns, weights))
    x = torch.randn(4, columns, generator=torch.Generator().manual_seed(4))
    x = (x * torch.tensor([[1e30], [1e-30], [0.0], [1.0]])).bfloat16()
    x[3, 5] = 3e4
    wanted = x.double() @ truth.T
    plain = reference.linear(x, weight, None, None)
    for r in range(4):
        for count in range(1, 4 - r + 1):  # r is the first of some
            y = kernels.linear(x[r : r + count], weight)
            assert error(y[0], wanted[r]) <= 2 * error(plain[r], wanted[r])
    many = torch.cat([x, torch.ones(36, columns).bfloat16()])
    for r, y in enumerate(kernels.linear(many, weight)[:4]):
        assert error(y, wanted[r]) <= 2 * error(plain[r], wanted[r])
    g = many[:, :37]
    for r, y in enumerate(kernels.linear_transposed(g, weight)[:4]):
        truth_dx = g[r].double() @ truth
        assert error(y, truth_dx) <= 2 * error(reference.linear_transposed(g[r : r + 1], weight, None)[0], truth_dx)
    for odd in (float("inf"), float("nan")):
        many[1, 7] = odd
        for y in (kernels.linear(many[:4], weight), kernels.linear(many, weight), kernels.linear_transposed(g, weight)):
            assert not y[1].isfinite().any() and torch.cat([y[:1], y[2:]]).isfinite().all()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(130, 192), (70, 97)])
def test_a_row_is_the_same_among_many_others_and_on_any_number_of_threads(
    bf16_kernels: None, weights: str, shape: tuple[int, int]
) -> None:
    weight, before = made(*shape, weights), torch.get_num_threads()
    x, g = (torch.randn(600, width, generator=torch.Generator().manual_seed(7)).bfloat16() for width in shape[::-1])
    y, dx = kernels.linear(x, weight), kernels.linear_transposed(g, weight)
    for count, threads in ((33, 1), (64, 3), (517, 2)):
        torch.set_num_threads(threads)
        assert torch.equal(kernels.linear(x[:count], weight), y[:count])
        assert torch.equal(kernels.linear_transposed(g[:count], weight), dx[:count])
    torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no mprotect")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("columns", [64, 192, 97])
def test_nothing_is_read_beyond_a_matrix(bf16_kernels: None, weights: str, columns: int) -> None:
    """Its parts end where pages do that can't be read, as those of a mapped file may."""
    weight, x = made(33, columns, weights), torch.randn(3, columns).bfloat16()
    y, guarded = kernels.linear(x, weight), guarded_copy(weight)
    for count in (1, 3):
        assert torch.equal(kernels.linear(x[:count], guarded)[0], kernels.linear(x[:count], weight)[0])
    assert torch.equal(kernels.linear(x, guarded), y)
    for count in (5, 20, 40):
        rows, g = torch.randn(count, columns).bfloat16(), torch.randn(count, 33).bfloat16()
        assert torch.equal(kernels.linear(rows, guarded), kernels.linear(rows, weight))
        assert torch.equal(kernels.linear_transposed(g, guarded), kernels.linear_transposed(g, weight))


def test_a_long_pair_beside_several_stretches_and_blocks(bf16_kernels: None) -> None:
    """A LoRA pair of more than one chunk; a contraction that is laid out in two parts; several blocks of a thread."""
    for rows, columns, count, rank in ((300, 16700, 33, 300), (16700, 300, 33, 300), (192, 2304, 520, 40)):
        weight, truth = made(rows, columns, "nf4"), exact(made(rows, columns, "nf4"))
        draw = torch.Generator().manual_seed(4)
        x, g, h, a, b = (torch.randn(shape, generator=draw).bfloat16() for shape in
                         [(count, columns), (count, rows), (count, rank), (rank, columns), (rows, rank)])  # fmt: skip
        wanted = x.double() @ truth.T + h.double() @ b.double().T
        allowed = 2 * error(reference.linear(x, weight, None, (h, b)), wanted)
        assert error(kernels.linear(x, weight, None, (h, b)), wanted) <= allowed
        wanted = g.double() @ truth + h.double() @ a.double()
        allowed = 2 * error(reference.linear_transposed(g, weight, (h, a)), wanted)
        assert error(kernels.linear_transposed(g, weight, (h, a)), wanted) <= allowed


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 20, 70])
def test_neither_threads_nor_a_second_run_change_a_bit(bf16_kernels: None, weights: str, count: int) -> None:
    weight, x = made(640, 512, weights), torch.randn(count, 512).bfloat16()
    g, before = torch.randn(count, 640).bfloat16(), torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append((kernels.linear(x, weight), kernels.linear_transposed(g, weight)))
    torch.set_num_threads(before)
    for y, dx in results[1:]:
        assert torch.equal(y, results[0][0])
        if native.isas() and native.preferred() in kernels.BF16:
            assert torch.equal(dx, results[0][1])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(130, 320), (64, 2112), (97, 33)])
def test_integers_are_the_same_by_every_instruction_set(
    monkeypatch: pytest.MonkeyPatch, weights: str, shape: tuple[int, int]
) -> None:
    """Sums of integers are exact, and those in fp32 have one order; but backward NF4 is laid out in another way by
    AVX512-VNNI, with as small an error."""
    weight, truth, draw = made(*shape, weights), exact(made(*shape, weights)), torch.Generator().manual_seed(7)
    for count in (11, 40, 515):
        x, g = (torch.randn(count, width, generator=draw).bfloat16() for width in (shape[1], shape[0]))
        wanted, wanted_dx, found = x.double() @ truth.T, g.double() @ truth, []
        allowed = 2 * error(reference.linear(x, weight, None, None), wanted)
        allowed_dx = 2 * error(reference.linear_transposed(g, weight, None), wanted_dx)
        for isa in (isa for isa in kernels.INTEGERS if isa in native.isas()):
            monkeypatch.setenv("HALFBYTE_KERNELS", f"cpu-{isa}")
            y, dx = kernels.linear(x, weight), kernels.linear_transposed(g, weight)
            found.append((y, dx))
            assert error(y, wanted) <= allowed and error(dx, wanted_dx) <= allowed_dx
            assert torch.equal(y, found[0][0])
            if not (isa == "avx512vnni" and weights.startswith("nf4") and shape[1] % 64 == 0):
                assert torch.equal(dx, found[0][1])


def test_an_empty_contraction_leaves_the_bias(implementation: str) -> None:
    x, bias = torch.ones(3, 0).bfloat16(), torch.randn(8).bfloat16()
    assert torch.equal(kernels.linear(x, torch.empty(8, 0).bfloat16(), bias), bias.expand(3, 8))
    assert torch.equal(kernels.linear_transposed(x, torch.empty(0, 4).bfloat16()), torch.zeros(3, 4).bfloat16())


def test_a_part_of_a_larger_tensor_is_read_where_it_lies(implementation: str) -> None:
    weight, whole = made(64, 64, "nf4"), torch.randn(8, 128).bfloat16()
    assert torch.equal(kernels.linear(whole[:, 64:], weight), kernels.linear(whole[:, 64:].contiguous(), weight))
    assert torch.equal(kernels.linear(whole[::2, :64], weight), kernels.linear(whole[::2, :64].contiguous(), weight))


def test_an_infinite_input_shows(implementation: str) -> None:
    x = torch.ones(3, 64).bfloat16()
    x[1, 5] = float("inf")
    finite = kernels.linear(x, made(64, 64, "nf4")).isfinite().all(dim=1)
    assert finite.tolist() == [True, False, True]


@pytest.mark.parametrize("shapes", [((70, 33), (33, 5)), ((5, 70), (70, 200)), ((6, 4), (4, 6))])
def test_the_products_of_an_adapter(implementation: str, shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """Wider than high and higher than wide, and of views."""
    draw = torch.Generator().manual_seed(6)
    x, w = (torch.randn(shape, generator=draw).bfloat16() for shape in shapes)
    wanted = x.double() @ w.double()
    allowed = 2 * error(x @ w, wanted)
    for y in (kernels.matmul_small(x, w), kernels.matmul_small(x.T.contiguous().T, w), kernels.linear_small(x, w.T)):
        assert error(y, wanted) <= allowed and y.shape == wanted.shape and y.is_contiguous()


def test_which_product_runs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, dense = made(64, 64, "nf4"), torch.randn(64, 64)
    few, many = torch.ones(2, 64).bfloat16(), torch.ones(99, 64).bfloat16()
    assert kernels.product_of(few.half(), weight).name == "reference"
    assert "dense" in kernels.product_of(few, dense).reason
    if native.isas():
        monkeypatch.setenv("HALFBYTE_KERNELS", "cpu-portable")
        assert kernels.product_of(few, weight).isa == "portable"
        assert "torch's product" in kernels.product_of(many, weight).reason
    for isa in native.isas():
        monkeypatch.setenv("HALFBYTE_KERNELS", f"cpu-{isa}")
        if isa in kernels.BF16:
            assert kernels.product_of(many, weight).isa == kernels.product_of(few, weight).isa == isa
        if isa in kernels.FP32:
            assert kernels.product_of(many.float(), weight).isa == kernels.product_of(few.float(), dense).isa == isa


def test_what_would_be_read_or_written_out_of_bounds_is_refused(implementation: str) -> None:
    weight, x, h, b = made(96, 64, "nf4"), torch.ones(2, 64), torch.ones(2, 4), torch.ones(96, 4)
    for arguments in [(x[:, :32],), (x, torch.ones(95)), (x, torch.ones(96).bfloat16()), (x, None, (h[:1], b)),
                      (x, None, (h, b[:, :3])), (x, None, None, torch.ones(1, 96))]:  # fmt: skip
        with pytest.raises(ValueError, match="is torch"):
            kernels.linear(arguments[0], weight, *arguments[1:])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x is"):
        kernels.linear_transposed(x, weight)
    with pytest.raises(ValueError, match="the pair's matrix"):
        kernels.linear_transposed(torch.ones(2, 96), weight, (h, torch.ones(4, 63)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_rows_give_no_rows(implementation: str, dtype: torch.dtype) -> None:
    for columns in (64, 72):
        weight = made(96, columns, "nf4")
        assert kernels.linear(torch.ones(0, columns, dtype=dtype), weight).shape == (0, 96)
        assert kernels.linear_transposed(torch.ones(0, 96, dtype=dtype), weight).shape == (0, columns)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("columns", [64, 128, 192, 320, 384, 4096, 4160])
def test_one_row_is_to_the_bit_what_it_is_among_four(bf16_kernels: None, weights: str, columns: int) -> None:
    """Rows of W of whole lines, that are half a line, that end with one, whose nested absmax changes (384), and, the
    longest, whose lines have two of these."""
    weight, make = made(50, columns, weights), torch.Generator().manual_seed(1)
    x, (a, b) = torch.randn(4, columns, generator=make).bfloat16(), rounded_pair(70, columns, 50)
    bias = torch.randn(50, generator=make).bfloat16()
    for count in (2, 3, 4):
        alone = [kernels.adapted(x[i : i + 1], weight, bias, (a, b)) for i in range(count)]
        assert torch.equal(torch.cat(alone), kernels.adapted(x[:count], weight, bias, (a, b)))


def rounded_pair(rank: int, columns: int, rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rank, columns).bfloat16() / columns**0.5, torch.randn(rows, rank).bfloat16()


@pytest.mark.parametrize("count", [0, 1, 3, 16, 17])
@pytest.mark.parametrize("rank", [1, 16, 100])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_layer_with_its_adapter_in_one_call(bf16_kernels: None, weights: str, rank: int, count: int) -> None:
    """As the two products one after the other: more rows than decoding has take that way anyway."""
    torch.manual_seed(count)
    weight, x, bias = made(100, 192, weights), torch.randn(count, 192).bfloat16(), torch.randn(100).bfloat16()
    a, b = rounded_pair(rank, 192, 100)
    got = kernels.adapted(x, weight, bias, (a, b))
    truth = x.double() @ exact(weight).T + bias + (x.double() @ a.double().T) @ b.double().T
    wanted = kernels.linear(x, weight, bias, (torch.nn.functional.linear(x, a), b))
    assert got.shape == (count, 100) and got.dtype == torch.bfloat16
    if count:
        assert error(got, truth) <= 2 * error(wanted, truth) + 2**-8 * float(truth.abs().max())


@pytest.mark.parametrize(("a", "b"), [((16, 191), (100, 16)), ((16, 192), (100, 15)), ((16, 192), (99, 16))])
def test_a_pair_of_other_shapes_is_refused(bf16_kernels: None, a: tuple[int, int], b: tuple[int, int]) -> None:
    x = torch.zeros(1, 192).bfloat16()
    with pytest.raises((ValueError, RuntimeError)):
        kernels.adapted(x, made(100, 192, "nf4"), None, (torch.zeros(a).bfloat16(), torch.zeros(b).bfloat16()))


@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("count", [1, 4, 5, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_gated_mlp_in_one_call_is_its_parts_one_after_the_other(
    implementation: str, dtype: torch.dtype, count: int, act: Act
) -> None:
    torch.manual_seed(count)
    x = torch.randn(count, 128).to(dtype)
    pairs = [tuple(part.to(dtype) for part in rounded_pair(*sizes)) for sizes in ((8, 128, 192), (4, 192, 128))]
    gate = kernels.Layer(made(192, 128, "nf4"), torch.randn(192).to(dtype), pairs[0])  # type: ignore[arg-type]
    up = kernels.Layer(made(192, 128, "int8"))
    down = kernels.Layer(made(128, 192, "bf16"), None, pairs[1])  # type: ignore[arg-type]
    got = kernels.gated_mlp(x, gate, up, down, act)
    if implementation == "reference":
        assert got is None
        return
    middle = gated(kernels.adapted(x, gate.weight, gate.bias, gate.lora), kernels.linear(x, up.weight), act)  # type: ignore[arg-type]
    wanted = kernels.adapted(middle, down.weight, None, down.lora)  # type: ignore[arg-type]
    assert got is not None and got.dtype == dtype
    if dtype == torch.bfloat16 and kernels.choose().isa in kernels.BF16:
        assert torch.equal(got, wanted)
    near = 2**-6 if dtype == torch.bfloat16 else 1e-6  # elsewhere the pair is torch's product in `adapted`
    assert float((got - wanted).float().norm()) <= near * float(wanted.float().norm())


def test_a_gated_mlp_is_left_to_others_where_rows_are_many() -> None:
    layers = [kernels.Layer(made(128, 128, "nf4"))] * 3
    assert kernels.gated_mlp(torch.zeros(17, 128).bfloat16(), *layers, "silu") is None
    if kernels.choose().name == "cpu":
        with pytest.raises(ValueError, match="not"):
            kernels.gated_mlp(torch.zeros(1, 64).bfloat16(), *layers, "silu")


@pytest.mark.parametrize("count", [1, 20])
def test_a_bias_with_gaps_is_read_as_it_is(bf16_kernels: None, count: int) -> None:
    weight, x = made(96, 128, "nf4"), torch.randn(count, 128).bfloat16()
    gappy = torch.randn(192).bfloat16()[::2]
    pair = rounded_pair(4, 128, 96)
    assert torch.equal(kernels.linear(x, weight, gappy), kernels.linear(x, weight, gappy.contiguous()))
    assert torch.equal(kernels.adapted(x, weight, gappy, pair), kernels.adapted(x, weight, gappy.contiguous(), pair))
