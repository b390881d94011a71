"""How long the items of a run will be, before torch and transformers are loaded: what a plan has to know of its data.

The examples are read and split as `load_training` does it. Of them only those that are longest in bytes are encoded,
by the tokenizer's file alone: the others are shorter in tokens, too, or nearly so. Where the tokenizer is not here, or
a chat template would be asked, bytes are the bound, since hardly any tokenizer makes more tokens than bytes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from halfbyte.config import DataConfig, TaskConfig
from halfbyte.data.asking import Longest, OptionsOf, longest_scored
from halfbyte.data.bare import BareTokenizer, has_chat_template
from halfbyte.data.dataset import group_of, split
from halfbyte.data.encode import Encoder, Item
from halfbyte.data.sides import asked_examples
from halfbyte.data.template import Example, load_examples
from halfbyte.errors import HalfbyteError

ENCODED = 64  # examples, of those with the most bytes
AROUND = 4  # tokens beside a completion, at most, that may be learned: the end, and what a chat template puts there
_TEMPLATE = "the model has a chat template"


@dataclass(frozen=True)
class Lengths:
    """What is known of a run's data. `longest` (of the training items) and `learned` are tokens; exact, or a bound."""

    items: int
    validation_items: int
    longest: int
    learned: int
    reason: str


@dataclass(frozen=True)
class Asked:
    """What a task asks: how many items, the tokens of the longest with its answer, or a bound (None: not known), and,
    where nothing is generated, what is scored (None: not known)."""

    items: int
    longest: int | None
    scored: Longest | None = None


def _encoder_of(folder: Path | None, chat: str) -> Encoder | str:
    """What encodes texts for the model in `folder` (None: it is not here), or why nothing does."""
    if folder is None:
        return "the tokenizer is not here"
    if chat == "auto" and has_chat_template(folder):
        return _TEMPLATE
    try:
        return Encoder(BareTokenizer(folder), "off")
    except HalfbyteError as error:
        return error.what


def training_lengths(config: DataConfig, folder: Path | None, seed: int) -> Lengths:
    """The lengths of the data of a run for the model in `folder`. Raises DataError for data that can't be read."""
    train, validation = _sides(config, seed)
    encoder = _encoder_of(folder, config.chat)
    if isinstance(encoder, Encoder):
        try:
            return _encoded(train, validation, encoder, config)
        except HalfbyteError as error:  # `tune` says better what is wrong with an example
            encoder = error.what
    longest = config.max_tokens if encoder == _TEMPLATE else max(map(_size, train), default=0) + AROUND
    every = _size if config.learn == "all" else _answer_size
    learned = max(map(every, (*train, *validation)), default=0) + AROUND
    found = max(1, min(longest, config.max_tokens))
    bound = "data.max_tokens" if found == config.max_tokens else "the bytes of the longest item"
    return Lengths(len(train), len(validation), found, max(1, min(learned, found)),
                   f"items have at most {found} tokens, by {bound}: {encoder}")  # fmt: skip


def _sides(config: DataConfig, seed: int) -> tuple[list[Example], list[Example]]:
    examples = load_examples(str(config.train), config.template)
    if isinstance(config.validation, str):
        return examples, load_examples(config.validation, config.template, split="validation")
    train, validation, _ = split(examples, config.validation or 0.0, seed, group_of(config))
    return train, validation


def _encoded(train: list[Example], validation: list[Example], encoder: Encoder, config: DataConfig) -> Lengths:
    def items(examples: Sequence[Example], size: Callable[[Example], int]) -> list[Item]:
        found = encoder.items(heapq.nlargest(ENCODED, examples, key=size), config.learn, config.max_tokens)
        return [item for item in found if item.learned_tokens]

    whole = items(train, _size)
    answers = [*whole, *items(train, _answer_size), *items(validation, _size), *items(validation, _answer_size)]
    longest = max((len(item) for item in whole), default=config.max_tokens)
    few = len(train) <= ENCODED
    which = "all items" if few else f"the {ENCODED} items with the most bytes"
    return Lengths(len(train), len(validation), longest, max((item.learned_tokens for item in answers), default=1),
                   f"the longest item has {longest} tokens: {which} were encoded by tokenizer.json")  # fmt: skip


def task_lengths(task: TaskConfig, folder: Path | None, options_of: OptionsOf) -> Asked | None:
    """What `task` asks of the model in `folder`; `options_of` gives an example's options, where it has some. None for
    texts and options whose tokens are not known. Raises DataError."""
    asked = asked_examples(task)
    encoder, new = _encoder_of(folder, task.chat), task.decoding.max_new_tokens
    unknown = encoder == _TEMPLATE or task.shots  # a prompt with examples before it is made by the evaluation alone
    if not task.generates:
        if unknown or isinstance(encoder, str) or not asked:
            return None
        longest = longest_of(task, encoder, asked, options_of, encoder.stops)
        return Asked(len(asked), longest.tokens, longest)
    if unknown:
        return Asked(len(asked), None)
    if isinstance(encoder, str):
        return Asked(len(asked), max(map(_prompt_size, asked)) + AROUND + new)
    some = heapq.nlargest(ENCODED, asked, key=_prompt_size)
    return Asked(len(asked), max(map(len, encoder.prompts(some))) + new)


def longest_of(
    task: TaskConfig, encoder: Encoder, asked: Sequence[Example], options_of: OptionsOf, ends: Collection[int]
) -> Longest:
    """Of a task that generates nothing."""
    if task.kind == "choice":
        return longest_scored(encoder, asked, options_of, ends, _prompt_size, ENCODED)
    return longest_scored(encoder, asked, None, ends, _size, ENCODED)


def _size(example: Example) -> int:
    return _prompt_size(example) + _answer_size(example)


def _prompt_size(example: Example) -> int:
    return len(example.prompt.encode(errors="replace")) + len((example.system or "").encode(errors="replace"))


def _answer_size(example: Example) -> int:
    if example.messages is not None:  # every answer of a conversation is learned
        contents = (turn["content"] for turn in example.messages if turn["role"] == "assistant")
        return sum(len(content.encode(errors="replace")) + AROUND for content in contents)
    return len((example.completion or "").encode(errors="replace"))
