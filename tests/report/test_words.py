"""What is said follows from the files: verdicts, units, and when a gain is one in format."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from halfbyte.report.read import Prediction, Variant, gather
from halfbyte.report.story import ranked, right_or_wrong
from halfbyte.report.words import (
    bytes_text,
    change_text,
    format_note,
    headline,
    number_text,
    sides,
    unit_of,
    value_text,
    wrong_note,
)
from tests.report.synthetic import Answer, base_answer, comparison, tuned_answer, write_run


def note(folder: Path) -> str:
    evidence = gather(folder)
    base, tuned = sides(evidence)
    assert base and tuned
    only, said = format_note(evidence, base, tuned, "mae", "$")
    assert only == said.startswith("This is only")
    assert headline(evidence, base, tuned, "mae", only)[1].startswith("A gain in format only") == only
    return said.replace("\N{NO-BREAK SPACE}", " ")


def set_verdict(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def near(lot: random.Random, true: float) -> str:
    """A base that knows the form and something of the price."""
    return f"{true * lot.uniform(0.5, 1.5):.2f}"


def test_a_gain_in_format_and_more_is_called_partly_that(tmp_path: Path) -> None:
    said = note(write_run(tmp_path / "run", items=200))
    assert said.startswith("This is partly a gain in format. Of the base's answers, ")
    assert "hold no number" in said
    assert "more than 10 times the largest true value" in said
    assert "learning what such a number looks like" in said
    assert "is read from the items" in said
    assert "On the 60 items to which both gave a number: $280.00 → $9.00" in said


def test_a_gain_that_does_not_beat_the_constant_guess_is_only_format(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", items=200)
    set_verdict(folder, "comparisons/median.json", verdict="no detectable difference")
    assert note(folder).startswith("This is only a gain in format.")
    assert "can't be shown to do better" in note(folder)


SAME = {"n": 30, "a_value": 5.0, "b_value": 5.1, "difference": {"value": 0.1, "low": -1.0, "high": 1.2, "p": 0.9},
        "verdict": "no detectable difference"}  # fmt: skip


@pytest.mark.parametrize("both", [None, SAME])
def test_a_gain_that_is_gone_where_both_answered_is_only_format(tmp_path: Path, both: Any) -> None:
    def half(lot: random.Random, true: float) -> str:
        return near(lot, true) if lot.random() < 0.5 else "who knows"

    folder = write_run(tmp_path / "run", items=200, base=half)
    set_verdict(folder, "comparison.json", both_answered=both)
    said = note(folder)
    assert said.startswith("This is only a gain in format. Of the base's answers, ")
    assert ("$5.00 → $5.10" in said) if both else ("no item to which both gave a number" in said)


@pytest.mark.parametrize(("base", "tuned"), [(near, tuned_answer), (tuned_answer, base_answer)])
def test_a_base_that_knows_the_form_gets_no_note(tmp_path: Path, base: Answer, tuned: Answer) -> None:
    assert note(write_run(tmp_path / "run", items=200, base=base, tuned=tuned)) == ""


def test_the_base_beside_the_tuned_model_has_its_format(tmp_path: Path) -> None:
    evidence = gather(write_run(tmp_path / "run", items=12))
    base, tuned = sides(evidence)
    assert base and tuned
    assert (base.name, tuned.name) == ("base-nf4", "tuned")
    assert unit_of([base, tuned]) == "$"


def test_comparisons_come_as_one_or_many_from_names_and_folders(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", items=12)
    difference = {"value": 1.0, "low": 0.5, "high": 1.5}
    sides_of = [("x/evaluations/base-nf4/", "x/evaluations/tuned"), ("base-bf16", "tuned")]
    many = [comparison(a, b, "mae", difference, "worse", (1, 2, 3)) for a, b in sides_of]
    (folder / "comparison.json").write_text(json.dumps(many))
    (folder / "comparisons" / "again.json").write_text(json.dumps(many[1]))
    found = [(item["a"], item["b"]) for item in gather(folder).comparisons]
    assert found == [("base-nf4", "tuned"), ("base-bf16", "tuned"), ("base-bf16", "base-nf4"), ("median", "tuned")]


def test_an_interval_that_says_nothing_is_not_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", items=12)
    result = folder / "evaluations" / "tuned" / "result.json"
    values = json.loads(result.read_text())
    values["metrics"]["within"] = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 12, "method": "no spread"}
    result.write_text(json.dumps(values))
    assert gather(folder).variants["tuned"].metric("within") == {"value": 0.0, "n": 12.0}


def test_errors_are_told_by_size_and_side(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", items=100, tuned=lambda lot, true: f"{0.5 * true:.4f}")
    lines = wrong_note(gather(folder).variants["tuned"], "$")
    assert lines[-1] == "100 % of its answers are too low, 0 % too high."
    small, large = (float(line.split("off by $")[1].split()[0].replace(",", "")) for line in lines[:2])
    assert 0 < small < large


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (None, "–"), (15.0, "15"), (0.12345, "0.123"), (1234.5, "1,234"), (5.591, "5.59"), (9.999, "10"),
     (0.0002, "0.0002"), (3e12, "3e12"), (2.5e-7, "2.5e-7")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert number_text(value) == text


def test_sizes_shares_and_money() -> None:
    plain = str.maketrans({"\N{NO-BREAK SPACE}": " ", "\N{WORD JOINER}": None})
    assert bytes_text(5_591_539_712).translate(plain) == "5.59 GB"
    assert bytes_text(109_051_904).translate(plain) == "109 MB"
    assert value_text("within", 0.4567).translate(plain) == "45.7 %"
    assert value_text("mae", 1234.5, "$") == "$1,234"
    assert value_text("mae", -3.5, "$").translate(plain) == "−$3.50"
    assert value_text("rmsle", 0.5, "$") == "0.5"
    assert change_text("within", 0.05).translate(plain) == "+5.0 points"
    assert change_text("mae", 2, "€") == "+€2.00"


@pytest.mark.parametrize(("better", "order"), [("lower", ["b", "c", "a"]), ("higher", ["a", "c", "b"])])
def test_items_rank_the_way_that_the_result_says(better: str, order: list[str]) -> None:
    """A metric that is not ours, and one that has the name of ours and other scores behind it."""
    for metric in ("word_perplexity", "perplexity"):
        lines = [
            Prediction(name, "p", "", "r", None, {metric: score})
            for name, score in zip("abc", (9.0, 1.0, 5.0), strict=True)
        ]
        variant = Variant("v", {"metrics": {metric: {"value": 5.0, "better": better}}}, lines)
        assert [found.id for _, found in ranked(variant, metric)] == order  # the best first


def test_shares_of_the_harness_are_per_cent() -> None:
    assert value_text("acc_norm", 1 / 3) == value_text("exact_match,strict", 1 / 3) == "33.3\N{NO-BREAK SPACE}%"
    assert change_text("acc", -0.021) == "\N{MINUS SIGN}\N{WORD JOINER}2.1\N{NO-BREAK SPACE}points"
    assert right_or_wrong("acc") and right_or_wrong("exact_match,strict") and not right_or_wrong("word_perplexity")
