"""A frozen experiment: the items of a TASK.yaml, and the fingerprint that says whether two results may be compared.

The fingerprint covers what is asked and how answers are judged: ids, groups, system texts, prompts (of a conversation,
its turns), references and options, the template, the decoding, the kind and its tolerance, fallback and examples. It
covers neither the model, nor where files lie, nor the order of the items.
"""

from __future__ import annotations

import hashlib
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from halfbyte.config import TaskConfig
from halfbyte.data.encode import Encoder
from halfbyte.data.numbers import parse_number, several_numbers
from halfbyte.data.sides import asked_examples
from halfbyte.data.template import Example, gathered, load_examples
from halfbyte.errors import ConfigError, DataError, nearest
from halfbyte.evaluate.likeness import check_chrf
from halfbyte.evaluate.options import check_options, rendered_options
from halfbyte.evaluate.scorer import describe_scorer
from halfbyte.evaluate.structured import load_schema, read_json
from halfbyte.provenance import digest


@dataclass(frozen=True)
class Item:
    """One question. `number` is the reference of kind `number`, `fields` the object that a `json` task's is; `right` is
    the place of the reference among `options`."""

    id: str
    group: str | None
    example: Example
    reference: str
    number: float | None = None
    options: tuple[str, ...] = ()  # as the completion would be written
    right: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return self.example.record.origin


@dataclass(frozen=True)
class TaskSet:
    """The items of a task, ready to be asked."""

    task: TaskConfig
    items: list[Item]
    shots: list[Example]
    fallback: float | None  # kind number: what an answer without a number counts as
    fallback_source: str | None  # "task" | "training median" | "median of the test set"
    parts: dict[str, Any]  # what the fingerprint is made of
    warnings: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return digest(self.parts)

    @property
    def chance_level(self) -> float | None:
        """The accuracy of choosing an option at random; None of another kind than `choice`."""
        return statistics.fmean(1 / len(item.options) for item in self.items) if self.task.kind == "choice" else None

    def asked(self, encoder: Encoder) -> list[Example]:
        """The items' examples with the task's shots before them: as earlier turns for a chat model, else as text."""
        return [_with_shots(item.example, self.shots, chat=encoder.chat is not None) for item in self.items]


