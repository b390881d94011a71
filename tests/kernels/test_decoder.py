"""Decoder layers in one native call, against their specification in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.formats import Weights
from halfbyte.kernels.choice import VARIABLE
from halfbyte.kernels.decoder import FEW, Block, Cache, Decoder, Linears, Norm, Norms, reference, uncovered
from halfbyte.kernels.product.reference import Layer

from .cases import IMPLEMENTATIONS

WIDTH, INNER, HEADS, KV_HEADS, HEAD, ROOM = 96, 160, 6, 2, 16, 40
BUILDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "with biases and adapters": {"bias": True, "rank": 5},
    "qwen3": {"norms": {"before_attention", "before_mlp", "of_q", "of_k"}, "rank": 16, "rotary": 8},
    "gemma": {
        "norms": set(Norms._fields),
        "style": "shifted",
        "window": 7,
        "cap": 5.0,
        "act": "gelu_tanh",
        "weights": "int8",
    },
    "olmo2": {"norms": {"of_q", "of_k", "after_attention", "after_mlp"}, "whole": True, "angles": torch.float32},
    "granite": {"residual": 0.22, "scale": 0.5, "weights": "bf16", "rank": 3},
    "smollm3": {"turns": (0, None), "weights": "nf4-single"},
    "gemma3": {"turns": (0, 1), "window": 3},
}  # fmt: skip


class Case:
    """Two blocks of random weights, caches with tokens in them, and a step."""

    def __init__(
        self, dtype: torch.dtype, rows: int = 3, position: int = 20, *, bias: bool = False, rank: int = 0,
        norms: set[str] | None = None, style: Any = "narrow", whole: bool = False, weights: Weights = "nf4",
        rotary: int = HEAD, angles: torch.dtype | None = None, turns: tuple[int | None, int | None] = (0, 0),
        act: Any = "silu", scale: float = 0.25, **others: Any,
    ) -> None:  # fmt: skip
        self.make = torch.Generator().manual_seed(rows + position)
        self.dtype, self.position = dtype, position
        norms = {"before_attention", "before_mlp"} if norms is None else norms

        def layer(out: int, columns: int) -> Layer:
            weight = self.random(out, columns, dtype=torch.float32) * columns**-0.5
            dense = {"bf16": torch.bfloat16, "fp32": torch.float32}
            frozen = weight.to(dense[weights]) if weights in dense else kernels.quantise(weight, weights)
            pair = (self.random(rank, columns) * 0.1, self.random(out, rank)) if rank else None
            return Layer(frozen, self.random(out) if bias else None, pair)

        def norm(name: str) -> Norm | None:
            widths = {"of_q": HEADS * HEAD if whole else HEAD, "of_k": KV_HEADS * HEAD if whole else HEAD}
            return Norm(self.random(widths.get(name, WIDTH)), 1e-5, style) if name in norms else None

        shapes = ((HEADS * HEAD, WIDTH), (KV_HEADS * HEAD, WIDTH), (KV_HEADS * HEAD, WIDTH), (WIDTH, HEADS * HEAD),
                  (INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER))  # fmt: skip
        self.blocks = [
            Block(Linears(*(layer(*s) for s in shapes)), Norms(*map(norm, Norms._fields)), act, scale, angles=turn,
                  **others)
            for turn in turns
        ]  # fmt: skip
        self.hidden = self.random(rows, WIDTH)
        self.before = [tuple(self.random(rows, KV_HEADS, ROOM, HEAD) for _ in "kv") for _ in turns]
        halves = [self.random(rows, rotary // 2, dtype=angles or dtype) for _ in range(4)]
        self.angles = [(torch.cat((a, a), 1), torch.cat((b, b), 1)) for a, b in (halves[:2], halves[2:])]

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self.make).to(dtype or self.dtype)

    def caches(self, dtype: torch.dtype | None = None) -> list[Cache]:
        return [(k.to(dtype or self.dtype, copy=True), v.to(dtype or self.dtype, copy=True)) for k, v in self.before]

    def ours(self, visible: Tensor | None = None) -> list[Tensor]:
        """The new hidden state, and the caches after it."""
        caches = self.caches()
        made = Decoder(self.blocks, caches).step(self.hidden, self.position, self.angles, visible)
        return [made, *(states for cache in caches for states in cache)]

    def theirs(self, dtype: torch.dtype, visible: Tensor | None = None) -> list[Tensor]:
        """The same by the specification, computed in `dtype`."""
        caches = self.caches(dtype)
        angles = [tuple(half.to(max(dtype, half.dtype, key=lambda kind: kind.itemsize)) for half in pair)
                  for pair in self.angles]  # fmt: skip
        blocks = [_as(dtype, block) for block in self.blocks]
        made = reference.decode(self.hidden.to(dtype), blocks, caches, self.position, angles, visible)  # type: ignore[arg-type]
        return [made, *(states for cache in caches for states in cache)]


def _as(dtype: torch.dtype, block: Block) -> Block:
    linears = (
        Layer(of.weight, None if of.bias is None else of.bias.to(dtype),
              None if of.lora is None else (of.lora[0].to(dtype), of.lora[1].to(dtype)))
        for of in block.linears
    )  # fmt: skip
    norms = (None if norm is None else norm._replace(weight=norm.weight.to(dtype)) for norm in block.norms)
    return block._replace(linears=Linears(*linears), norms=Norms(*norms))


@pytest.fixture(params=IMPLEMENTATIONS[1:])
def native_code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each implementation but the reference, which has no such call."""
    name: str = request.param
    monkeypatch.setenv(VARIABLE, name)
    return name


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_computes_the_specification(native_code: str, dtype: torch.dtype, build: str) -> None:
    case = Case(dtype, **BUILDS[build])
    truth, plain = case.theirs(torch.float32), case.theirs(dtype)
    for got, wanted, other in zip(case.ours(), truth, plain, strict=True):
        assert got.dtype == dtype and got.shape == wanted.shape
        allowed = 2e-6 if dtype == torch.float32 else 2 * _error(other, wanted) + 2**-9
        assert _error(got, wanted) <= allowed


