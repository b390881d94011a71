"""Greedy decoding: tokens a second with the prefill apart, and the time to the first token after opening.

Each in a process of its own that waits for its turn. A first generation does not count on either side; until its first
token bitsandbytes repacks. halfbyte's packed file is in the system's memory by then; where it is not, the first token
waits for the disk as well. The peer is in eval mode. The limit is one reading of every weight that a token needs
(packed weights with constants, 16-bit head, norms) at the speed of reading memory.

    python benchmarks/decode.py --shape 1b --folder /path/with/checkpoints
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import importlib
import time

from benchmarks import bench
from benchmarks.bench import Bench
from benchmarks.common import Row, rows_of
from benchmarks.turns import Phase, working

PROMPT, NEW_TOKENS, FEW = 32, 64, 4
OF_MANY, OF_MANY_SECONDS = 16, 20.0  # new tokens of each of many sequences, and what their turns may take
BATCHES = (8, 16, 64)
RANK, TARGETS, ADAPTER = 32, "attention", "r=32 on q, k, v, o"
WITHOUT, WITH = "1 sequence, without adapter", f"1 sequence, {ADAPTER}"


def prompts(count: int) -> list[list[int]]:
    import torch

    return torch.randint(256, (count, PROMPT), generator=torch.Generator().manual_seed(1)).tolist()


def read_through(folder: Path) -> None:
    """The packed file into the system's memory, from which the peer's loading may have driven it."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass


def ours(folder: str) -> Phase:
    """halfbyte. A case has `rank` and `targets` (rank 0: no adapter; with one, it stays), `prompts`, `new_tokens`."""
    from benchmarks.limits import bytes_per_token
    from halfbyte.config import AdapterConfig, DecodingConfig
    from halfbyte.evaluate.generate import generate
    from halfbyte.memory import MemoryMeter, give_back
    from halfbyte.model.build import load_model

    importlib.import_module("transformers.models.llama.modeling_llama")
    began = time.perf_counter()
    model = load_model(str(Path(folder) / "nf4"))
    case = yield {"open_seconds": time.perf_counter() - began, "bytes_per_token": bytes_per_token(model.net)}
    ready = None
    with MemoryMeter() as meter:
        while True:
            if case["rank"] and model.adapter is None:
                model.add_adapter(AdapterConfig(rank=case["rank"], alpha=2 * case["rank"], targets=case["targets"]))
            if ready is None:
                read_through(Path(folder) / "nf4")
            if case != ready:
                give_back()
                meter.reset()
                ready = case
            asked, new_tokens = case["prompts"], case["new_tokens"]
            options = DecodingConfig(max_new_tokens=new_tokens + 1, stop=[])
            made = generate(model, asked, options, batch=len(asked), ends=(), settle=False)
            assert made.decoded_tokens == len(asked) * new_tokens
            case = yield {"tokens_per_second": made.decoded_tokens / made.decode_seconds,
                          "prefill_seconds": made.seconds - made.decode_seconds,
                          "peak_bytes": meter.peak_bytes or 0, "mapped_bytes": meter.mapped_bytes or 0}  # fmt: skip


def measure(run: Bench) -> None:
    """One sequence without and with an adapter, beside the peer and the limit; several sequences, halfbyte alone."""
    phases = {
        "halfbyte": ("benchmarks.decode:ours", {"folder": str(run.folder)}),
        "limit": ("benchmarks.limits:memory", {}),
    }
    new_tokens = FEW if run.shape == "tiny" else NEW_TOKENS
    with working(phases) as workers:
        opened = dict(workers["halfbyte"].opened)
        nbytes = opened.pop("bytes_per_token")
        run.add("decode", rows_of("decode", run.shape, WITHOUT, "halfbyte", [opened]))
        for name, rank in ((WITHOUT, 0), (WITH, RANK)):
            case = {"do": "decode", "rank": rank, "targets": TARGETS, "prompts": prompts(1), "new_tokens": new_tokens}
            outcomes = run.turns(workers | {"peer": run.peer}, f"decode, {name}", case)
            limit = outcomes.pop("limit").turns
            made: list[Row] = []
            for who, outcome in outcomes.items():
                if name == WITHOUT:  # nobody has generated anything before
                    first = {"first_token_seconds": outcome.first["prefill_seconds"]}
                    made += rows_of("decode", run.shape, name, who, [first])
                made += rows_of("decode", run.shape, name, who, outcome.turns)
            limit = [{"tokens_per_second": turn["read_bytes_per_second"] / nbytes, **turn} for turn in limit]
            made += rows_of("decode", run.shape, name, "limit", limit)
            made += rows_of("decode", run.shape, name, "limit", [{"bytes_per_token": nbytes}])
            run.add("decode", made)
        for batch in () if run.shape == "8b" else BATCHES:
            case = {"rank": RANK, "targets": TARGETS, "prompts": prompts(batch), "new_tokens": min(new_tokens, OF_MANY)}
            name = f"{batch} sequences, {ADAPTER}"
            outcome = run.turns({"halfbyte": workers["halfbyte"]}, f"decode, {name}", case, seconds=OF_MANY_SECONDS)
            run.add("decode", rows_of("decode", run.shape, name, "halfbyte", outcome["halfbyte"].turns))


if __name__ == "__main__":
    bench.main(__doc__, None, measure)
