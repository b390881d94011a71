"""What has been scored on a task so far: a line for each result, those of one experiment together.

`FOLDER` is searched for evaluations; a TASK.yaml stands for the results of that task below `runs/`, here and beside it,
where `evaluate` and `tune` put them. Only what is complete counts; nothing of a model is loaded, and predictions are
not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from halfbyte.config import TaskConfig, load_task
from halfbyte.errors import ConfigError, DataError
from halfbyte.evaluate.fingerprint import differing
from halfbyte.evaluate.metrics import METRICS, metric_for
from halfbyte.evaluate.results import RESULT, SCHEMA
from halfbyte.evaluate.tasks import load_task_set

_COPIED = ("task", "kind", "fingerprint", "variant", "model", "weights", "adapter", "items", "unanswered", "peak_bytes",
           "mapped_bytes", "seconds", "seed", "limit", "leaks")  # fmt: skip


def list_results(target: Path, *, runs: Path | None = None) -> list[dict[str, Any]]:
    """The results below `target`, a folder, or below `runs` those of the task in `target`, a TASK.yaml; None: below
    `runs/` in the current folder and beside the file.

    Each has `folder`, the keys of result.json that tell one from the other, `metric` {name, value, low, high, better}
    (the first of the kind; of `loss` bits a byte), and `differs`: what its experiment differs in from that of the first
    result of its task (of a TASK.yaml: from what the task is now), empty where it compares. Within a task those that
    compare come first, then by fingerprint, best first.

    Raises DataError where there is none, ConfigError for a TASK.yaml that is broken or not there.
    """
    if target.is_file():
        task = load_task(target, runs=False)
        places = [runs] if runs is not None else [Path("runs"), target.parent / "runs"]
        places = list({place.resolve(): place for place in reversed(places)}.values())[::-1]
        found = {Path(row["folder"]).resolve(): row for place in reversed(places) for row in _found(place)}
        rows = [row for row in found.values() if row["task"] == task.name]
        parts_now = cache(partial(_parts_now, task))
        wanted = [parts_now(row["seed"] or 0, row["fingerprint_parts"].get("fallback")) for row in rows]
        said = ", ".join(f"{place.resolve()} ({'none of this task' if place.is_dir() else 'no such folder'})"
                         for place in places)  # fmt: skip
        nothing, do = f"looked in {said}", "or say where its results are: --runs FOLDER"
    elif not target.is_dir():
        raise ConfigError("there is no such task and no such folder", where=target,
                          do="name a TASK.yaml, or a folder with evaluations")  # fmt: skip
    elif runs is not None:
        raise ConfigError("--runs says where the results of a TASK.yaml are", where=target, found="a folder",
                          do="name the task, or leave --runs away")  # fmt: skip
    else:
        rows, nothing, do = list(_found(target)), "no result.json of an evaluation", "or name another folder"
        first: dict[str, dict[str, Any]] = {}
        wanted = [first.setdefault(str(row["task"]), row["fingerprint_parts"]) for row in rows]
    if not rows:
        raise DataError("there is no result yet", where=target, found=nothing,
                        do=f"halfbyte evaluate MODEL --task TASK.yaml; {do}")  # fmt: skip
    for row, parts in zip(rows, wanted, strict=True):
        row["differs"] = differing(parts, row.pop("fingerprint_parts"))
    return sorted(rows, key=_place)


def _parts_now(task: TaskConfig, seed: int, fallback: float | None) -> dict[str, Any]:
    """The experiment that `task` is now, with a result's seed, and with the `fallback` that a run took from its own
    training data where the task names none."""
    if task.kind == "number" and task.fallback is None and task.train is None and fallback is not None:
        task = replace(task, fallback=fallback)
    return load_task_set(task, seed=seed).parts


def _found(folder: Path) -> Iterable[dict[str, Any]]:
    for file in sorted(folder.glob(f"**/{RESULT}")):
        result = _read(file)
        if result is not None:
            name, metric = _first_metric(result)
            yield {
                "folder": str(file.parent),
                **{key: result.get(key) for key in _COPIED},
                "metric": {"name": name, **{key: metric.get(key) for key in ("value", "low", "high", "better")}},
                "fingerprint_parts": result["fingerprint_parts"],
            }


def _read(file: Path) -> dict[str, Any] | None:
    """A result of this schema; None for anything else that is called so."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {"task", "fingerprint", "fingerprint_parts", "variant", "metrics"}
    whole = isinstance(found, dict) and needed <= found.keys() and found.get("schema") == SCHEMA
    return found if whole and isinstance(found["metrics"], dict) else None


def _first_metric(result: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The metric that ranks results of this kind, whose models may have other tokenizers each."""
    metrics, kind = result["metrics"], str(result["fingerprint_parts"].get("kind"))
    known = [metric_for(kind).name, *(metric.name for metric in METRICS[kind])] if kind in METRICS else []
    name = next((name for name in [*known, *metrics] if name in metrics), "")
    return name, metrics.get(name) or {}


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    value, lower = row["metric"]["value"], row["metric"]["better"] == "lower"
    badness = float("inf") if value is None else value if lower else -value
    return (str(row["task"]), bool(row["differs"]), str(row["fingerprint"]), badness, row["folder"])
