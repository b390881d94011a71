"""A training step of 512 tokens, all of them learned: halfbyte, the stock stack, bf16 LoRA, and the products alone.

Everybody trains on the same tokens with AdamW and clipped gradients, each in a process of its own that waits for its
turn (8b: one process after another, since they do not fit beside each other); the first step does not count. The first
loss is that of the base model, since a fresh adapter adds nothing: it has to be the same for all. Memory is the peak of
the whole process, opening left out, as `halfbyte.memory` counts it.

    python benchmarks/step.py --shape 1b --folder /path/with/checkpoints
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import time
from collections.abc import Mapping
from typing import Any

from benchmarks import common, limits, shapes
from benchmarks.common import Row, rows_of
from benchmarks.turns import Outcome, Phase, race

TOKENS = 512
ADAPTERS = {"r=32 on q, k, v, o": (32, "attention"), "r=16 on all linear layers": (16, "all")}
BUDGETS = {"7.5GB": 7_500_000_000, "12GB": 12_000_000_000}  # the mapped weights included
METER = 0.02  # seconds between two looks at the memory


def tokens() -> list[int]:
    import torch

    return torch.randint(256, (TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()


def ours(folder: str, rank: int, targets: str, recompute: int | None, warm_up: int) -> Phase:
    """halfbyte; `recompute`: layers (None: all of them)."""
    from halfbyte.config import AdapterConfig, TuneConfig
    from halfbyte.data.encode import Item
    from halfbyte.memory import MemoryMeter, give_back
    from halfbyte.model.build import load_model
    from halfbyte.tune.loop import Plan, train
    from halfbyte.tune.state import State

    model = load_model(str(Path(folder) / "nf4"))
    model.add_adapter(AdapterConfig(rank=rank, alpha=2 * rank, targets=targets))
    layers = len(model.layers())
    model.recompute(layers if recompute is None else recompute)
    options = TuneConfig(batch=1, max_steps=10_000, learning_rate=1e-4)
    state = State(model.parameters_to_train(), options)
    item = Item(ids=tokens(), learned=[False] + [True] * (TOKENS - 1), prompt_tokens=0, cut=0, origin="")
    plan = Plan(steps=10_000, steps_per_epoch=1, micro_batch=1, pad_id=258, seed=0, validate_at=frozenset())
    give_back()
    with MemoryMeter(METER) as meter:
        records = train(model, [item], [], state, options, plan)
        losses = [next(records).loss for _ in range(warm_up)]
        yield {"first_loss": losses[0], "recomputed_layers": layers if recompute is None else recompute}
        for record in records:
            yield {"seconds": record.seconds, "peak_bytes": meter.peak_bytes or 0,
                   "mapped_bytes": meter.mapped_bytes or 0}  # fmt: skip


def peer(folder: str, rank: int, targets: str, recompute: bool, warm_up: int, quantised: bool = True) -> Phase:
    """The stock stack, quantised or in bf16; `recompute`: all layers, or none."""
    import torch

    from benchmarks import peers
    from halfbyte.memory import MemoryMeter, give_back

    net = peers.to_train(folder, rank=rank, targets=targets, recompute=recompute, quantised=quantised)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    ids = torch.tensor([tokens()])

    def step() -> float:
        optimiser.zero_grad()
        loss = net(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        return float(loss.detach())

    give_back()
    with MemoryMeter(METER) as meter:
        losses = [step() for _ in range(warm_up)]
        yield {"first_loss": losses[0]}
        while True:
            began = time.perf_counter()
            step()
            yield {"seconds": time.perf_counter() - began, "peak_bytes": meter.peak_bytes or 0,
                   "mapped_bytes": meter.mapped_bytes or 0}  # fmt: skip


def planned_layers(folder: Path, rank: int, targets: str, budget: int) -> int:
    """How many layers halfbyte's planner has recomputed within `budget` bytes, the mapped weights included."""
    from halfbyte.plan.ladder import plan_model

    made = plan_model(str(folder / "nf4"), rank=rank, targets=targets, sequence=TOKENS, batch=1, memory=budget)
    return int(made.settings["recompute"])


def contenders(folder: Path, rank: int, targets: str, recompute: bool, warm_up: int, bf16: bool) -> dict[str, Any]:
    """The phases of one race: everything recomputed, or nothing."""
    common_ = {"folder": str(folder), "rank": rank, "targets": targets, "warm_up": warm_up}
    phases: dict[str, Any] = {
        "halfbyte": ("benchmarks.step:ours", common_ | {"recompute": None if recompute else 0}),
        "peer": ("benchmarks.step:peer", common_ | {"recompute": recompute}),
    }
    if bf16:
        phases["bf16 LoRA"] = ("benchmarks.step:peer", common_ | {"recompute": False, "quantised": False})
    return phases


def rows(shape: str, case: str, outcomes: Mapping[str, Outcome], layers: int, recomputed: int) -> list[Row]:
    """Of a race in which the limit ran along."""
    made: list[Row] = []
    for who, outcome in outcomes.items():
        turns = outcome.turns
        if who == "limit":
            turns = [{"seconds": limits.step_seconds(turn, layers, recomputed)} for turn in turns]
        elif outcome.first:
            made += rows_of("step", shape, case, who, [outcome.first])
        made += rows_of("step", shape, case, who, turns)
    return made


def run(options: argparse.Namespace, folder: Path) -> list[Row]:
    shape, layers = options.shape, shapes.SHAPES[options.shape]["num_hidden_layers"]
    large = shape == "8b"
    limit = {"limit": ("benchmarks.limits:products", {"shape": shape, "tokens": TOKENS})}
    warm_up, rounds = 1, min(2, options.rounds) if large else options.rounds
    made: list[Row] = []
    for name, (rank, targets) in ADAPTERS.items():
        if large and targets == "all":
            continue
        for recompute in (True,) if large else (True, False):
            case = f"{name}, {'every' if recompute else 'no'} layer recomputed"
            if options.only not in case:
                continue
            bf16 = not recompute and targets == "attention"
            phases = contenders(folder, rank, targets, recompute, warm_up, bf16) | limit
            turns = max(1, rounds - (targets == "all"))  # the second adapter gets a turn less, for time's sake
            outcomes = race(phases, turns, together=not large)
            made += rows(shape, case, outcomes, layers, layers if recompute else 0)
    if large and not options.only:
        made += budgets(shape, folder, warm_up, rounds, layers, limit)
    return made


def budgets(shape: str, folder: Path, warm_up: int, rounds: int, layers: int, limit: dict[str, Any]) -> list[Row]:
    """halfbyte alone, within given memory: as few layers are recomputed as its planner says."""
    rank, targets = next(iter(ADAPTERS.values()))
    made: list[Row] = []
    for name, budget in BUDGETS.items():
        count = planned_layers(folder, rank, targets, budget)
        arguments = {"folder": str(folder), "rank": rank, "targets": targets, "recompute": count, "warm_up": warm_up}
        outcomes = race({"halfbyte": ("benchmarks.step:ours", arguments)} | limit, rounds, together=False)
        made += rows(shape, f"{next(iter(ADAPTERS))}, within {name}", outcomes, layers, count)
    return made


def main() -> None:
    parser = common.arguments(__doc__, rounds=3, shapes=shapes.SHAPES)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds it, as in 'every layer'")
    options = parser.parse_args()
    with shapes.checkpoints(options.shape, options.folder) as folder:
        made = run(options, folder)
    common.write(made, common.results_file(options, "step"))


if __name__ == "__main__":
    main()
