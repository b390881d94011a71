from __future__ import annotations

import math

import numpy as np
import pytest

from halfbyte.config import KINDS, ContainsConfig, ToleranceConfig
from halfbyte.errors import ConfigError
from halfbyte.evaluate.declared import declared_by_both
from halfbyte.evaluate.metrics import METRICS, metrics_of
from halfbyte.evaluate.scores import (
    choice_scores,
    contains_scores,
    exact_scores,
    json_scores,
    loss_scores,
    normalise,
    number_scores,
)
from halfbyte.evaluate.structured import MISSING
from halfbyte.evaluate.sums import Sums

TWENTY = ToleranceConfig(relative=0.2)


def value(kind: str, name: str, table: dict[str, object]) -> float:
    columns = {key: np.asarray(column) for key, column in table.items()}
    metric = next(m for m in metrics_of(kind, columns) if m.name == name)
    units = np.arange(len(next(iter(columns.values()))))
    return float(metric.statistic(columns, units).value(np.ones((1, len(units))))[0])


def numbers(pairs: list[tuple[float | None, float]], fallback: float, tolerance: ToleranceConfig = TWENTY) -> dict:
    rows = [number_scores(parsed, r, fallback, tolerance, logarithmic=True) for parsed, r in pairs]
    return {key: [row[key] for row in rows] for key in rows[0]}


def test_every_kind_has_metrics_with_a_direction() -> None:
    assert set(METRICS) == set(KINDS)
    for metrics in METRICS.values():
        assert len({m.name for m in metrics}) == len(metrics)
        assert all(m.better in ("lower", "higher") and m.text for m in metrics)


def test_number_metrics_by_hand() -> None:
    table = numbers([(12.0, 10.0), (None, 100.0), (-5.0, 5.0), (30.0, 20.0)], fallback=50.0)
    assert value("number", "mae", table) == pytest.approx((2 + 50 + 10 + 10) / 4)
    assert value("number", "mae_answered", table) == pytest.approx((2 + 10 + 10) / 3)
    logs = [math.log(13 / 11), math.log(51 / 101), math.log(1 / 6), math.log(31 / 21)]  # -5 counts as 0
    assert value("number", "rmsle", table) == pytest.approx(math.sqrt(sum(x * x for x in logs) / 4))
    kept = [logs[0], logs[2], logs[3]]
    assert value("number", "rmsle_answered", table) == pytest.approx(math.sqrt(sum(x * x for x in kept) / 3))
    assert value("number", "within", table) == pytest.approx(1 / 4)
    assert value("number", "within_answered", table) == pytest.approx(1 / 3)
    assert value("number", "unanswered", table) == pytest.approx(1 / 4)


def test_an_answer_without_a_number_is_never_zero() -> None:
    scores = number_scores(None, 15.0, 15.0, TWENTY, logarithmic=True)
    assert scores == {"answered": 0.0, "mae": 0.0, "rmsle": 0.0, "within": 1.0}  # the fallback, right or wrong
    assert number_scores(None, 400.0, 15.0, TWENTY, logarithmic=True)["mae"] == 385.0


def test_tolerance_is_relative_or_absolute() -> None:
    def within(parsed: float, reference: float, **tolerance: float | None) -> float | None:
        return number_scores(parsed, reference, 0, ToleranceConfig(**tolerance), logarithmic=False).get("within")

    assert within(12, 10, relative=0.2) == 1 and within(12.01, 10, relative=0.2) == 0
    assert within(23.988, 19.99, relative=0.2) == 1  # on the very edge, whatever the last bit says
    assert within(14, 10, relative=None, absolute=5) == 1 and within(16, 10, relative=None, absolute=5) == 0
    assert within(14, 10, relative=0.2, absolute=5) == 1  # either will do
    assert within(-11, -10, relative=0.2) == 1
    assert within(14, 10, relative=None) is None
    scores = number_scores(1, 1, 0, ToleranceConfig(relative=None), logarithmic=True)
    columns = {key: np.array([x]) for key, x in scores.items()}
    assert [m.name for m in metrics_of("number", columns)] == [
        "mae",
        "rmsle",
        "unanswered",
        "mae_answered",
        "rmsle_answered",
    ]


