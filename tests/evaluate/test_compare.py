from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.config import ToleranceConfig
from halfbyte.errors import ConfigError, DataError
from halfbyte.evaluate import statistics
from halfbyte.evaluate.compare import changes, compare_folders, compare_several
from halfbyte.evaluate.metrics import METRICS, Metric
from halfbyte.evaluate.paired import paired_all
from halfbyte.evaluate.results import summarise, write_evaluation
from halfbyte.evaluate.scores import exact_scores, loss_scores, number_scores
from halfbyte.evaluate.several import bonferroni, holm
from halfbyte.provenance import digest


def folder(
    place: Path, scores: list[dict[str, float]], kind: str, *, groups: list[str] | None = None, **parts: Any
) -> Path:
    """An evaluation with these scores."""
    parts = {"kind": kind, "items": len(scores), "data": "d", "tolerance": None} | parts
    lines = [
        {"id": f"i{k}", "group": groups[k] if groups else None, "prompt": f"prompt {k}", "answer": f"answer {k}",
         "reference": f"reference {k}", "parsed": None, "scores": score}
        for k, score in enumerate(scores)
    ]  # fmt: skip
    metrics, warnings = summarise(kind, lines, 0)
    result = {"schema": 1, "task": "t", "kind": kind, "fingerprint": digest(parts), "fingerprint_parts": parts,
              "variant": place.name, "items": len(lines), "metrics": metrics, "warnings": warnings}  # fmt: skip
    write_evaluation(place, result, lines)
    return place


def numbers(place: Path, answers: list[float | None], references: list[float], **options: Any) -> Path:
    tolerance = ToleranceConfig()
    pairs = zip(answers, references, strict=True)
    scores = [number_scores(a, r, 20.0, tolerance, logarithmic=True) for a, r in pairs]
    return folder(place, scores, "number", **options)


def exact(place: Path, right: list[bool], **options: Any) -> Path:
    return folder(place, [exact_scores("x", "x" if hit else "y") for hit in right], "exact", **options)


def test_a_clear_gain_in_an_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    truth = generator.uniform(10, 100, size=120)
    a = numbers(tmp_path / "base", list(truth + generator.normal(scale=20, size=120)), list(truth))
    b = numbers(tmp_path / "tuned", list(truth + generator.normal(scale=5, size=120)), list(truth))
    found = compare_folders(a, b)
    errors = [
        np.array([json.loads(line)["scores"]["mae"] for line in (f / "predictions.jsonl").read_text().splitlines()])
        for f in (a, b)
    ]
    change = errors[1] - errors[0]
    assert (found["a"], found["b"], found["metric"], found["better"]) == ("base", "tuned", "mae", "lower")
    assert found["difference"]["value"] == pytest.approx(change.mean()) and found["difference"]["value"] < 0
    assert found["a_value"] == pytest.approx(errors[0].mean()) and found["b_value"] == pytest.approx(errors[1].mean())
    assert (found["wins"], found["losses"], found["ties"]) == (np.sum(change < 0), np.sum(change > 0), 0)
    assert found["difference"]["high"] < 0 and found["difference"]["p"] < 0.001
    assert found["verdict"] == "better" and found["warnings"] == [] and "below 0 is better" in found["sign"]
    back = compare_folders(b, a)
    assert back["verdict"] == "worse" and back["wins"] == found["losses"]
    assert back["difference"]["value"] == pytest.approx(-found["difference"]["value"])
    json.dumps(found, allow_nan=False)


def test_pairing_is_by_item_and_not_by_line(tmp_path: Path) -> None:
    truth = [float(k) for k in range(1, 31)]
    a = numbers(tmp_path / "a", [k + 3 for k in truth], truth)
    b = numbers(tmp_path / "b", [k + 1 for k in truth], truth)
    lines = (b / "predictions.jsonl").read_text().splitlines(keepends=True)
    straight = compare_folders(a, b)
    (b / "predictions.jsonl").write_text("".join(reversed(lines)))
    assert compare_folders(a, b) == straight
    assert straight["wins"] == 30 and straight["difference"]["value"] == pytest.approx(-2)
    assert any("no spread in the difference" in warning for warning in straight["warnings"])


