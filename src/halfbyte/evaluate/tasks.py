"""A frozen experiment: the items of a TASK.yaml, and the fingerprint that says whether two results may be compared.

The fingerprint covers what is asked and how answers are judged: ids, groups, prompts, references and options, the
template, the decoding, the kind and its tolerance, fallback and examples. It covers neither the model nor where files
lie.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from halfbyte.config import TaskConfig
from halfbyte.data.encode import Encoder
from halfbyte.data.numbers import parse_number
from halfbyte.data.records import Record
from halfbyte.data.sides import asked_examples
from halfbyte.data.template import Example, fill, load_examples
from halfbyte.errors import ConfigError, DataError, nearest
from halfbyte.evaluate.likeness import check_chrf
from halfbyte.evaluate.scorer import describe_scorer
from halfbyte.evaluate.structured import load_schema, read_json

_SHOWN = 5  # faults that one error spells out


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

    def asked(self, encoder: Encoder) -> list[Example]:
        """The items' examples with the task's shots before them: as earlier turns for a chat model, else as text."""
        return [_with_shots(item.example, self.shots, chat=encoder.chat is not None) for item in self.items]


def digest(value: Any) -> str:
    """SHA-256 of plain data, in hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def load_task_set(task: TaskConfig, *, seed: int = 0, limit: int | None = None) -> TaskSet:
    """The items of `task`. `seed` draws the shots. `limit` keeps so many items: those whose ids have the smallest
    hashes, so that it depends neither on the order of the file nor on a seed.

    Raises DataError for a missing or broken file, an empty test set, an item without a reference, an id that stands
    twice, a reference of a `number` task that is no number, of a `choice` task that is no option, and of a `json` task
    that is no object; MissingDependency for a library that the kind needs; ConfigError for a scoring function's file
    that can't be read.
    """
    _needs(task)
    examples = asked_examples(task)
    items = _items(examples, task)
    if limit is not None and limit < len(items):
        kept = sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest())[: max(1, limit)]
        ids = {item.id for item in kept}
        items = [item for item in items if item.id in ids]
    train = load_examples(task.train, task.template) if task.train and (task.shots or task.kind == "number") else []
    shots = _shots(task, train, items, seed)
    fallback, source, warnings = _fallback(task, train, items) if task.kind == "number" else (None, None, [])
    return TaskSet(task, items, shots, fallback, source, _parts(task, items, shots, fallback), warnings)


def _needs(task: TaskConfig) -> None:
    """What the kind needs beside the data, looked for before any model is loaded."""
    if task.kind == "text":
        check_chrf()
    if task.kind == "json" and task.schema is not None:
        load_schema(task.schema)
    if task.kind == "python" and task.scorer is None:
        raise ConfigError("kind 'python' needs a scoring function", where=f"task {task.name}",
                          do="add 'scorer: scorer.py:score'")  # fmt: skip


def _items(examples: Sequence[Example], task: TaskConfig) -> list[Item]:
    faults: list[str] = []
    items: list[Item] = []
    seen: dict[str, int] = {}
    for example in examples:
        origin, reference = example.record.origin, example.completion
        if reference is None:
            faults.append(f"{origin}: there is no reference answer")
            continue
        try:
            name = _value(example, task.id, "id") if task.id else digest([example.prompt, reference])[:16]
            group = _value(example, task.group, "group") if task.group else None
            item = Item(name, group, example, reference)
            items.append(_with_kind(item, task))
        except DataError as fault:
            faults.append(f"{origin}: {fault.what}" + (f" ({fault.found})" if fault.found else ""))
            continue
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1 and task.id:
            faults.append(f"{origin}: the id {name!r} stands twice")
        elif seen[name] > 1:
            items[-1] = replace(items[-1], id=f"{name}#{seen[name]}")
    if faults:
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise DataError(
            f"{len(faults)} of {len(examples)} items of the test set can't be used",
            where=f"task {task.name}: {task.data}",
            found="\n         ".join(faults[:_SHOWN] + more),
            do="a test item needs a completion (from its column or the template) that fits the task's kind",
        )
    return items


