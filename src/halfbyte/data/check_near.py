"""Near duplicates across sets: held-out items that stand in the training data in nearly the same words.

A text is its words, without letter case and punctuation. Words that more than half of the held-out items have (those of
a template, of an instruction, of the language) say nothing about one item and are left out. A held-out item has a near
twin where at least 70 % of its runs of 8 words (n-grams) stand in one training item: the share and the length that
Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, section 8) take for contaminated test items, held against single
training items rather than all of them together. Of a text of fewer than 8 such words, all of them in their order must
be those of a training item.

An n-gram is a 64-bit hash; the held-out items' are kept (12 bytes each), training items pass by and leave nothing. An
n-gram of more than 100 held-out items tells none of them from the others and is dropped.

Rejected: MinHash. It estimates how alike whole texts are, so a question inside a long document goes unseen; exact
counts of the n-grams of the smaller set are cheap enough.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WORDS = 8  # of an n-gram
SHARE = 0.7  # of a held-out item's n-grams that stand in one training item
COMMON = 100  # held-out items that share an n-gram, at most
_FEWEST = 8  # held-out items before words can be called common to them
_WORD = re.compile(r"\w+")
_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits without a pattern (2^64 divided by the golden ratio)

Hashes = npt.NDArray[np.uint64]


def words(text: str) -> list[str]:
    """The words of a text, without letter case, punctuation and white space."""
    return _WORD.findall(text.casefold())


class NearIndex:
    """The n-grams of held-out texts, to be looked up for training texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        lists = [words(text) for text in texts]
        seen = Counter(word for listed in lists for word in set(listed))
        common = [word for word, count in seen.items() if len(lists) >= _FEWEST and 2 * count > len(lists)]
        self._common: Hashes = np.unique(_hashes(common))
        self._whole: dict[int, int] = {}
        kept, owners = [], []
        for number, hashes in enumerate(self._filtered(listed) for listed in lists):
            if 0 < len(hashes) < WORDS:
                self._whole.setdefault(_whole(hashes), number)
            grams = np.unique(_grams(hashes))
            kept.append(grams)
            owners.append(np.full(len(grams), number, dtype=np.int32))
        grams = np.concatenate([*kept, np.empty(0, np.uint64)])
        owner = np.concatenate([*owners, np.empty(0, np.int32)])
        order = np.argsort(grams, kind="stable")
        unique, first, counts = np.unique(grams[order], return_index=True, return_counts=True)
        rare = counts <= COMMON
        self._grams, self._first, self._counts = unique[rare], first[rare], counts[rare]
        self._owner = owner[order]
        self._total = np.zeros(max(1, len(lists)), dtype=np.int64)  # n-grams of each held-out item that are kept
        for start, count in zip(self._first, self._counts, strict=True):
            self._total[self._owner[start : start + count]] += 1

    def matches(self, texts: Sequence[str]) -> list[tuple[int, int, float]]:
        """(training text, held-out text, share) of every pair that is near, by their places in the two sequences."""
        hashes = [self._filtered(words(text)) for text in texts]
        found = [(place, self._whole[whole], 1.0) for place, one in enumerate(hashes)
                 if 0 < len(one) < WORDS and (whole := _whole(one)) in self._whole]  # fmt: skip
        if not len(self._grams):
            return found
        grams = [_grams(one) for one in hashes]
        text = np.repeat(np.arange(len(grams)), [len(one) for one in grams])
        every = np.concatenate([*grams, np.empty(0, np.uint64)])
        at = np.minimum(np.searchsorted(self._grams, every), len(self._grams) - 1)
        hit = self._grams[at] == every
        pairs = np.unique(np.stack([text[hit], at[hit]]), axis=1)  # an n-gram counts once for a text
        counts = self._counts[pairs[1]]
        starts = np.repeat(self._first[pairs[1]], counts)
        within = np.arange(len(starts)) - np.repeat(np.cumsum(counts) - counts, counts)
        held = self._owner[starts + within]
        matched, number = np.unique(np.stack([np.repeat(pairs[0], counts), held]), axis=1, return_counts=True)
        share = number / self._total[matched[1]]
        near = share >= SHARE
        return found + [
            (int(a), int(b), float(s)) for a, b, s in zip(matched[0][near], matched[1][near], share[near], strict=True)
        ]

    def _filtered(self, listed: Sequence[str]) -> Hashes:
        hashes = _hashes(listed)
        if not len(self._common):
            return hashes
        at = np.minimum(np.searchsorted(self._common, hashes), len(self._common) - 1)
        kept: Hashes = hashes[self._common[at] != hashes]
        return kept


def _hashes(listed: Sequence[str]) -> Hashes:
    """Python's own hashes: they hold for this process alone, and nothing of them leaves it."""
    return np.fromiter(map(hash, listed), dtype=np.int64, count=len(listed)).view(np.uint64)


def _grams(hashes: Hashes) -> Hashes:
    """A hash of each run of WORDS words: a polynomial in _PRIME, modulo 2^64."""
    count = len(hashes) - WORDS + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    made = hashes[:count].copy()
    for step in range(1, WORDS):
        made = made * _PRIME + hashes[step : step + count]
    return made


def _whole(hashes: Hashes) -> int:
    return hash(hashes.tobytes())