def load_task_set(task: TaskConfig, *, seed: int = 0, limit: int | None = None) -> TaskSet:
    """The items of `task`. `seed` draws the shots. `limit` keeps so many items: those whose ids have the smallest
    hashes, so that it depends neither on the order of the file nor on a seed.

    Raises DataError for a missing or broken file, an empty test set, an item without a reference, an id that stands
    twice, a reference of a `number` task that is no number, of a `choice` task that is no option, and of a `json` task
    that is no object, all of them in one error; MissingDependency for a library that the kind needs; ConfigError for a
    scoring function's file that can't be read, for a list of options that can't be used, and for a `limit` below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError("the limit must be 1 or more", where=f"task {task.name}", found=str(limit),
                          do="leave it away for all items")  # fmt: skip
    _needs(task)
    faults: list[DataError] = []
    items = _items(asked_examples(task, faults), task, faults)
    if limit is not None and limit < len(items):
        kept = sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest())[:limit]
        ids = {item.id for item in kept}
        items = [item for item in items if item.id in ids]
    train = load_examples(task.train, task.template) if task.train and (task.shots or task.kind == "number") else []
    shots, told = _shots(task, train, items, seed)
    fallback, source, warnings = _fallback(task, train, items) if task.kind == "number" else (None, None, [])
    warnings += _several(items) if task.kind == "number" else []
    return TaskSet(task, items, shots, fallback, source, _parts(task, items, shots, fallback), told + warnings)


def _several(items: Sequence[Item]) -> list[str]:
    """A sentence where references hold more than the number that is meant (a way to it, say)."""
    count = sum(several_numbers(item.reference) for item in items)
    if not count:
        return []
    return [f"{count:,} of {len(items):,} references hold several numbers, of which the first one counts: let the"
            " template's completion hold the one that is meant"]  # fmt: skip


def _needs(task: TaskConfig) -> None:
    """What the kind needs beside the data, looked for before any model is loaded."""
    if task.kind == "text":
        check_chrf()
    if task.kind == "json" and task.schema is not None:
        load_schema(task.schema)
    check_options(task)
    if task.kind == "python" and task.scorer is None:
        raise ConfigError("kind 'python' needs a scoring function", where=f"task {task.name}",
                          do="add 'scorer: scorer.py:score'")  # fmt: skip


def _items(examples: Sequence[Example], task: TaskConfig, faults: Sequence[DataError]) -> list[Item]:
    """The items of `examples`; `faults`: records that are no example. All faults are one error."""
    found = list(faults)
    items: list[Item] = []
    seen: dict[str, int] = {}
    for example in examples:
        try:
            item = _item(example, task)
            seen[item.id] = count = seen.get(item.id, 0) + 1
            if count > 1 and task.id:
                raise DataError(f"the id {item.id!r} stands twice", do="name a column that differs from item to item")
            items.append(item if count == 1 else replace(item, id=f"{item.id}#{count}"))
        except DataError as fault:
            found.append(DataError(fault.what, where=example.record.origin, found=fault.found, do=fault.do))
    if found:
        where = f"task {task.name}: {task.data}"
        raise gathered(found, len(examples) + len(faults), "items of the test set", where=where)
    return items


def _item(example: Example, task: TaskConfig) -> Item:
    reference = example.completion
    if reference is None:
        raise DataError("there is no reference answer", do="a test item needs a completion (of its column or the "
                        "template)")  # fmt: skip
    name = _value(example, task.id, "id") if task.id else _hashed_id(example, reference)
    group = _value(example, task.group, "group") if task.group else None
    return _with_kind(Item(name, group, example, reference), task)


def _hashed_id(example: Example, reference: str) -> str:
    """Of all that is asked, and the reference."""
    system = [] if example.system is None else [example.system]
    return digest([*system, _question(example), reference])[:16]


def _question(example: Example) -> Any:
    """What is asked, as plain data: the prompt, or the turns of a conversation before the answer."""
    if example.messages is None:
        return example.prompt
    return example.messages if example.completion is None else example.messages[:-1]


def _value(example: Example, column: str, what: str) -> str:
    values = example.record.values
    if column not in values:
        raise DataError(f"there is no column '{column}' for the {what}: {nearest(column, map(str, values), 'columns')}",
                        do=f"let {what} name a column of the data")  # fmt: skip
    value = values[column]
    if value is None or value == "" or isinstance(value, (list, dict)):
        raise DataError(f"the column '{column}' holds no {what}", found=repr(value), do="fill it in for every item")
    return str(value)


def _with_kind(item: Item, task: TaskConfig) -> Item:
    """The item with what its kind needs of it."""
    if task.kind == "number":
        number = parse_number(item.reference)
        if number is None:
            raise DataError("the reference is no number", found=repr(item.reference),
                            do="write a number as the reference, or set another kind")  # fmt: skip
        return replace(item, number=number)
    if task.kind == "choice":
        options, right = rendered_options(item.example, task)
        return replace(item, options=options, right=right)
    if task.kind == "json":
        fields = read_json(item.reference)
        if not isinstance(fields, dict) or not fields:
            raise DataError("the reference is no JSON object with fields", found=repr(item.reference[:80]),
                            do='write an object as the reference: {"name": "Fire Truck"}')  # fmt: skip
        return replace(item, fields=fields)
    return item


def _shots(
    task: TaskConfig, train: Sequence[Example], items: Sequence[Item], seed: int
) -> tuple[list[Example], list[str]]:
    """(`task.shots` training examples, the same for every item; warnings). None of them has the prompt of a test item,
    or is of a test item's group."""
    if not task.shots:
        return [], []
    if not task.train:
        raise DataError(
            "shots need training examples", where=f"task {task.name}", found=f"shots: {task.shots}, no train",
            do="name the training data: train: train.jsonl",
        )  # fmt: skip
    tested = {item.example.prompt for item in items}
    groups, grouped = {item.group for item in items if item.group is not None}, [_group(one, task) for one in train]
    usable = [example for example, group in zip(train, grouped, strict=True)
              if example.completion is not None and example.prompt not in tested and group not in groups]  # fmt: skip
    if len(usable) < task.shots:
        which = "neither prompt nor group is" if task.group else "prompt is not"
        raise DataError("there are too few training examples for the shots", where=task.train,
                        found=f"{len(usable)} whose {which} in the test set; shots: {task.shots}",
                        do="lower shots, or name more training data")  # fmt: skip
    unknown = grouped.count(None) if task.group else 0
    told = [f"{unknown:,} of {len(train):,} training examples have no '{task.group}', so an example before the prompts"
            " may be of a test item's group"] * bool(unknown)  # fmt: skip
    return random.Random(seed).sample(usable, task.shots), told


