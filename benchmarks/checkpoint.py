"""What a checkpoint costs: writing one, with all its digests and flushes, and reading it back.

The adapter is of rank 16 on all linear layers, with both of AdamW's moments, and beside it a best adapter to keep. The
limit is as many bytes written and flushed. `share` is the writing's share of the default of tune.checkpoint_every.

    python benchmarks/checkpoint.py --shape 1b --folder /path/on/the/disk/in/question
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
import shutil
import tempfile
import time
from collections.abc import Sequence

from benchmarks import common, shapes

RANK = 16


def main(given: Sequence[str] | None = None) -> int:
    options = common.arguments(
        __doc__, given, rounds=7, seconds=120.0,
        shape={"choices": list(shapes.SHAPES), "default": "1b"},
        folder={"type": Path, "help": "where checkpoints are written (default: beside temporary files)"},
    )  # fmt: skip
    common.quiet()
    import torch
    from safetensors.torch import save_file
    from torch import nn

    from halfbyte.config import TuneConfig
    from halfbyte.tune.state import State, last_checkpoint

    shape = shapes.SHAPES[options.shape]
    pairs = {
        f"{layer}.{name}.{part}": size
        for layer in range(shape["num_hidden_layers"])
        for name, (rows, columns) in shapes.linears(shape).items()
        for part, size in (("A", (RANK, columns)), ("B", (rows, RANK)))
    }
    state = State({name: nn.Parameter(torch.randn(size)) for name, size in pairs.items()}, TuneConfig())
    for parameter in state.parameters.values():
        parameter.grad = torch.randn_like(parameter)
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=options.folder))
    best = folder / "best.safetensors"
    save_file({name: p.detach() for name, p in state.parameters.items()}, best)
    turns: dict[str, list[dict[str, float]]] = {"halfbyte": [], "limit": []}
    for turn in common.rounds_within(options.rounds, options.seconds):
        state.update()
        began = time.perf_counter()
        place = state.save(folder / "checkpoints", best)
        seconds = time.perf_counter() - began
        nbytes = sum(file.stat().st_size for file in place.iterdir() if file.name != best.name)
        began = time.perf_counter()
        assert last_checkpoint(folder / "checkpoints") is not None
        read, plain = time.perf_counter() - began, write_plainly(folder / "plain", nbytes)
        if turn:
            turns["halfbyte"].append({"seconds": seconds, "read_seconds": read, "bytes": nbytes,
                                      "share": seconds / TuneConfig.checkpoint_every})  # fmt: skip
            turns["limit"].append({"seconds": plain})
    shutil.rmtree(folder)
    table = common.Table(options.results / "checkpoint" / f"checkpoint-{options.shape}.csv")
    for who, found in turns.items():
        table.add(common.rows_of("checkpoint", options.shape, f"rank {RANK} on all linear layers", who, found))
    return 0


def write_plainly(file: Path, nbytes: int) -> float:
    """Seconds to write so many bytes to a file and flush them."""
    block = os.urandom(8 << 20)
    began = time.perf_counter()
    with file.open("wb", buffering=0) as stream:
        for start in range(0, nbytes, len(block)):
            stream.write(block[: nbytes - start])
        os.fsync(stream.fileno())
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
