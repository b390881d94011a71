from __future__ import annotations

import pytest

from halfbyte.evaluate.judge import named_option

OPTIONS = ["insurance", "insurance change", "lost card", "C++"]


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("insurance", 0),
        (" Insurance Change. ", 1),
        ("**Lost card**", 2),
        ("It is about an insurance change, I think", 1),  # "insurance" within it does not count
        ("The intent is insurance.", 0),
        ("they use C++ here", 3),
        ("lost card or insurance", None),
        ("insurances", None),
        ("", None),
        ("?", None),
    ],
)
def test_the_option_that_an_answer_names(answer: str, place: int | None) -> None:
    assert named_option(answer, OPTIONS) == place


@pytest.mark.parametrize(
    ("answer", "options", "place"),
    [
        ("male or female", ["male", "female"], None),
        ("a female one", ["male", "female"], 1),
        ("I agree that they disagree", ["agree", "disagree"], None),
        ("they disagree", ["agree", "disagree"], 1),
        ("insurance, or an insurance change", ["insurance", "insurance change"], None),
        ("the word is कि here", ["क", "कि"], 1),  # a vowel sign belongs to its letter
    ],
)
def test_an_option_counts_where_a_place_of_it_lies_in_no_longer_one(
    answer: str, options: list[str], place: int | None
) -> None:
    assert named_option(answer, options) == place
