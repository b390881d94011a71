"""Several devices on paper: the arithmetic of replicated and sharded training."""

import pytest

from halfbyte.errors import ConfigError
from halfbyte.plan.ladder import plan_model
from halfbyte.plan.parallel import on_paper, traffic

GB = 10**9


@pytest.fixture(scope="module")
def plan():
    return plan_model("llama-3.1-8b", device="24GB", rank=32, targets="attention")


def test_replicated_ranks_hold_all_and_send_the_gradients_around(plan):
    way = on_paper(plan, 4, "10GB/s", None).replicated
    assert way.bytes_per_rank == plan.phases["tune"].peak_bytes and way.fits
    assert way.traffic_bytes == 2 * 3 * 109_051_904 // 4  # a ring all-reduce of 109 MB
    assert way.link_seconds == pytest.approx(way.traffic_bytes / 1e10)


def test_sharded_ranks_hold_their_part_and_gather_the_weights_twice(plan):
    tune, weights = plan.phases["tune"], plan.weights_bytes["nf4"] + plan.constants_bytes["nf4"]
    way = on_paper(plan, 4, None, None).sharded
    divided = weights + 4 * 109_051_904
    kept = tune.peak_bytes - divided
    assert way.bytes_per_rank == kept + -(-divided // 4) + 2 * -(-weights // 32)
    assert way.traffic_bytes == 3 * (2 * weights + 2 * 109_051_904) // 4
    assert traffic(plan, 1, sharded=True) == traffic(plan, 1, sharded=False) == 0


def test_the_fewest_ranks_that_hold_it():
    plan = plan_model("llama-3.1-70b", device="24GB")
    fewest = on_paper(plan, 2, None, None).least_ranks_sharded
    assert fewest is not None and fewest > 1
    assert on_paper(plan, fewest, None, None).sharded.fits and not on_paper(plan, fewest - 1, None, None).sharded.fits
    assert not on_paper(plan, 8, None, None).replicated.fits


def test_where_it_stops_to_pay(plan):
    """Twice the traffic's time in computing: two thirds of the time is work; the slower the link the sooner it ends."""
    seconds = on_paper(plan, 2, "1GB/s", None).sharded.link_seconds
    way = on_paper(plan, 2, "1GB/s", 2 * seconds).sharded
    assert way.efficiency == pytest.approx(2 / 3)
    fast, slow = (on_paper(plan, 2, link, 1.0).sharded.stops_to_pay for link in ("50GB/s", "1GB/s"))
    assert slow == 1 and (fast is None or fast > slow)
    unknown = on_paper(plan, 2, None, None).sharded
    assert unknown.efficiency is None and "unknown, because" in unknown.reason


def test_assumptions_are_stated(plan):
    assumed = on_paper(plan, 2, None, None).assumptions
    assert any("16 GB/s" in text and "assumed" in text for text in assumed)
    assert any("latency is left out" in text for text in assumed)
    assert not any("give --link" in text for text in on_paper(plan, 2, "50GB/s", None).assumptions)


@pytest.mark.parametrize(("ranks", "link"), [(0, None), (5000, None), (2, "fast"), (2, "0GB/s")])
def test_nonsense_is_refused(plan, ranks, link):
    with pytest.raises(ConfigError):
        on_paper(plan, ranks, link, None)


def test_several_devices_are_several_ranks():
    plan = plan_model("llama-3.1-70b", device="2x80GB").to_json()
    assert plan["parallel"]["ranks"] == 2 and plan["device"]["count"] == 2
    assert plan["parallel"]["replicated"]["fits"] and plan_model("qwen3-0.6b", device="T4").parallel == {}
