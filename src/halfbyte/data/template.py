"""Examples: a prompt with its completion, or a conversation, made of a record's columns.

A template's text holds columns in braces: "LEGO set {Name}"; {{ and }} stand for braces. Nothing else is understood:
no attributes, no formats, no expressions, so nothing that stands in a data file is ever evaluated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any

from halfbyte.data.records import Record, iter_records
from halfbyte.errors import DataError, nearest

ROLES = ("system", "user", "assistant", "tool")
_KEYS = ("prompt", "completion", "system")
_SHOWN = 5  # faults that one error spells out


@dataclass(frozen=True)
class Example:
    """What is asked and what is to be answered.

    A conversation has `messages` ({role, content} each, up to and with the last assistant turn; without one, all).
    `completion` is then the content of that turn and takes its place when it is replaced; `prompt` is a plain
    rendering of all that stands before it, for display and for hashes, not what the model is shown.
    """

    prompt: str
    completion: str | None
    messages: list[dict[str, str]] | None
    record: Record
    system: str | None = None

    @classmethod
    def of_prompt(cls, prompt: str) -> Example:
        """A prompt that comes from no file."""
        return cls(prompt, None, None, Record({"prompt": prompt}, "the prompt"))


def load_examples(source: str, template: Mapping[str, str] | None = None, *, split: str = "train") -> list[Example]:
    """The examples of `iter_examples` in a list; one DataError names the faults of all."""
    return _without_faults(list(iter_examples(source, template, split=split)))


def iter_examples(
    source: str,
    template: Mapping[str, str] | None = None,
    *,
    split: str = "train",
    only: Iterable[bool] | None = None,
) -> Iterator[Example | DataError]:
    """`to_example` of each record of `source`, or what is wrong with it; none is kept. A TASK.yaml stands for the
    training side of its data, which is read whole. `only`: a flag for each record; of the others nothing is made.
    Raises DataError as `iter_records` does."""
    if Path(source).suffix.lower() in (".yaml", ".yml"):
        from halfbyte.data.sides import training_examples

        examples = training_examples(Path(source), template)
        yield from examples if only is None else compress(examples, only)
        return
    records = iter_records(source, split=split)
    for record in records if only is None else compress(records, only):
        yield _example_or_fault(record, template)


def to_examples(
    records: Sequence[Record], template: Mapping[str, str] | None = None, into: list[DataError] | None = None
) -> list[Example]:
    """`to_example` of every record; one DataError names the faults of all, unless they are to go `into` a list."""
    return _without_faults([_example_or_fault(record, template) for record in records], into)


def _example_or_fault(record: Record, template: Mapping[str, str] | None) -> Example | DataError:
    try:
        return to_example(record, template)
    except DataError as fault:
        return fault


def _without_faults(found: Sequence[Example | DataError], into: list[DataError] | None = None) -> list[Example]:
    faults = [fault for fault in found if isinstance(fault, DataError)]
    if into is None:
        raise_gathered(faults, len(found), "records")
    else:
        into += faults
    return [example for example in found if isinstance(example, Example)]


def raise_gathered(faults: Sequence[DataError], total: int, what: str) -> None:
    """Raises the only one of `faults`, or one error for all of them; does nothing where there are none."""
    if faults:
        raise faults[0] if len(faults) == 1 else gathered(faults, total, what)


def gathered(faults: Sequence[DataError], total: int, what: str, where: object = None) -> DataError:
    """One error for the faults of several records: the first few kinds of them, each at its first place with the number
    of others like it, and what to do about each."""
    alike: dict[tuple[str, object], list[DataError]] = {}
    for fault in faults:
        alike.setdefault((fault.what, fault.found), []).append(fault)
    shown = list(alike.values())[:_SHOWN]
    lines = [f"{same[0].where}: {same[0].what}" + (f" ({same[0].found})" if same[0].found else "") + _as_in(same[1:])
             for same in shown]  # fmt: skip
    left = len(faults) - sum(map(len, shown))
    lines += [f"and {left} more"] * bool(left)
    advice = "; ".join(dict.fromkeys(same[0].do for same in shown if same[0].do))
    return DataError(f"{len(faults)} of {total} {what} can't be used", where=where, found="\n         ".join(lines),
                     do=advice or None)  # fmt: skip


def _as_in(others: Sequence[DataError]) -> str:
    """Where else the same is wrong, in a few places."""
    if not others or all(fault.where == "template" for fault in others):
        return ""
    places = ", ".join(str(fault.where) for fault in others[: _SHOWN - 1])
    return f"; so in {len(others)} more: {places}" + (", ..." if len(others) >= _SHOWN else "")


def to_example(record: Record, template: Mapping[str, str] | None = None) -> Example:
    """The example that `template` ({prompt, completion, system}; the last two optional) makes of a record.

    Without a template a record has the columns `prompt` and `completion`, or `messages`. The completion may be missing
    (there is nothing to learn then, but a prompt to answer); it may not be blank. Raises DataError.
    """
    if template is not None:
        unknown = [key for key in template if key not in _KEYS]
        if unknown or "prompt" not in template:
            found = (
                f"'{unknown[0]}': {nearest(unknown[0], _KEYS, 'keys')}" if unknown else ", ".join(template) or "nothing"
            )
            raise DataError("a template has the keys prompt, completion and system", where="template", found=found,
                            do="write e.g. template: {prompt: 'Set {Name}', completion: '{Price}'}")  # fmt: skip
        filled = {key: fill(text, record) for key, text in template.items()}
        return _pair(filled["prompt"], filled.get("completion"), filled.get("system"), record)
    columns = record.values
    if "messages" in columns and "prompt" in columns:
        raise DataError("a record has both messages and a prompt", where=record.origin, found=_columns(record),
                        do="keep one of them, or choose columns with a template")  # fmt: skip
    if "messages" in columns:
        return _conversation(columns["messages"], record)
    if "prompt" in columns:
        texts = {key: _text(record, key) for key in _KEYS if columns.get(key) is not None or key == "prompt"}
        return _pair(texts["prompt"], texts.get("completion"), texts.get("system"), record)
    names = list(columns) or ["Column"]
    sample = f"template: {{prompt: '{{{names[0]}}}', completion: '{{{names[-1]}}}'}}"
    raise DataError("a record has neither prompt and completion nor messages", where=record.origin,
                    found=_columns(record), do=f"name the columns in a template, e.g. {sample}")  # fmt: skip


def _columns(record: Record) -> str:
    return "columns: " + (", ".join(map(str, record.values)) or "none")


def _pair(prompt: str, completion: str | None, system: str | None, record: Record) -> Example:
    if completion is not None and not completion.strip():
        raise DataError(
            "the completion is empty", where=record.origin, do="leave records without an answer out of the file"
        )
    _check_letters((prompt, completion or "", system or ""), record)
    return Example(prompt, completion, None, record, system)


def _check_letters(texts: Sequence[str], record: Record) -> None:
    """Raises DataError where a text can't be written as UTF-8: no tokenizer takes it."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"{text[error.start]!r} after {text[max(0, error.start - 20) : error.start]!r}"
            raise DataError("a text holds half of a character (an unpaired surrogate)", where=record.origin,
                            found=found, do="write the file again from its source; in JSON a character beyond U+FFFF "
                            "has two escapes") from None  # fmt: skip


