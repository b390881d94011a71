"""The demo's training steps with padded and with packed micro-batches: the share of padding, and tokens/s in turns.

    python benchmarks/packing.py
    python benchmarks/packing.py --device cuda --micro 1 8 32

Tokens are those of the items, padding left out; a turn is forward and backward of the same steps. It writes
packing.csv, of which docs/performance.md knows nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence

from benchmarks import common


def main(given: Sequence[str] | None = None) -> None:
    micro = {"type": int, "nargs": "+", "default": [2, 8, 32], "help": "items at once (%(default)s)"}
    steps = {"type": int, "default": 3, "help": "steps of a turn (%(default)s)"}
    device = {"default": "auto", "help": "as in RUN.yaml (%(default)s)"}
    options = common.arguments(__doc__, given, rounds=5, seconds=60.0, micro=micro, steps=steps, device=device)
    common.quiet()
    import torch

    from halfbyte.config import load_run
    from halfbyte.data.batches import collate, micro_batches, pack, step_order, steps_per_epoch
    from halfbyte.data.dataset import load_training
    from halfbyte.model.build import load_model
    from halfbyte.model.packing import find_way, packed_attention
    from halfbyte.tune.loop import batch_loss

    config = load_run(common.ROOT / "src" / "halfbyte" / "demo" / "run.yaml", [])
    model = load_model(config.model, weights="nf4", adapter=config.adapter, device=options.device)
    data, batch = load_training(config.data, model.tokenizer, config.seed), config.tune.batch
    model.packs_with, reason = find_way(model)
    if not model.packs_with:
        raise SystemExit(f"benchmarks/packing.py: the model can't be packed here: {reason}")
    common.say(f"{model.device}, {model.compute}")
    whole = [step_order(data.train, step, batch, 0) for step in range(steps_per_epoch(len(data.train), batch))]
    table = common.Table(options.results / "packing.csv")
    model.net.train()

    def turn(make: object, size: int) -> None:
        for items in whole[: options.steps]:
            for some in micro_batches(items, size):
                batch_loss(model, make(some, data.pad_id)).backward()  # type: ignore[operator]
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    tokens = sum(len(item) for items in whole[: options.steps] for item in items)
    for size in options.micro:
        case, ways = f"micro-batch {size}", {"padded": collate, "packed": pack}
        for name, make in ways.items():
            made = [make(some, data.pad_id).input_ids for items in whole for some in micro_batches(items, size)]
            share = 1 - sum(len(item) for items in whole for item in items) / sum(ids.numel() for ids in made)
            table.add([common.Row("packing", "demo", case, f"halfbyte {name}", "padding_share", (share,))])
        with packed_attention(model):
            work = {name: (lambda make=make: turn(make, size)) for name, make in ways.items()}  # noqa: B023
            found = common.in_turns(work, options.rounds, options.seconds)
        for name, seconds in found.items():
            rates = tuple(tokens / value for value in seconds)
            table.add([common.Row("packing", "demo", case, f"halfbyte {name}", "tokens_per_second", rates)])


if __name__ == "__main__":
    main()
