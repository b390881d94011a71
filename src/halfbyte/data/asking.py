"""What a model reads of an item that is scored instead of answered: its prompt with each option, or the whole of it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

from halfbyte.data.encode import Encoder
from halfbyte.data.template import Example

OptionsOf = Callable[[Example], Sequence[str]]  # the options of an example, as its completion would be written


@dataclass(frozen=True)
class Longest:
    """At most, of all items: `tokens` with the longest option, `options` (0: texts are scored whole), and `own`, tokens
    of the longest option, or those whose likelihood counts."""

    tokens: int
    options: int
    own: int


def with_options(
    encoder: Encoder, example: Example, options: Sequence[str], ends: Collection[int]
) -> tuple[list[int], list[list[int]]]:
    """The tokens of the prompt, and those of each option after it.

    The end of the answer is left out, as in the literature, with one exception: where the tokens of one option begin
    another's ("insurance", "insurance change") the shorter one would always win, so there the end counts for all.
    """
    encoded = encoder.items([replace(example, completion=option) for option in options])
    whole = [row.ids[row.prompt_tokens :] for row in encoded]
    bare = [list(takewhile(lambda token: token not in ends, option)) for option in whole]
    nested = any(b[: len(a)] == a for a, b in pairwise(sorted(bare)))
    return encoded[0].ids[: encoded[0].prompt_tokens], whole if nested else bare


def longest_scored(
    encoder: Encoder, examples: Sequence[Example], options_of: OptionsOf | None, ends: Collection[int],
    size: Callable[[Example], int], most: int,
) -> Longest:  # fmt: skip
    """What stands in `Longest`, of the `most` examples of the largest `size`; `options_of`: None, where texts are
    scored whole. Raises DataError for an example that can't be scored."""
    some = heapq.nlargest(most, examples, key=size)
    if options_of is None:
        rows = encoder.items(some)
        return Longest(max(map(len, rows)), 0, max(row.learned_tokens for row in rows))
    asked = [with_options(encoder, example, options_of(example), ends) for example in some]
    own = max(len(option) for _, options in asked for option in options)
    return Longest(max(len(prompt) for prompt, _ in asked) + own, max(len(options) for _, options in asked), own)
