"""What people read of the answers."""

import io

import pytest
from rich.console import Console

from halfbyte.plan.ladder import plan_model
from halfbyte.plan.prose import duration
from halfbyte.plan.show import parallel_lines, render_answers, time_lines


def _shown(plan):
    out = io.StringIO()
    render_answers(plan.to_json(), Console(file=out, width=120))
    return out.getvalue()


def test_durations():
    assert [duration(seconds) for seconds in (0.0012, 1.5, 119, 600, 9000, 200_000)] == [
        "1.2 ms", "1.5 s", "119 s", "10 min", "2.5 h", "2.31 days"
    ]  # fmt: skip


def test_what_fits_and_what_does_not_is_said_with_prices():
    plan = plan_model("llama-3.1-8b", device="T4")
    assert any(reason.startswith("time: unknown, because only this machine's processor") for reason in plan.reasons)
    said = _shown(plan)
    assert "training on T4: fits" in said and "to spare" in said and "the largest that fits" in said
    said = _shown(plan_model("llama-3.1-8b", device="2x14GB", weights="bf16", stream="off"))
    assert "does not fit" in said and "weights int8: enough" in said and "<- first" in said
    assert "2 devices, on paper" in said and "assumed:" in said
    assert "2 x a card with 14GB" in said


def test_without_a_calibration_it_says_how_to_get_one():
    plan = plan_model("llama-3.2-1b", memory="8GB").to_json()
    assert time_lines(plan["time"], plan["settings"]) == []
    assert parallel_lines(plan) == []


@pytest.mark.parametrize("name", ["granite-3.3-8b-base"])
def test_unknown_is_said(name):
    assert "unknown, because" in _shown(plan_model(name, memory="8GB"))
