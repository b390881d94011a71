"""`halfbyte doctor --calibrate`: how fast this machine runs halfbyte's own operations. A minute or two, then cached.

Method: each operation is timed as the loop runs it (the layer with its adapter and its backward pass, not the kernel
alone), at a handful of shapes and numbers of tokens. Non-negative least squares on relative errors then give the
seconds of each unit of work that `plan.operations` counts. What lies between the operations (norms, gates, residual
sums, Python) is what two small models take beyond them. No figure of a kernel is written down anywhere: a faster kernel
is faster in the next calibration.

Rejected: one rate for all products. A layer of 256 x 256 runs at a tenth of the rate of one of 4096 x 4096.

The median of some runs counts, of five and more where they are short. Large weights are multiplied in turn with
others, and the processor's cache is filled with something else before a head, a loss or the optimiser is timed. The
small models are made in a temporary folder in the cache, since packing is timed, too, and that depends on its disk.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import torch

from halfbyte.calibrate import models, operations
from halfbyte.calibrate.fit import Points
from halfbyte.checkpoint.source import cache_folder
from halfbyte.formats import Weights
from halfbyte.kernels import product_int8
from halfbyte.kernels.compute import DTYPES, fastest
from halfbyte.memory import hold_little
from halfbyte.plan.calibration import Calibration, Cost, identity

Say = Callable[[str], None]


def calibrate(say: Say = lambda line: None) -> Calibration:
    """Measure this machine's processor; `say` gets a line for each stage. The caller stores the result."""
    started = time.perf_counter()
    hold_little()  # as every model that is opened does: fresh memory costs time
    costs: dict[str, dict[str, Cost]] = {}
    chosen = fastest().name
    rates = operations.memory()
    say(f"memory: read {rates['read'] / 1e9:.1f} GB/s, copy {rates['copy'] / 1e9:.1f} GB/s")
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory(dir=_roomy()) as folder:
        torch.manual_seed(0)
        packing = Points()
        for compute in dict.fromkeys((chosen, "fp32")):
            main = compute == chosen
            formats: list[Weights] = ["nf4", "int8", "bf16"] if main else ["nf4"]
            formats += ["fp32"] if compute == "fp32" else []
            shapes = operations.SHAPES if main else operations.SHAPES[:-1]
            tokens = operations.TOKENS if main else operations.TOKENS[::2]
            dtype = DTYPES[compute]
            products = {weights: operations.layers(weights, dtype, shapes, tokens if weights == "nf4" else tokens[::2])
                        for weights in formats}  # fmt: skip
            costs[compute] = _of_type(dtype, products, Path(folder), packing, say)
        costs[chosen]["pack"] = costs["fp32"]["pack"] = packing.fit()
        if "bf16" in costs and not product_int8.missing():
            costs["int8"] = _in_int8(costs["bf16"])
            say("int8: products with nf4 and int8; the rest as in bf16")
        rates["quantise"] = operations.quantising()
        with contextlib.suppress(OSError):  # no room: a plan says nothing of the disk's time then
            rates["write"] = operations.writing(Path(folder))
    for compute, table in costs.items():
        price = table["product/nf4/forward"].units["multiplication"]
        rates[f"product_{compute}"] = 2 / price if price else 0.0
    price = costs[chosen]["attention/forward"].units["multiplication"]
    rates["attention"] = 2 / price if price else 0.0
    return Calibration(identity(), date.today().isoformat(), time.perf_counter() - started, costs, rates)


def _roomy() -> Path:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _in_int8(costs: Mapping[str, Cost]) -> dict[str, Cost]:
    """The prices of `compute: int8`: those of bf16, but for many rows with packed weights."""
    made = {name: cost for name, cost in costs.items() if not name.startswith("product/bf16")}
    packed: tuple[Weights, ...] = ("nf4", "int8")
    for weights in packed:
        points = operations.layers(weights, torch.bfloat16, operations.SHAPES, operations.TOKENS[::2], int8=True)
        made |= {f"product/{weights}/{kind}": found.fit() for kind, found in points.items()}
    return made


def _of_type(
    dtype: torch.dtype, products: Mapping[Weights, dict[str, Points]], folder: Path, packing: Points, say: Say
) -> dict[str, Cost]:
    """Every operation with activations of `dtype`."""
    name = str(dtype).removeprefix("torch.")
    costs: dict[str, Cost] = {}
    for weights, points in products.items():
        costs |= {f"product/{weights}/{kind}": made.fit() for kind, made in points.items()}
        costs[f"product/{weights}/few"] = operations.few(weights, dtype).fit()
        price = costs[f"product/{weights}/forward"].units["multiplication"]
        say(f"{name}: products with {weights}" + (f", {2e-9 / price:,.0f} GFLOP/s" if price else ""))
    costs |= {f"attention/{kind}": made.fit() for kind, made in operations.attention(dtype).items()}
    costs["loss"] = operations.loss(dtype).fit()
    costs |= {f"product/head/{kind}": made.fit() for kind, made in operations.head(dtype).items()}
    costs["optimiser"] = operations.optimiser().fit()
    say(f"{name}: attention, loss, optimiser")
    costs |= {f"rest/{kind}": made.fit() for kind, made in models.rest(dtype, costs, folder, packing).items()}
    say(f"{name}: whole layers")
    return costs
