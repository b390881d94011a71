"""Several devices, on paper: bytes of each rank, traffic of a step, and where more of them stop to pay.

What is computed here is what the two usual ways need; `torchrun` trains on the cards of one machine in the first one:

- replicated (data parallel): each rank holds everything and computes its own items; the gradients of the adapter, 4
  bytes a parameter, are averaged by a ring all-reduce, in which each rank sends 2 (N - 1) / N of them.
- sharded (ZeRO stage 3, Rajbhandari et al. 2020, arXiv:1910.02054; FSDP): each rank keeps 1 / N of the weights, of the
  adapter, its gradients and the optimiser; the weights of a layer are gathered, packed as they are, when it is
  computed, forward and again backward, one layer ahead, so two stand in full. Activations are divided by neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from halfbyte.errors import ConfigError
from halfbyte.options import parse_bytes

if TYPE_CHECKING:
    from halfbyte.plan.ladder import Plan

LINK = "16GB"  # bytes a second each way: 16 lanes of PCIe 3.0, the slowest link that is usual between cards
_MOST = 1024
_WORTH = 0.5  # of a further rank's work; below that it stops to pay


@dataclass(frozen=True)
class Way:
    """Of one way to share the work. Seconds are those of the link alone, nothing overlapped."""

    bytes_per_rank: int | None
    fits: bool | None
    traffic_bytes: int | None  # that a rank sends in a step
    link_seconds: float | None
    efficiency: float | None  # of the ranks' time that is computing; None where the step's seconds are not known
    stops_to_pay: int | None  # the number of ranks from which on one more adds less than half of its work
    reason: str


@dataclass(frozen=True)
class Parallel:
    """What `plan --json` says under "parallel"."""

    ranks: int
    link_bytes_per_second: int
    items_per_step: int
    replicated: Way
    sharded: Way
    least_ranks_sharded: int | None  # the fewest that hold the run
    assumptions: list[str] = field(default_factory=list)


def on_paper(plan: Plan, ranks: int, link: str | int | None, step_seconds: float | None) -> Parallel:
    """`step_seconds` of one rank's items, None where unknown. Raises ConfigError for ranks or a link below 1."""
    if ranks < 1 or ranks > _MOST:
        raise ConfigError(f"the number of devices must be from 1 to {_MOST}", where="--gpus", found=str(ranks),
                          do="give how many devices train together, e.g. --gpus 8")  # fmt: skip
    speed = link if isinstance(link, int) else parse_bytes((link or LINK).removesuffix("/s"))
    if speed < 1:
        raise ConfigError("a link must carry something", where="--link", found=str(link), do="write e.g. 16GB/s")
    memory = plan.memory_bytes
    whole, part = _held(plan, 1), _held(plan, ranks)
    least = None
    if memory is not None and whole is not None:
        least = next((n for n in range(1, _MOST + 1) if (_held(plan, n) or 0) <= memory), None)
    return Parallel(
        ranks=ranks,
        link_bytes_per_second=speed,
        items_per_step=ranks * int(plan.settings["batch"]),
        replicated=_way(whole, memory, plan, ranks, speed, step_seconds, sharded=False),
        sharded=_way(part, memory, plan, ranks, speed, step_seconds, sharded=True),
        least_ranks_sharded=least,
        assumptions=[
            f"each rank sends {speed / 1e9:.3g} GB/s, all at once" + ("" if link else " (assumed; give --link)"),
            f"each rank computes {plan.settings['batch']} items of {plan.settings['sequence']} tokens, then one step",
            "nothing is sent while something is computed; latency is left out",
            "gradients are sent in fp32, weights packed as they are; a sharded rank holds two layers in full",
        ],
    )


def _weights(plan: Plan) -> int | None:
    name = plan.settings["weights"]
    base = plan.weights_bytes["nf4" if name == "nf4-single" else name]
    return None if base is None else base + plan.constants_bytes.get(name.replace("-", "_"), 0)


def _held(plan: Plan, ranks: int) -> int | None:
    """Bytes on each of `ranks` that share the weights; on one: all of it."""
    phase, weights = plan.phases["tune"], _weights(plan)
    if phase.peak_bytes is None or weights is None:
        return None
    divided = {"weights", "adapter", "gradients", "optimiser"}
    parts = {**phase.parts, "weights": weights}
    kept = sum(size or 0 for name, size in parts.items() if name not in divided)
    shared = sum(size or 0 for name, size in parts.items() if name in divided)
    if ranks == 1:
        return kept + shared
    return kept + -(-shared // ranks) + min(weights, 2 * -(-weights // max(1, int(plan.settings["layers"]))))


def traffic(plan: Plan, ranks: int, *, sharded: bool) -> int | None:
    """Bytes that a rank sends in a step of one pass: the adapter's gradients, and sharded the weights twice."""
    gradients, weights = plan.gradient_bytes, _weights(plan)
    if not sharded:
        return 2 * (ranks - 1) * gradients // ranks
    return None if weights is None else (ranks - 1) * (2 * weights + 2 * gradients) // ranks


def _way(
    held: int | None, memory: int | None, plan: Plan, ranks: int, speed: int, step: float | None, *, sharded: bool
) -> Way:
    sent = traffic(plan, ranks, sharded=sharded)
    seconds = None if sent is None else sent / speed
    fits = None if held is None or memory is None else held <= memory
    if seconds is None or step is None or step <= 0:
        why = "where it stops to pay is unknown, because this device's speed is not"
        if seconds:
            why += f"; the link keeps up while a rank's step takes over {seconds:.3g} s"
        return Way(held, fits, sent, seconds, None, None, why)

    def rate(n: int) -> float:  # steps of work a second that n ranks do together
        return n / (step + (traffic(plan, n, sharded=sharded) or 0) / speed)

    stop = next((n for n in range(1, _MOST) if rate(n + 1) - rate(n) < _WORTH / step), None)
    why = f"{seconds:.3g} s of sending to {step:.3g} s of computing"
    why += f"; past {stop} ranks one more adds less than half of its work" if stop else "; more ranks go on paying"
    return Way(held, fits, sent, seconds, step / (step + seconds), stop, why)
