"""Greedy decoding: tokens a second with the prefill apart, and the time to the first token after opening.

Each in a process of its own that waits for its turn (8b: one process after another); whole generations are discarded
first on both sides, in the first of which bitsandbytes repacks. The peer is in eval mode. The limit is one reading of
every weight that a token needs (packed weights with constants, 16-bit head, norms) at the speed of reading memory.

    python benchmarks/decode.py --shape 1b --folder /path/with/checkpoints
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import importlib
import time
from typing import Any

from benchmarks import common, shapes
from benchmarks.common import Row, rows_of
from benchmarks.turns import Phase, race

PROMPT, NEW_TOKENS, WARM_UP = 32, 64, 8
BATCHES = (8, 32, 64)
RANK, TARGETS = 32, "attention"


def prompts(count: int) -> list[list[int]]:
    import torch

    return torch.randint(256, (count, PROMPT), generator=torch.Generator().manual_seed(1)).tolist()


def ours(folder: str, adapter: bool, batch: int, new_tokens: int = NEW_TOKENS) -> Phase:
    """halfbyte: first the time to the first token after opening, then `new_tokens` of each row after the prefill's."""
    from benchmarks.limits import bytes_per_token
    from halfbyte.config import AdapterConfig, DecodingConfig
    from halfbyte.evaluate.generate import generate
    from halfbyte.memory import MemoryMeter
    from halfbyte.model.build import load_model

    importlib.import_module("transformers.models.llama.modeling_llama")
    asked = prompts(batch)

    def decode(tokens: int) -> Any:
        return generate(model, asked, DecodingConfig(max_new_tokens=tokens, stop=[]), batch=batch, ends=())

    began = time.perf_counter()
    model = load_model(str(Path(folder) / "nf4"))
    if adapter:
        model.add_adapter(AdapterConfig(rank=RANK, alpha=2 * RANK, targets=TARGETS))
    opened = time.perf_counter()
    with MemoryMeter() as meter:
        decode(1)
        first = time.perf_counter()
        decode(WARM_UP if batch > 1 else new_tokens + 1)
    yield {"open_seconds": opened - began, "first_token_seconds": first - opened, "peak_bytes": meter.peak_bytes or 0,
           "mapped_bytes": meter.mapped_bytes or 0, "bytes_per_token": bytes_per_token(model.net)}  # fmt: skip
    while True:
        made = decode(new_tokens + 1)
        assert made.decoded_tokens == batch * new_tokens
        yield {"tokens_per_second": made.decoded_tokens / made.decode_seconds,
               "prefill_seconds": made.seconds - made.decode_seconds}  # fmt: skip


def peer(folder: str, adapter: bool, new_tokens: int = NEW_TOKENS) -> Phase:
    """The stock stack in eval mode, one sequence."""
    from benchmarks import peers
    from halfbyte.memory import MemoryMeter

    importlib.import_module("transformers.models.llama.modeling_llama")
    importlib.import_module("bitsandbytes")
    asked = prompts(1)
    began = time.perf_counter()
    net = peers.load(folder).eval()
    if adapter:
        net = peers.with_adapter(net, RANK, TARGETS).eval()
    opened = time.perf_counter()
    with MemoryMeter() as meter:
        _, first, _ = peers.decode(net, asked, 1)
        peers.decode(net, asked, new_tokens + 1)
    yield {"open_seconds": opened - began, "first_token_seconds": first, "peak_bytes": meter.peak_bytes or 0,
           "mapped_bytes": meter.mapped_bytes or 0}  # fmt: skip
    while True:
        _, prefill, seconds = peers.decode(net, asked, new_tokens + 1)
        yield {"tokens_per_second": new_tokens / seconds, "prefill_seconds": prefill}


def one_at_a_time(shape: str, folder: str, rounds: int) -> list[Row]:
    """A single sequence, with and without adapter."""
    large = shape == "8b"
    made: list[Row] = []
    phases: dict[str, Any] = {"limit": ("benchmarks.limits:memory", {})}
    for adapter in (False, True):
        name = f"r={RANK} on q, k, v, o" if adapter else "without adapter"
        phases[f"peer/{name}"] = ("benchmarks.decode:peer", {"folder": folder, "adapter": adapter})
        phases[f"halfbyte/{name}"] = ("benchmarks.decode:ours", {"folder": folder, "adapter": adapter, "batch": 1})
    if large:  # a second load of four minutes would only repeat what the smaller shape says of adapters
        phases.pop(f"peer/{name}")
    outcomes = race(phases, rounds, together=not large)
    reads = outcomes.pop("limit").turns
    for key, outcome in outcomes.items():
        who, _, name = key.partition("/")
        first = dict(outcome.first)
        nbytes = first.pop("bytes_per_token", None)
        made += rows_of("decode", shape, f"1 sequence, {name}", who, [first])
        made += rows_of("decode", shape, f"1 sequence, {name}", who, outcome.turns)
        if nbytes is not None:
            limit = [{"tokens_per_second": turn["read_bytes_per_second"] / nbytes, **turn} for turn in reads]
            made += rows_of("decode", shape, f"1 sequence, {name}", "limit", limit)
            made += rows_of("decode", shape, f"1 sequence, {name}", "limit", [{"bytes_per_token": nbytes}])
    return made


def several(shape: str, folder: str, rounds: int, batches: tuple[int, ...]) -> list[Row]:
    """halfbyte with batches; one process after another."""
    made: list[Row] = []
    for batch in batches:
        arguments = {"folder": folder, "adapter": True, "batch": batch}
        outcome = race({"halfbyte": ("benchmarks.decode:ours", arguments)}, rounds)["halfbyte"]
        made += rows_of("decode", shape, f"{batch} sequences, r={RANK} on q, k, v, o", "halfbyte", outcome.turns)
    return made


def main() -> None:
    parser = common.arguments(__doc__, rounds=3, shapes=shapes.SHAPES)
    parser.add_argument("--batches", type=int, nargs="*", default=list(BATCHES), help="of halfbyte (%(default)s)")
    options = parser.parse_args()
    with shapes.checkpoints(options.shape, options.folder) as folder:
        made = one_at_a_time(options.shape, str(folder), options.rounds)
        made += several(options.shape, str(folder), min(2, options.rounds), tuple(options.batches))
    common.write(made, common.results_file(options, "decode"))


if __name__ == "__main__":
    main()
