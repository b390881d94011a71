"""What fits: how much to spare, the largest that does, and what to give up first, each with its price.

Everything is asked of the plan itself, made again with other settings (some milliseconds each), so an answer can't
differ from the plan of that setting. "Largest" recomputes every layer: the most that can be had at all, with weights
that are streamed to a card or lie there as in the plan.

On a CPU the mapped weights count where they have room beside the least that the run needs; otherwise they are read from
disk again and again, and what is spared is counted without them (`plan.budget`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from halfbyte.config import LEAST_TOKENS, MOST_RANK

if TYPE_CHECKING:
    from halfbyte.plan.ladder import Plan

MOST_TOKENS, MOST_ITEMS = 1 << 20, 4096  # where nothing else sets a limit
Make = Callable[..., "Plan"]
Price = Callable[["Plan"], float | None]  # seconds of a step, or something in proportion to them


@dataclass(frozen=True)
class Largest:
    """The largest value that fits with everything else as asked, None if none does; `limit` says what ends it."""

    value: int | None
    limit: str


@dataclass(frozen=True)
class Concession:
    """Something to give up: what it saves, what it costs in time (1.3: 30 % more a token), whether it is enough."""

    what: str
    saved_bytes: int
    time_factor: float | None
    enough: bool
    cost: str


@dataclass(frozen=True)
class Fit:
    """What `plan --json` says under "fit". `spare_bytes` is negative where the run does not fit."""

    fits: bool | None
    needed_bytes: int | None
    memory_bytes: int | None
    spare_bytes: int | None
    largest: dict[str, Largest] = field(default_factory=dict)
    give_up: list[Concession] = field(default_factory=list)
    first: str | None = None  # of `give_up`, where the run does not fit
    least_bytes: int | None = None  # of a training of this model in this format: the smallest that there is
    advice: dict[str, str] = field(default_factory=dict)  # what to do, for each phase that does not fit
    time_in: str = ""  # what `time_factor` compares: seconds, or multiplications where nothing was calibrated
    reason: str = ""


def need(plan: Plan, mapped: bool) -> int | None:
    """Bytes of the training, the mapped weights included if `mapped`."""
    phase = plan.phases["tune"]
    peak = phase.peak_bytes
    return None if peak is None else peak + (phase.mapped_bytes or 0) * mapped


def survey(make: Make, plan: Plan, config: Mapping[str, Any], price: Price, time_in: str) -> Fit:
    """All answers for `plan`, which `make()` gave; `make` takes other settings by name. `price` is of a plan's step,
    and `time_in` its unit."""
    memory, layers = plan.memory_bytes, int(plan.settings["layers"])
    least = make(recompute=layers)
    if memory is None or need(plan, False) is None:
        return Fit(None, need(plan, True), memory, None, reason=plan.why_unknown)
    mapped = (need(least, True) or 0) <= memory  # the weights have their place, too
    needed = need(plan, mapped) or 0

    def fits(**changed: Any) -> bool:
        size = need(make(recompute=layers, **changed), mapped)
        return size is not None and size <= memory

    concessions = _concessions(make, plan, memory, mapped, price)
    enough = [concession.what for concession in concessions if concession.enough]
    on_card = "weights" in plan.phases["tune"].parts
    counted = "with the mapped weights" if mapped else "without the mapped weights, which are read from disk again"
    return Fit(
        fits=needed <= memory,
        needed_bytes=needed,
        memory_bytes=memory,
        spare_bytes=memory - needed,
        largest=_largest(plan, config, fits),
        give_up=concessions,
        first=enough[0] if needed > memory and enough else None,
        least_bytes=need(make(recompute=layers, sequence=LEAST_TOKENS, batch=1, rank=1), mapped),
        time_in=time_in,
        reason="weights included" if on_card else counted,
    )


def _largest(plan: Plan, config: Mapping[str, Any], fits: Callable[..., bool]) -> dict[str, Largest]:
    context = config.get("max_position_embeddings")
    longest = int(context) if isinstance(context, int) and context > 0 else MOST_TOKENS
    return {
        "sequence": _search("sequence", LEAST_TOKENS, longest, "the model's context" if context else "nothing", fits),
        "batch": _search("batch", 1, MOST_ITEMS, "nothing", fits),
        "rank": _search("rank", 1, MOST_RANK, "the largest rank that there is", fits),
    }


def _search(name: str, least: int, most: int, limit: str, fits: Callable[..., bool]) -> Largest:
    """Doubling, then halving: needs grow with each of these."""
    if not fits(**{name: least}):
        return Largest(None, "memory")
    low, high = least, 2 * least
    while high <= most and fits(**{name: high}):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(**{name: middle}) else (low, middle)
    return Largest(low, limit if low == most else "memory")


_SMALLER = {
    "fp32": ("bf16", "int8", "nf4"),
    "bf16": ("int8", "nf4"),
    "int8": ("nf4",),
    "nf4-single": ("nf4",),
    "nf4": (),
}


def _concessions(make: Make, plan: Plan, memory: int, mapped: bool, price: Price) -> list[Concession]:
    """In the order in which to give up: what costs time only, then what costs a little precision, then what changes
    what is learned."""
    asked = plan.settings
    layers, now = int(asked["layers"]), int(asked["recompute"])
    tries: list[tuple[str, dict[str, Any], str]] = []
    if now < layers:
        tries.append((f"recomputation: {layers} of {layers} layers", {"recompute": layers}, "time, and nothing else"))
    if "weights" in plan.phases["tune"].parts and asked["stream"] == "off":
        tries.append(
            ("stream: on", {"stream": "on"}, "memory of the host, and time where few tokens are at work at once")
        )
    if asked["batch"] > 1:
        half = asked["batch"] // 2
        tries.append((f"batch {half}", {"batch": half}, "nothing but speed: the optimiser's step stays as it is"))
    if plan.packed is None:
        tries += [(f"weights {name}", {"weights": name}, "precision of the frozen weights")
                  for name in _SMALLER[asked["weights"]]]  # fmt: skip
    if asked["sequence"] > 8:
        half = asked["sequence"] // 2
        tries.append((f"sequence {half}", {"sequence": half}, "longer items are cut"))
    if asked["rank"] > 1:
        tries.append((f"rank {asked['rank'] // 2}", {"rank": asked["rank"] // 2}, "what the adapter can learn"))
    before, found = price(plan), []
    for what, changed, cost in tries:
        trial = make(**({"recompute": now} | changed))
        if now < layers and "recompute" not in changed and (need(trial, mapped) or 0) > memory:
            with_all = make(recompute=layers, **changed)
            if (need(with_all, mapped) or 0) <= memory:  # not enough alone, but with what costs time only
                trial, what = with_all, f"{what}, every layer recomputed"
        after = price(trial)
        tokens = asked["batch"] * asked["sequence"] / (trial.settings["batch"] * trial.settings["sequence"])
        factor = tokens * after / before if before and after is not None else None
        if "stream" in changed:
            factor = None  # depends on the link and the tokens at once; the plan's reasons say how
        counted = mapped or "weights" in changed  # what is not read from disk again is saved, too
        saved = (need(plan, counted) or 0) - (need(trial, counted) or 0)
        enough = (need(trial, mapped) or 0) <= memory
        cost += " (what it saves is read from disk again now)" * (counted and not mapped)
        found.append(Concession(what, saved, factor, enough, cost))
    return found
