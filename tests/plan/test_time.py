"""Seconds from made-up prices: each part is what its operations cost; without prices there are none."""

import dataclasses

import pytest

from halfbyte.plan import calibration as store
from halfbyte.plan import operations as count
from halfbyte.plan.calibration import Calibration, Cost, identity
from halfbyte.plan.inventory import take_inventory
from halfbyte.plan.ladder import plan_model
from halfbyte.plan.time import Length, Speed
from tests.plan.conftest import write_model

NAMES = [f"product/{kind}/{way}" for kind in ("nf4", "int8", "bf16") for way in ("forward", "backward", "few")]
PRICE = 1e-11  # seconds a multiplication


def prices(**changed):
    product = Cost({"call": 0.0, "weight": 0.0, "multiplication": PRICE, "pair": 0.0, "pair_element": 0.0,
                    "pair_multiplication": 0.0})  # fmt: skip
    attention = Cost({"call": 0.0, "element": 0.0, "score": 0.0, "multiplication": PRICE, "cap": 0.0})
    rest = Cost({"call": 0.0, "byte": 0.0})
    table = dict.fromkeys(NAMES, product) | {f"product/head/{way}": product for way in ("few", "forward")}
    table |= {"attention/forward": attention, "attention/backward": attention}
    table |= {f"rest/{way}": rest for way in ("forward", "backward", "decode")}
    table |= {"loss": Cost({"call": 0.0, "weight": 0.0, "multiplication": PRICE, "logit": 0.0}),
              "optimiser": Cost({"tensor": 0.0, "parameter": 0.0}),
              "pack": Cost({"call": 0.0, "tensor": 0.0, "byte": 1e-9})}  # fmt: skip
    return table | changed


def speed(weights="nf4", targets="all", **changed):
    inventory = take_inventory("llama-3.2-1b")
    return Speed(count.work(inventory.linears, inventory.dims, 16, targets, inventory.config), weights,
                 prices(**changed), 2)  # fmt: skip


@pytest.fixture
def calibrated():
    store.store(
        Calibration(
            identity(), "2026-01-01", 1.0, {"bf16": prices()}, {"read": 1e10, "write": 1e9, "product_bf16": 1e11}
        )
    )
    yield
    (store.cache_folder() / store.FILE).unlink()


ONCE = 973_078_528
FIRST = 2048 * 2048 + 2 * 512 * 2048


def test_the_parts_of_a_step_are_their_operations():
    parts = speed().step_parts(2, 256, 0)
    assert parts["products forward"] == pytest.approx(512 * ONCE * PRICE)
    assert parts["products backward"] == pytest.approx(512 * (ONCE - FIRST) * PRICE)
    assert parts["head and loss"] == pytest.approx(2 * 510 * 128256 * 2048 * PRICE)
    assert parts["attention"] == pytest.approx(2 * 16 * 2 * 32 * 256 * 257 / 2 * 64 * PRICE)
    assert parts["recomputation"] == 0


def test_a_recomputed_layer_is_computed_again_but_for_its_last_product():
    made = speed()
    whole, half = (made.step_parts(1, 512, layers)["recomputation"] for layers in (16, 8))
    attention = 16 * 32 * 512 * 513 / 2 * 64
    assert whole == pytest.approx((512 * (ONCE - 16 * 2048 * 8192) + attention) * PRICE)
    assert half == pytest.approx(whole / 2)


def test_micro_batches_repeat_all_but_the_optimiser():
    made = speed(optimiser=Cost({"tensor": 1.0, "parameter": 0.0}))
    once, thrice = made.step(1, 64, 0), made.step(1, 64, 0, 3)
    tensors = 2 * 112
    assert thrice - tensors == pytest.approx(3 * (once - tensors))


def test_generating_is_a_prefill_and_a_token_at_a_time():
    made = speed()
    token = (ONCE + 128256 * 2048 + 16 * 32 * 65 * 64) * PRICE
    assert made.decode(1, 64) == pytest.approx(token)
    total = made.prefill(4, 32) + sum(made.decode(4, 32 + step) for step in range(7))
    assert made.generate(4, 32, 8) == pytest.approx(total)
    slow = Cost({**prices()["product/nf4/few"].units, "call": 1.0})
    assert speed(**{"product/nf4/few": slow}).decode(1, 64) > 100  # few rows have prices of their own


