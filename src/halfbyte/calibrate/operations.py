"""The operations of a step, each timed by itself at a handful of shapes."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.calibrate.fit import Points, both, seconds, through
from halfbyte.config import AdapterConfig
from halfbyte.formats import QUANTISED, Weights
from halfbyte.kernels.cross_entropy import PLAIN, Ending
from halfbyte.kernels.fused import native_isa
from halfbyte.model.attention import Visible, attend
from halfbyte.model.linear import QuantLinear
from halfbyte.model.loss import LinearHead, next_token_loss
from halfbyte.plan import operations as count
from halfbyte.plan.operations import FEW

SHAPES = ((256, 256), (768, 256), (256, 768), (1024, 1024), (4096, 1024), (1024, 4096), (4096, 4096))  # out, in
RANKS_AT = ((256, 256), (1024, 1024))  # where other ranks are timed, too
TOKENS = (32, 128, 512)
RANK, OTHER_RANK = 16, 64
HEADS = ((8, 2, 64), (16, 16, 64), (8, 4, 128))  # heads, key heads, their width
SEEN = ((32, 32, False), (128, 128, False), (512, 512, False), (1024, 1024, False), (1, 256, False), (1, 1024, False),
         (128, 128, True), (512, 512, True))  # queries, keys, whether scores are capped  # fmt: skip
LOSSES = ((512, 256, 128), (32000, 512, 64), (32000, 512, 256), (16384, 2048, 128), (32000, 1024, 8),
          (65536, 2048, 8))  # vocabulary, hidden, tokens  # fmt: skip
CAPPED = ((32000, 512, 64), (65536, 256, 256))  # the same of heads with a soft cap
FEW_SHAPES = ((256, 256), (1024, 1024), (4096, 2048))  # out, in: that few rows are multiplied with
VOCABULARIES = ((512, 256), (16384, 1024), (65536, 1024))  # and hidden
TENSORS = ((16, 4096), (64, 4096), (64, 131072), (16, 524288))  # number and size, that the optimiser works on
RING = 64 << 20  # bytes of distinct weights that are multiplied in turn: more than most caches hold
LARGE, LEAST_RING, MOST_RING = 1 << 18, 4, 8  # bytes from which on a weight is one of a ring; how many that has
READ, WRITTEN = 1 << 28, 1 << 29  # bytes that reading and copying, and writing, are timed with
LONGEST = 4.0  # seconds of writing


def _weight(shape: tuple[int, int], weights: Weights) -> Any:
    dense = torch.randn(shape).mul_(0.02)
    if weights in QUANTISED:
        return kernels.quantise(dense.bfloat16(), weights)
    return dense if weights == "fp32" else dense.bfloat16()


def layers(
    weights: Weights, dtype: torch.dtype, shapes: Sequence[tuple[int, int]], lengths: Sequence[int], int8: bool = False
) -> dict[str, Points]:
    """The linear layer with adapter, forward and backward; on some shapes with another rank and without. `int8`: as
    `compute: int8` multiplies."""
    points = {"forward": Points(), "backward": Points()}
    for outputs, inputs in shapes:
        ring = _ring(_weight((outputs, inputs), weights))
        for tokens in lengths:
            ranks = (RANK, OTHER_RANK, 0) if (outputs, inputs) in RANKS_AT else (RANK,)
            for rank in ranks:
                layers = [_layer(one, rank, int8) for one in ring]
                x = torch.randn(tokens, inputs, dtype=dtype, requires_grad=True)
                gradient = torch.randn(tokens, outputs, dtype=dtype)
                units = count.product(tokens, outputs, inputs, rank)
                for kind, took in zip(points, through(layers, x, gradient), strict=True):
                    points[kind].add(units, took)
    return points


def _ring(weight: Any) -> list[Any]:
    """`weight` and copies of it, which are multiplied in turn: what was read of one has left a core's own caches when
    it is read again (a server's common one may hold them all)."""
    many = 1 if weight.nbytes < LARGE else max(LEAST_RING, min(MOST_RING, RING // weight.nbytes))
    return [weight, *(copy.deepcopy(weight) for _ in range(many - 1))]


def _layer(weight: Any, rank: int, int8: bool) -> QuantLinear:
    layer = QuantLinear(weight)
    layer.int8 = int8
    if rank:
        layer.add_adapter(AdapterConfig(rank=rank))
    layer.train()
    return layer


def few(weights: Weights, dtype: torch.dtype) -> Points:
    """Few rows through many distinct layers, as decoding does: bound by reading the weights."""
    points = Points()
    for shape in FEW_SHAPES:
        first = _weight(shape, weights)
        many = max(2, min(256, RING // first.nbytes))
        layers = [QuantLinear(first if not number else _weight(shape, weights)) for number in range(many)]
        for rank in (0, RANK):
            for layer in layers if rank else ():
                layer.add_adapter(AdapterConfig(rank=rank))
            for rows in (1, 4, FEW):
                x = torch.randn(rows, shape[1], dtype=dtype)

                def decode(layers: list[QuantLinear] = layers, x: Tensor = x) -> None:
                    for layer in layers:
                        layer(x)

                with torch.inference_mode():
                    for layer in layers:
                        layer.eval()
                    points.add(count.product(rows, *shape, rank), seconds(decode) / many)
    return points


def head(dtype: torch.dtype) -> dict[str, Points]:
    """The output head: a dense 16-bit matrix."""
    points = {"few": Points(), "forward": Points()}
    stored = torch.float32 if dtype == torch.float32 else torch.bfloat16
    for vocabulary, hidden in VOCABULARIES:
        head = LinearHead(torch.randn(vocabulary, hidden).mul_(0.02).to(stored))
        for kind, rows in (("few", 1), ("few", 4), ("few", FEW), ("forward", 32), ("forward", 128)):
            x = torch.randn(rows, hidden, dtype=dtype)
            with torch.inference_mode():
                took = seconds(lambda head=head, x=x: head(x).max(dim=-1), cold=True)  # type: ignore[misc]
            points[kind].add(count.product(rows, vocabulary, hidden), took)
    return points


def attention(dtype: torch.dtype) -> dict[str, Points]:
    points = {"forward": Points(), "backward": Points()}
    for heads, kv_heads, width in HEADS:
        for queries, keys, cap in SEEN:
            q, k, v = (torch.randn(1, tokens, number, width, dtype=dtype).transpose(1, 2).requires_grad_()
                       for tokens, number in ((queries, heads), (keys, kv_heads), (keys, kv_heads)))  # fmt: skip
            units = count.attention(1, heads, kv_heads, width, queries, keys, None, cap)
            visible = _causal(queries, keys)

            def forward(q: Tensor = q, k: Tensor = k, v: Tensor = v, visible: Any = visible,
                        cap: bool = cap) -> Tensor:  # fmt: skip
                q.grad = k.grad = v.grad = None
                return attend(_Module(), q, k, v, visible, softcap=50.0 if cap else None)[0]

            if queries == 1:
                with torch.inference_mode():
                    points["forward"].add(units, seconds(forward))
                continue
            for kind, took in zip(points, both(forward), strict=True):
                points[kind].add(units, took)
    return points


class _Module:
    """What transformers' "sdpa" asks of the module that calls it, where there is no native kernel."""

    is_causal, num_key_value_groups = True, 1


def _causal(queries: int, keys: int) -> Visible:
    def dense() -> Tensor:
        return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]

    return Visible(keys - queries, 0, None, dense)


def loss(dtype: torch.dtype) -> Points:
    points = Points()
    stored = torch.float32 if dtype == torch.float32 else torch.bfloat16
    for shapes, ending in ((LOSSES, PLAIN), (CAPPED, Ending(cap=30.0))):
        for vocabulary, hidden, tokens in shapes:
            weight = torch.randn(vocabulary, hidden).mul_(0.02).to(stored)
            made = LinearHead(weight, ending)
            x = torch.randn(1, tokens + 1, hidden, dtype=dtype, requires_grad=True)
            labels = torch.randint(vocabulary, (1, tokens + 1))
            head = made if native_isa(x) or ending == PLAIN else made.__call__  # which goes through autograd
            work = lambda x=x, labels=labels, head=head: next_token_loss(x, labels, head).backward()  # type: ignore[no-untyped-call]  # noqa: E731
            points.add(count.loss(tokens, vocabulary, hidden, ending != PLAIN), seconds(work, cold=True))
    return points


def optimiser() -> Points:
    """As the loop does it: set to zero, clip, step."""
    points = Points()
    for tensors, size in TENSORS:
        parameters = [torch.nn.Parameter(torch.randn(size)) for _ in range(tensors)]
        block = torch.zeros(tensors, size)
        for parameter, gradient in zip(parameters, block, strict=True):
            parameter.grad = gradient
        adam = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

        def work(parameters: list[torch.nn.Parameter] = parameters, adam: torch.optim.AdamW = adam,
                 block: Tensor = block) -> None:  # fmt: skip
            block.zero_()
            float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
            adam.step()

        points.add(count.optimiser(tensors, tensors * size), seconds(work, cold=True))
    return points


def memory() -> dict[str, float]:
    """Bytes a second: read, and copied (bytes read and written, added up)."""
    source = torch.ones(READ // 4)
    target = torch.empty_like(source)
    return {"read": source.nbytes / seconds(lambda: source.max()),
            "copy": 2 * source.nbytes / seconds(lambda: target.copy_(source))}  # fmt: skip


def writing(folder: Path) -> float:
    """Bytes a second to the disk of `folder`, until they are there: many, since the first ones may go to a disk's own
    memory. Raises OSError where they have no room."""
    file, data, done = folder / "written", torch.randint(256, (WRITTEN // 8,), dtype=torch.uint8).numpy().tobytes(), 0
    began = time.perf_counter()
    try:
        with file.open("wb", buffering=0) as out:
            while done < WRITTEN and time.perf_counter() - began < LONGEST:
                done += out.write(data)
                os.fsync(out.fileno())
    finally:
        file.unlink(missing_ok=True)
    return done / (time.perf_counter() - began)


def quantising() -> float:
    """Weights a second to NF4."""
    weight = torch.randn(SHAPES[-1]).bfloat16()
    return weight.numel() / seconds(lambda: kernels.quantise(weight, "nf4"))
