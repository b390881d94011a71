"""Quantise and dequantise one matrix of the 8B shape: every implementation of halfbyte beside bitsandbytes.

All of them run in this process, on the same random bf16 matrix and number of threads, in turns (so that a slow moment
of the machine hits all alike), after one round that does not count. bitsandbytes' CPU backend always allocates what it
dequantises to; halfbyte is timed so, too, and into a buffer that is there ("reused"), which is how the layers use it.
Beside them stands the limit of the machine: a copy of the matrix. Wall-clock times; rates are in billions of weights a
second. Writes a CSV with machine and versions.

    python benchmarks/kernels.py --rounds 7
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.environment import environment
from halfbyte.formats import QUANTISED, Weights
from halfbyte.kernels import native
from halfbyte.kernels.choice import VARIABLE

Work = Callable[[], object]
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
REUSED = ", reused"


def ours(implementation: str, weight: Tensor) -> dict[tuple[str, str], Work]:
    """(op, implementation) -> what to time."""

    def forced(work: Work) -> Work:
        def run() -> object:
            os.environ[VARIABLE] = implementation
            return work()

        return run

    def quantise(weights: Weights) -> Work:
        return lambda: kernels.quantise(weight, weights)

    def dequantise(weights: Weights, dtype: torch.dtype, out: Tensor | None) -> Work:
        packed = kernels.quantise(weight, weights)
        return lambda: kernels.dequantise(packed, dtype, out=out)

    made = {(f"quantise {weights}", implementation): forced(quantise(weights)) for weights in QUANTISED}
    for weights in ("nf4", "int8"):
        for name, dtype in TYPES.items():
            out = torch.empty(weight.shape, dtype=dtype)
            made[f"dequantise {weights} to {name}", implementation] = forced(dequantise(weights, dtype, None))
            made[f"dequantise {weights} to {name}{REUSED}", implementation] = forced(dequantise(weights, dtype, out))
    return made


def peer(weight: Tensor) -> dict[tuple[str, str], Work]:
    """The same work done by bitsandbytes, where it is installed."""
    try:
        import bitsandbytes as bnb
        import bitsandbytes.functional as functional
    except ImportError:
        print("bitsandbytes is not installed: no peer to compare with")
        return {}

    def quantise(nested: bool) -> Work:
        return lambda: functional.quantize_4bit(weight, compress_statistics=nested, quant_type="nf4")

    def dequantise(dtype: torch.dtype) -> Work:
        codes, state = functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        state.dtype = dtype
        return lambda: functional.dequantize_4bit(codes, state)

    def dequantise_int8(dtype: torch.dtype) -> Work:
        packed = bnb.nn.Int8Params(weight, requires_grad=False).to("cpu")
        return lambda: functional.int8_vectorwise_dequant(packed.CB, packed.SCB).to(dtype)

    def int8() -> object:
        return bnb.nn.Int8Params(weight, requires_grad=False).to("cpu")

    made: dict[tuple[str, str], Work] = {
        ("quantise nf4", "bitsandbytes"): quantise(True),
        ("quantise nf4-single", "bitsandbytes"): quantise(False),
        ("quantise int8", "bitsandbytes"): int8,
    }
    for name, dtype in TYPES.items():
        made[f"dequantise nf4 to {name}", "bitsandbytes"] = dequantise(dtype)
        made[f"dequantise int8 to {name}", "bitsandbytes"] = dequantise_int8(dtype)
    return made


def measure(work: dict[tuple[str, str], Work], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of every round, by op and implementation."""
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in work}
    for turn in range(rounds + 1):
        for key, run in work.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[key].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=(14336, 4096), metavar=("OUT", "IN"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kernels.csv"))
    options = parser.parse_args()

    weight = (torch.randn(*options.shape, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    copy = torch.empty_like(weight)
    work: dict[tuple[str, str], Work] = {("copy bf16", "torch"): lambda: copy.copy_(weight)}
    work |= peer(weight)
    for implementation in ("reference", *(f"cpu-{isa}" for isa in native.isas())):
        work |= ours(implementation, weight)
    before = os.environ.get(VARIABLE)
    seconds = measure(work, options.rounds)
    os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})

    about = environment()
    if ("quantise nf4", "bitsandbytes") in seconds:
        about["versions"]["bitsandbytes"] = metadata.version("bitsandbytes")
    rows = []
    for (op, implementation), times in sorted(seconds.items()):
        rate = weight.numel() / statistics.median(times) / 1e9
        theirs = seconds.get((op.removesuffix(REUSED), "bitsandbytes"))
        ratio = statistics.median(theirs) / statistics.median(times) if theirs else None
        low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        rows.append({
            "op": op, "implementation": implementation, "out": options.shape[0], "in": options.shape[1],
            "threads": torch.get_num_threads(), "rounds": len(times), "seconds_p25": f"{low:.6f}",
            "seconds_median": f"{middle:.6f}", "seconds_p75": f"{high:.6f}", "gweights_per_second": f"{rate:.3f}",
            "times_bitsandbytes": "" if ratio is None else f"{ratio:.2f}",
            "machine": json.dumps(about["machine"]), "versions": json.dumps(about["versions"]),
        })  # fmt: skip
        beside = "" if ratio is None else f"  {ratio:7.1f} x bitsandbytes"
        print(f"{op:32} {implementation:14} {rate:8.3f} G weights/s{beside}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
