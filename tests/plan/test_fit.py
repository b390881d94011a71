"""What fits: each answer is held against the plan of that very setting."""

import pytest

from halfbyte.errors import ConfigError
from halfbyte.plan.ladder import plan_model

ASKED = {"device": "24GB", "sequence": 2048, "rank": 32}


def _whole(plan):
    tune = plan.phases["tune"]
    return tune.peak_bytes + tune.mapped_bytes


@pytest.mark.parametrize("where", [{"device": "24GB"}, {"device": "T4"}, {"memory": "12GB"}])
def test_the_largest_fits_and_one_more_does_not(where):
    plan = plan_model("llama-3.1-8b", **where)
    assert set(plan.fit["largest"]) == {"sequence", "batch", "rank"}
    for name, found in plan.fit["largest"].items():
        value = found["value"]
        fitting = plan_model("llama-3.1-8b", recompute=32, **where, **{name: value})
        assert _whole(fitting) <= plan.memory_bytes
        if found["limit"] == "memory":
            beyond = plan_model("llama-3.1-8b", recompute=32, stream="off", **where, **{name: value + 1})
            assert _whole(beyond) > plan.memory_bytes


def test_spare_is_what_is_left():
    plan = plan_model("llama-3.1-8b", device="24GB")
    assert plan.fit["fits"] and plan.fit["spare_bytes"] == plan.memory_bytes - _whole(plan) > 0
    tight = plan_model("llama-3.1-8b", device="5GB", stream="off")
    assert tight.fit["fits"] is False and tight.fit["spare_bytes"] < 0 and tight.fits is False
    assert {found["value"] for found in tight.fit["largest"].values()} == {None} and tight.fit["first"] == "stream: on"
    assert "take stream: on" in tight.fit["advice"]["tune"]
    streamed = plan_model("llama-3.1-8b", device="5GB", stream="on", recompute=32)
    assert streamed.fit["fits"] and _whole(tight) - _whole(streamed) == tight.fit["give_up"][0]["saved_bytes"]


def test_the_context_ends_a_sequence():
    found = plan_model("qwen3-0.6b", device="H200").fit["largest"]["sequence"]
    assert found["value"] > 1000 and (found["limit"] == "memory" or found["value"] in (32768, 40960, 1 << 20))


def test_prices_are_those_of_the_other_plan():
    asked = {"weights": "bf16", "batch": 4, "sequence": 512, "rank": 32, "memory": "40GB", "recompute": 0}
    plan = plan_model("llama-3.1-8b", **asked)
    found = {one["what"]: one for one in plan.fit["give_up"]}
    changed = {"recomputation: 32 of 32 layers": {"recompute": 32}, "batch 2": {"batch": 2},
               "weights nf4": {"weights": "nf4"}, "weights int8": {"weights": "int8"},
               "sequence 256": {"sequence": 256}, "rank 16": {"rank": 16}}  # fmt: skip
    assert set(found) == set(changed)
    for what, other in changed.items():
        assert found[what]["saved_bytes"] == _whole(plan) - _whole(plan_model("llama-3.1-8b", **(asked | other)))
    assert (
        1.2 < found["recomputation: 32 of 32 layers"]["time_factor"] < 1.4 and plan.fit["time_in"] == "multiplications"
    )
    assert found["batch 2"]["time_factor"] == pytest.approx(1)


def test_what_costs_time_only_goes_first_and_what_cuts_items_last():
    asked = {"weights": "bf16", "sequence": 2048, "recompute": 0, "stream": "off"}
    sizes = ("20GB", "14GB", "60GB")
    first = {size: plan_model("llama-3.1-8b", device=size, **asked).fit["first"] for size in sizes}
    assert first == {
        "20GB": "recomputation: 32 of 32 layers",
        "14GB": "stream: on, every layer recomputed",
        "60GB": None,
    }
    asked |= {"stream": "on"}
    assert plan_model("llama-3.1-8b", device="4GB", **asked).fit["first"] is None
    assert "weights nf4, every layer recomputed" in {
        one["what"] for one in plan_model("llama-3.1-8b", device="5GB", **asked).fit["give_up"] if one["enough"]
    }


def test_a_packed_checkpoint_can_not_change_its_weights(tmp_path):
    from halfbyte.checkpoint.pack import pack
    from halfbyte.checkpoint.source import open_checkpoint
    from tests.tiny import tiny_checkpoint

    source = tiny_checkpoint("llama", tmp_path / "source")
    pack(open_checkpoint(str(source)), tmp_path / "packed", "int8")
    plan = plan_model(str(tmp_path / "packed"), weights="int8", memory="1GB")
    assert not any("weights" in one["what"] for one in plan.fit["give_up"])
    with pytest.raises(ConfigError, match="packed as int8 and can't become nf4"):
        plan_model(str(tmp_path / "packed"), weights="nf4", memory="1GB")


def test_a_smaller_format_saves_what_is_read_from_disk_again():
    plan = plan_model("llama-3.2-1b", weights="bf16", memory="2GB")
    saved = {one["what"]: one["saved_bytes"] for one in plan.fit["give_up"]}
    nf4 = plan.weights_bytes["nf4"] + plan.constants_bytes["nf4"]
    assert "read from disk" in plan.fit["reason"]
    assert saved["weights nf4"] == pytest.approx(plan.weights_bytes["bf16"] - nf4, rel=0.02)


def test_what_is_longer_than_the_context_is_said():
    def notes(**asked):
        return [note for note in plan_model("llama-2-7b-hf", memory="24GB", **asked).notes if "context" in note]

    assert not notes(sequence=4096)
    long, asked = notes(sequence=5000)
    assert long.startswith("items of 5,000 tokens are longer than the model's context of 4,096")
    assert asked.endswith("evaluating refuses them")
    assert len(notes(sequence=4096, evaluation_sequence=4097)) == 1


def test_a_card_has_no_more_than_it_has():
    plan = plan_model("llama-3.2-1b", device="T4", memory="40GB")
    assert plan.memory_bytes == 15360 << 20
    assert any("less than the 40.00 GB that memory says" in reason for reason in plan.reasons)


def test_what_is_unknown_stays_unknown():
    plan = plan_model("granite-3.3-8b-base", memory="24GB")
    assert plan.fit["fits"] is None and plan.fit["reason"].startswith("unknown, because") and not plan.fit["largest"]


def test_what_is_enough_is_enough_with_the_recomputation_as_asked():
    plan = plan_model("llama-3.1-8b", memory="11GB", recompute=0, sequence=2048, batch=2)
    for one in plan.fit["give_up"]:
        assert one["enough"] is (one["saved_bytes"] >= -plan.fit["spare_bytes"]), one["what"]