def test_without_rmsle_where_a_reference_is_negative() -> None:
    scores = number_scores(1.0, -3.0, 0.0, TWENTY, logarithmic=False)
    assert "rmsle" not in scores and scores["mae"] == 4
    names = [m.name for m in metrics_of("number", {key: np.array([x]) for key, x in scores.items()})]
    assert "rmsle" not in names and "rmsle_answered" not in names and "mae" in names


@pytest.mark.parametrize(("normalise", "chosen"), [("none", 0), ("tokens", 2), ("bytes", 1)])
def test_choice_chooses_by_its_rule_and_the_others_stand_beside(normalise: str, chosen: int) -> None:
    names = {"none": "accuracy_sum", "tokens": "accuracy_per_token", "bytes": "accuracy_per_byte"}
    for reference in range(3):
        found, scores = choice_scores([-4.0, -6.0, -9.0], [1, 2, 4], [2, 12, 8], reference, normalise)
        assert found == chosen
        by_rule = {"accuracy_sum": 0, "accuracy_per_token": 2, "accuracy_per_byte": 1}
        beside = {name: float(place == reference) for name, place in by_rule.items() if name != names[normalise]}
        assert scores == {"accuracy": float(chosen == reference)} | beside
    assert choice_scores([-1.0, -1.0], [1, 1], [1, 1], 0, normalise)[0] == 0  # the first among equals


def test_choice_metrics_by_hand() -> None:
    table = {
        "accuracy": [1.0, 0.0, 1.0, 1.0],
        "accuracy_per_byte": [0.0, 0.0, 1.0, 1.0],
        "reference": ["yes", "yes", "no", "no"],
        "answer": ["yes", "no", "no", "no"],
    }
    assert value("choice", "accuracy", table) == 0.75
    assert value("choice", "accuracy_per_byte", table) == 0.5
    assert value("choice", "macro_f1", table) == pytest.approx((2 * 1 / 3 + 2 * 2 / 5) / 2)


def choices(references: list[str], *models: list[str]) -> list[Sums]:
    tables = [{"reference": np.array(references), "answer": np.array(answers), "accuracy": np.zeros(len(answers))}
              for answers in models]  # fmt: skip
    return METRICS["choice"][1].statistics(tables, np.arange(len(references)))


def test_macro_f1_of_two_models_that_answer_other_classes() -> None:
    references = ["b", "b", "c", "c"]
    a, b = choices(references, ["a", "b", "c", "c"], ["b", "b", "d", "c"])
    swap = np.array([[0.0] * 4, [1.0] * 4, [1.0, 0, 0, 0]])
    none, all_, half = a.swapped(b, swap @ (b.sums - a.sums))
    every = np.ones((1, 4))
    assert none == pytest.approx(float(b.value(every)[0] - a.value(every)[0])) and all_ == pytest.approx(-none)
    swapped = [one.value(every)[0] for one in choices(references, ["b", "b", "c", "c"], ["a", "b", "d", "c"])]
    assert half == pytest.approx(float(swapped[1] - swapped[0]))


def test_no_answer_is_no_class() -> None:
    every = np.ones((1, 3))
    assert choices(["a", "b", "b"], ["a", "b", ""])[0].value(every)[0] == pytest.approx((1 + 2 / 3) / 2)
    assert choices(["a", "b", "b"], ["a", "", ""])[0].value(every)[0] == pytest.approx(0.5)


def test_loss_metrics_by_hand() -> None:
    rows = [loss_scores(6.0, 3, 12), loss_scores(2.0, 5, 20)]
    table = {key: [row[key] for row in rows] for key in rows[0]}
    assert rows[0]["loss"] == 2.0
    assert value("loss", "loss", table) == pytest.approx(1.0)
    assert value("loss", "perplexity", table) == pytest.approx(math.e)
    assert value("loss", "bits_per_byte", table) == pytest.approx(8 / 32 / math.log(2))


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("  Paris. ", "paris"),
        ("“Paris”!", "Paris"),
        ("**Paris**", "paris"),
        ("(b)", "B"),
        ("New\n  York", "new york"),
        ("Ｐａｒｉｓ", "paris"),  # full width
        ("STRASSE", "straße"),
        ("?", "?"),
    ],
)
def test_exact_normalises(answer: str, reference: str) -> None:
    assert exact_scores(answer, reference) == {"exact_match": 1.0, "answered": 1.0}


