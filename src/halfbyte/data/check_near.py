"""Near duplicates across sets: held-out items that stand in the training data in nearly the same words.

A text is its words, without letter case and punctuation. Words that more than half of the held-out items have (those of
a template, of an instruction, of the language) say nothing about one item and are left out. A held-out item has a near
twin where at least 70 % of its runs of 8 words (n-grams) stand in one training item: the share and the length that
Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, section 8) take for contaminated test items, held against single
training items rather than all of them together. Of a text of fewer than 8 such words, all of them in their order must
be those of a training item.

An n-gram is a 64-bit hash; the held-out items' are kept (16 bytes each), training items pass by and leave nothing. An
n-gram of more than 100 held-out items tells none of them from the others and is dropped. Those that stand in the same
held-out items, such as the n-grams of one long passage, are one kind and are counted together.

Rejected: MinHash. It estimates how alike whole texts are, so a question inside a long document goes unseen; exact
counts of the n-grams of the smaller set are cheap enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

WORDS = 8  # of an n-gram
SHARE = 0.7  # of a held-out item's n-grams that stand in one training item
COMMON = 100  # held-out items that share an n-gram, at most
PIECE = 1 << 19  # pairs of a training and a held-out item that are looked at at once, but those of one training item
_FEWEST = 8  # held-out items before words can be called common to them
_WORD = re.compile(r"\w+")
_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits without a pattern (2^64 divided by the golden ratio)

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
_T = TypeVar("_T", np.uint64, np.int64)


def words(text: str) -> list[str]:
    """The words of a text, without letter case, punctuation and white space."""
    return _WORD.findall(text.casefold())


@dataclass(frozen=True)
class Hashed:
    """The words of several texts as 64-bit hashes, one text after the other; `text[k]` is the text of word k."""

    word: Hashes
    text: Places
    texts: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> Hashed:
        """Python's own hashes: they hold for this process alone, and nothing of them leaves it."""
        lists = [np.fromiter(map(hash, words(text)), dtype=np.int64) for text in texts]
        flat = np.concatenate([np.empty(0, np.int64), *lists])
        return cls(flat.view(np.uint64), np.repeat(np.arange(len(texts)), list(map(len, lists))), len(texts))

    def without(self, common: Hashes) -> Hashed:
        """What is left without the words `common` (sorted)."""
        if not len(common):
            return self
        at = np.minimum(np.searchsorted(common, self.word), len(common) - 1)
        kept = common[at] != self.word
        return Hashed(self.word[kept], self.text[kept], self.texts)

    def grams(self) -> tuple[Places, Hashes]:
        """(text, hash) of each run of WORDS words. The hash is a polynomial in _PRIME modulo 2^64."""
        count = max(0, len(self.word) - WORDS + 1)
        made = self.word[:count].copy()
        for step in range(1, WORDS):
            made = made * _PRIME + self.word[step : step + count]
        within = self.text[:count] == self.text[len(self.text) - count :]
        return self.text[:count][within], made[within]

    def short(self) -> Iterator[tuple[int, bytes]]:
        """(text, all of its words in their order) of each text of fewer than WORDS words, but some."""
        lengths = np.bincount(self.text, minlength=self.texts)
        starts = np.cumsum(lengths) - lengths
        for text in np.flatnonzero((lengths > 0) & (lengths < WORDS)):
            yield int(text), self.word[starts[text] : starts[text] + lengths[text]].tobytes()


class NearIndex:
    """The n-grams of held-out texts, to be looked up for training texts."""

    def __init__(self, held: Hashed) -> None:
        self._common = _common(held)
        held = held.without(self._common)
        self._whole: dict[bytes, list[int]] = {}
        for number, whole in held.short():
            self._whole.setdefault(whole, []).append(number)
        owner, grams = _distinct(*held.grams())
        self._owner = owner.astype(np.int32)
        unique, first, counts = np.unique(grams, return_index=True, return_counts=True)
        rare = counts <= COMMON
        self._grams = unique[rare]
        sign = np.random.default_rng(0).integers(2**64, size=held.texts, dtype=np.uint64)  # of each held-out item
        signs = (
            np.add.reduceat(sign[owner], first)[rare] if len(first) else sign[:0]
        )  # of the items that have an n-gram
        _, one, kind = np.unique(signs, return_index=True, return_inverse=True)
        self._kind = kind.astype(np.int32)
        self._first, self._counts = first[rare][one], counts[rare][one]  # where the items of a kind stand in `_owner`
        self._total = np.bincount(self._owner[np.repeat(rare, counts)], minlength=held.texts)  # n-grams of each

    def matches(self, texts: Hashed) -> list[tuple[int, int, float]]:
        """(training text, held-out text, share) of every pair that is near, by their places in the two sequences; of
        short training texts that are the same the first alone."""
        texts = texts.without(self._common)
        short = {whole: place for place, whole in reversed([*texts.short()]) if whole in self._whole}
        found = [(place, number, 1.0) for whole, place in short.items() for number in self._whole[whole]]
        if not len(self._grams):
            return found
        text, grams = texts.grams()
        at = np.minimum(np.searchsorted(self._grams, grams), len(self._grams) - 1)
        hit = self._grams[at] == grams
        text, at = _distinct(text[hit], at[hit])
        pairs, number = np.unique(text * len(self._first) + self._kind[at], return_counts=True)
        text, kind = np.divmod(pairs, len(self._first))
        for part in _pieces(text, self._counts[kind]):
            found += self._near(text[part], kind[part], number[part])
        return found

    def _near(self, text: Places, kind: Places, number: Places) -> Iterator[tuple[int, int, float]]:
        """Near pairs of training texts that have so many (`number`) n-grams of a kind."""
        counts = self._counts[kind]  # held-out items of the kind, and so many pairs of it
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        held = self._owner[np.repeat(self._first[kind], counts) + within].astype(np.int64)
        pairs, at = np.unique(np.repeat(text, counts) * len(self._total) + held, return_inverse=True)
        text, held = np.divmod(pairs, len(self._total))
        share = np.bincount(at, np.repeat(number, counts)) / self._total[held]
        near = share >= SHARE
        return zip(text[near].tolist(), held[near].tolist(), share[near].tolist(), strict=True)


def _pieces(text: Places, counts: Places) -> Iterator[slice]:
    """Slices of `text` (sorted), the sum of whose counts is at most PIECE or which hold one text alone. No text is cut:
    it has at most as many pairs as the index has n-grams."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(text):
        end = int(np.searchsorted(ends, PIECE + (ends[first - 1] if first else 0), side="right"))
        if end < len(text):
            end = int(np.searchsorted(text, text[end]))
            end = end if end > first else int(np.searchsorted(text, text[first], side="right"))
        yield slice(first, end)
        first = end


def _common(held: Hashed) -> Hashes:
    """The words (sorted) that more than half of the texts have."""
    if held.texts < _FEWEST:
        return np.empty(0, np.uint64)
    unique, counts = np.unique(_distinct(held.text, held.word)[1], return_counts=True)
    common: Hashes = unique[2 * counts > held.texts]
    return common


def _distinct(text: Places, what: npt.NDArray[_T]) -> tuple[Places, npt.NDArray[_T]]:
    """Each pair once, in the order of `what`."""
    order = np.lexsort((text, what))
    text, what = text[order], what[order]
    new = np.ones(len(what), dtype=np.bool_)
    new[1:] = (what[1:] != what[:-1]) | (text[1:] != text[:-1])
    return text[new], what[new]
