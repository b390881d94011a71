"""Near duplicates: the nearly same is found, the merely similar is not."""

import csv
import random
from pathlib import Path

import halfbyte
from halfbyte.data.check_near import SHARE, WORDS, Hashed, NearIndex

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


def test_nothing_to_compare():
    assert near(["a b c"], ["", "..."]) == {} and near([""], texts(20)) == {}


def test_the_demos_prices_are_hardly_ever_near():
    """Descriptions by one pattern: 369 test items, 5,305 training items, one real twin ("Replacement Motor 4.5 V")."""
    folder = Path(halfbyte.__file__).parent / "demo"
    sides = [
        [row["description"] for row in csv.DictReader((folder / name).open())] for name in ("train.csv", "test.csv")
    ]
    assert len(near(*sides)) == 1
