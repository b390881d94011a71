"""How a candidate reads the user's data: tokens an item, what lies beyond its context, how it writes numbers.

All of it comes from the tokenizer and config.json; no weights are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from halfbyte.config import DataConfig
from halfbyte.data.encode import Encoder
from halfbyte.data.template import Example
from halfbyte.errors import DataError
from halfbyte.evaluate.tasks import TaskSet

_DIGITS = ("7", "42", "365", "1984", "20260", "987654", "1234567")
_FALLBACK_NUMBER = "1234567"
_WHOLE_UP_TO = 4  # digits: a vocabulary that has every one of these numbers whole holds numbers as words
_SAMPLE = 2000  # items whose numbers are looked through


@dataclass(frozen=True)
class Lengths:
    """Tokens of the items of a test set as they are asked, room for the answer included."""

    items: int
    mean: float
    longest: int
    context: int | None  # positions of the model; None: its configuration does not say
    beyond: int  # items that are longer

    @property
    def share_beyond(self) -> float:
        return self.beyond / self.items


@dataclass(frozen=True)
class Training:
    """Tokens of the training items, and how many of them are cut at `most` tokens."""

    items: int
    mean: float
    longest: int  # after the cut
    learned: int  # most learned tokens of an item
    most: int
    cut: int


@dataclass(frozen=True)
class Numbers:
    """How digits are cut into tokens. `example` shows a number of the user's data, its pieces between bars."""

    style: str
    example: str


def context_of(config: Any) -> int | None:
    """Positions of the model that config.json describes; None where it does not say."""
    for name in ("max_position_embeddings", "n_positions"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def asked_lengths(encoder: Encoder, tasks: TaskSet, context: int | None) -> Lengths:
    """The items of a task as `evaluate` asks them. Raises DataError for an item that the tokenizer can't hold."""
    asked, kind = tasks.asked(encoder), tasks.task.kind
    if kind == "loss":
        sizes = [len(item) for item in encoder.items(asked)]
    elif kind == "choice":
        longest: dict[tuple[str, ...], int] = {}  # of the options, which most tasks have in common
        for item, example in zip(tasks.items, asked, strict=True):
            if item.options not in longest:
                choices = encoder.items([replace(example, completion=option) for option in item.options])
                longest[item.options] = max(len(choice) - choice.prompt_tokens for choice in choices)
        prompts = zip(encoder.prompts(asked), tasks.items, strict=True)
        sizes = [len(ids) + longest[item.options] for ids, item in prompts]
    else:
        sizes = [len(ids) + tasks.task.decoding.max_new_tokens for ids in encoder.prompts(asked)]
    beyond = sum(size > context for size in sizes) if context is not None else 0
    return Lengths(len(sizes), fmean(sizes), max(sizes), context, beyond)


def training_lengths(encoder: Encoder, examples: Sequence[Example], data: DataConfig, context: int | None) -> Training:
    """The training items as `tune` would make them, but that an item may be as long as the context at most.

    Raises DataError where there are none.
    """
    most = min(data.max_tokens, context or data.max_tokens)
    items = encoder.items([e for e in examples if e.completion is not None], data.learn, most)
    if not items:
        raise DataError("there is nothing to train on", where=data.train or None,
                        found=f"{len(examples):,} examples, none with a completion")  # fmt: skip
    sizes = [len(item) for item in items]
    learned = max(item.learned_tokens for item in items)
    return Training(len(items), fmean(sizes), max(sizes), learned, most, sum(item.cut > 0 for item in items))


def numbers_of(tokenizer: Any, texts: Sequence[str]) -> Numbers:
    """How `tokenizer` writes numbers; the example is the longest number in `texts`, else a made-up one."""
    found = [number for text in texts[:_SAMPLE] for number in re.findall(r"[0-9][0-9.,]*[0-9]|[0-9]", text)]
    shown = max(found, key=len, default=_FALLBACK_NUMBER)
    pieces = {digits: _pieces(tokenizer, digits) for digits in _DIGITS}
    return Numbers(_style(pieces), f"{shown} → {' | '.join(_pieces(tokenizer, shown))}")


def _pieces(tokenizer: Any, number: str) -> list[str]:
    """The number's tokens as text, read after a space as it mostly stands."""
    ids = tokenizer(f" {number}", add_special_tokens=False, verbose=False)["input_ids"]
    texts = [str(tokenizer.decode([token], clean_up_tokenization_spaces=False)).strip() for token in ids]
    return [text for text in texts if text]


def _style(pieces: dict[str, list[str]]) -> str:
    if any("".join(found) != digits for digits, found in pieces.items()):
        return "in bytes or pieces that are no digits"
    if all(len(piece) == 1 for found in pieces.values() for piece in found):
        return "digit by digit"
    if all(found == _grouped(digits) for digits, found in pieces.items()):
        return "in threes, from the left"
    if all(found == [part[::-1] for part in _grouped(digits[::-1])][::-1] for digits, found in pieces.items()):
        return "in threes, from the right"
    if all(len(found) == 1 for digits, found in pieces.items() if len(digits) <= _WHOLE_UP_TO):
        return "whole numbers, as far as its vocabulary has them"
    return "in pieces of its vocabulary, of any length"


def _grouped(digits: str) -> list[str]:
    return [digits[at : at + 3] for at in range(0, len(digits), 3)]
