from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from halfbyte.evaluate.details import (
    MOST_CLASSES,
    Slope,
    by_class,
    by_field,
    calibration,
    confusions,
    details,
    most_changed,
    worst,
)
from halfbyte.evaluate.results import units_of


def line(at: int, answer: str | None, reference: str, scores: dict[str, float], **more: Any) -> dict[str, Any]:
    own = {"id": f"i{at}", "group": None, "prompt": f"p{at}", "answer": answer, "reference": reference}
    return own | {"parsed": answer, "scores": scores} | more


def exact(pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [line(at, said, true, {"exact_match": float(said == true)}) for at, (said, true) in enumerate(pairs)]


PAIRS = [("yes", " Yes"), ("no", "yes"), ("no", "no"), ("No.", "no"), ("maybe", "no"), ("", "yes"), ("no", "yes")]


def test_classes_and_confusions_by_hand() -> None:
    found = by_class(exact(PAIRS))
    yes, no = found["classes"]
    assert yes == {"class": "Yes", "precision": 1.0, "recall": 1 / 4, "f1": 2 / 5, "support": 4, "answered": 1}
    assert no == {"class": "no", "precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "support": 3, "answered": 4}
    assert found["confusions"] == [
        {"reference": "yes", "answer": "no", "count": 2},
        {"reference": "no", "answer": "maybe", "count": 1},
        {"reference": "yes", "answer": "", "count": 1},
    ]
    assert confusions(exact(PAIRS), 1) == found["confusions"][:1]


def test_a_class_that_is_never_answered_has_no_precision() -> None:
    rows = by_class(exact([("a", "a"), ("a", "b"), ("a", "b"), ("a", "a")]))["classes"]
    assert rows[1] == {"class": "b", "precision": None, "recall": 0.0, "f1": 0.0, "support": 2, "answered": 0}


def test_references_that_are_no_classes() -> None:
    assert by_class(exact([(str(k), str(k)) for k in range(50)])) == {}  # all of them different
    assert by_class(exact([("a", "a")] * 9)) == {}  # one
    names = [str(k) for k in range(MOST_CLASSES + 1)]
    assert by_class(exact([(name, name) for name in names * 3])) == {}  # too many
    assert len(by_class(exact([(name, name) for name in names[1:] * 3]))["classes"]) == MOST_CLASSES


def test_the_option_that_was_read_is_the_class() -> None:
    lines = [line(k, "It is a.", " a", {"accuracy": 1.0}, option=" a") for k in range(3)]
    lines += [line(k, "neither", " b", {"accuracy": 0.0}, option="") for k in range(3, 6)]
    found = by_class(lines)
    assert [row["recall"] for row in found["classes"]] == [1.0, 0.0]
    assert found["confusions"] == [{"reference": "b", "answer": "", "count": 3}]


def numbers(said: list[float | None], true: list[float], groups: list[str] | None = None) -> list[dict[str, Any]]:
    rows = []
    for at, (x, y) in enumerate(zip(said, true, strict=True)):
        scores = {"mae": abs((x or 0.0) - y), "answered": float(x is not None)}
        rows.append(line(at, str(x), str(y), scores, reference_parsed=y) | {"parsed": x})
        rows[-1]["group"] = groups[at] if groups else None
    return rows


def test_calibration_finds_the_slope_and_the_bins() -> None:
    lot = random.Random(0)
    true = [lot.uniform(10, 100) for _ in range(400)]
    said = [2 * y + lot.gauss(0, 5) for y in true]  # twice as extreme
    lines = numbers([*said, None], [*true, 50.0])
    found = calibration(lines, units_of(lines), 0)
    expected = np.polyfit(said, true, 1)
    assert found["n"] == 400
    assert found["slope"]["value"] == pytest.approx(expected[0]) and found["intercept"] == pytest.approx(expected[1])
    assert found["slope"]["low"] < expected[0] < found["slope"]["high"] < 0.52
    assert len(found["bins"]) == 10 and sum(part["n"] for part in found["bins"]) == 400
    for part, following in zip(found["bins"], found["bins"][1:], strict=False):
        assert part["low"] <= part["predicted"] <= part["high"] < following["low"] and part["true"] < following["true"]


def test_equal_answers_stay_in_one_bin() -> None:
    lines = numbers([5.0] * 90 + [7.0] * 10, [float(k) for k in range(100)])
    bins = calibration(lines, units_of(lines), 0)["bins"]
    assert [(part["low"], part["high"], part["n"]) for part in bins] == [(5, 5, 90), (7, 7, 10)]


def test_what_has_no_slope() -> None:
    constant = numbers([5.0] * 30, [float(k) for k in range(30)])
    found = calibration(constant, units_of(constant), 0)
    assert found["slope"] is None and len(found["bins"]) == 1 and found["bins"][0]["true"] == 14.5
    silent = numbers([None] * 3, [1.0, 2.0, 3.0])
    assert calibration(silent, units_of(silent), 0) == {"n": 0, "slope": None, "intercept": None, "bins": []}


def test_the_slope_is_a_statistic_of_units() -> None:
    lot = np.random.default_rng(1)
    x, unit_of = 1e9 + lot.normal(size=60), np.repeat(np.arange(20), 3)  # far from 0: nothing is lost
    y = 3 * x + lot.normal(size=60)
    slope = Slope(x, y, unit_of)
    assert slope.units == 20
    assert slope.value(np.ones((1, 20)))[0] == pytest.approx(np.polyfit(x - 1e9, y, 1)[0], rel=1e-6)
    for unit in (0, 7):
        kept = unit_of != unit
        assert slope.left_out()[unit] == pytest.approx(np.polyfit(x[kept] - 1e9, y[kept], 1)[0], rel=1e-6)
    weights = lot.integers(0, 3, size=(1, 20)).astype(float)
    repeated = np.repeat(np.arange(60), weights[0, unit_of].astype(int))
    assert slope.value(weights)[0] == pytest.approx(np.polyfit(x[repeated] - 1e9, y[repeated], 1)[0], rel=1e-6)


def test_fields_one_by_one() -> None:
    lines = [line(k, "x", "y", {"field_accuracy": 0.5}, fields={"a": k < 3, "b.c": True} | ({"d": False} if k else {}))
             for k in range(4)]  # fmt: skip
    rows = {row["field"]: row for row in by_field(lines, units_of(lines), 0)}
    assert list(rows) == ["d", "a", "b.c"]
    assert [(rows[name]["value"], rows[name]["n"]) for name in ("a", "b.c", "d")] == [(0.75, 4), (1, 4), (0, 3)]
    assert rows["a"]["low"] < 0.75 < rows["a"]["high"] <= 1 and rows["d"]["low"] == 0 < rows["d"]["high"]
    grouped = [row | {"group": str(at // 20)} for at, row in enumerate(lines * 30)]
    wide = {row["field"]: row for row in by_field(grouped, units_of(grouped), 0)}["a"]
    assert wide["value"] == 0.75 and wide["n"] == 120
    never = {row["field"]: row for row in by_field(grouped, units_of(grouped), 0)}["d"]
    alone = {row["field"]: row for row in by_field(lines * 30, units_of(lines * 30), 0)}["d"]
    assert never["low"] == alone["low"] == 0 and never["high"] > 3 * alone["high"]  # a few groups, not 90 items


def test_the_options_of_a_choice_are_told_apart_as_they_are() -> None:
    lines = [line(at, said, true, {"accuracy": float(said == true)}) for at, (said, true) in enumerate(
        [("C", "c"), ("c", "c"), ("C", "C"), ("C", "C")])]  # fmt: skip
    found = details("choice", lines, units_of(lines), 0)
    assert {row["class"]: row["support"] for row in found["classes"]} == {"c": 2, "C": 2}
    assert found["confusions"] == [{"reference": "c", "answer": "C", "count": 1}]
    assert "classes" not in details("exact", [row | {"scores": {"exact_match": 1.0}} for row in lines],
                                    units_of(lines), 0)  # fmt: skip


def test_the_worst_items() -> None:
    lines = numbers([1.0, 5.0, None, 7.0], [1.0, 4.0, 90.0, 5.0])
    assert [row["id"] for row in worst("number", lines)] == ["i2", "i3", "i1"]  # and none that is right
    assert worst("number", lines, 1)[0]["score"] == 90
    texts = [line(k, "x", "y", {"chrf": score}) for k, score in enumerate((50.0, 100.0, 3.0))]
    assert [row["id"] for row in worst("text", texts)] == ["i2", "i0"]
    losses = [line(k, None, "y", {"loss": score}) for k, score in enumerate((0.5, 2.0))]
    assert [(row["id"], row["answer"]) for row in worst("loss", losses)] == [("i1", None), ("i0", None)]
    long = line(0, "a" * 999, "y", {"exact_match": 0.0}) | {"prompt": "p" * 999}
    (row,) = worst("exact", [long])
    assert row["answer"] == "a" * 300 + " …" and row["prompt"] == "… " + "p" * 300


def test_the_surest_wrong_choice_is_the_worst() -> None:
    nats = [{"a": -1.0, "b": -2.0}, {"a": -1.0, "b": -9.0}, {"a": -1.0, "b": -3.0}]
    lines = [line(k, "a", "b", {"accuracy": 0.0}, log_likelihoods=each) for k, each in enumerate(nats)]
    lines.append(line(3, "b", "b", {"accuracy": 1.0}, log_likelihoods=nats[0]))
    assert [(row["id"], row["score"]) for row in worst("choice", lines)] == [("i1", -8), ("i2", -2), ("i0", -1)]


def test_each_kind_has_what_belongs_to_it() -> None:
    lines = numbers([1.0, 2.0], [1.0, 3.0])
    assert set(details("number", lines, units_of(lines), 0)) == {"worst", "calibration"}
    assert set(details("exact", exact(PAIRS), units_of(exact(PAIRS)), 0)) == {"worst", "classes", "confusions"}
    assert set(details("contains", [line(0, "a", "b", {"contains": 0.0})], np.zeros(1, int), 0)) == {"worst"}


def test_what_changed_most() -> None:
    before, after = {"a": 1.0, "b": 5.0, "c": 2.0, "only": 9.0}, {"a": 4.0, "b": 1.0, "c": 2.0, "other": 0.0}
    improved, worsened = most_changed(before, after, better="lower")
    assert improved == [("b", 4.0)] and worsened == [("a", -3.0)]
    assert most_changed(before, after, better="higher") == ([("a", 3.0)], [("b", -4.0)])
    equal = {f"q{k}": 0.0 for k in range(30)}
    first = most_changed(equal, dict.fromkeys(equal, 1.0), better="higher", count=5)[0]
    turned = most_changed(dict(reversed(equal.items())), dict.fromkeys(equal, 1.0), better="higher", count=5)[0]
    assert first == turned and len(first) == 5
