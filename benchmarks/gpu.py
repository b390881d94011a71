"""The Triton kernels on a card, beside a copy on it and torch's product in bf16; and the tiles that could be chosen.

    python benchmarks/gpu.py --matrix 14336 4096

Each work goes over several matrices, together larger than the card's cache, and ends when the card is done. A figure is
`bytes_per_second`: what the work has to read and write at least, which for a product is the packed weight. Goals:
dequantising at 80 % of the copy, and a product with one row at 60 % of it. Case "tile ..." is the same product with
other constants than those of `kernels/product/gpu.py`.

It writes gpu.csv, of which docs/performance.md knows nothing, since no card has run it yet.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common
from halfbyte import kernels
from halfbyte.formats import Weights

Work = Callable[[], object]
MATRICES = 8  # that take turns, so that none is in the cache: 8 x 33 MB in NF4, 8 x 117 MB in bf16
ROWS = (1, 4, 16)
TILES = {
    "sums": [(outs, step, warps) for outs in (4, 8, 16) for step in (256, 512, 1024) for warps in (4, 8)],
    "dot": [(outs, step, warps) for outs in (16, 32, 64) for step in (128, 256) for warps in (4, 8)],
}
FORMATS: tuple[Weights, ...] = ("nf4", "int8")


def works(dense: list[Tensor], tiles: bool) -> dict[tuple[str, str, str], tuple[int, Work]]:
    """By op, case and who: the bytes that it moves at least, and the work over all matrices of `dense` (bf16)."""
    like, device = dense[0], dense[0].device
    out = torch.empty_like(like)
    made: dict[tuple[str, str, str], tuple[int, Work]] = {}
    made["copy", "bf16 to bf16", "limit"] = (2 * like.nbytes, lambda: [out.copy_(one) for one in dense])
    who = f"halfbyte {kernels.choose(device).name}"
    for weights in FORMATS:
        packed = [kernels.quantise(one, weights) for one in dense]
        small = packed[0].nbytes
        moved = small + like.nbytes
        made["quantise", weights, who] = (moved, _each(dense, lambda one, w=weights: kernels.quantise(one, w)))
        decode = _each(packed, lambda one: kernels.dequantise(one, torch.bfloat16, out=out))
        made["dequantise", f"{weights} to bf16", who] = (moved, decode)
        for rows in ROWS:
            x = torch.randn(rows, like.shape[1], dtype=like.dtype, device=device)
            case = f"{weights}, rows: {rows}"
            made["product", case, who] = (small, _each(packed, lambda one, x=x: kernels.linear(x, one)))
            for tile in TILES["sums" if rows <= 4 else "dot"] if tiles and weights == "nf4" else []:
                made["product", f"{case}, tile {tile}", who] = (small, _each(packed, _tiled(x, tile)))
    for rows in ROWS:
        x = torch.randn(rows, like.shape[1], dtype=like.dtype, device=device)
        made["product", f"bf16, rows: {rows}", "peer"] = (like.nbytes, _each(dense, lambda one, x=x: F.linear(x, one)))
    return made


def _each(matrices: Sequence[object], work: Callable[..., object]) -> Work:
    return lambda: [work(one) for one in matrices]


def _tiled(x: Tensor, tile: tuple[int, int, int]) -> Callable[..., object]:
    from halfbyte.kernels.product import gpu

    return lambda one: gpu.few(x, one, None, None, None, tile)


def _finished(work: Work) -> Work:
    def run() -> None:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def main(given: Sequence[str] | None = None) -> None:
    matrix = {"type": int, "nargs": 2, "default": (14336, 4096), "metavar": ("OUT", "IN")}
    device = {"default": "cuda", "help": "cpu is for tests, with HALFBYTE_KERNELS=gpu and TRITON_INTERPRET=1"}
    tiles = {"action": "store_true", "help": "also try other tiles: some minutes of compiling"}
    options = common.arguments(__doc__, given, rounds=20, seconds=60.0, matrix=matrix, device=device, tiles=tiles)
    choice = kernels.choose(options.device)
    if choice.name != "gpu":
        raise SystemExit(f"benchmarks/gpu.py measures Triton's kernels, which do not run here: {choice.reason}")
    common.say(choice.reason)
    draw = torch.Generator(options.device).manual_seed(0)
    dense = [(torch.randn(*options.matrix, generator=draw, device=options.device) * 0.02).bfloat16()
             for _ in range(MATRICES)]  # fmt: skip
    found = works(dense, options.tiles)
    work = {key: _finished(run) for key, (_, run) in found.items()}
    seconds = common.in_turns(work, options.rounds, options.seconds)
    table, shape = common.Table(options.results / "gpu.csv"), "{}x{}".format(*options.matrix)
    for (op, case, who), values in seconds.items():
        moved = MATRICES * found[op, case, who][0]
        table.add([common.Row(op, shape, case, who, "bytes_per_second", tuple(moved / value for value in values))])


if __name__ == "__main__":
    main()
