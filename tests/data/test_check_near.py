"""Near duplicates: the nearly same is found, the merely similar is not."""

import csv
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

import halfbyte
from halfbyte.data import check_near
from halfbyte.data.check_near import COMMON, SHARE, WORDS, Hashed, NearIndex, words

_VOCABULARY = [f"word{k}" for k in range(500)]


def texts(count, length=40, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(_VOCABULARY, k=length)) for _ in range(count)]


def near(train, held):
    return {(a, b): share for a, b, share in NearIndex(Hashed.of(held)).matches(Hashed.of(train))}


def test_other_punctuation_case_and_a_changed_word_are_near():
    held, train = texts(20), texts(50, seed=1)
    train[7] = held[3].upper().replace(" ", ", ")
    parts = held[5].split()
    parts[0] = "another"
    train[9] = " ".join(parts)
    found = near(train, held)
    assert found.keys() == {(7, 3), (9, 5)} and found[7, 3] == 1.0
    assert found[9, 5] == 1 - 1 / (40 - WORDS + 1)  # one n-gram of 33 is another


def test_a_held_out_text_inside_a_long_one_is_near_and_half_of_it_is_not():
    held, train = texts(20), texts(50, seed=1)
    train[4] += " " + held[0] + " " + train[5]
    train[6] = " ".join(held[1].split()[:20])
    assert near(train, held).keys() == {(4, 0)} and SHARE > 0.5


def test_words_of_a_template_do_not_make_items_alike():
    frame = "Read the following message of a customer with great care and answer with one word what it is about: {}"
    held, train = ([frame.format(text) for text in texts(30, 9, seed)] for seed in (0, 1))
    assert not near(train, held)
    train[2] = held[8] + "!"
    assert near(train, held).keys() == {(2, 8)}


def test_short_texts_need_all_of_their_words():
    held = [*texts(20, 5), "What is five plus seven?"]
    assert near(["what is FIVE plus seven", "what is five plus nine", "so what is five plus seven"], held) == {
        (0, 20): 1.0
    }


def test_all_short_texts_that_read_the_same_are_near():
    held = [*texts(20, 5), "Capital of France?", "capital of France", *texts(20, 60, seed=3), "CAPITAL, of France"]
    train = ["What?", "the capital of France", "Capital of France", "capital of france!"]
    assert near(train, held) == {(2, 20): 1.0, (2, 21): 1.0, (2, 42): 1.0}  # of twins in the training data the first


def counted(train, held):
    """What `matches` says, one pair after another."""
    words_held, found, seen = list(map(words, held)), {}, set()
    having = Counter(word for one in words_held for word in set(one))
    rest = [[word for word in one if 2 * having[word] <= len(held)] for one in words_held]

    def grams(one):
        return {tuple(one[at : at + WORDS]) for at in range(len(one) - WORDS + 1)}

    shared = Counter(gram for one in rest for gram in grams(one))
    kept = [{gram for gram in grams(one) if shared[gram] <= COMMON} for one in rest]
    for a, text in enumerate(train):
        one = [word for word in words(text) if 2 * having[word] <= len(held)]
        if 0 < len(one) < WORDS and tuple(one) not in seen:
            seen.add(tuple(one))
            found |= {(a, b): 1.0 for b, other in enumerate(rest) if other == one}
        for b, other in enumerate(kept):
            if other and len(grams(one) & other) >= SHARE * len(other):
                found[a, b] = len(grams(one) & other) / len(other)
    return found


@pytest.mark.parametrize("piece", [1, 50, check_near.PIECE])
@pytest.mark.parametrize("vocabulary", [30, 500])
def test_it_is_what_counting_pair_by_pair_says(piece, vocabulary, monkeypatch):
    monkeypatch.setattr(check_near, "PIECE", piece)
    rng = random.Random(vocabulary)

    def some(most):
        return " ".join(rng.choices(_VOCABULARY[:vocabulary], k=rng.randrange(most)))

    def made(count):
        return [" ".join(rng.choice(passages) if rng.random() < 0.5 else some(20) for _ in range(rng.randrange(1, 5)))
                for _ in range(count)]  # fmt: skip

    passages = [some(60) for _ in range(8)]
    held, train = made(150), made(60)
    matches = NearIndex(Hashed.of(held)).matches(Hashed.of(train))
    assert {(a, b): share for a, b, share in matches} == counted(train, held) and len(matches) > 20


def test_passages_that_many_items_share_take_bounded_memory():
    """A passage of 200 words in 100 held-out items (one kind), or 80 passages, each in some of them (80 kinds and
    more); the training items have all of it."""
    rng = random.Random(0)
    passage, several = " ".join(f"p{k}" for k in range(200)), [texts(1, 9, seed=k)[0] for k in range(80)]
    for parts, each in (([passage], 1), (several, 30)):
        chosen = [" ".join(rng.sample(parts, each)) if k < 100 else "" for k in range(250)]
        held = Hashed.of([f"{text} {more}" for text, more in zip(texts(250, seed=99), chosen, strict=True)])
        train = Hashed.of([" ".join([*parts, text]) for text in texts(1024, seed=1)])
        index = NearIndex(held)
        tracemalloc.start()
        index.matches(train)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100e6


def test_nothing_to_compare():
    assert near(["a b c"], ["", "..."]) == {} and near([""], texts(20)) == {}


def test_the_demos_prices_are_hardly_ever_near():
    """Descriptions by one pattern: 369 test items, 5,305 training items, one real twin ("Replacement Motor 4.5 V")."""
    folder = Path(halfbyte.__file__).parent / "demo"
    sides = [
        [row["description"] for row in csv.DictReader((folder / name).open())] for name in ("train.csv", "test.csv")
    ]
    assert len(near(*sides)) == 1
