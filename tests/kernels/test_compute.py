"""The compute type: what is measured, what is chosen, and that the reason says so."""

from __future__ import annotations

import time

import pytest
import torch

from halfbyte.errors import ConfigError
from halfbyte.kernels import compute
from halfbyte.kernels.compute import Measured, choose_compute, fastest

MEASURE = compute.measured.__wrapped__  # before conftest.py puts a fixed result in its place
CPU = torch.device("cpu")
FAST, SLOW = Measured(bf16=0.001, fp32=0.002), Measured(bf16=0.004, fp32=0.002)


def found(monkeypatch: pytest.MonkeyPatch, took: Measured) -> None:
    monkeypatch.setattr(compute, "measured", lambda: took)


def test_the_measurement_is_short() -> None:
    best = 9.0
    for _ in range(3):
        started = time.perf_counter()
        took = MEASURE()
        best = min(best, time.perf_counter() - started)
    assert best < (0.7 if took.bf16_is_slow else 0.2) and took.bf16 > 0 and took.fp32 > 0


def test_fp32_is_taken_where_bf16_is_slow_and_the_reason_has_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, SLOW)
    assert fastest().name == "fp32" and fastest().dtype == torch.float32
    assert "4.00 ms in bf16" in fastest().reason and "2.00 ms in fp32" in fastest().reason
    found(monkeypatch, FAST)
    assert fastest().name == "bf16" and "2.00 ms in fp32" in fastest().reason
    found(monkeypatch, Measured(bf16=0.0024, fp32=0.002))  # faster, but not by enough for twice the memory
    assert fastest().name == "bf16"


@pytest.mark.parametrize(
    ("asked", "stored", "weights", "chosen"),
    [
        ("auto", torch.bfloat16, "nf4", "fp32"),
        ("auto", torch.bfloat16, "bf16", "fp32"),
        ("auto", torch.float16, "nf4", "fp32"),
        ("bf16", torch.bfloat16, "nf4", "bf16"),
        ("fp16", torch.float16, "nf4", "fp16"),
        ("fp32", torch.bfloat16, "int8", "fp32"),
    ],
)
def test_on_a_slow_processor(
    asked: str, stored: torch.dtype, weights: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, SLOW)
    made = choose_compute(asked, CPU, stored, weights)
    assert made.name == chosen and made.reason.startswith("as asked") == (asked != "auto")


def test_what_is_stored_counts_where_bf16_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, FAST)
    assert choose_compute("auto", CPU, torch.bfloat16, "bf16").name == "bf16"
    assert choose_compute("auto", CPU, torch.float32, "nf4").name == "fp32"
    assert choose_compute("auto", CPU, torch.float16, "int8").name == "bf16"  # far finer than the int8 beside it
    plain = choose_compute("auto", CPU, torch.float16, "bf16")
    assert plain.name == "fp32" and "fp16" in plain.reason


def test_an_unknown_type_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="bf16"):
        choose_compute("bfloat16", CPU, torch.bfloat16, "nf4")


def test_a_product_that_had_to_wait_does_not_make_bf16_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first rounds, longer than the usual measurement, each bf16 product waits; later ones do not."""
    clock, asked = [0.0], [0]

    def timed(x: torch.Tensor, *_: torch.Tensor) -> float:
        asked[0] += 1
        took = 0.001 if x.dtype == torch.float32 else 0.016 if asked[0] < 30 else 0.0002
        clock[0] += took
        return took

    monkeypatch.setattr(compute, "_time", timed)
    monkeypatch.setattr(compute.time, "perf_counter", lambda: clock[0])
    found = MEASURE()
    assert found.bf16 == 0.0002 and not found.bf16_is_slow


@pytest.mark.parametrize(
    ("stored", "weights", "family", "chosen", "because"),
    [
        (torch.bfloat16, "nf4", "llama", "fp16", "sum in fp32, and training scales the loss"),
        (torch.bfloat16, "int8", "", "fp16", "65,504"),
        (torch.bfloat16, "nf4", "gemma3_text", "fp32", "activations of gemma3_text"),
        (torch.bfloat16, "bf16", "llama", "fp32", "exactly"),
    ],
)
def test_a_card_without_bf16_takes_fp16_where_it_holds_the_activations(
    stored: torch.dtype, weights: str, family: str, chosen: str, because: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(compute, "_card_has_bf16", lambda device: False)
    card = torch.device("cuda")
    made = choose_compute("auto", card, stored, weights, family)
    assert made.name == chosen and because in made.reason and "Tesla T4 has no bf16" in made.reason
    assert choose_compute("auto", card, torch.float32, weights, family).name == "fp32"
    with pytest.raises(ConfigError, match="no bf16"):
        choose_compute("bf16", card, stored, weights, family)
    monkeypatch.setattr(compute, "_card_has_bf16", lambda device: True)
    assert choose_compute("auto", card, stored, weights, family).name == "bf16"
