"""What the machine allows: the matrix products alone, reading memory, copying it.

    python benchmarks/limits.py

The products of a step are those of the linear layers and of the head by torch in the type that is computed in
(compute.py), without attention:
forward, and backward with respect to the input (the frozen weights have no gradient). Each shape is timed by itself, in
every turn, and counted as often as it occurs.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common, compute
from benchmarks.shapes import SHAPES, linears
from benchmarks.turns import Figures, Phase

READ_FLOATS = 1 << 28  # 1 GiB, many times any cache
PASSES = 5  # over all of a buffer in a turn
REPEATS = 2  # of a product in a turn
LARGE = 4096  # rows and columns of a product in which only the arithmetic counts


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """The mean of `repeats`: a product counts many times in a step, its slow moments too."""
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - began) / repeats


def product_counts(shape: str) -> Counter[tuple[int, int]]:
    """How often a weight (out, in) is multiplied in one pass over the decoder layers."""
    model = SHAPES[shape]
    once = Counter(linears(model).values())
    return Counter({size: model["num_hidden_layers"] * count for size, count in once.items()})


def step_seconds(figures: Figures, layers: int, recomputed: int) -> float:
    """The products alone of one training step in which `recomputed` of `layers` layers are computed again."""
    forward = figures["linears_forward_seconds"] * (1 + recomputed / layers)
    return (forward + figures["linears_backward_seconds"] + figures["head_forward_seconds"]
            + figures["head_backward_seconds"])  # fmt: skip


def products(shape: str, tokens: int) -> Phase:
    """A turn: seconds of the products of one pass, the linear layers and the head apart, forward and backward."""
    counts = product_counts(shape)
    head = (SHAPES[shape]["vocab_size"], SHAPES[shape]["hidden_size"])
    weights = {size: torch.randn(size, dtype=compute.dtype()) for size in {*counts, head}}
    inputs = {size: torch.randn(tokens, size[1], dtype=compute.dtype()) for size in weights}
    gradients = {size: torch.randn(tokens, size[0], dtype=compute.dtype()) for size in weights}

    def forward(size: tuple[int, int]) -> float:
        return _seconds(lambda: F.linear(inputs[size], weights[size]), REPEATS)

    def backward(size: tuple[int, int]) -> float:
        return _seconds(lambda: gradients[size] @ weights[size], REPEATS)

    def turn() -> dict[str, float]:
        return {
            "linears_forward_seconds": sum(count * forward(size) for size, count in counts.items()),
            "linears_backward_seconds": sum(count * backward(size) for size, count in counts.items()),
            "head_forward_seconds": forward(head),
            "head_backward_seconds": backward(head),
        }

    yield {}
    while True:
        with torch.inference_mode():
            figures = turn()
        yield figures


class Memory:
    """Buffers of a GiB, and how fast they are read and copied."""

    def __init__(self, floats: int = READ_FLOATS) -> None:
        self.source = torch.ones(floats)
        self.target = torch.empty_like(self.source)

    def read_bytes_per_second(self) -> float:
        """Reading alone, by the fastest of three sums over all of it that torch knows."""
        ways: tuple[Callable[[Tensor], object], ...] = (torch.max, torch.sum, lambda x: torch.dot(x, x))
        return self.source.nbytes / min(_seconds(lambda way=way: way(self.source), 1) for way in ways)  # type: ignore[misc]

    def copy_bytes_per_second(self) -> float:
        """Bytes read and bytes written, added up."""
        return 2 * self.source.nbytes / _seconds(lambda: self.target.copy_(self.source), 1)


def memory() -> Phase:
    """A turn: bytes a second that memory is read with and copied with, the medians of some passes."""
    buffers = Memory()
    yield {}
    while True:
        yield {"read_bytes_per_second": median(buffers.read_bytes_per_second() for _ in range(PASSES)),
               "copy_bytes_per_second": median(buffers.copy_bytes_per_second() for _ in range(PASSES))}  # fmt: skip


def bytes_per_token(net: Any) -> int:
    """What one decoded token reads at least once: packed weights with their constants, the head, the norms.

    Of an embedding that is not the head, a token reads one row, which is left out.
    """
    from halfbyte.model.linear import QuantLinear

    packed: int = sum(module.frozen.nbytes for module in net.modules() if isinstance(module, QuantLinear))
    dense: dict[int, int] = {id(p): p.nbytes for name, p in net.named_parameters() if "lora_" not in name}
    embedding, head = net.get_input_embeddings().weight, net.get_output_embeddings().weight
    if embedding is not head:
        dense.pop(id(embedding), None)
    return packed + sum(dense.values())


def step_flops(shape: str, tokens: int, recomputed: int) -> int:
    """Of the products of one training step: forward, again for `recomputed` layers, and backward to the inputs."""
    model = SHAPES[shape]
    layers, head = model["num_hidden_layers"], Counter({(model["vocab_size"], model["hidden_size"]): 1})
    once = flops(product_counts(shape), tokens)
    return 2 * once + once * recomputed // layers + 2 * flops(head, tokens)


def flops(counts: Counter[tuple[int, int]], tokens: int) -> int:
    """Of one pass of the products over `tokens` tokens."""
    return sum(2 * tokens * math.prod(size) * count for size, count in counts.items())


def main(given: Sequence[str] | None = None) -> None:
    size = {"type": int, "default": LARGE, "help": "rows and columns of the product (%(default)s)"}
    floats = {"type": int, "default": READ_FLOATS, "help": "numbers that are read and copied (%(default)s)"}
    options = common.arguments(__doc__, given, rounds=9, seconds=10.0, size=size, floats=floats)
    types = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if compute.name() == "fp32":
        del types["bf16"]  # where it is emulated, one product takes minutes
    squares = {name: torch.randn(options.size, options.size).to(dtype) for name, dtype in types.items()}
    buffers = Memory(options.floats)
    speeds: dict[tuple[str, str], list[float]] = {}
    with torch.inference_mode():
        for turn in common.rounds_within(options.rounds, options.seconds):
            found = {(f"{name} product", "flops_per_second"): 2 * options.size**3 / _seconds(lambda x=x: x @ x, 1)  # type: ignore[misc]
                     for name, x in squares.items()}  # fmt: skip
            found["reading", "bytes_per_second"] = buffers.read_bytes_per_second()
            found["copying", "bytes_per_second"] = buffers.copy_bytes_per_second()
            for key, value in found.items() if turn else ():  # a first round does not count
                speeds.setdefault(key, []).append(value)
    rows = [common.Row("machine", "", case, "limit", figure, tuple(found)) for (case, figure), found in speeds.items()]
    common.Table(options.results / "machine.csv").add(rows)


if __name__ == "__main__":
    main()
