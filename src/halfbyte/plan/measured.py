"""What a run took, phase by phase, against what was planned: `measured.json` beside `plan.json`. No torch.

Compared are peaks with peaks, on the device that computes: of a card what PyTorch allocated, so that the context, which
is planned beside it, is left out. Mapped files stand apart: what is measured of them counts the program's libraries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halfbyte.errors import DataError
from halfbyte.plan.held import exact_parts

FILE = "measured.json"
PART = f"{FILE}.part"  # while it is written
PHASES = {"pack": "pack", "open": "open", "evaluate_before": "evaluate", "tune": "tune", "evaluate_after": "evaluate"}
PLANNED_TIME = ("pack", "tune")
EXACT = ("weights", "constants", "adapter", "gradients", "optimiser")
REST = "rest"
SAMPLED = "sampled"  # how memory is measured where the system lets it


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(plan, measured) of the run in `folder`; an empty plan of a run that was killed before its training.

    Raises DataError for a file that is missing or broken."""
    taken, plan = checked(read_object(folder / FILE), folder / FILE), folder / "plan.json"
    begun = plan.exists() or (folder / "run.yaml").exists()
    return checked_plan(read_object(plan), plan) if begun else {}, taken


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a run. Raises DataError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        why = "a run that is unfinished, or was made before halfbyte measured runs" if file.name == FILE else (
            "a run that has not come to its training")  # fmt: skip
        raise DataError(f"the run has no {file.name}", where=file.parent, found=why,
                        do="finish it: halfbyte tune RUN.yaml (--resume)") from None  # fmt: skip
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(file, " ".join(str(error).split())) from None
    if not isinstance(found, dict):
        raise _broken(file, f"no JSON object, but {type(found).__name__}")
    return found


def checked(measured: dict[str, Any], file: Path) -> dict[str, Any]:
    """`measured` itself. Raises DataError, all faults in one, where it has not the keys and types of such a file."""
    faults = [] if measured.get("schema") == 1 else [f"schema is {measured.get('schema')!r}, not 1"]
    phases, exact, has = measured.get("phases"), measured.get("exact"), measured.get("has", [])
    if not isinstance(has, list) or any(name not in list(PHASES) for name in has):
        faults.append("has is no list of phases")
    faults += [f"{name} is no object" for name in ("phases", "exact") if not isinstance(measured.get(name), dict)]
    for name, phase in phases.items() if isinstance(phases, dict) else ():
        if name not in PHASES:
            faults.append(f"unknown phase {name!r}")
        elif not isinstance(phase, dict) or not isinstance(phase.get("parts"), dict):
            faults.append(f"phases.{name} has no parts")
        else:
            faults += _faulty(phase, f"phases.{name}", _FIGURES)
    kinds = _KINDS.items()
    faults += [f"{name} is no {kind}" for name, (kind, type_) in kinds if not isinstance(measured.get(name), type_)]
    sizes = exact.items() if isinstance(exact, dict) else ()
    faults += [f"exact.{name} is no number" for name, size in sizes if not _is_size(size)]
    if faults:
        raise _broken(file, "; ".join(faults[:8]) + "; ..." * (len(faults) > 8))
    return measured


_FIGURES = ("peak_bytes", "mapped_bytes", "seconds")
_KINDS: dict[str, tuple[str, type]] = {
    "run": ("object", dict),
    "finished": ("true or false", bool),
    "method": ("text", str),
}


def _faulty(phase: Mapping[str, Any], where: str, keys: Sequence[str]) -> list[str]:
    """What of a phase's object, its parts included, is missing or no number."""
    faults = [f"{where} has no {key}" for key in keys if key not in phase]
    numbers = {key: value for key, value in phase.items() if key != "parts"} | phase["parts"]
    return faults + [f"{where}.{key} is no number" for key, value in numbers.items() if not _is_size(value)]


def checked_plan(plan: dict[str, Any], file: Path) -> dict[str, Any]:
    """`plan` itself, a run's plan.json. Raises DataError, all faults in one, for another shape."""
    faults = [] if plan.get("schema") == 1 else [f"schema is {plan.get('schema')!r}, not 1"]
    objects = ("phases", "held_bytes", "time")
    faults += [f"{name} is no object" for name in objects if not isinstance(plan.get(name), dict)]
    for name in dict.fromkeys(PHASES.values()):
        phase = _mapping(plan.get("phases")).get(name)
        if not isinstance(phase, dict) or not isinstance(phase.get("parts"), dict):
            faults.append(f"phases.{name} has no parts")
        else:
            faults += _faulty(phase, f"phases.{name}", _FIGURES)
    expected = plan.get("expected")
    if expected is not None and not (isinstance(expected, dict) and _is_size(expected.get("seconds"))):
        faults.append("expected has no seconds")
    parts = exact_parts(plan).items()
    faults += [f"the size of {name} is no number" for name, size in parts if not _is_size(size)]
    keys = ("adapter_bytes", "gradient_bytes", "optimiser_bytes")
    faults += [f"{key} is missing" for key in keys if key not in plan]
    if faults:
        raise _broken(file, "; ".join(faults[:8]) + "; ..." * (len(faults) > 8))
    return plan


