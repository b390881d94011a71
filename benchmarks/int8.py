"""`compute: int8` beside bf16: seconds of a product of 14336 x 4096 with 512 tokens, and its error.

python benchmarks/int8.py

Printed, not kept as CSV: nobody gets this option unasked. Errors are relative, root mean square, against fp64
on the dequantised weight. What int8 does to a tuned model is another matter: see "compute: int8" in the remarks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from halfbyte import kernels
from halfbyte.formats import Weights
from halfbyte.kernels.packed import PackedWeight

OUT, IN, TOKENS, TURNS = 14336, 4096, 512, 7
PACKED: tuple[Weights, ...] = ("nf4", "int8")


def speed() -> None:
    x, g = torch.randn(TOKENS, IN).bfloat16(), torch.randn(TOKENS, OUT).bfloat16()
    dense = (torch.randn(OUT, IN) * 0.02).bfloat16()
    ways: dict[str, Callable[[], Tensor]] = {
        "torch, bf16, y = x W^T": lambda: F.linear(x, dense),
        "torch, bf16, dx = g W": lambda: g @ dense,
    }
    for weights in PACKED:
        packed = kernels.quantise(dense, weights)
        for int8 in (False, True):
            kind = f"{weights} weight in {'int8' if int8 else 'bf16'}"
            ways[f"{kind}, y = x W^T"] = lambda w=packed, i=int8: kernels.linear(x, w, int8=i)  # type: ignore[misc]
            ways[f"{kind}, dx = g W"] = lambda w=packed, i=int8: kernels.linear_transposed(g, w, int8=i)  # type: ignore[misc]
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first one prepares buffers and threads
                took[name].append(time.perf_counter() - started)
    for name, seconds in took.items():
        median = statistics.median(seconds)
        print(f"{name:35s} {1e3 * median:6.1f} ms  {2e-9 * OUT * IN * TOKENS / median:4.0f} G operations/s")


def accuracy() -> None:
    torch.manual_seed(0)
    weight, x, g = torch.randn(1024, 2048) * 0.02, torch.randn(64, 2048), torch.randn(64, 1024)
    loud = x.clone()
    loud[:, torch.randperm(2048)[:6]] *= 50
    lognormal = torch.exp(torch.randn(1024, 1))
    cases = {
        "normal": (weight, x, g),
        "6 of 2048 channels of x 50 times as large": (weight, loud, g),
        "lognormal sizes of W's rows and g's channels": (weight * lognormal, x, g * torch.exp(1.5 * torch.randn(1024))),
    }
    for name, (w, rows, gradient) in cases.items():
        for weights in PACKED:
            packed = kernels.quantise(w.bfloat16(), weights)
            forward, backward = _errors(packed, rows.bfloat16(), gradient.bfloat16())
            print(f"{name}, {weights}: y {forward}; dx {backward}")


def _errors(packed: PackedWeight, x: Tensor, g: Tensor) -> tuple[str, str]:
    exact = kernels.dequantise(packed, torch.float32).double()

    def words(product: Callable[..., Tensor], rows: Tensor, truth: Tensor) -> str:
        made = (product(rows, packed, int8=int8).double() for int8 in (False, True))
        bf16, int8 = (100 * float((y - truth).norm() / truth.norm()) for y in made)
        return f"{int8:.2f} % (bf16 {bf16:.2f} %)"

    return words(kernels.linear, x, x.double() @ exact.T), words(kernels.linear_transposed, g, g.double() @ exact)


if __name__ == "__main__":
    speed()
    accuracy()