def _group(example: Example, task: TaskConfig) -> str | None:
    """The group of a training example; None where it says none."""
    value = example.record.values.get(task.group) if task.group else None
    return None if value is None or value == "" else str(value)


def _with_shots(example: Example, shots: Sequence[Example], *, chat: bool) -> Example:
    if not shots:
        return example
    if not chat and example.messages is None:
        text = "".join(f"{shot.prompt}{shot.completion}\n\n" for shot in shots)
        return replace(example, prompt=text + example.prompt)
    earlier = [turn for shot in shots for turn in _turns(shot) if turn["role"] != "system"]
    own = _turns(example)
    first = 1 if own[0]["role"] == "system" else 0
    return replace(example, messages=[*own[:first], *earlier, *own[first:]])


def _turns(example: Example) -> list[dict[str, str]]:
    """An example as a conversation."""
    if example.messages is not None:
        return example.messages
    system = [{"role": "system", "content": example.system}] if example.system else []
    answer = [{"role": "assistant", "content": example.completion}] if example.completion is not None else []
    return [*system, {"role": "user", "content": example.prompt}, *answer]


def _fallback(task: TaskConfig, train: Sequence[Example], items: Sequence[Item]) -> tuple[float, str, list[str]]:
    """What an answer without a number counts as, where that comes from, and warnings."""
    if task.fallback is not None:
        return float(task.fallback), "task", []
    numbers = [number for number in (parse_number(e.completion or "") for e in train) if number is not None]
    if numbers:
        return float(statistics.median(numbers)), "training median", []
    if train:
        raise DataError(
            "no training example has a number as its completion", where=task.train, found=repr(train[0].completion),
            do="check the template, or set fallback in the task",
        )  # fmt: skip
    median = float(statistics.median([item.number for item in items if item.number is not None]))
    warning = (
        f"an answer without a number counts as {median:g}, the median of the test set itself, since the task names"
        " neither fallback nor train"
    )
    return median, "median of the test set", [warning]


def _parts(task: TaskConfig, items: Sequence[Item], shots: Sequence[Example], fallback: float | None) -> dict[str, Any]:
    """What the fingerprint is made of: small things as they are, data as hashes. The order of the items is no part of
    it, since results are paired by id."""
    items = sorted(items, key=lambda item: item.id)
    columns = {
        "ids": [item.id for item in items],
        "groups": [item.group for item in items],
        "system": [item.example.system for item in items],
        "prompts": [_question(item.example) for item in items],
        "references": [item.reference for item in items],
        "options": [item.options for item in items],
    }
    parts: dict[str, Any] = {
        "kind": task.kind,
        "items": len(items),
        "data": {name: digest(column) for name, column in columns.items()},
        "template": task.template,
        "chat": task.chat,
        "shots": digest([[shot.system, _question(shot), shot.completion] for shot in shots]) if shots else None,
    }
    if task.split.share is not None:
        parts["split"] = asdict(task.split)
    if task.generates:
        parts["decoding"] = asdict(task.decoding)
    return parts | _kind_parts(task, items, fallback)


def _kind_parts(task: TaskConfig, items: Sequence[Item], fallback: float | None) -> dict[str, Any]:
    """How answers of this kind are judged."""
    if task.kind == "number":
        return {"tolerance": asdict(task.tolerance), "fallback": fallback}
    if task.kind == "choice":  # the defaults are left out, so that results from before there was a choice compare
        own = {"answer": task.answer, "normalise": task.normalise}
        return {key: value for key, value in own.items() if value not in ("likelihood", "none")}
    if task.kind == "contains":
        return {"contains": asdict(task.contains)}
    if task.kind == "json":
        return {"schema": None if task.schema is None else digest(load_schema(task.schema))}
    if task.kind == "python":  # the function sees every column
        assert task.scorer is not None
        columns = digest([{str(key): value for key, value in i.example.record.values.items()} for i in items])
        return {"scorer": describe_scorer(task.scorer), "columns": columns}
    return {}
