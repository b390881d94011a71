"""Measuring: the fit finds the prices that made the times; a whole calibration, of small sizes, prices real steps."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from halfbyte.calibrate import calibrate, fit, models, operations
from halfbyte.calibrate.fit import Points
from halfbyte.kernels import compute, product_int8
from halfbyte.plan import calibration
from halfbyte.plan.calibration import Calibration
from halfbyte.plan.ladder import plan_model
from tests.tiny import tiny_checkpoint


def test_the_fit_finds_the_prices_that_the_times_are_made_of():
    prices = {"call": 1e-4, "byte": 2e-9, "unused": 0.0}
    points = Points()
    for size in (1e3, 1e5, 1e7):
        for many in (1, 10):
            units = {"call": many, "byte": size, "unused": size**2 / 1e7}
            points.add(units, sum(prices[name] * value for name, value in units.items()))
    cost = points.fit()
    assert cost.units["call"] == pytest.approx(1e-4, rel=1e-3) and cost.units["byte"] == pytest.approx(2e-9, rel=1e-3)
    assert cost.error < 1e-3 and len(cost.points) == 6
    assert cost.seconds({"call": 3, "byte": 1e6}) == pytest.approx(3e-4 + 2e-3, rel=0.01)


def test_no_price_is_negative():
    points = Points()
    for size, seconds in ((1, 3.0), (2, 2.0), (3, 1.0)):
        points.add({"call": 1, "byte": size}, seconds)
    assert min(points.fit().units.values()) >= 0


SIZES = {
    "SHAPES": ((64, 64), (128, 64), (64, 128), (128, 128)),
    "TOKENS": (16, 32, 64),
    "RANKS_AT": ((64, 64),),
    "HEADS": ((4, 2, 16), (4, 4, 16)),
    "SEEN": ((16, 16, False), (64, 64, False), (1, 64, False), (64, 64, True)),
    "LOSSES": ((320, 64, 32), (320, 64, 96)),
    "FEW_SHAPES": ((64, 64), (128, 64)),
    "VOCABULARIES": ((320, 64), (640, 64)),
    "TENSORS": ((4, 64), (8, 4096)),
    "RING": 1 << 16,
    "READ": 1 << 22,
    "WRITTEN": 1 << 20,
    "CAPPED": ((320, 64, 32), (640, 64, 32)),
    "LARGE": 1 << 12,
}
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320}  # fmt: skip


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Calibration, list[str], Path]]:
    """A calibration of small sizes, what it said, and the folder of its cache."""
    said: list[str] = []
    cache = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALFBYTE_CACHE", str(cache))
        for name, value in SIZES.items():
            patch.setattr(operations, name, value)
        patch.setattr(fit, "SECONDS", 0.0)
        patch.setattr(fit, "_LARGEST", 1 << 20)
        fit._other.cache_clear()
        patch.setattr(compute, "measured", lambda: compute.Measured(bf16=0.001, fp32=0.002))  # bf16 on every machine
        patch.setattr(models, "MODELS", {"narrow": SHAPE})
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        made = calibrate(said.append)
        assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
        calibration.store(made)
    yield made, said, cache


def test_a_calibration_prices_every_operation_and_the_plan_uses_it(
    calibrated: tuple[Calibration, list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, said, cache = calibrated
    monkeypatch.setenv("HALFBYTE_CACHE", str(cache))
    assert said and set(made.costs) - {"int8"} == {"bf16", "fp32"} and made.rates["read"] > 0
    for table in made.costs.values():
        assert {"attention/forward", "attention/backward", "loss", "optimiser", "pack", "rest/decode",
                "product/nf4/few", "product/head/few"} <= set(table)  # fmt: skip
        for cost in table.values():
            assert min(cost.units.values()) >= 0
        assert sum(sum(cost.units.values()) for cost in table.values()) > 0
    assert [file.name for file in cache.iterdir()] == [calibration.FILE]  # the models that were made for it are gone
    folder = tiny_checkpoint("llama", tmp_path / "model")
    plan = plan_model(str(folder), sequence=64, memory="8GB")
    assert plan.time["calibrated"] and plan.time["step_seconds"] > 0 and plan.time["evaluate"]["seconds"] > 0
    assert ("int8" in made.costs) == (not product_int8.missing())
    for weights in ("int8", "bf16"):
        assert plan_model(str(folder), weights=weights, sequence=64, memory="8GB").time["calibrated"]


def test_a_prediction_is_of_the_size_of_the_measured_step(
    calibrated: tuple[Calibration, list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the units are right: both were timed in moments, on a machine that may be busy with other things."""
    from halfbyte.config import AdapterConfig
    from halfbyte.model.build import load_model
    from halfbyte.model.loss import next_token_loss

    monkeypatch.setenv("HALFBYTE_CACHE", str(calibrated[2]))
    folder = tiny_checkpoint("llama", tmp_path / "model", hidden_size=64, intermediate_size=128, head_dim=16)
    model = load_model(str(folder), weights="nf4", device="cpu", adapter=AdapterConfig(rank=16))
    model.net.train()
    parameters = list(model.parameters_to_train().values())
    adam, ids = torch.optim.AdamW(parameters), torch.randint(3, 300, (1, 64))

    def step() -> float:
        began = time.perf_counter()
        adam.zero_grad()
        (next_token_loss(model.hidden(ids), ids, model.head) / 63).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        return time.perf_counter() - began

    measured = min(step() for _ in range(30))  # the least disturbed one
    planned = plan_model(str(folder), sequence=64, memory="8GB", recompute=0).time["step_seconds"]
    assert measured / 20 < planned < 20 * measured