def test_no_detectable_difference_between_the_same(tmp_path: Path) -> None:
    a, b = (numbers(tmp_path / name, [1.0, 5.0, 9.0], [2.0, 4.0, 4.0]) for name in "ab")
    found = compare_folders(a, b)
    figures = {key: found["difference"][key] for key in ("value", "low", "high", "p", "p_adjusted")}
    assert figures == {"value": 0, "low": 0, "high": 0, "p": 1, "p_adjusted": 1}
    assert found["detectable"]["value"] is None  # nothing varies, so nothing is known
    assert found["verdict"] == "no detectable difference" and found["ties"] == 3
    few, same = found["warnings"]
    assert "only 3 independent items" in few and "the same answer, with the same score, to each of the 3 items" in same
    with pytest.raises(ConfigError, match=r"(?s)can't be compared with itself.*as .*a and .*b/\.\./a"):
        compare_several([a, b, b / ".." / "a"])
    c = numbers(tmp_path / "c", [1.0, 5.0, 9.5], [2.0, 4.0, 4.0])
    assert not any("same answer" in warning for warning in compare_folders(a, c)["warnings"])


def test_right_and_wrong_use_mcnemar(tmp_path: Path) -> None:
    a = exact(tmp_path / "a", [False] * 12 + [True] * 2 + [True] * 100)
    b = exact(tmp_path / "b", [True] * 12 + [False] * 2 + [True] * 100)
    found = compare_folders(a, b)
    assert (found["wins"], found["losses"], found["ties"]) == (12, 2, 100)
    assert found["difference"]["value"] == pytest.approx(10 / 114)
    assert found["difference"]["test"] == "mcnemar exact"
    assert found["difference"]["p"] == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert found["verdict"] == "better" and found["better"] == "higher"
    groups = [f"g{k // 2}" for k in range(114)]
    grouped = compare_folders(exact(tmp_path / "ga", [False] * 12 + [True] * 102, groups=groups),
                              exact(tmp_path / "gb", [True] * 12 + [True] * 102, groups=groups))  # fmt: skip
    assert grouped["difference"]["test"].startswith("permutation")  # pairs of items are no independent wins
    assert grouped["difference"]["p"] == pytest.approx(2 / 2**6, abs=0.01)


def test_unanswered_compares_in_its_own_direction(tmp_path: Path) -> None:
    truth = [10.0] * 150
    a = numbers(tmp_path / "a", [None] * 50 + [10.0] * 100, truth)
    b = numbers(tmp_path / "b", [10.0] * 149 + [None], truth)
    found = compare_folders(a, b, metric="unanswered")
    assert (found["wins"], found["losses"], found["verdict"]) == (50, 1, "better")
    assert found["difference"]["value"] == pytest.approx(-49 / 150) and found["difference"]["high"] < 0