def fill(text: str, record: Record) -> str:
    """`text` with every {Column} replaced by the record's value, as Python's str writes it (15.0 stays '15.0')."""
    return "".join(_text(record, piece) if is_column else piece for piece, is_column in _parse(text))


@lru_cache(maxsize=64)
def _parse(text: str) -> tuple[tuple[str, bool], ...]:
    """`text` as (literal, False) and (column, True)."""
    pieces = []
    for match in re.finditer(r"\{\{|\}\}|\{([^{}]+)\}|[{}]|[^{}]+", text):
        token = match[0]
        if token in ("{", "}"):
            raise DataError("a brace in the template has no partner", where="template", found=repr(text),
                            do="write {Column} for a column, {{ and }} for braces")  # fmt: skip
        pieces.append((match[1], True) if match[1] else (token[0] if token in ("{{", "}}") else token, False))
    return tuple(pieces)


def _text(record: Record, column: str) -> str:
    """The value of a column as text; of an object its JSON."""
    if column not in record.values:
        hint = nearest(column, map(str, record.values), "columns")
        raise DataError(f"there is no column '{column}': {hint}", where=record.origin, found=_columns(record),
                        do="name a column that every record has")  # fmt: skip
    value = record.values[column]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"the column '{column}' has no value", where=record.origin, found="null",
                        do="leave such records out of the file, or give them a value")  # fmt: skip
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, (list, tuple, bytes)):
        raise DataError(f"the column '{column}' holds no text", where=record.origin, found=type(value).__name__,
                        do="use a column of texts, numbers or objects")  # fmt: skip
    return str(value)


def _conversation(messages: Any, record: Record) -> Example:
    fault = _fault_in(messages)
    if fault:
        advice = 'write a list of {"role": "user", "content": "..."}; roles: ' + ", ".join(ROLES)
        raise DataError("the messages are no conversation", where=record.origin, found=fault, do=advice)
    turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    _check_letters([turn["content"] for turn in turns], record)
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    if answers:
        turns = turns[: answers[-1] + 1]  # nothing that comes after the last answer bears on what is learned
    before = turns[:-1] if answers else turns
    prompt = "\n".join(f"{turn['role']}: {turn['content']}" for turn in before)
    return Example(prompt, turns[-1]["content"] if answers else None, turns, record)


def _fault_in(messages: Any) -> str | None:
    """What is wrong with `messages`, or None."""
    if not isinstance(messages, list) or not messages:
        return "no list" if not isinstance(messages, list) else "an empty list"
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            return f"message {number} is no object"
        if message.get("role") not in ROLES:
            return f"message {number} has the role {message.get('role')!r}"
        if not isinstance(message.get("content"), str):
            return f"message {number} has no text as content, but {type(message.get('content')).__name__}"
        more = [key for key, value in message.items() if key not in ("role", "content") and value]
        if more:
            return f"message {number} has '{more[0]}', which is not understood"
        if message["role"] == "assistant" and not message["content"].strip():
            return f"message {number} is an empty answer"
    return None
