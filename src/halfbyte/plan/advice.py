"""What to do about a phase that does not fit: only what helps, and where nothing does, the least that is needed.

As in `fit.py`, everything is asked of the plan itself, made again with other settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from halfbyte.config import LEAST_TOKENS
from halfbyte.errors import ConfigError
from halfbyte.plan.budget import amount, enough

if TYPE_CHECKING:
    from halfbyte.plan.fit import Fit
    from halfbyte.plan.ladder import Plan

Make = Callable[..., "Plan"]
_OPTIONS = (("sequence", "data.max_tokens"), ("batch", "tune.micro_batch"), ("rank", "adapter.rank"))


def advise(make: Make, plan: Plan, fit: Fit) -> dict[str, str]:
    """For each phase of `plan` that does not fit, what to do; `make` and `fit` as in `fit.survey`."""
    memory, found = plan.memory_bytes, {}
    if memory is None:
        return {}
    on_card = "weights" in plan.phases["tune"].parts
    for name, phase in plan.phases.items():
        peak = phase.peak_bytes
        if name == "tune":
            if fit.fits is False:
                found[name] = _training(plan, fit, memory)
        elif peak is not None and peak > memory and not (name == "pack" and on_card):  # that is the host's
            streamed = on_card and plan.settings["stream"] == "off" and _streamed_bytes(make, plan, name)
            if streamed and streamed <= memory:
                found[name] = f"take stream: on, which takes {amount(streamed)}"
                continue
            found[name] = {"pack": _packing, "open": _opening, "evaluate": _evaluation}[name](make, plan, memory)
    return found


def _streamed_bytes(make: Make, plan: Plan, phase: str) -> int:
    """The peak of a phase with the weights streamed; 0 where that is not known."""
    try:
        return make(recompute=plan.settings["recompute"], stream="on").phases[phase].peak_bytes or 0
    except ConfigError:
        return 0


def _training(plan: Plan, fit: Fit, memory: int) -> str:
    asked, every = plan.settings, int(plan.settings["recompute"]) >= int(plan.settings["layers"])
    ways = [] if every or not any(one.enough for one in fit.give_up[:1]) else ["leave tune.recompute to auto"]
    also = "" if every else " (and tune.recompute to auto)"
    for name, option in _OPTIONS:
        value = fit.largest[name].value
        if value is not None and value < asked[name]:
            ways.append(f"lower {option} to {value}{also}")
    ways += [f"take {one.what}" for one in fit.give_up if one.enough and one.what.startswith(("weights", "stream"))]
    if ways:
        return f"{', or '.join(ways)}, or raise memory to {enough(fit.needed_bytes or 0)}"
    least = fit.least_bytes or 0
    words = f"training this model in {asked['weights']} takes at least {amount(least)}: one item of {LEAST_TOKENS} "
    words += "tokens, rank 1, every layer recomputed"
    if least <= memory:
        return f"no single option is enough, lower data.max_tokens and adapter.rank together; {words}"
    return f"no option helps, take a smaller model or more memory; {words}"


def _packing(make: Make, plan: Plan, memory: int) -> str:
    need = amount(plan.phases["pack"].peak_bytes or 0)
    return f"pack it where {need} are free (halfbyte pack) and bring the folder here, or take a packed one"


def _opening(make: Make, plan: Plan, memory: int) -> str:
    need = amount(plan.phases["open"].peak_bytes or 0)
    return f"opening takes {need} whatever the options are: take a smaller format or model, or more memory"


def _evaluation(make: Make, plan: Plan, memory: int) -> str:
    asked, recompute = int(plan.settings["evaluation_batch"]), plan.settings["recompute"]

    def need(answers: int) -> int:
        return make(recompute=recompute, evaluation_batch=answers).phases["evaluate"].peak_bytes or 0

    low, high = 0, asked  # so many fit; so many do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if need(middle) <= memory else (low, middle)
    tokens = plan.settings["evaluation_sequence"]
    if low == 0:
        words = f"not even one answer fits: with its prompt, {tokens} tokens, it takes {amount(need(1))}"
        return f"{words}; shorten the prompts, or take a smaller model or more memory"
    words = f"{low} of {asked} answers of {tokens} tokens, with their prompts, fit at once: shorten the prompts or the "
    return f"{words}answers, or raise memory to {enough(need(asked))}"
