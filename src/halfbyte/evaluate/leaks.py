"""What a run has learned from, beside the items that it is asked: `halfbyte check` of a task that comes later."""

from __future__ import annotations

import json
from pathlib import Path

from halfbyte.config import RunConfig, load_task
from halfbyte.data.check import leaks_of
from halfbyte.data.check_report import FILE, Finding, told_leaks
from halfbyte.errors import HalfbyteError
from halfbyte.evaluate.tasks import TaskSet, load_task_set


def learned_from(tasks: TaskSet, config: RunConfig, run: Path | None = None) -> list[str]:
    """How the data of a run give items of a task away, in sentences, as `leaks_of` has them; where these data can't be
    read (any more), that it is not known. `run`: its folder, whose own check is taken where the task is its own."""
    if run is not None and (known := _recorded(run, tasks, config.seed)) is not None:
        return known
    try:
        return leaks_of(config.data, config.seed, [item.example for item in tasks.items], tasks.task.group)
    except HalfbyteError as error:
        where = f" ({error.where})" if error.where else ""
        return [f"whether the run learned these items is not known: {' '.join(error.what.split())}{where}"]


def _recorded(run: Path, tasks: TaskSet, seed: int) -> list[str] | None:
    """What the run's check.json says of `tasks`; None where these are not the run's own, or it says nothing of them."""
    try:
        own = load_task_set(load_task(run / "task.yaml", runs=False), seed=seed)
        found = json.loads((run / FILE).read_text(encoding="utf-8"))
        if own.fingerprint != tasks.fingerprint or found["test_items"] != len(tasks.items):
            return None
        return told_leaks([Finding(**row) for row in found["findings"]])
    except (HalfbyteError, OSError, ValueError, KeyError, TypeError):
        return None
