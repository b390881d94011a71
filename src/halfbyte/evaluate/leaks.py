"""Whether a run is asked what it has learned from. `halfbyte check` looks closer, before a run; this is for a task that
comes later."""

from __future__ import annotations

from halfbyte.config import DataConfig
from halfbyte.data.dataset import text_of
from halfbyte.data.template import Example, iter_examples
from halfbyte.evaluate.tasks import TaskSet

LEAST = 0.01  # of the items: so many are worth a word


def learned_from(tasks: TaskSet, data: DataConfig) -> list[str]:
    """A sentence where the prompts of 1 % or more of the items, but for letter case and white space, stand in the data
    that a run learns from. Raises DataError where these can't be read."""
    if not data.train or not tasks.items:
        return []
    asked = {text_of(item.example) for item in tasks.items}
    met = {text for one in iter_examples(data.train, data.template)
           if isinstance(one, Example) and (text := text_of(one)) in asked}  # fmt: skip
    count, total = sum(text_of(item.example) in met for item in tasks.items), len(tasks.items)
    if count < LEAST * total:
        return []
    return [f"{count:,} of {total:,} items stand in the data that this run learned from: the score is no test"]
