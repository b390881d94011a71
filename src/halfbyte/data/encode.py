"""Examples -> tokens: which ones, and which of them are learned.

The text of an example is cut where learning begins and ends. The first segment is tokenised alone; each other one
together with the segment before it, from which its own tokens are taken if that segment's tokens come out unchanged,
else apart. So the tokens of a prompt never depend on what follows: a model is asked exactly what it was trained on.

BOS stands once where the tokenizer itself puts one, also if the text or the chat template brings one along; never where
it puts none. EOS follows the completion and is learned; in a chat template's text its end-of-turn token does that.
An item longer than max_tokens is cut at its right end: the completion goes first, and EOS with it, so that a cut answer
is not learned to be a complete one. An item of which nothing learned is left teaches nothing.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from halfbyte.data.chat import ChatTemplate
from halfbyte.data.template import Example, raise_gathered
from halfbyte.errors import DataError

_ANSWER = "HALFBYTE-ANSWER-MARK"  # stands for an answer that is not known yet
_THREADS = "TOKENIZERS_PARALLELISM"
_ANCHORS = ("\n", "=", "a", ".")  # texts after which a tokenizer continues without a space of its own


@dataclass(slots=True)
class Item:
    """One sequence: `learned[t]` says that the loss counts the prediction of `ids[t]` from the tokens before it.

    All items of a run are held while it trains, at 5 bytes a token; as lists they would take 40 or more.
    """

    tokens: array[int]  # `ids`, 4 bytes each
    flags: bytes  # `learned`, a byte each: 0 or 1
    prompt_tokens: int  # tokens before the completion (of a conversation: before its last answer)
    cut: int  # tokens that max_tokens took off
    origin: str  # "file:line"
    cut_prompt: int = 0  # of the tokens that were cut, those of the prompt

    @classmethod
    def of(
        cls, ids: Sequence[int], learned: Sequence[bool], prompt_tokens: int, cut: int, origin: str, cut_prompt: int = 0
    ) -> Item:
        return cls(array("i", ids), bytes(learned), prompt_tokens, cut, origin, cut_prompt)

    @property
    def ids(self) -> list[int]:
        """A list of its own at each call; the number of tokens is `len(item)`."""
        return self.tokens.tolist()

    @property
    def learned(self) -> list[bool]:
        """A list of its own at each call."""
        return list(map(bool, self.flags))

    @property
    def learned_tokens(self) -> int:
        return sum(self.flags)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(slots=True)
class _Text:
    """An example as text: segments, whether each is learned, how many are the prompt's, whether EOS is missing."""

    segments: list[str]
    learned: list[bool]
    prompt_segments: int
    needs_eos: bool