def _value(example: Example, column: str, what: str) -> str:
    values = example.record.values
    if column not in values:
        raise DataError(f"there is no column '{column}' for the {what}: {nearest(column, map(str, values), 'columns')}")
    value = values[column]
    if value is None or value == "" or isinstance(value, (list, dict)):
        raise DataError(f"the column '{column}' holds no {what}", found=repr(value))
    return str(value)


def _with_kind(item: Item, task: TaskConfig) -> Item:
    """The item with what its kind needs of it."""
    if task.kind == "number":
        number = parse_number(item.reference)
        if number is None:
            raise DataError("the reference is no number", found=repr(item.reference))
        return replace(item, number=number)
    if task.kind == "choice":
        options = _options(item, task)
        rendered = tuple(_render(item.example, option, task) for option in options)
        if item.reference not in rendered:
            raise DataError("the reference is none of the options",
                            found=f"{item.reference!r}; options: {', '.join(map(repr, rendered[:10]))}")  # fmt: skip
        return replace(item, options=rendered, right=rendered.index(item.reference))
    if task.kind == "json":
        fields = read_json(item.reference)
        if not isinstance(fields, dict) or not fields:
            raise DataError("the reference is no JSON object with fields", found=repr(item.reference[:80]))
        return replace(item, fields=fields)
    return item


def _options(item: Item, task: TaskConfig) -> list[str]:
    options: Any = task.options
    if isinstance(options, str):
        values = item.example.record.values
        if options not in values:
            raise DataError(
                f"there is no column '{options}' for the options: {nearest(options, map(str, values), 'columns')}"
            )
        options = values[options]
        if isinstance(options, str):  # CSV knows no lists
            try:
                options = json.loads(options)
            except ValueError:
                raise DataError("the options are no list", found=repr(options), do='write ["yes", "no"]') from None
    if not isinstance(options, list) or len(options) < 2 or not all(str(option).strip() for option in options):
        raise DataError("there must be a list of two options or more, none of them empty", found=repr(options))
    texts = [str(option) for option in options]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise DataError("an option stands twice", found=repr(twice[0]))
    return texts


def _render(example: Example, option: str, task: TaskConfig) -> str:
    """`option` written as the completion writes the right one: in its template, or in the white space around it."""
    completion = example.completion or ""
    pattern, values = (task.template or {}).get("completion", ""), example.record.values
    columns = [column for column in values if f"{{{column}}}" in pattern]
    if len(columns) == 1:
        return fill(pattern, Record(values | {columns[0]: option}, example.record.origin))
    bare = completion.strip()
    if option == completion or not bare:
        return option
    lead = completion[: len(completion) - len(completion.lstrip())]
    return lead + option.strip() + completion[len(completion.rstrip()) :]


def _shots(task: TaskConfig, train: Sequence[Example], items: Sequence[Item], seed: int) -> list[Example]:
    """`task.shots` training examples, the same for every item; none of them has the prompt of a test item."""
    if not task.shots:
        return []
    if not task.train:
        raise DataError(
            "shots need training examples", where=f"task {task.name}", found=f"shots: {task.shots}, no train",
            do="name the training data: train: train.jsonl",
        )  # fmt: skip
    tested = {item.example.prompt for item in items}
    usable = [example for example in train if example.completion is not None and example.prompt not in tested]
    if len(usable) < task.shots:
        raise DataError("there are too few training examples for the shots", where=task.train,
                        found=f"{len(usable)} whose prompt is not in the test set; shots: {task.shots}",
                        do="lower shots, or name more training data")  # fmt: skip
    return random.Random(seed).sample(usable, task.shots)


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
    """What the fingerprint is made of: small things as they are, data as a hash."""
    asked = [[i.id, i.group, i.example.system, i.example.prompt, i.reference, list(i.options)] for i in items]
    parts: dict[str, Any] = {
        "kind": task.kind,
        "items": len(items),
        "data": digest(asked),
        "template": task.template,
        "chat": task.chat,
        "shots": digest([[shot.prompt, shot.completion] for shot in shots]) if shots else None,
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
        columns = digest([{str(key): str(value) for key, value in i.example.record.values.items()} for i in items])
        return {"scorer": describe_scorer(task.scorer), "columns": columns}
    return {}
