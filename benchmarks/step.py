"""A training step of 512 tokens, all of them learned: halfbyte, the stock stack, LoRA without
quantisation, and the products alone.

Everybody trains on the same tokens with AdamW and clipped gradients, each in a process of its own that waits for its
turn; the first step does not count. The first loss is that of the base model, since a fresh adapter adds nothing: it
has to be the same for all. Memory is the peak of the whole process, opening left out, as `halfbyte.memory` counts it.

    python benchmarks/step.py --shape 1b --folder /path/with/checkpoints
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Mapping

from benchmarks import bench, compute, limits, shapes
from benchmarks.bench import Bench
from benchmarks.common import Row, rows_of
from benchmarks.turns import Outcome, Phase, Worker, working

TOKENS = 512
R32, R16 = "r=32 on q, k, v, o", "r=16 on all linear layers"
ADAPTERS = {R32: (32, "attention"), R16: (16, "all")}
SMALL, LARGE = "7.5GB", "12GB"
BUDGETS = {SMALL: 7_500_000_000, LARGE: 12_000_000_000}  # the mapped weights included
SAME_LOSS = 0.01  # of the first step: NF4 is the same for both, rounding is not


def tokens() -> list[int]:
    import torch

    return torch.randint(256, (TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()


def ours(folder: str, rank: int, targets: str, recompute: int) -> Phase:
    """halfbyte; `recompute`: layers."""
    from halfbyte.config import AdapterConfig, TuneConfig
    from halfbyte.data.encode import Item
    from halfbyte.memory import MemoryMeter, give_back
    from halfbyte.model.build import load_model
    from halfbyte.tune.loop import Plan, train
    from halfbyte.tune.state import State

    model = load_model(str(Path(folder) / "nf4"))
    model.add_adapter(AdapterConfig(rank=rank, alpha=2 * rank, targets=targets))
    model.recompute(recompute)
    options = TuneConfig(batch=1, max_steps=10_000, learning_rate=1e-4)
    state = State(model.parameters_to_train(), options)
    item = Item.of(ids=tokens(), learned=[False] + [True] * (TOKENS - 1), prompt_tokens=0, cut=0, origin="")
    plan = Plan(steps=10_000, steps_per_epoch=1, micro_batch=1, pad_id=258, seed=0, validate_at=frozenset())
    yield {}
    give_back()
    with MemoryMeter() as meter:
        for record in train(model, [item], [], state, options, plan):
            yield {"seconds": record.seconds, "loss": record.loss, "peak_bytes": meter.peak_bytes or 0,
                   "mapped_bytes": meter.mapped_bytes or 0, "recomputed_layers": recompute}  # fmt: skip


def planned_layers(folder: Path, rank: int, targets: str, budget: int) -> int:
    """How many layers halfbyte's planner has recomputed within `budget` bytes, the mapped weights included."""
    from halfbyte.plan.ladder import plan_model

    made = plan_model(str(folder / "nf4"), rank=rank, targets=targets, sequence=TOKENS, batch=1, memory=budget)
    return int(made.settings["recompute"])


def rows(run: Bench, case: str, outcomes: Mapping[str, Outcome], recomputed: int) -> list[Row]:
    """Of a race in which the limit ran along. Raises RuntimeError if the first losses of halfbyte and peer differ."""
    made: list[Row] = []
    layers = shapes.SHAPES[run.shape]["num_hidden_layers"]
    flops = limits.step_flops(run.shape, TOKENS, recomputed)
    losses = {who: outcome.first["loss"] for who, outcome in outcomes.items() if "loss" in outcome.first}
    if "peer" in losses and abs(losses["halfbyte"] - losses["peer"]) > SAME_LOSS * losses["peer"]:
        raise RuntimeError(f"{case}: the first losses differ, so the work was not the same: {losses}")
    for who, outcome in outcomes.items():
        turns = [{name: value for name, value in turn.items() if name != "loss"} for turn in outcome.turns]
        if who == "limit":
            seconds = [limits.step_seconds(turn, layers, recomputed) for turn in outcome.turns]
            turns = [{"seconds": value, "flops_per_second": flops / value} for value in seconds]
        made += rows_of("step", run.shape, case, who, turns)
        if who in losses:
            made += rows_of("step", run.shape, case, who, [{"first_loss": losses[who]}])
    return made


def race(
    run: Bench, what: str, adapter: str, recompute: int, others: Mapping[str, Worker], others_recompute: bool,
    **fewer: float,
) -> None:  # fmt: skip
    """halfbyte with `recompute` layers computed again, the limit, and `others`, who recompute all or none, by turns."""
    rank, targets = ADAPTERS[adapter]
    shared = {"rank": rank, "targets": targets}
    case = {"do": "step", "recompute": others_recompute, "ids": tokens(), **shared}
    phases = {
        "halfbyte": ("benchmarks.step:ours", {"folder": str(run.folder), "recompute": recompute, **shared}),
        "limit": ("benchmarks.limits:products", {"shape": run.shape, "tokens": TOKENS}),
    }
    with working(phases) as workers:
        outcomes = run.turns(workers | dict(others), f"step, {adapter}, {what}", case, **fewer)
    run.add("step", rows(run, f"{adapter}, {what}", outcomes, recompute))


def measure(run: Bench) -> None:
    """With every layer and with none recomputed, for two adapters; of 8B, within the smaller memory."""
    if run.shape == "8b":
        return within(run, SMALL, {"peer": run.peer})
    layers = shapes.SHAPES[run.shape]["num_hidden_layers"]
    race(run, "every layer recomputed", R32, layers, {"peer": run.peer}, True)
    dense = {f"{compute.name()} LoRA": ("benchmarks.peers:session", {"folder": str(run.folder), "quantised": False})}
    with working(dense) as workers:
        race(run, "no layer recomputed", R32, 0, {"peer": run.peer, **workers}, False)
    # one turn: the second adapter only shows what changes with it
    race(run, "no layer recomputed", R16, 0, {"peer": run.peer}, False, rounds=1)


def measure_roomy(run: Bench) -> None:
    """Of 8B, within the larger memory; the peer does not fit beside it."""
    run.close_peer()
    within(run, LARGE, {})


def within(run: Bench, budget: str, others: Mapping[str, Worker]) -> None:
    """As few layers recomputed as halfbyte's planner says for `budget`; the peer always recomputes every layer."""
    count = planned_layers(run.folder, *ADAPTERS[R32], BUDGETS[budget])
    race(run, f"within {budget}", R32, count, others, True)


if __name__ == "__main__":
    bench.main(__doc__, None, measure)