class Encoder:
    """Makes tokens of examples for one tokenizer.

    `chat`: "auto" uses the tokenizer's chat template where it has one, "off" never; `reason` says what came of it.
    Raises DataError when the tokenizer has no EOS token.
    """

    def __init__(self, tokenizer: Any, chat: str = "auto") -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-sequence token, so no answer could be learned to end",
                            found=type(tokenizer).__name__, do="set eos_token in tokenizer_config.json")  # fmt: skip
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.prefix = _prefix(tokenizer)
        self.chat = ChatTemplate(tokenizer) if chat == "auto" and tokenizer.chat_template else None
        if self.chat:
            self.reason = "conversations, as the model has a chat template"
        else:
            self.reason = "plain text, as " + ("chat is off" if chat == "off" else "the model has no chat template")

    @cached_property
    def stops(self) -> frozenset[int]:
        """Tokens that end an answer: EOS, and the chat template's end-of-turn token."""
        turn_end = self.chat.skeleton(("user", "assistant"), "the model's chat template").turn_end if self.chat else ""
        return frozenset({self.eos, *self._ids([turn_end])[turn_end][-1:]} if turn_end else {self.eos})

    def item(self, example: Example, learn: str = "completion", max_tokens: int | None = None) -> Item:
        """The item of one example: see `items`."""
        return self.items([example], learn, max_tokens)[0]

    def items(
        self, examples: Sequence[Example], learn: str = "completion", max_tokens: int | None = None
    ) -> list[Item]:
        """An item for each example; it may have nothing learned left after the cut.

        `learn`: "completion" (of a conversation: every answer) or "all" (every token but BOS and the first, which no
        token predicts). Raises DataError for an example without a completion or one that the chat template can't hold.
        """
        made = self.items_or_faults(examples, learn, max_tokens)
        raise_gathered([fault for fault in made if isinstance(fault, DataError)], len(made), "examples")
        return [item for item in made if isinstance(item, Item)]

    def items_or_faults(
        self, examples: Sequence[Example], learn: str = "completion", max_tokens: int | None = None
    ) -> list[Item | DataError]:
        """`items`, with what is wrong with an example in its place."""
        texts = [_text_or_fault(example, self._whole) for example in examples]
        tokens = iter(self._tokenise([text.segments for text in texts if isinstance(text, _Text)]))
        return [
            self._item(example, text, next(tokens), learn, max_tokens) if isinstance(text, _Text) else text
            for example, text in zip(examples, texts, strict=True)
        ]

    def prompt(self, example: Example) -> list[int]:
        """The very tokens that stand before the completion in training, BOS included; the completion plays no part."""
        return self.prompts([example])[0]

    def prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """`prompt` of each example."""
        tokens = self._tokenise([text.segments for text in self._texts(examples, self._asked)])
        return [self._with_prefix([token for part in parts for token in part]) for parts in tokens]

    def completion(self, example: Example) -> list[int]:
        """The tokens that follow the prompt in training, EOS (or end of turn) included."""
        item = self.item(example)
        return item.ids[item.prompt_tokens :]

    def _item(self, example: Example, text: _Text, parts: list[list[int]], learn: str, max_tokens: int | None) -> Item:
        ids, learned = list[int](), list[bool]()
        for part, flag in zip(parts, text.learned, strict=True):
            ids += part
            learned += [flag] * len(part)
        if text.needs_eos and not (parts[-1] and ids[-1] == self.eos):
            ids, learned = [*ids, self.eos], [*learned, True]
        with_prefix = self._with_prefix(ids)
        added = len(with_prefix) - len(ids)
        learned = [False] * added + learned
        if learn == "all":
            first = max(1, len(self.prefix))
            learned = [place >= first for place in range(len(learned))]
        learned[0] = False
        prompt_tokens = added + sum(len(part) for part in parts[: text.prompt_segments])
        kept = len(with_prefix) if max_tokens is None else min(len(with_prefix), max_tokens)
        return Item.of(with_prefix[:kept], learned[:kept], min(prompt_tokens, kept), len(with_prefix) - kept,
                    example.record.origin, max(0, prompt_tokens - kept))  # fmt: skip

    def _with_prefix(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self.prefix)] == self.prefix else self.prefix + ids

    def _texts(self, examples: Iterable[Example], make: Callable[[Example], _Text]) -> list[_Text]:
        made = [_text_or_fault(example, make) for example in examples]
        raise_gathered([fault for fault in made if isinstance(fault, DataError)], len(made), "examples")
        return [text for text in made if isinstance(text, _Text)]

    def _whole(self, example: Example) -> _Text:
        origin = example.record.origin
        if example.completion is None:
            what = "no message of the assistant, so nothing" if example.messages else "no completion, so nothing"
            raise DataError(f"an example has {what} to learn", where=origin,
                            do="give the template a completion, or leave the record out")  # fmt: skip
        if self.chat:
            rendering = self.chat.render(self._messages(example, example.completion), origin)
            parts, prompt_segments = rendering.segments()
            return _Text([t for t, _ in parts], [flag for _, flag in parts], prompt_segments, not rendering.closed)
        prompt, completion = self._plain(example), example.completion
        if not prompt and self.prefix and self.tokenizer.bos_token:
            completion = completion.removeprefix(self.tokenizer.bos_token)
        return _Text([prompt, completion], [False, True], 1, True)

    def _asked(self, example: Example) -> _Text:
        if self.chat:
            text = self._whole(replace(example, completion=_ANSWER))
            count = text.prompt_segments
            return _Text(text.segments[:count], text.learned[:count], count, False)
        return _Text([self._plain(example)], [False], 1, False)

    def _plain(self, example: Example) -> str:
        if example.messages is not None:
            raise DataError("messages need a chat template", where=example.record.origin, found=self.reason,
                            do="use a model with a chat template, or records of prompt and completion")  # fmt: skip
        return f"{example.system}\n\n{example.prompt}" if example.system else example.prompt

    def _messages(self, example: Example, answer: str) -> list[dict[str, str]]:
        """The conversation, with `answer` as its last turn."""
        if example.messages is None:
            turns = [{"role": "system", "content": example.system}] if example.system else []
            turns.append({"role": "user", "content": example.prompt})
        else:
            turns = list(example.messages)
            if turns[-1]["role"] == "assistant":
                turns.pop()
        bos = self.tokenizer.bos_token or ""
        turns = [turn | {"content": turn["content"].removeprefix(bos)} if turn["role"] == "user" else turn
                 for turn in turns]  # fmt: skip
        return [*turns, {"role": "assistant", "content": answer}]

    def _tokenise(self, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """The tokens of every segment of every text."""
        needed = {segment for segments in texts for segment in segments[: max(1, len(segments) - 1)]}
        needed |= {a + b for segments in texts for a, b in itertools.pairwise(segments)}
        ids = self._ids(sorted(needed))
        pairs = [pair for segments in texts for pair in itertools.pairwise(segments)]
        joined = [ids[left + right][: len(ids[left])] == ids[left] for left, right in pairs]
        alone = self._ids(sorted({right for (_, right), together in zip(pairs, joined, strict=True) if not together}))
        made, place = [], 0
        for segments in texts:
            parts = [ids[segments[0]]] if segments else []
            for left, right in itertools.pairwise(segments):
                before, both = ids[left], ids[left + right]
                parts.append(both[len(before) :] if joined[place] else self._apart(before, both, right, alone[right]))
                place += 1
            made.append(parts)
        return made

    def _apart(self, left: list[int], both: list[int], right: str, alone: list[int]) -> list[int]:
        """The tokens of `right` (by itself: `alone`) such that with `left` they spell what `both` spells.

        A tokenizer that puts a space before every text would put one into the middle; after an anchor it does not.
        """
        spelt = self._decode(both)
        if self._decode(left + alone) == spelt:
            return alone
        for anchor in _ANCHORS:
            ids = self._ids([anchor, anchor + right])
            if ids[anchor + right][: len(ids[anchor])] == ids[anchor]:
                candidate = ids[anchor + right][len(ids[anchor]) :]
                if self._decode(left + candidate) == spelt:
                    return candidate
        return alone

    def _ids(self, texts: list[str]) -> dict[str, list[int]]:
        if not texts:
            return {}
        with _all_cores():
            made = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
                "input_ids"
            ]
        return dict(zip(texts, made, strict=True))

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let the tokenizers library use its threads, unless the user said otherwise: "off" is the command line's word."""
    if os.environ.get(_THREADS) != "off":
        yield
        return
    os.environ[_THREADS] = "on"
    try:
        yield
    finally:
        os.environ[_THREADS] = "off"


def _text_or_fault(example: Example, make: Callable[[Example], _Text]) -> _Text | DataError:
    try:
        return make(example)
    except DataError as fault:
        return fault


def _prefix(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer itself puts before a text: BOS or nothing."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []
