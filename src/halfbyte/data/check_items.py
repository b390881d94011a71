"""Checks of items, once they are tokens: what is learned, what is cut, where they begin and end.

Lengths and sums are kept, 4 bytes an item; the items pass by.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.config import DataConfig
from halfbyte.data.check_report import ERROR, NOTE, WARNING, Finding, Side
from halfbyte.data.check_tally import AT_HALF, Says, Tallies
from halfbyte.data.encode import Encoder, Item
from halfbyte.errors import DataError

_TAIL = 12  # tokens that show where an item was cut
_PERCENT = (50, 90, 99, 100)


_RAISE = "raise data.max_tokens (the longest: {longest})"
_NOTHING = {
    "nothing_learned": Says(
        WARNING,
        "nothing is learned of {count} of {total} {name} items: no learned token lies within data.max_tokens, {limit};"
        " they are left out",
        _RAISE,
    ),
}
_NOTHING_AT_ALL = Says(
    ERROR,
    "nothing would be learned: no {name} item has a learned token within data.max_tokens, {limit}",
    _RAISE,
)
_SAYS = {
    "truncated": Says(
        WARNING,
        "{count} of {total} {name} items are cut at data.max_tokens, {limit}: {completion} tokens of completions and"
        " {prompt} of prompts are lost, and with them the end of the answer",
        _RAISE,
    ),
    "end_unmarked": Says(
        AT_HALF,
        "the end of the answer is not learned in {count} of {total} {name} items that are not cut",
        "look at the chat template: its {{% generation %}} marks must hold the end of the turn",
    ),
    "double_bos": Says(
        AT_HALF,
        "{count} of {total} {name} items begin with two beginning-of-sequence tokens",
        "take one out of the chat template, or out of the text",
    ),
    "context": Says(
        ERROR,
        "{count} of {total} {name} items are longer than the model's context of {context} tokens",
        "set data.max_tokens: {context}",
    ),
    "vocabulary": Says(
        ERROR,
        "{count} of {total} {name} items hold a token that the model has no embedding for",
        "take that token out of the text",
    ),
}
_NEVER_ENDS = Says(
    ERROR,
    "the end of the answer (end-of-sequence, or end of turn) is learned in no {name} item: the model would not stop",
    _RAISE,
)


class ItemCheck:
    """`add` every item of a side; `findings` and `side` say what they were. `context` and `vocabulary` (tokens) are the
    model's, None where they are not known."""

    def __init__(self, encoder: Encoder, data: DataConfig, context: int | None, vocabulary: int | None) -> None:
        self.encoder, self.data, self.context, self.vocabulary = encoder, data, context, vocabulary
        self.lengths = array("I")  # before the cut
        self.tokens = self.learned_tokens = self.kept = 0
        self.cut_prompt = self.cut_completion = 0
        self._tallies = Tallies()
        self._bos: int | None = getattr(encoder.tokenizer, "bos_token_id", None)
        try:
            self._stops = encoder.stops
        except DataError:  # a template that refuses the simplest conversation: each item says so itself
            self._stops = frozenset({encoder.eos})

    def add(self, item: Item) -> None:
        whole, tallies, origin = len(item) + item.cut, self._tallies, item.origin
        self.lengths.append(whole)
        learned = item.learned_tokens
        if not learned:
            found = f"{whole:,} tokens, max_tokens {self.data.max_tokens:,}" if item.cut else f"{whole:,} tokens"
            tallies["nothing_learned"].add(origin, found)
            return
        self.kept += 1
        self.tokens += len(item)
        self.learned_tokens += learned
        if item.cut:
            self.cut_prompt += item.cut_prompt
            self.cut_completion += item.cut - item.cut_prompt
            tallies["truncated"].add(origin, self._cut(item) if tallies["truncated"].count < 3 else "")
        if not self._end_is_learned(item):
            tallies["end_not_learned"].add(origin)
            if not item.cut:
                tallies["end_unmarked"].add(origin)
        if self._begins_twice(item.ids):
            tallies["double_bos"].add(origin, self._shown(item.ids[:6]))
        if self.context is not None and len(item) > self.context:
            tallies["context"].add(origin, f"{len(item):,} tokens")
        if self.vocabulary is not None and (highest := max(item.tokens)) >= self.vocabulary:
            tallies["vocabulary"].add(origin, f"token {highest:,} of {self.vocabulary:,}: {self._shown([highest])}")

    def side(self) -> Side:
        cut, nothing = self._tallies["truncated"].count, self._tallies["nothing_learned"].count
        return Side(self.kept, self.tokens, self.learned_tokens, cut, nothing, max(self.lengths, default=0))

    def findings(self, name: str) -> Iterator[Finding]:
        """`name`: training or validation."""
        total, tallies = len(self.lengths), self._tallies
        says = _NOTHING | _SAYS
        if name == "training":  # what all of validation lacks is said, but only training must learn something
            if not self.kept:
                says = {"nothing_learned": _NOTHING_AT_ALL}
            elif 2 * tallies["nothing_learned"].count >= total:
                says["nothing_learned"] = replace(says["nothing_learned"], level=ERROR)
            if self.kept and tallies["end_not_learned"].count == self.kept and self.data.learn == "completion":
                says = {"end_not_learned": _NEVER_ENDS} | says
                del says["end_unmarked"]
        yield from tallies.findings(
            says, total, name=name, limit=f"{self.data.max_tokens:,}", longest=f"{max(self.lengths, default=0):,}",
            completion=f"{self.cut_completion:,}", prompt=f"{self.cut_prompt:,}", context=self.context,
        )  # fmt: skip

    def histogram(self) -> tuple[tuple[int, int, int], ...]:
        """(from, to, items): each bin twice as wide as the one before."""
        if not len(self.lengths):
            return ()
        bins = np.ceil(np.log2(np.maximum(np.frombuffer(self.lengths, dtype=np.uint32), 1))).astype(np.int64)
        counts = np.bincount(bins)
        first = int(np.flatnonzero(counts)[0])
        return tuple(
            (1 if power == 0 else 2 ** (power - 1) + 1, 2**power, int(counts[power]))
            for power in range(first, len(counts))
        )

    def quantiles(self) -> dict[str, int]:
        if not len(self.lengths):
            return {}
        values = np.percentile(np.frombuffer(self.lengths, dtype=np.uint32), _PERCENT, method="higher")
        return {str(share): int(value) for share, value in zip(_PERCENT, values, strict=True)}

    def _end_is_learned(self, item: Item) -> bool:
        if item.flags[-1] and item.tokens[-1] in self._stops:
            return True
        return any(learned and token in self._stops for token, learned in zip(item.tokens, item.flags, strict=True))

    def _begins_twice(self, ids: list[int]) -> bool:
        prefix = self.encoder.prefix
        twice = bool(prefix) and ids[: 2 * len(prefix)] == prefix * 2
        return twice or (self._bos is not None and ids[:2] == [self._bos] * 2)

    def _cut(self, item: Item) -> str:
        of = "of the completion" if not item.cut_prompt else f"{item.cut_prompt:,} of them of the prompt"
        return f"{item.cut:,} tokens {of}, after {self._shown(item.ids[-_TAIL:])}"

    def _shown(self, ids: list[int]) -> str:
        tokenizer: Any = self.encoder.tokenizer
        return repr(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def pad_finding(encoder: Encoder, total: int) -> Iterator[Finding]:
    """Padding with EOS is harmless here, and known for not being so elsewhere."""
    if encoder.pad == encoder.eos:
        text = "the padding token is the end-of-sequence token; padding is masked by its place, so the end is learned"
        yield Finding("pad_is_eos", NOTE, 0, total, text)