@pytest.mark.parametrize(
    ("answer", "reference"), [("-5", "5"), ("5%", "5"), (".5", "5"), ("C++", "C"), ("$5", "5"), ("?", "!"), ("é", "e")]
)
def test_exact_keeps_what_means_something(answer: str, reference: str) -> None:
    assert normalise(answer) != normalise(reference)


def test_an_empty_answer_is_none() -> None:
    assert exact_scores(" \n", "x") == {"exact_match": 0.0, "answered": 0.0}


def contains(answer: str, reference: str, **rule: bool) -> bool:
    return contains_scores(answer, reference, ContainsConfig(**rule))["contains"] == 1.0


def test_contains_and_its_options() -> None:
    assert contains("It is in NEW\n  York.", " new york ") and not contains("It is in Boston.", "New York")
    assert contains("ｐａｒｉｓ", "Paris")  # full width: NFKC
    assert not contains("in NEW YORK", "New York", case=True) and contains("in New  York", "New York", case=True)
    assert not contains("New  York", "New York", space=True) and contains("New  York", "New  York", space=True)
    assert contains("15 of them", "5") and not contains("15 of them", "5", words=True)
    assert contains("(5)", "5", words=True) and contains("uses C++ only", "C++", words=True)
    assert contains("a.c", "a.c") and not contains("abc", "a.c")  # no pattern
    assert not contains("कि", "क", words=True) and contains("एक कि.", "कि", words=True)
    assert contains_scores(" ", "x", ContainsConfig()) == {"contains": 0.0, "answered": 0.0}


def test_json_scores_count_the_fields_of_the_reference() -> None:
    reference = {"name": "Fire Truck", "size": {"pieces": 300, "boxed": True}, "tags": ["city", "fire"]}
    found = {"name": "Fire truck", "size": {"pieces": 300.0, "boxed": True}, "more": 1, "tags": ["city", "fire"]}
    scores, right = json_scores("{...}", found, reference, None)
    assert right == {"name": False, "size.pieces": True, "size.boxed": True, "tags": True}
    assert scores == {"field_accuracy": 0.75, "right_fields": 3.0, "fields": 4.0, "object_match": 0.0, "valid": 1.0,
                      "answered": 1.0}  # fmt: skip
    assert json_scores("x", reference, reference, True)[0] | {"answered": 1.0} == {
        "field_accuracy": 1.0, "right_fields": 4.0, "fields": 4.0, "object_match": 1.0, "valid": 1.0, "answered": 1.0,
        "schema_valid": 1.0}  # fmt: skip
    for nothing in (MISSING, [1], None):
        scores, right = json_scores("", nothing, reference, False)
        assert not any(right.values()) and scores["valid"] == float(nothing is not MISSING)
        assert scores["answered"] == scores["schema_valid"] == scores["field_accuracy"] == 0.0


def test_json_metrics_by_hand() -> None:
    rows = [json_scores("x", {"a": 1}, wanted, None)[0] for wanted in ({"a": 1, "b": 2, "c": 3}, {"a": 1})]
    table = {key: [row[key] for row in rows] for key in rows[0]}
    assert value("json", "field_accuracy", table) == 2 / 4  # of all fields, not the mean of the items'
    assert value("json", "object_match", table) == 0.5 and value("json", "valid", table) == 1
    columns = {key: np.asarray(column) for key, column in table.items()}
    assert "schema_valid" not in [m.name for m in metrics_of("json", columns)]


def test_what_only_one_result_knows_as_right_or_wrong_is_compared_as_a_mean() -> None:
    """A harness's metric is "right" where every item happened to score 0 or 1: that differs from model to model."""
    right, mean = {"better": "higher", "form": "right"}, {"better": "higher", "form": "mean"}
    bits = {"better": "lower", "form": "bits"}
    one, other = {"acc": right, "f": right, "b": bits, "gone": mean}, {"acc": right, "f": mean, "b": bits}
    assert declared_by_both(one, other) == {"acc": right, "f": mean, "b": bits}
    assert declared_by_both(other, one) == {"acc": right, "f": mean, "b": bits}
    assert declared_by_both(None, None) is None and declared_by_both({}, {"x": right}) == {}
    with pytest.raises(ConfigError, match="no metric in common"):
        declared_by_both({"x": bits}, {"x": right})