def test_a_run_is_its_steps_and_validations():
    made = speed()
    found = made.run(Length(100, 20, 2.0, 16, None, 0.5), 4, 64, 0)
    assert found["steps"] == 14 and found["step_seconds"] == pytest.approx(made.step(4, 64, 0, 4))
    assert found["validation_seconds"] == pytest.approx(14 // 4 * 5 * made.validation(4, 64), rel=0.34)
    assert found["seconds"] == pytest.approx(14 * found["step_seconds"] + found["validation_seconds"])
    assert made.run(Length(100, 0, 2.0, 16, 3, 0.5), 4, 64, 0)["validation_seconds"] == 0
    ragged = made.run(Length(100, 0, 1.0, 16, None, 0.5), 6, 64, 0)["step_seconds"]
    assert ragged == pytest.approx(made.step(6, 64, 0, 2) + made.step(4, 64, 0))


def test_without_a_calibration_there_are_no_seconds():
    plan = plan_model("llama-3.2-1b", memory="8GB")
    assert plan.time["calibrated"] is False and plan.time["step_seconds"] is None
    assert plan.time["reason"] == "not calibrated; run halfbyte doctor --calibrate"
    assert {phase.seconds for phase in plan.phases.values()} == {None}
    assert plan.fit["time_in"] == "multiplications"


def test_with_one_every_phase_has_its_seconds(calibrated):
    plan = plan_model("llama-3.2-1b", memory="8GB", sequence=256, batch=2)
    assert plan.phases["tune"].seconds == plan.time["step_seconds"] == pytest.approx(speed().step(2, 256, 0))
    assert plan.time["tokens_per_second"] == pytest.approx(512 / plan.time["step_seconds"])
    assert plan.phases["pack"].seconds == pytest.approx(2 * plan.parameters * 1e-9)
    assert plan.phases["evaluate"].seconds == pytest.approx(speed().generate(16, 240))
    assert plan.phases["open"].seconds is None
    assert sum(plan.time["step_parts"].values()) == pytest.approx(plan.time["step_seconds"])


def test_what_was_not_measured_has_no_seconds(calibrated, llama, tmp_path):
    for plan, words in (
        (plan_model("llama-3.2-1b", device="T4"), "only this machine's processor"),
        (plan_model("llama-3.2-1b", compute="fp32", memory="8GB"), "computed in fp32 was not calibrated"),
        (plan_model("llama-3.2-1b", compute="int8", memory="8GB"), "computed in int8 was not calibrated"),
        (plan_model("granite-3.3-8b-base", memory="64GB"), "can't be counted"),
    ):
        assert plan.time["step_seconds"] is None and words in plan.time["reason"]
    tensors = {"model.layers.0.mlp.experts.gate_up_proj": ("BF16", (4, 128, 64)),
               "model.layers.0.self_attn.q_proj.weight": ("BF16", (64, 64))}  # fmt: skip
    plan = plan_model(str(write_model(tmp_path, llama, tensors)), memory="8GB")
    assert plan.time["step_seconds"] is None and "can't be counted" in plan.time["reason"]


def test_weights_that_do_not_stay_in_memory_are_named_in_the_time(calibrated):
    plan = plan_model("llama-3.1-8b", memory="6GB", evaluation_batch=1)
    assert "reading them from disk again is not counted" in plan.time["reason"]


def test_the_head_is_counted_for_the_tokens_that_are_learned() -> None:
    every = plan_model("llama-3.2-1b", sequence=256, batch=2)
    few = plan_model("llama-3.2-1b", sequence=256, batch=2, learned=9)
    assert every.settings["learned"] is None and few.settings["learned"] == 9
    made = dataclasses.replace(speed(), learned=9).step_parts(2, 256, 0)
    costs, dims = speed().costs["loss"], speed().work.dims
    assert made["head and loss"] == pytest.approx(costs.seconds(count.loss(18, dims.vocabulary, dims.hidden)))
    assert {name: part for name, part in made.items() if name != "head and loss"} == {
        name: part for name, part in speed().step_parts(2, 256, 0).items() if name != "head and loss"
    }
    assert dataclasses.replace(speed(), learned=10**6).step(2, 256, 0) == speed().step(2, 256, 0)
