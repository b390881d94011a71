"""The options of a `choice` task: the list that the task names, or what a column of the item holds."""

from __future__ import annotations

import json
from typing import Any

from halfbyte.config import TaskConfig
from halfbyte.data.records import Record
from halfbyte.data.template import Example, fill
from halfbyte.errors import ConfigError, DataError, nearest
from halfbyte.evaluate.scores import normalise

_SHOWN = 10  # options that an error spells out


def check_options(task: TaskConfig) -> None:
    """Raises ConfigError for a list of the task's own that can't be used; columns are checked item by item."""
    if task.kind != "choice" or isinstance(task.options, str):
        return
    try:
        _checked(task.options, task)
    except DataError as fault:
        raise ConfigError(fault.what, where=f"task {task.name}: options", found=fault.found, do=fault.do) from None


def rendered_options(example: Example, task: TaskConfig) -> tuple[tuple[str, ...], int]:
    """(the options as the completion would be written, the place of the reference among them). Raises DataError."""
    options = _checked(task.options, task) if not isinstance(task.options, str) else _of_column(example, task)
    rendered = tuple(_render(example, option, task) for option in options)
    if example.completion not in rendered:
        there = f"options: {', '.join(map(repr, rendered[:_SHOWN]))}{', ...' if len(rendered) > _SHOWN else ''}"
        if isinstance(task.options, str):
            raise DataError("the reference is none of the options", found=f"{example.completion!r}; {there}",
                            do=f"let the column '{task.options}' hold the right answer, too")  # fmt: skip
        raise DataError("the reference is none of the options", found=repr(example.completion),
                        do=f"add it to the task's options, or mend the reference ({there})")  # fmt: skip
    return rendered, rendered.index(example.completion)


def _of_column(example: Example, task: TaskConfig) -> list[str]:
    column, values = str(task.options), example.record.values
    if column not in values:
        hint = nearest(column, map(str, values), "columns")
        raise DataError(f"there is no column '{column}' for the options: {hint}",
                        do="let options name a column of the data, or hold the list itself")  # fmt: skip
    options = values[column]
    if isinstance(options, str):  # CSV knows no lists
        try:
            options = json.loads(options)
        except ValueError:
            raise DataError(f"the column '{column}' holds no list of options", found=repr(options),
                            do='write ["yes", "no"]') from None  # fmt: skip
    return _checked(options, task)


def _checked(options: Any, task: TaskConfig) -> list[str]:
    """The options as texts. Raises DataError unless there are two or more that an answer can tell apart."""
    if not isinstance(options, list) or len(options) < 2 or not all(str(option).strip() for option in options):
        raise DataError("there must be a list of two options or more, none of them empty", found=repr(options),
                        do='write ["yes", "no"]')  # fmt: skip
    texts = [str(option) for option in options]
    seen: dict[str, str] = {}
    for text in texts:
        known = normalise(text) if task.answer == "generated" else text.strip()
        if known in seen and text.strip() == seen[known].strip():
            raise DataError("an option stands twice", found=repr(text), do="leave one of them out")
        if known in seen:
            raise DataError("a written answer can't tell two options apart: they are equal once case and punctuation "
                            "are left aside", found=f"{seen[known]!r} and {text!r}",
                            do="reword one of them, or set answer: likelihood")  # fmt: skip
        seen[known] = text
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
