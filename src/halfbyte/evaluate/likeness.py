"""How alike two texts are: ROUGE-L (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries") and chrF
(Popovic 2015, doi:10.18653/v1/W15-3049).

chrF is sacrebleu's own (chrF2: six orders of character n-grams, no words, recall counts twice), sentence by sentence.
ROUGE-L is written here: the package rouge-score brings nltk, absl and half a dozen more for what is twenty lines, and
drops every letter outside a to z. On English without stemming the two agree (tests/evaluate/test_likeness.py).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

from halfbyte.errors import MissingDependency


def words(text: str) -> list[str]:
    """Runs of letters and digits, NFKC and case folded. A script without spaces makes one word of a phrase."""
    text = unicodedata.normalize("NFKC", text).casefold()
    there = zip(text, in_words(text), strict=True)
    return "".join(char if inside and char != "_" else " " for char, inside in there).split()


def in_words(text: str) -> list[bool]:
    """Whether each character is part of a word: a letter, a digit, an underscore, or a combining mark after one of
    these (the vowel signs of Devanagari and Thai, the points of Arabic)."""
    flags, inside = [], False
    for char in text:
        inside = char.isalnum() or char == "_" or (inside and unicodedata.category(char)[0] == "M")
        flags.append(inside)
    return flags


def occurrences(wanted: str, text: str) -> list[tuple[int, int]]:
    """Where `wanted` stands in `text` (start, end) and no word goes on at its ends."""
    found, start = [], text.find(wanted)
    inside = in_words(text) if start >= 0 else []
    while start >= 0:
        end = start + len(wanted)
        if not (start and inside[start - 1]) and not (end < len(text) and inside[end]):
            found.append((start, end))
        start = text.find(wanted, start + 1)
    return found


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1; 0 where either has no word."""
    a, b = words(answer), words(reference)
    if not a or not b:
        return 0.0
    return 2 * common_subsequence(a, b) / (len(a) + len(b))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyro 2004, "Bit-parallel LCS-length computation revisited"): a bit for each place in `a`, a step for
    each word of `b`; so answers of thousands of words take milliseconds.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


def chrf(answer: str, reference: str) -> float:
    """chrF2 of one answer, 0 to 100. Raises MissingDependency without sacrebleu."""
    return float(_chrf().sentence_score(answer, [reference]).score)


@cache
def _chrf() -> Any:
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise MissingDependency("kind 'text' needs the library sacrebleu for chrF", found="it is not installed",
                                do="pip install 'halfbyte[text]'") from None  # fmt: skip
    return CHRF()


check_chrf = _chrf  # raises at once what `chrf` would