def _error(made: Tensor, truth: Tensor) -> float:
    return float((made.float() - truth).norm() / truth.norm())


def test_weights_in_fp32_are_covered_where_their_products_are(native_code: str) -> None:
    case = Case(torch.float32, weights="fp32", bias=True, rank=5)
    many = kernels.multiplies_many(kernels.choose("cpu").isa, torch.float32)
    assert ("torch's product" in uncovered(case.blocks, torch.float32)) is not many
    if many:
        wanted = case.theirs(torch.float32)
        assert all(_error(got, truth) <= 2e-6 for got, truth in zip(case.ours(), wanted, strict=True))


@pytest.mark.parametrize("rows", [1, 2, 5, FEW])
@pytest.mark.parametrize("position", [0, ROOM - 1])
def test_any_few_rows_at_any_place(native_code: str, rows: int, position: int) -> None:
    case = Case(torch.float32, rows, position, rank=4)
    visible = torch.rand(rows, position + 1, generator=case.make) < 0.7
    visible[:, -1] = True
    for got, wanted in zip(case.ours(visible), case.theirs(torch.float32, visible), strict=True):
        assert _error(got, wanted) <= 2e-6


def test_the_caches_change_in_one_place_only(native_code: str) -> None:
    case = Case(torch.bfloat16)
    for made, before in zip(case.ours()[1:], (states for cache in case.before for states in cache), strict=True):
        same = (made == before).all(-1).all(0).all(0)
        assert not same[case.position] and same.sum() == ROOM - 1


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_threads_and_a_second_step_change_no_bit(native_code: str, one_thread: None) -> None:
    case = Case(torch.bfloat16, rank=4)
    alone = case.ours()
    torch.set_num_threads(2)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(alone, case.ours(), strict=True))


def test_fewer_rows_than_the_cache_has(native_code: str) -> None:
    case = Case(torch.float32, 4)
    caches = case.caches()
    angles = [(cos[:2], sin[:2]) for cos, sin in case.angles]
    made = Decoder(case.blocks, caches).step(case.hidden[:2], case.position, angles)
    whole = case.theirs(torch.float32)
    assert _error(made, whole[0][:2]) <= 2e-6
    assert torch.equal(caches[0][0][2:], case.before[0][0][2:])


@pytest.mark.parametrize(("change", "message"), [
    ({"hidden": torch.zeros(3, WIDTH + 1)}, "hidden"),
    ({"hidden": torch.zeros(3, WIDTH).bfloat16()}, "hidden"),
    ({"hidden": torch.zeros(0, WIDTH)}, "hidden"),
    ({"hidden": torch.zeros(4, WIDTH)}, "room for 3"),
    ({"position": ROOM}, "position 40"),
    ({"position": -1}, "position -1"),
    ({"angles": []}, "0 angles"),
    ({"angles": [(torch.zeros(3, HEAD + 2),) * 2] * 2}, "angle"),
    ({"angles": [(torch.zeros(2, HEAD),) * 2] * 2}, "angle"),
    ({"angles": [(torch.zeros(3, HEAD).double(),) * 2] * 2}, "angles are torch.float64"),
    ({"visible": torch.ones(3, 20).bool()}, "mask"),
    ({"visible": torch.ones(3, 21)}, "mask"),
])  # fmt: skip
def test_a_step_that_would_read_beyond_is_refused(native_code: str, change: dict[str, Any], message: str) -> None:
    case = Case(torch.float32)
    step = {"hidden": case.hidden, "position": 20, "angles": case.angles} | change
    with pytest.raises(ValueError, match=message):
        Decoder(case.blocks, case.caches()).step(**step)


@pytest.mark.parametrize("name", ["q", "v", "o", "up", "down", "of_k", "after_mlp", "cache", "bias", "lora"])
def test_blocks_that_do_not_fit_together_are_refused(native_code: str, name: str) -> None:
    case = Case(torch.float32, bias=True, rank=4, norms=set(Norms._fields))
    block, caches = case.blocks[1], case.caches()
    if name == "cache":
        caches[1] = (caches[1][0][:, :1], caches[1][1])
    elif name in Norms._fields:
        block = block._replace(norms=block.norms._replace(**{name: Norm(torch.ones(WIDTH - 1), 1e-5, "narrow")}))
    else:
        q = block.linears.q
        assert q.lora is not None
        other = Case(torch.float32, 2).blocks[0].linears
        wrong = {"bias": ("q", q._replace(bias=torch.zeros(3))),
                 "lora": ("q", q._replace(lora=(q.lora[0][:, 1:], q.lora[1]))),
                 "up": ("up", other.q)}.get(name, (name, other.gate))  # fmt: skip
        block = block._replace(linears=block.linears._replace(**dict([wrong])))
    with pytest.raises(ValueError, match=r"is \(|is torch|is \["):
        Decoder([case.blocks[0], block], caches)


def test_what_is_not_covered_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Case(torch.float32, weights="bf16").blocks
    assert "float16" in uncovered(blocks, torch.float16)
    dense = blocks[0]._replace(linears=blocks[0].linears._replace(o=Layer(torch.zeros(WIDTH, HEADS * HEAD))))
    assert "dense torch.float32" in uncovered([blocks[0], dense], torch.bfloat16)
    monkeypatch.setenv(VARIABLE, "reference")
    assert "plain PyTorch" in uncovered(blocks, torch.float32)
