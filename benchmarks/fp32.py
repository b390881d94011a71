"""Products in fp32, halfbyte's beside torch's, in turns: a matrix as it is, and one in NF4, forward and transposed.

    python benchmarks/fp32.py

Writes benchmarks/results/fp32/fp32.csv. torch multiplies the dense matrix: it has no product with one in NF4.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common
from halfbyte import kernels

SHAPES, TOKENS, ROUNDS = ((2048, 2048), (8192, 2048), (2048, 8192), (14336, 4096)), 512, 7


def ways(x: Tensor, g: Tensor, dense: Tensor) -> dict[tuple[str, str], Callable[[], Tensor]]:
    """By the case and who computes it."""
    found: dict[tuple[str, str], Callable[[], Tensor]] = {
        ("y = x W^T, fp32", "torch"): lambda: F.linear(x, dense),
        ("dx = g W, fp32", "torch"): lambda: g @ dense,
    }
    for name, weight in (("fp32", dense), ("nf4", kernels.quantise(dense, "nf4"))):
        found[f"y = x W^T, {name}", "halfbyte"] = lambda w=weight: kernels.linear(x, w)  # type: ignore[misc]
        found[f"dx = g W, {name}", "halfbyte"] = lambda w=weight: kernels.linear_transposed(g, w)  # type: ignore[misc]
    return found


def main() -> None:
    torch.manual_seed(0)
    table = common.Table(common.RESULTS / "fp32" / "fp32.csv")
    for outputs, inputs in SHAPES:
        x, g, dense = torch.randn(TOKENS, inputs), torch.randn(TOKENS, outputs), torch.randn(outputs, inputs) * 0.02
        for (case, who), seconds in common.in_turns(ways(x, g, dense), ROUNDS).items():
            speeds = tuple(2 * outputs * inputs * TOKENS / took for took in seconds)
            table.add([common.Row("product", f"{outputs}x{inputs}", case, who, "flops_per_second", speeds)])


if __name__ == "__main__":
    main()