def _is_size(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _broken(file: Path, found: str) -> DataError:
    return DataError(f"{file.name} can't be read", where=file, found=found,
                     do="write it again: halfbyte tune RUN.yaml --resume")  # fmt: skip


def against(plan: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """The object that `halfbyte plan --check --json` prints.

    `time_reason` says why phases have no planned time (None: they have, or there is no plan).
    `phases` {name: `planned`, `measured`, `difference`}; planned and measured have `peak_bytes`, `mapped_bytes`,
    `seconds`, `parts`; a phase that was not measured has null there. `difference` {`peak`, `seconds`}: share of what
    was planned, null where one of the two is unknown, or where `method` measures another peak. `exact` {part:
    `planned`, `measured`, `difference_bytes`}.
    """
    phases, found = {}, measured["phases"]
    for name in PHASES:
        was, taken = planned_phase(plan, name), found.get(name)
        if taken is None and not _has(measured, name):
            continue
        comparable = taken is not None and _comparable(measured, taken)
        taken = None if taken is None else _on_device(taken)
        difference = {key: share(was[f"{key}{unit}"], None if taken is None else taken[f"{key}{unit}"])
                      for key, unit in (("peak", "_bytes"), ("seconds", ""))}  # fmt: skip
        difference["peak"] = difference["peak"] if comparable else None
        phases[name] = {"planned": was, "measured": taken, "difference": difference}
    exact, planned, time = {}, exact_parts(plan), _mapping(plan.get("time"))
    for name in EXACT:
        a, b = _number(planned[name]), measured["exact"].get(name)
        exact[name] = {"planned": a, "measured": b, "difference_bytes": None if a is None or b is None else b - a}
    reason = None if time.get("calibrated") else time.get("reason")
    return {"schema": 1, "finished": bool(measured.get("finished")), "method": str(measured.get("method") or SAMPLED),
            "time_reason": reason, "phases": phases, "exact": exact}  # fmt: skip


def _has(measured: Mapping[str, Any], name: str) -> bool:
    """Whether the run has this phase: one without a task has no evaluations, and one that found its packed copy packs
    nothing. Of a run that does not say it: all, until it is finished."""
    has = measured.get("has")
    if has is None:
        return name in ("open", "tune") or not measured.get("finished")
    return name in has


def _comparable(measured: Mapping[str, Any], phase: Mapping[str, Any]) -> bool:
    """Whether its peak can be held against the plan's: a largest resident set counts mapped files, and all that was
    before. What PyTorch counted on a card always can."""
    return phase.get("cuda_peak_bytes") is not None or (measured.get("method") or SAMPLED) == SAMPLED


def planned_phase(plan: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a plan's object says of a phase of a run: `peak_bytes`, `mapped_bytes`, `seconds`, `parts`; None or empty
    where it says nothing. The seconds are those of the whole phase."""
    phase = _mapping(_mapping(plan.get("phases")).get(PHASES[name]))
    without = ("context", "adapter", "narrow_copy") if name == "evaluate_before" else ("context",)
    parts = {str(part): _number(size) for part, size in _mapping(phase.get("parts")).items() if part not in without}
    peak = None if not parts or None in parts.values() else sum(size for size in parts.values() if size is not None)
    seconds = {"pack": phase.get("seconds"), "tune": _mapping(plan.get("expected")).get("seconds")}.get(name)
    return {"peak_bytes": peak, "mapped_bytes": _number(phase.get("mapped_bytes")), "seconds": _number(seconds),
            "parts": parts}  # fmt: skip


def parts_of(peak: int | None, known: Mapping[str, int | None]) -> dict[str, int]:
    """A measured peak by part: those that are `known`, and the `rest`; empty where the peak is unknown."""
    if peak is None:
        return {}
    parts = {name: size for name, size in known.items() if size}
    return {**parts, REST: max(0, peak - sum(parts.values()))}


def device_kind(values: Mapping[str, Any]) -> str:
    """The kind of device (cpu, cuda) that a line of metrics.jsonl or a result.json is of; empty where it isn't said."""
    return str(values.get("device") or "").partition(":")[0]


def how_measured(check: Mapping[str, Any]) -> str:
    """What to know of the peaks of `against` where they can't be compared with the plan; empty where they can."""
    if check["method"] == SAMPLED:
        return ""
    return (f"peaks in memory were measured as {check['method']}: since the process began, mapped files included, so "
            "they are not compared with the plan")  # fmt: skip


def share(planned: float | None, measured: float | None) -> float | None:
    """How much more was measured than planned, as a share of what was planned."""
    return (measured - planned) / planned if planned and measured is not None else None


def _on_device(phase: Mapping[str, Any]) -> dict[str, Any]:
    """A measured phase with the peak of the device that computed."""
    card = phase.get("cuda_peak_bytes")
    return {"peak_bytes": phase.get("peak_bytes") if card is None else card,
            "mapped_bytes": phase.get("mapped_bytes"), "seconds": phase.get("seconds"),
            "parts": dict(phase["parts"])}  # fmt: skip


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> Any:
    return value if _is_size(value) else None
