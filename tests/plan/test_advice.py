"""Advice is taken at its word: what it names fits, and where nothing helps it says so."""

from __future__ import annotations

import re

from halfbyte.plan.ladder import Plan, plan_model


def llama(memory: str, **asked: object) -> Plan:
    return plan_model("llama-3.1-8b", memory=memory, **asked)  # type: ignore[arg-type]


def test_what_fits_needs_no_advice() -> None:
    assert llama("24GB").fit["advice"] == {} and llama("24GB").fit["least_bytes"] < 10**10


def test_a_single_option_that_is_enough_is_named_with_its_value() -> None:
    plan = llama("3GB", sequence=4096)
    found = re.search(r"lower data.max_tokens to (\d+)", plan.fit["advice"]["tune"])
    assert found is not None
    assert llama("3GB", sequence=int(found[1]), recompute=32).fit["fits"]
    assert not llama("3GB", sequence=int(found[1]) + 1, recompute=32).fit["fits"]
    wide = plan_model("llama-3.1-8b", device="12GB", weights="bf16", stream="off").fit["advice"]["tune"]
    assert "take weights nf4" in wide and "data.max_tokens" not in wide
    asked = llama("8GB", sequence=1024, recompute=0).fit["advice"]["tune"]
    assert asked.startswith("leave tune.recompute to auto")


def test_where_one_is_not_enough_or_nothing_is_that_is_said() -> None:
    both, none = llama("800MB").fit["advice"]["tune"], llama("400MB").fit["advice"]["tune"]
    assert both.startswith("no single option is enough") and none.startswith("no option helps")
    least = llama("400MB", sequence=4, rank=1, recompute=32).fit
    assert least["needed_bytes"] == least["least_bytes"] and f"{least['least_bytes'] / 1e9:.2f} GB" in none


def test_phases_beside_the_training_have_theirs() -> None:
    plan = plan_model("mistral-7b-v0.3", memory="470MB", rank=1, sequence=4, evaluation_batch=1, evaluation_sequence=8)
    assert plan.fits is False and plan.fit["fits"] and set(plan.fit["advice"]) == {"pack"}
    assert "where 0.48 GB are free" in plan.fit["advice"]["pack"]
    plan = plan_model("llama-3.2-1b", memory="1GB", rank=4, sequence=256, evaluation_batch=64)
    found = re.match(r"(\d+) of 64 answers of 256 tokens", plan.fit["advice"]["evaluate"])
    assert plan.fit["fits"] and found is not None
    for answers, fits in ((int(found[1]), True), (int(found[1]) + 1, False)):
        again = plan_model("llama-3.2-1b", memory="1GB", rank=4, sequence=256, evaluation_batch=answers)
        assert ("evaluate" not in again.fit["advice"]) == fits
    assert "not even one answer fits" in llama("600MB").fit["advice"]["evaluate"]
    assert "opening takes" in plan_model("llama-3.1-8b", device="1.5GB").fit["advice"]["open"]
    assert "pack" not in plan_model("llama-3.1-8b", device="1GB").fit["advice"]  # that is the host's
