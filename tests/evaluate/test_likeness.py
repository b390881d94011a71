from __future__ import annotations

import random
import sys
import unicodedata

import pytest

from halfbyte.errors import MissingDependency
from halfbyte.evaluate import likeness
from halfbyte.evaluate.likeness import chrf, common_subsequence, rouge_l, words

# (answer, reference, what rouge-score 0.1.2 says: RougeScorer(["rougeL"], use_stemmer=False), fmeasure)
THEIRS = [
    ("the cat sat on the mat", "the cat was on the mat", 0.8333333333333334),
    ("A fire truck, with 300 pieces.", "the fire truck has 300 pieces", 0.6666666666666666),
    ("one two three", "three two one", 0.3333333333333333),
    ("", "something", 0),
    ("...", "a", 0),
    ("Yes!", "yes", 1.0),
    ("a b c d e f g a b c", "a c e g b a", 0.625),
]


@pytest.mark.parametrize(("answer", "reference", "theirs"), THEIRS)
def test_rouge_l_is_that_of_rouge_score(answer: str, reference: str, theirs: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(theirs, abs=1e-12)


def test_words_are_those_of_every_script() -> None:
    assert words("Straße, ＡＢ c_d 5.5 Привет!") == ["strasse", "ab", "c", "d", "5", "5", "привет"]
    assert rouge_l("привет мир", "Привет, мир!") == 1.0


def by_table(a: list[str], b: list[str]) -> int:
    """The textbook's table."""
    row = [0] * (len(b) + 1)
    for x in a:
        last = row[:]
        for at, y in enumerate(b, 1):
            row[at] = last[at - 1] + 1 if x == y else max(last[at], row[at - 1])
    return row[-1]


def test_the_common_subsequence_is_the_longest() -> None:
    lot = random.Random(0)
    for _ in range(200):
        a, b = ([lot.choice("abcde") for _ in range(lot.randint(0, 90))] for _ in range(2))
        assert common_subsequence(a, b) == by_table(a, b)


def test_chrf_is_sacrebleus() -> None:
    from sacrebleu import sentence_chrf

    assert chrf("the cat sat", "the cat sat") == 100
    assert chrf("", "the cat") == 0
    text = ("a fire truck with three hundred pieces", "the fire truck has 300 pieces")
    assert chrf(*text) == sentence_chrf(text[0], [text[1]]).score and 20 < chrf(*text) < 80


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    likeness._chrf.cache_clear()
    try:
        with pytest.raises(MissingDependency, match=r"(?s)kind 'text'.*halfbyte\[text\]"):
            chrf("a", "b")
    finally:
        likeness._chrf.cache_clear()


def test_combining_marks_belong_to_words() -> None:
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words("ที่นี่ ดี") == [normal("ที่นี่"), normal("ดี")]
    assert words("كِتَاب جديد") == ["كِتَاب", "جديد"]
    assert words("a_b \u2764\ufe0fyes") == ["a", "b", "yes"]  # the mark is the heart's


def normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text)
