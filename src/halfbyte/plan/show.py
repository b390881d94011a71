"""The plan's answers for people: how long, what fits, what to give up first, several devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from halfbyte.notebook import table
from halfbyte.plan.budget import amount
from halfbyte.plan.devices import machine_words
from halfbyte.plan.machine import this_machine
from halfbyte.plan.prose import duration, prose


def plan_html(plan: Mapping[str, Any]) -> str:
    """What a notebook shows of `Plan.to_json()`: weights, adapter, the peak of each phase, and whether it fits."""
    rows = [(name, _bytes(size)) for name, size in plan["weights_bytes"].items()]
    rows += [(f"constants of {name}", _bytes(size)) for name, size in plan["constants_bytes"].items()]
    rows += [("adapter", _bytes(plan["adapter_bytes"]))]
    rows += [(f"peak of {name}", _bytes(phase["peak_bytes"])) for name, phase in plan["phases"].items()]
    fits = {True: "fits", False: "does not fit", None: "whether it fits is unknown"}[plan["fits"]]
    return table(f"{plan['model']}: {fits}", ("what", "bytes"), rows, plan["reasons"])


def _bytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size:,}"


def render_answers(answers: Mapping[str, Any], console: Console) -> None:
    """Print what `Plan.to_json()` says under device, time, fit and parallel."""
    for lines in (time_lines(answers["time"], answers["settings"]), fit_lines(answers), parallel_lines(answers)):
        for number, line in enumerate(lines):
            prose(console, line, "" if number else "bold")


def time_lines(time: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    if not time["calibrated"]:
        return []  # the plan's reasons say why
    lines = [f"time, {time['reason']}"]
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in time["step_parts"].items() if seconds)
    items = f"{settings['batch']} x {settings['sequence']} tokens"
    lines.append(f"  training: {items} in {duration(time['step_seconds'])}, {time['tokens_per_second']:.3g} tokens/s, "
                 f"{time['hours_per_million_tokens']:.3g} hours a million tokens ({parts})")  # fmt: skip
    if time["run"]:
        run = time["run"]
        lines.append(f"  this run: at most {duration(run['seconds'])}, {run['steps']} steps of "
                     f"{duration(run['step_seconds'])}, {duration(run['validation_seconds'])} of it validation, "
                     f"if every item had {settings['sequence']} tokens")  # fmt: skip
    found = time["evaluate"]
    lines.append(f"  evaluation: {found['prompt_tokens_per_second']:.3g} tokens/s of prompts, then "
                 f"{found['decoded_tokens_per_second']:.3g} tokens/s ({found['items']} answers at once; "
                 f"{found['decoded_tokens_per_second_alone']:.3g} one alone)")  # fmt: skip
    if time["pack_seconds"] is not None:
        lines.append(f"  packing: {duration(time['pack_seconds'])}")
    return lines


def fit_lines(plan: Mapping[str, Any]) -> list[str]:
    fit, device = plan["fit"], plan["device"]
    where = f"{device['count']} x " * (device["count"] > 1) + device["name"]
    if device["kind"] == "cpu":
        where += f" ({machine_words(this_machine(cuda=False))})"
    if fit["memory_bytes"] not in (None, device["memory_bytes"]):
        where += f", in {amount(fit['memory_bytes'])}"
    advice = [f"  {phase} does not fit: {words}" for phase, words in fit["advice"].items()]
    if fit["fits"] is None:
        return [f"what fits on {where}: {fit['reason']}", *advice]
    spare = fit["spare_bytes"]
    verdict = f"fits, {amount(spare)} to spare" if spare >= 0 else f"does not fit, {amount(-spare)} too much"
    lines = [f"training on {where}: {verdict}, {fit['reason']}"]
    found = ", ".join(
        f"{name} {_largest(one['value'], one['limit'])}" for name, one in fit["largest"].items()
    )  # fmt: skip
    lines.append(f"  the largest that fits, every layer recomputed and the rest as asked: {found}")
    for one in fit["give_up"]:
        price = (
            "time unknown"
            if one["time_factor"] is None
            else f"{100 * (one['time_factor'] - 1):+.0f} % {fit['time_in']} a token"
        )
        first = " <- first" * (one["what"] == fit["first"])
        enough = "" if fit["fits"] else " enough;" if one["enough"] else " not enough;"
        sign = "saves" if one["saved_bytes"] >= 0 else "takes"
        saved = f"{sign} {amount(abs(one['saved_bytes']))}"
        lines.append(f"  {one['what']}:{enough} {saved}, {price}; gives up {one['cost']}{first}")
    return lines + advice


def _largest(value: int | None, limit: str) -> str:
    if limit == "nothing":  # that was looked for
        return f"{value:,} and more"
    return ("none" if value is None else str(value)) + f" ({limit})" * (limit != "memory")


def parallel_lines(plan: Mapping[str, Any]) -> list[str]:
    found = plan["parallel"]
    if not found:
        return []
    lines = [f"{found['ranks']} devices, on paper (torchrun trains on several cards of a machine)"]
    for name in ("replicated", "sharded"):
        way = found[name]
        held = "unknown" if way["bytes_per_rank"] is None else amount(way["bytes_per_rank"])
        fits = {True: "fits", False: "does not fit", None: "fits: unknown"}[way["fits"]]
        sent = "unknown" if way["traffic_bytes"] is None else amount(way["traffic_bytes"])
        lines.append(f"  {name}: {held} a rank, {fits}; each sends {sent} a step; {way['reason']}")
    if found["least_ranks_sharded"] is not None:
        lines.append(f"  the fewest sharded ranks that hold it: {found['least_ranks_sharded']}")
    return lines + [f"  assumed: {text}" for text in found["assumptions"]]
