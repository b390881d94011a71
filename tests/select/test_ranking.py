"""Who is best, who can't be told from the best, and what is recommended of these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from halfbyte.errors import ConfigError
from halfbyte.evaluate.compare import compare_folders, compare_several
from halfbyte.select.candidates import Candidate
from halfbyte.select.evidence import Evidence, Variant
from halfbyte.select.ranking import Ranking, rank
from halfbyte.select.words import recommend
from tests.select.folders import entry


def proportion_ci(hits: int, n: int, level: float) -> tuple[float, float]:
    found = binomtest(hits, n).proportion_ci(level, method="wilson")
    return found.low, found.high


GOOD = [k % 10 != 0 for k in range(120)]  # 90 %
CLOSE = [k % 10 != 1 and k % 40 != 2 for k in range(120)]  # 87.5 %
BAD = [k % 2 == 0 for k in range(120)]


def evidence_of(ranking: Ranking | None, *names: str) -> list[Evidence]:
    every = [*(one.name for one in ranking.order), *names] if ranking else names
    made = []
    for name in every:
        variant = Variant(name, "nf4", 0, status="failed" if name in names else "scored", reason="broken")
        made.append(Evidence(Candidate(name, None, "folder", name), variants=[variant]))
    return made


def ranked(folder: Path, *entries: tuple[str, list[bool], int | None], **parts: Any) -> Ranking:
    found = rank([entry(folder / name, right, memory, **parts) for name, right, memory in entries], "exact", seed=0)
    assert found is not None
    return found


def test_the_best_of_many_equal_ones_is_hardly_ever_called_better(tmp_path: Path) -> None:
    import random

    draw, alarms = random.Random(0), 0
    for turn in range(60):
        entries = [(f"{turn}-{name}", [draw.random() < 0.5 for _ in range(60)], 1) for name in range(6)]
        alarms += any(one.verdict == "worse" for one in ranked(tmp_path, *entries).against)
    assert alarms <= 4  # it is 2; corrected for the 5 comparisons that are made it would be 6


def test_a_clear_best(tmp_path: Path) -> None:
    found = ranked(tmp_path, ("bad", BAD, 1), ("good", GOOD, 9 * 10**9))
    assert found.best.name == found.chosen.name == "good" and [one.name for one in found.tied] == ["good"]
    (against,) = found.against
    assert (against.other, against.verdict) == ("bad", "worse") and against.p_adjusted < 1e-6
    said = recommend(evidence_of(found), found, None)
    assert said.variant == "good" and said.undecided == ()
    assert said.reasons[0].startswith("Recommended: good") and "the other one is worse" in said.reasons[1]
    assert not any("at random" in reason for reason in recommend(evidence_of(found), found, None, chance=0.5).reasons)
    lucky = recommend(evidence_of(found), found, None, chance=0.9).reasons
    assert lucky[0].startswith("Not recommended, but first: ") and any("at random" in reason for reason in lucky)


def test_of_those_that_are_tied_the_smallest_is_named_and_the_rest_is_said(tmp_path: Path) -> None:
    found = ranked(tmp_path, ("large", GOOD, 9 * 10**9), ("small", CLOSE, 10**9), ("bad", BAD, 1))
    assert found.best.name == "large" and found.chosen.name == "small"
    said = recommend(evidence_of(found), found, None)
    assert said.variant == "small" and said.undecided == ("large", "small")
    text = " ".join(said.reasons)
    assert said.reasons[0].startswith("Recommended for its memory, not for its score: small")
    assert "these two can't be told apart on 120 items" in text
    assert (
        "large has the best score but takes 9.00 GB" in text
        and "would have been detected" in text
        and "does rule out bad" in text
    )
    assert "--probe 200" in text and "licence is not known" in text


def test_hardly_more_memory_does_not_cost_the_best_score(tmp_path: Path) -> None:
    found = ranked(tmp_path, ("good", GOOD, 1_040), ("close", CLOSE, 1_000))
    assert found.chosen.name == "good"
    unknown = ranked(tmp_path / "unknown", ("good", GOOD, None), ("close", CLOSE, None))
    assert unknown.chosen.name == "good"


def test_many_comparisons_are_corrected_for(tmp_path: Path) -> None:
    """p is 0.016 alone; not after twenty comparisons."""
    fewer = [hit and k not in range(1, 8) for k, hit in enumerate(GOOD)]
    alone = ranked(tmp_path / "alone", ("good", GOOD, 1), ("fewer", fewer, 1))
    assert [one.verdict for one in alone.against] == ["worse"]
    others = [(f"other{k}", fewer, 1) for k in range(20)]
    many = ranked(tmp_path / "many", ("good", GOOD, 1), *others)
    assert {one.verdict for one in many.against} == {"no detectable difference"}
    assert len(many.tied) == 21


def test_beside_chance_the_choice_counts(tmp_path: Path) -> None:
    """60 % of 120 are above 50 % alone (from 51.1 %), not as one of twenty that it was chosen from."""
    some = [k % 5 < 3 for k in range(120)]
    alone = ranked(tmp_path / "alone", ("some", some, 1))
    many = ranked(tmp_path / "many", *((f"v{k}", some, 1) for k in range(20)))
    assert not any("at random" in one for one in recommend(evidence_of(alone), alone, None, chance=0.5).reasons)
    (said,) = (one for one in recommend(evidence_of(many), many, None, chance=0.5).reasons if "at random" in one)
    assert said.endswith("(corrected for its choice among 20).")
    (said,) = (one for one in recommend(evidence_of(many), many, None).reasons if "flatters" in one)
    low, high = (100 * limit for limit in proportion_ci(72, 120, 1 - 0.05 / 20))
    assert said.endswith(f"the interval corrected for its choice among 20 is {low:.1f} % to {high:.1f} %.")
    assert not any("flatters" in one for one in recommend(evidence_of(alone), alone, None).reasons)


def test_beside_the_median_the_choice_counts(tmp_path: Path) -> None:
    """p is 0.016 alone, and twenty times that for one that was chosen from twenty."""
    fewer = entry(tmp_path / "fewer", [hit and k not in range(1, 8) for k, hit in enumerate(GOOD)])
    folders = [fewer.folder, entry(tmp_path / "good", GOOD).folder]
    (alone,), (chosen,) = (compare_several(folders, among=among) for among in (1, 20))
    assert alone["verdict"] == "better" and chosen["verdict"] == "no detectable difference"
    assert chosen["difference"]["p_adjusted"] == pytest.approx(20 * alone["difference"]["p"])


def test_shots_may_differ_and_nothing_else(tmp_path: Path) -> None:
    a, b = entry(tmp_path / "a", GOOD), entry(tmp_path / "b", BAD, shots="4" * 64)
    found = rank([a, b], "exact", seed=0)
    assert found is not None and found.against[0].verdict == "worse"
    with pytest.raises(ConfigError, match="examples before the prompts"):
        compare_folders(a.folder, b.folder)
    c = entry(tmp_path / "c", BAD, shots="4" * 64, data="others")
    with pytest.raises(ConfigError, match='data: "d" against "others"'):
        rank([a, c], "exact", seed=0)


def test_a_probe_decides_and_says_that_it_changed_the_order(tmp_path: Path) -> None:
    base = ranked(tmp_path / "base", ("one", GOOD, 1), ("two", BAD, 1))
    probed = ranked(tmp_path / "probed", ("one", BAD, 1), ("two", GOOD, 1))
    said = recommend(evidence_of(base), base, probed, steps=200)
    assert said.variant == "two" and "after a probe of 200 steps" in said.reasons[0]
    assert any("Out of the box one was first" in reason for reason in said.reasons)


def test_probes_are_corrected_for_all_that_were_scored_out_of_the_box(tmp_path: Path) -> None:
    """p is 0.016 alone: the two that were probed are the best of twenty, which were scored on the same items."""
    fewer = [hit and k not in range(1, 8) for k, hit in enumerate(GOOD)]
    two = [entry(tmp_path / "good", GOOD, 1), entry(tmp_path / "fewer", fewer, 1)]
    alone, probed = rank(two, "exact", seed=0), rank(two, "exact", seed=0, among=20)
    assert alone is not None and probed is not None and (alone.among, probed.among) == (2, 20)
    assert [one.verdict for one in (*alone.against, *probed.against)] == ["worse", "no detectable difference"]
    assert probed.against[0].difference["p_adjusted"] == 1 and probed.against[0].difference["p"] < 0.02
    low, high = (100 * limit for limit in proportion_ci(108, 120, 1 - 0.05 / 20))
    text = " ".join(recommend(evidence_of(probed), probed, probed, steps=200).reasons)
    assert f"corrected for its choice among 20 is {low:.1f} % to {high:.1f} %" in text
    one = rank(two[:1], "exact", seed=0, among=20)
    text = " ".join(recommend(evidence_of(one), probed, one, steps=200).reasons)
    assert "its choice among 20" in text and "one of 20 that were scored" in text


def test_a_single_variant_is_not_said_to_have_been_first(tmp_path: Path) -> None:
    one, two = ranked(tmp_path / "1", ("one", GOOD, 1)), ranked(tmp_path / "2", ("one", GOOD, 1), ("two", BAD, 1))
    assert not any("was first" in reason for reason in recommend(evidence_of(one), one, one, steps=2).reasons)
    assert any("it was first, too" in reason for reason in recommend(evidence_of(two), two, two, steps=2).reasons)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (GOOD, BAD, ", which made it worse than out of the box (exact_match 90.0 %)."),
        (GOOD, CLOSE, ", no better than out of the box (exact_match 90.0 %)."),
        (GOOD, GOOD, ", no better than out of the box (exact_match 90.0 %)."),
        (BAD, GOOD, " after a probe of 200 steps."),
    ],
)
def test_a_probe_that_did_no_good_is_told_in_the_first_line(
    before: list[bool], after: list[bool], told: str, tmp_path: Path
) -> None:
    base, probed = ranked(tmp_path / "base", ("one", before, 1)), ranked(tmp_path / "probed", ("one", after, 1))
    compared = compare_folders(base.chosen.folder, probed.chosen.folder)
    said = recommend(evidence_of(base), base, probed, steps=200, tuned=compared)
    assert said.reasons[0].startswith("Recommended: one") and said.reasons[0].endswith(told)


def test_a_constant_answer_is_told(tmp_path: Path) -> None:
    import json

    found = ranked(tmp_path, ("one", GOOD, 1))
    file = tmp_path / "one" / "predictions.jsonl"
    lines = [json.loads(line) | {"parsed": "10"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = recommend(evidence_of(found), found, None)
    assert any("one answer, 10, to 100 % of the items" in reason for reason in said.reasons)
    assert "the only one with a score" in said.reasons[1]


def test_nothing_to_recommend() -> None:
    assert rank([], "exact", seed=0) is None
    said = recommend(evidence_of(None, "a", "b"), None, None)
    assert said.variant is None and "Failed: a and b." in said.reasons