def test_a_gain_in_format_alone_is_called_that(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    truth = list(generator.uniform(90, 110, size=200))  # far from the fallback of 20
    noise = list(generator.normal(scale=5, size=200))
    a = numbers(tmp_path / "a", [None if k % 2 else t + noise[k] for k, t in enumerate(truth)], truth)
    b = numbers(tmp_path / "b", [t + noise[k] * generator.choice([-1, 1]) for k, t in enumerate(truth)], truth)
    found = compare_folders(a, b)
    assert found["verdict"] == "better"
    assert found["both_answered"]["n"] == 100
    assert found["both_answered"]["verdict"] == "no detectable difference"
    assert any("more than a matter of format is not shown" in warning for warning in found["warnings"])
    nobody = numbers(tmp_path / "c", [None] * 200, truth)
    assert compare_folders(nobody, b)["both_answered"] is None
    only = compare_folders(nobody, b, metric="mae_answered")
    assert only["a_value"] is None and only["difference"]["value"] is None
    assert only["verdict"] == "no detectable difference"
    assert only["difference"]["p"] is None and any("counts 0 of 200" in told for told in only["warnings"])
    json.dumps(only, allow_nan=False)


def test_without_an_interval_there_is_no_p(tmp_path: Path) -> None:
    truth = [float(90 + k % 20) for k in range(200)]
    a = numbers(tmp_path / "a", [t + 60 if k < 2 else None for k, t in enumerate(truth)], truth)
    b, c = (numbers(tmp_path / name, [t + k % 3 for k, t in enumerate(truth)], truth) for name in "bc")
    found, other = compare_several([a, b, c], metric="mae_answered")
    assert found["difference"] | {"value": 0, "level": 0} == other["difference"] | {"value": 0, "level": 0}
    assert [found["difference"][key] for key in ("low", "p", "p_adjusted")] == [None, None, None]
    assert found["verdict"] == "no detectable difference"
    assert any("counts 2 of 200 items of the first result and 200 of the second" in told for told in found["warnings"])
    assert holm([None, 0.01])[0].p is None and holm([None, 0.01])[1].p == 0.02
    assert bonferroni([None], 3)[0].p is None and not bonferroni([None], 3)[0].detected


def test_few_items_are_warned_of_by_method(tmp_path: Path) -> None:
    right = [k % 3 > 0 for k in range(30)]
    a, b = exact(tmp_path / "a", right), exact(tmp_path / "b", right[1:] + right[:1])
    assert compare_folders(a, b)["warnings"] == ["only 30 independent items: the intervals hold, but are wide"]
    told = json.loads((a / "result.json").read_text())["warnings"]
    assert told == ["only 30 independent items: the intervals hold, but are wide"]
    c = numbers(tmp_path / "c", [float(k % 7) for k in range(30)], [float(k) for k in range(30)])
    (few,) = (told for told in json.loads((c / "result.json").read_text())["warnings"] if "only 30" in told)
    assert few.startswith("only 30 independent items: below 100 the bootstrap's intervals are too narrow (mae, rmsle")


def test_several_are_corrected_together(tmp_path: Path) -> None:
    a = exact(tmp_path / "a", [False] * 14 + [True] * 106)
    gains = {"eleven": (11, 2), "nine": (9, 2), "none": (3, 3)}
    others = [exact(tmp_path / name, [True] * up + [False] * (14 - up + down) + [True] * (106 - down))
              for name, (up, down) in gains.items()]  # fmt: skip
    alone = [compare_folders(a, other) for other in others]
    found = compare_several([a, *others])
    p = [row["difference"]["p"] for row in alone]
    assert p[0] < 0.05 / 2 and 0.05 < p[1] < 0.1
    assert [row["difference"]["p"] for row in found] == p
    assert [row["difference"]["p_adjusted"] for row in found] == pytest.approx([3 * p[0], 2 * p[1], 1])
    levels = [row["difference"]["level"] for row in found]
    assert levels == pytest.approx([1 - 0.05 / 3] * 3)  # the first step is the one at which it ended
    assert all(row["difference"]["low"] < x["difference"]["low"] for row, x in zip(found, alone, strict=True))
    assert alone[0]["verdict"] == "better" and found[0]["verdict"] == "no detectable difference"
    assert {(row["comparisons"], row["correction"]) for row in found} == {(3, "holm")}
    assert found[0]["detectable"]["value"] > alone[0]["detectable"]["value"]  # a higher bar


def outcomes(generator: np.random.Generator) -> tuple[Metric, list[list[dict[str, Any]]]]:
    """A metric, and the predictions of four models of random skill on the same 20 to 90 items, grouped or not."""
    n, metric = int(generator.integers(20, 90)), METRICS["number"][int(generator.integers(0, 4))]
    if generator.random() < 0.3:
        metric = METRICS["choice"][int(generator.integers(0, 2))]
    group = [f"g{k // 2}" for k in range(n)] if generator.random() < 0.4 else [None] * n
    truth, common = generator.integers(0, 3, size=n), generator.normal(size=n)
    models = []
    for skill in generator.normal(scale=0.6, size=4):
        heavy = generator.standard_t(2, size=n) if generator.random() < 0.3 else generator.normal(size=n)
        error = np.exp(common + heavy + skill) if generator.random() < 0.5 else np.abs(common + heavy + skill)
        right = generator.random(n) < 0.6 + 0.2 * skill
        said = np.where(right, truth, generator.integers(0, 3, size=n))
        models.append([
            {"id": str(k), "group": group[k], "answer": f"c{said[k]}", "reference": f"c{truth[k]}", "scores": {
                "answered": float(k % 9 > 0), "mae": error[k], "rmsle": error[k] ** 0.5, "within": float(right[k]),
                "accuracy": float(said[k] == truth[k])}} for k in range(n)
        ])  # fmt: skip
    return metric, models


def test_verdict_adjusted_p_and_interval_never_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three comparisons with one model, in many random cases: something is found where the adjusted p is below 5 %,
    and there the interval of the step's level leaves 0 out, on the side that the verdict says."""
    monkeypatch.setattr(statistics, "_WORK", 1)  # as few resamples as are ever drawn
    generator, seen = np.random.default_rng(8), Counter()
    for _ in range(100):
        metric, (first, *others) = outcomes(generator)
        made = paired_all([(metric, first, other) for other in others], seed=0, together=3)
        adjusted = holm([one.test.p for one in made]) if generator.random() < 0.8 else bonferroni(
            [one.test.p for one in made], 6)  # fmt: skip
        for paired, at in zip(made, adjusted, strict=True):
            row, _ = paired.result(at, None)
            found = row["difference"]
            side = (found["low"] > 0) - (found["high"] < 0)
            if metric.better == "lower":
                side = -side
            assert row["verdict"] == {1: "better", 0: "no detectable difference", -1: "worse"}[side]
            assert (side != 0) == (found["p_adjusted"] < 0.05) == at.detected and found["p"] <= found["p_adjusted"]
            assert not at.detected or found["p"] < 1 - found["level"]
            seen[row["verdict"], round(found["level"], 4)] += 1
    assert len(seen) >= 9 and min(seen[word, 0.9833] for word in ("better", "worse")) > 5


def test_what_the_items_could_have_shown(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    truth = list(generator.uniform(10, 100, size=200))
    noise = generator.normal(scale=8, size=(2, 200))
    a = numbers(tmp_path / "a", [t + x for t, x in zip(truth, noise[0], strict=True)], truth)
    b = numbers(tmp_path / "b", [t + x for t, x in zip(truth, noise[1], strict=True)], truth)
    (found,) = compare_several([a, b], detect=0.2)
    spread = np.std(np.abs(noise[1]) - np.abs(noise[0]), ddof=1)
    assert found["verdict"] == "no detectable difference" and found["warnings"] == []
    assert found["detectable"]["value"] == pytest.approx(2.8 * spread / 200**0.5, rel=0.02)
    assert found["needed"] == {"difference": 0.2, "items": pytest.approx((2.8 * spread / 0.2) ** 2, rel=0.02)}
    groups = [f"g{k // 4}" for k in range(200)]
    ga = numbers(tmp_path / "ga", [t + noise[0][k // 4] for k, t in enumerate(truth)], truth, groups=groups)
    gb = numbers(tmp_path / "gb", [t + noise[1][k // 4] for k, t in enumerate(truth)], truth, groups=groups)
    (grouped,) = compare_several([ga, gb], detect=0.2)  # four items of a group say no more than one
    assert grouped["units"] == 50 and grouped["needed"]["items"] % 4 == 0
    assert grouped["needed"]["items"] > 2.5 * found["needed"]["items"]
    with pytest.raises(ConfigError, match="other than 0"):
        compare_several([a, b], detect=0)
    with pytest.raises(ConfigError, match=r"between -1 and 1, not 0; a percentage point is 0\.01"):
        compare_several([a, b], metric="within", detect=-2)
    assert compare_several([a, b], detect=2)[0]["needed"]["items"] > 1  # of an error in dollars


def test_a_difference_that_few_items_make_is_not_trusted(tmp_path: Path) -> None:
    truth = [10.0] * 150
    far = [10.0 + 0.01 * (k % 3 - 1) for k in range(150)]
    a = numbers(tmp_path / "a", [1e6, 2e5, 1e5, *far[3:]], truth)
    b = numbers(tmp_path / "b", [10.0] * 150, truth)
    found = compare_folders(a, b)
    assert found["difference"]["high"] < 0  # the bootstrap knows no larger outlier than it saw
    b = numbers(tmp_path / "b", [12.0, 12.0, 12.0, *[10.5] * 147], truth)
    found = compare_folders(a, b)
    assert found["difference"]["high"] == 0 and found["difference"]["p"] > 0.05  # the permutation test widens it
    assert found["verdict"] == "no detectable difference"
    assert any("few items make up most of the difference" in warning for warning in found["warnings"])
    told = json.loads((a / "result.json").read_text())["warnings"]
    assert told[-1].startswith("few items make up most of mae, rmsle:")  # a share of single items never is
    groups = [f"g{k % 200}" if k < 200 else f"g{k % 3}" for k in range(500)]  # three of 200 hold 100 items each
    hits = [k % 2 == 0 if k < 200 else k % 3 == 0 for k in range(500)]
    large = json.loads((exact(tmp_path / "c", hits, groups=groups) / "result.json").read_text())
    assert any(warning.startswith("few items make up most of exact_match") for warning in large["warnings"])


def test_none_or_all_of_a_grouped_share_is_not_certain(tmp_path: Path) -> None:
    groups = [f"g{k // 2}" for k in range(200)]
    place = exact(tmp_path / "a", [False] * 200, groups=groups)
    found = json.loads((place / "result.json").read_text())["metrics"]["exact_match"]
    assert (found["value"], found["method"]) == (0, "wilson") and 0.03 < found["high"] < 0.04  # of 100 groups


def test_other_metrics_can_be_asked_for(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    truth = list(generator.uniform(10, 100, size=100))
    a = numbers(tmp_path / "a", [t * generator.lognormal(0, 0.6) for t in truth], truth)
    b = numbers(tmp_path / "b", [t * generator.lognormal(0, 0.1) for t in truth], truth)
    for metric, better in (("rmsle", "lower"), ("within", "higher"), ("rmsle_answered", "lower")):
        found = compare_folders(a, b, metric=metric)
        assert (found["metric"], found["better"], found["verdict"]) == (metric, better, "better")
    with pytest.raises(ConfigError, match=r"(?s)no such metric.*did you mean 'rmsle'"):
        compare_folders(a, b, metric="rmsl")


def test_what_gives_items_away_says_whose_data_do(tmp_path: Path) -> None:
    def leaking(place: Path, *leaks: str) -> Path:
        exact(place, [True, False] * 5)
        file = place / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"leaks": list(leaks)}))
        return place

    base, tuned = leaking(tmp_path / "base"), leaking(tmp_path / "tuned", "x", "y")
    assert compare_folders(base, tuned)["warnings"][:2] == ["tuned: x", "tuned: y"]
    twin = leaking(tmp_path / "other" / "tuned", "y", "z")
    assert compare_folders(tuned, twin)["warnings"][:3] == ["y", "the first result: x", "the second result: z"]


def test_another_tokenizer_is_compared_in_bits_per_byte(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    nats = generator.uniform(5, 9, size=100)
    a = folder(tmp_path / "a", [loss_scores(x, 10, 40) for x in nats], "loss")
    same = folder(tmp_path / "s", [loss_scores(x - generator.uniform(0, 1), 10, 40) for x in nats], "loss")
    other = folder(tmp_path / "b", [loss_scores(x - generator.uniform(0, 1), 5, 40) for x in nats], "loss")
    assert compare_folders(a, same)["metric"] == "loss" and compare_folders(a, same)["verdict"] == "better"
    found = compare_folders(a, other)  # a token is twice as long: the loss a token rises, the text got likelier
    assert found["metric"] == "bits_per_byte" and found["verdict"] == "better"
    assert "tokenizers differ" in found["warnings"][0]
    forced = compare_folders(a, other, metric="loss")
    assert forced["verdict"] == "worse" and "does not compare" in forced["warnings"][0]


def test_other_experiments_are_refused_with_what_differs(tmp_path: Path) -> None:
    a = exact(tmp_path / "a", [True, False])
    b = exact(tmp_path / "b", [True, False, True], data="e", decoding={"max_new_tokens": 3})
    with pytest.raises(ConfigError) as error:
        compare_folders(a, b)
    text = str(error.value)
    assert "not of the same experiment" in text and "items: 2 against 3" in text
    assert 'decoding: null against {"max_new_tokens": 3}' in text
    assert 'data: "d" against "e"\n' in text and "1 items only in" in text and "'i2'" in text


def test_missing_items_are_named(tmp_path: Path) -> None:
    a, b = exact(tmp_path / "a", [True] * 3), exact(tmp_path / "b", [True] * 3)
    text = (b / "predictions.jsonl").read_text()
    (b / "predictions.jsonl").write_text(text.replace('"i1"', '"other"'))
    with pytest.raises(DataError) as error:
        compare_folders(a, b)
    assert "missing in" in str(error.value) and "'i1'" in str(error.value) and "'other'" in str(error.value)
    (b / "predictions.jsonl").write_text(text.replace('"i1"', '"i0"'))
    with pytest.raises(DataError, match="'i1'"):
        compare_folders(a, b)


def test_the_most_changed_items(tmp_path: Path) -> None:
    a = numbers(tmp_path / "a", [10.0, 10.0, 10.0, 10.0], [10.0, 20.0, 30.0, 40.0])
    b = numbers(tmp_path / "b", [15.0, 20.0, 10.0, 38.0], [10.0, 20.0, 30.0, 40.0])
    improved, worsened = changes(a, b)
    assert [(row.id, row.gain) for row in improved] == [("i3", 28), ("i1", 10)]
    assert [(row.id, row.gain) for row in worsened] == [("i0", -5)]
    assert improved[0].prompt == "prompt 3" and (improved[0].a_score, improved[0].b_score) == (30, 2)
    assert len(changes(a, b, count=1)[0]) == 1


def plain_folder(place: Path, kind: str, lines: list[dict[str, Any]]) -> Path:
    """An evaluation without the intervals of its metrics, which take their time."""
    parts = {"kind": kind, "items": len(lines), "data": "d", "tolerance": None}
    result = {"schema": 1, "task": "t", "kind": kind, "fingerprint": digest(parts), "fingerprint_parts": parts,
              "variant": place.name, "items": len(lines), "metrics": {}, "warnings": []}  # fmt: skip
    write_evaluation(place, result, [{"prompt": "p", "parsed": None} | line for line in lines])
    return place


@pytest.mark.parametrize("metric", [None, "macro_f1"])
def test_three_results_of_ten_thousand_items_take_less_than_three_seconds(tmp_path: Path, metric: str | None) -> None:
    """Numbers with a twentieth unanswered, so that those that both answered are compared, too; 77 classes in groups."""
    generator, folders = np.random.default_rng(0), []
    truth = generator.integers(0, 77, size=10_000)
    for name, skill in (("a", 0.6), ("b", 0.65), ("c", 0.7)):
        lines = []
        for k, value in enumerate(truth):
            said = int(value) if generator.random() < skill else int(generator.integers(0, 77))
            answer = None if metric is None and generator.random() < 0.05 else float(said)
            scores = {"accuracy": float(said == value)} if metric else number_scores(
                answer, float(value), 20.0, ToleranceConfig(), logarithmic=True)  # fmt: skip
            lines.append({"id": f"i{k}", "group": f"g{k // 2}" if metric else None, "answer": f"{said}",
                          "reference": f"{value}", "scores": scores})  # fmt: skip
        folders.append(plain_folder(tmp_path / name, "choice" if metric else "number", lines))
    began = time.process_time()
    found = compare_several(folders, metric=metric, detect=0.01)
    assert time.process_time() - began < 3
    assert [row["verdict"] for row in found] == ["better", "better"]
    assert metric or all(row["both_answered"]["verdict"] == "better" for row in found)


def test_so_do_ten_thousand_right_and_wrong_answers(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    a = exact(tmp_path / "a", list(generator.random(10_000) < 0.6))
    b = exact(tmp_path / "b", list(generator.random(10_000) < 0.63))
    began = time.process_time()
    (found,) = compare_several([a, b], detect=0.001)
    assert time.process_time() - began < 3
    assert found["verdict"] == "better" and found["difference"]["test"] == "mcnemar exact"
    assert found["detectable"]["value"] < 0.03 and found["needed"]["items"] > 10**6


def test_a_refusal_says_which_part_of_the_items_differs(tmp_path: Path) -> None:
    parts = dict.fromkeys(("ids", "system", "options"), "e" * 64)
    a = exact(tmp_path / "a", [True, False], data=parts)
    b = exact(tmp_path / "b", [True, False], data=parts | {"system": "0" * 64})
    with pytest.raises(ConfigError, match=r"data\.system: the items' system texts differ") as told:
        compare_folders(a, b)
    assert "options" not in str(told.value) and "eee" not in str(told.value)
    fewer = exact(tmp_path / "fewer", [True], data=dict.fromkeys(parts, "0" * 64))
    with pytest.raises(ConfigError, match="items: 2 against 1") as told:  # of fewer items every hash is another
        compare_folders(a, fewer)
    assert "data." not in str(told.value) and "1 items only in" in str(told.value)
    old = exact(tmp_path / "old", [True, False], data="1" * 64)
    with pytest.raises(ConfigError, match="earlier version: evaluate it again"):
        compare_folders(a, old)
