"""What a run has learned from, beside the items that it is asked: `halfbyte check` of a task that comes later."""

from __future__ import annotations

from halfbyte.config import RunConfig
from halfbyte.data.check import leaks_of
from halfbyte.errors import HalfbyteError
from halfbyte.evaluate.tasks import TaskSet


def learned_from(tasks: TaskSet, config: RunConfig) -> list[str]:
    """How the data of a run give items of a task away, in sentences, as `leaks_of` has them; where these data can't be
    read (any more), that it is not known."""
    try:
        return leaks_of(config.data, config.seed, [item.example for item in tasks.items], tasks.task.group)
    except HalfbyteError as error:
        where = f" ({error.where})" if error.where else ""
        return [f"whether the run learned these items is not known: {' '.join(error.what.split())}{where}"]
