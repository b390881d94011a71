"""A quantised linear layer, halfbyte's QuantLinear beside bitsandbytes' Linear4bit (with PEFT's LoRA), in turns.

Training: 512 tokens forward, and forward with backward to the input, without LoRA and with r=16; the limit is the
product alone, of a matrix in the type that is computed in (compute.py). Decoding: 1 to 64 rows times packed weights,
one after another over at least 1 GB of distinct ones, so that none is found in a cache; the peer is in eval mode and
has repacked; the limit is the speed of reading memory.

    python benchmarks/linear.py --matrix 14336 4096
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common, compute, limits
from benchmarks.common import Row

TOKENS, RANK = 512, 16
MATRICES = ((14336, 4096), (4096, 14336), (4096, 4096))
ROWS = (1, 2, 4, 8, 16, 32, 64)
DISTINCT_BYTES = 1_050_000_000


def dense(size: tuple[int, int]) -> Tensor:
    return (torch.randn(*size, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()


def plain(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def ours(weight: Tensor, rank: int) -> nn.Module:
    from halfbyte import kernels
    from halfbyte.config import AdapterConfig
    from halfbyte.model.linear import QuantLinear

    layer = QuantLinear.from_base(plain(weight), kernels.quantise(weight, "nf4"), None)
    if rank:
        layer.add_adapter(AdapterConfig(rank=rank, alpha=2 * rank))
    return layer


def peer(weight: Tensor, rank: int) -> Any:
    import bitsandbytes as bnb

    def layer() -> Any:
        made = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=False, compute_dtype=compute.dtype(),
                                 compress_statistics=True, quant_type="nf4", device="meta")  # fmt: skip
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4")
        made = made.to("cpu")  # quantises
        assert made.weight.quant_state is not None and made.weight.dtype == torch.uint8
        return made

    if not rank:
        return layer()
    from peft import LoraConfig, inject_adapter_in_model

    net = nn.Sequential()
    net.add_module("proj", layer())
    return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["proj"]), net)


def training(rounds: int, seconds: float, matrices: tuple[tuple[int, int], ...]) -> Iterator[list[Row]]:
    """Seconds of a pass over 512 tokens, by matrix, rank and contender."""
    for size in matrices:
        made: list[Row] = []
        weight = dense(size)
        x, gradient = torch.randn(TOKENS, size[1]), torch.randn(TOKENS, size[0])
        layers: dict[tuple[int, str], Any] = {(0, "limit"): plain(weight.to(compute.dtype()))}
        for rank in (0, RANK):
            layers |= {(rank, "halfbyte"): ours(weight, rank), (rank, "peer"): peer(weight, rank)}
        work: dict[tuple[str, int, str], Callable[[], object]] = {}
        for (rank, who), layer in layers.items():
            dtype = compute.own() if who == "halfbyte" else compute.dtype()
            rows = x.to(dtype, copy=True).requires_grad_()
            work["forward", rank, who] = _forward(layer.train(), rows)
            work["forward and backward", rank, who] = _both(layer, rows, gradient.to(dtype))
        for (what, rank, who), values in common.in_turns(work, rounds, seconds).items():
            for counted in (0, RANK) if who == "limit" else (rank,):
                case = f"{what}, {f'r={counted}' if counted else 'without LoRA'}"
                made.append(Row("linear", "{}x{}".format(*size), case, who, "seconds", tuple(values)))
        yield made


def _forward(layer: Any, x: Tensor) -> Callable[[], object]:
    return lambda: layer(x)


def _both(layer: Any, x: Tensor, gradient: Tensor) -> Callable[[], object]:
    def run() -> None:
        layer(x).backward(gradient)
        x.grad = None
        for parameter in layer.parameters():
            parameter.grad = None

    return run


def distinct(size: tuple[int, int], nbytes: int) -> dict[str, list[Any]]:
    """At least `nbytes` of packed layers of `size` for each contender, all of one matrix, each in memory of its own."""
    from halfbyte.kernels.packed import NF4Weight
    from halfbyte.model.linear import QuantLinear

    weight = dense(size)
    mine, theirs = ours(weight, 0).eval(), peer(weight, 0).eval()
    packed = mine.frozen
    assert isinstance(packed, NF4Weight) and packed.nested_absmax is not None
    codes, absmax, nested = packed.codes, packed.absmax, packed.nested_absmax
    count = -(-nbytes // packed.nbytes)

    def another() -> QuantLinear:
        parts = dataclasses.replace(packed, codes=codes.clone(), absmax=absmax.clone(), nested_absmax=nested.clone())
        return QuantLinear.from_base(plain(weight), parts, None).eval()

    return {"halfbyte": [another() for _ in range(count)], "peer": [copy.deepcopy(theirs) for _ in range(count)]}


def decoding(rounds: int, seconds: float, size: tuple[int, int], distinct_bytes: int) -> Iterator[list[Row]]:
    """Bytes of packed weights and constants a second, by rows and contender; and reading alone."""
    shape = "{}x{}".format(*size)
    layers, memory = distinct(size, distinct_bytes), limits.Memory(distinct_bytes // 4)
    nbytes = sum(layer.frozen.nbytes for layer in layers["halfbyte"])
    reads: list[float] = []
    with torch.inference_mode():
        for rows in ROWS:
            x = torch.randn(rows, size[1])
            inputs = {"halfbyte": x.to(compute.own()), "peer": x.to(compute.dtype())}
            speeds: dict[str, list[float]] = {who: [] for who in layers}
            for turn in common.rounds_within(rounds, seconds):  # the first turn lets the peer repack
                for who, found in layers.items():
                    began = time.perf_counter()
                    for layer in found:
                        layer(inputs[who])
                    if turn:
                        speeds[who].append(nbytes / (time.perf_counter() - began))
                if turn:
                    reads.append(memory.read_bytes_per_second())
            case = f"{rows} row{'s' * (rows > 1)}"
            yield [
                Row("rows", shape, case, who, "packed_bytes_per_second", tuple(found)) for who, found in speeds.items()
            ]
    assert len({layer.weight.data_ptr() for layer in layers["peer"]}) == len(layers["peer"])
    yield [Row("rows", shape, "reading alone", "limit", "bytes_per_second", tuple(reads))]


def main(given: Sequence[str] | None = None) -> None:
    common.quiet()
    matrix = {"type": int, "nargs": 2, "metavar": ("OUT", "IN"), "help": "one matrix instead of three"}
    distinct = {"type": int, "default": DISTINCT_BYTES, "help": "bytes of weights to decode with (%(default)s)"}
    options = common.arguments(__doc__, given, rounds=5, seconds=30.0, matrix=matrix, distinct=distinct)
    matrices = (tuple(options.matrix),) if options.matrix else MATRICES
    table = common.Table(options.results / "linear.csv")
    for rows in training(options.rounds, options.seconds, matrices):
        table.add(rows)
    for rows in decoding(options.rounds, options.seconds, matrices[0], options.distinct):
        table.add(rows)


if __name__ == "__main__":
    main()
