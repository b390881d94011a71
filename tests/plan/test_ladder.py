"""Bytes: the smallest Llama 3.1 to the byte, the JSON object, and that parts sum to the whole."""

import json
import os
import subprocess
import sys

import pytest

from halfbyte.checkpoint.pack import pack
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.checkpoint.stream import BEHIND
from halfbyte.checkpoint.writer import FLUSH
from halfbyte.errors import ConfigError
from halfbyte.plan import catalogue
from halfbyte.plan.inventory import take_inventory
from halfbyte.plan.ladder import plan_model
from halfbyte.plan.native import Native, plain
from halfbyte.plan.phases import LEAST_WAITING, WAITING
from halfbyte.plan.weighing import gb
from tests.plan.conftest import write_model
from tests.tiny import FAMILIES, tiny_checkpoint

GB = 10**9


def test_the_smallest_llama_to_the_byte():
    plan = plan_model("llama-3.1-8b", rank=32, targets="attention", memory=24 * GB).to_json()
    assert plan["parameters"] == 8_030_261_248
    assert plan["linear_parameters"] == 6_979_321_856 and plan["linear_layers"] == 224
    assert plan["weights_bytes"] == {
        "fp32": 32_121_044_992,
        "bf16": 16_060_522_496,
        "int8": 9_081_200_640,
        "nf4": 5_591_539_712,
    }
    assert plan["constants_bytes"] == {
        "int8": 9_086_705_664 - 9_081_200_640,
        "nf4": 109_051_904 + 1_703_936,
        "nf4_single": 436_207_616,
    }
    assert plan["adapter_parameters"] == 27_262_976
    assert plan["adapter_bytes"] == plan["gradient_bytes"] == 109_051_904
    assert plan["optimiser_bytes"] == 2 * 109_051_904
    assert plan["tables_bytes"] == {"int8": 0, "nf4": 224 * 4 * (16 + 256), "nf4_single": 224 * 4 * 16}


def test_all_linear_layers_get_an_adapter_by_default():
    plan = plan_model("llama-3.1-8b", rank=32, memory=24 * GB)
    assert plan.adapter_parameters == 83_886_080 and plan.adapter_bytes == 335_544_320


def test_names_and_patterns_choose_layers():
    plan = plan_model("llama-3.1-8b", rank=32, targets="q_proj,*.layers.0.mlp.*", memory=24 * GB)
    assert plan.adapter_layers == 32 + 3
    assert plan.adapter_parameters == 32 * (32 * 2 * 4096 + 3 * (4096 + 14336))
    fused = plan_model("phi-4", rank=8, targets="attention", memory=24 * GB)
    assert fused.adapter_layers == 80  # qkv_proj and o_proj


def test_a_target_that_matches_nothing_lists_what_there_is():
    with pytest.raises(ConfigError, match=r"'q_prj'(.|\n)*self_attn.q_proj \(32\)(.|\n)*did you mean 'q_proj'"):
        plan_model("llama-3.1-8b", targets="q_prj")


def test_the_keys_of_the_json_object_are_a_contract():
    plan = json.loads(json.dumps(plan_model("qwen3-0.6b", memory=24 * GB).to_json()))
    contract = {"parameters", "weights_bytes", "constants_bytes", "adapter_parameters", "adapter_bytes"}
    contract |= {"gradient_bytes", "optimiser_bytes", "phases", "fits", "reasons"}
    assert contract <= set(plan)
    assert list(plan["phases"]) == ["pack", "open", "evaluate", "tune"]
    for phase in plan["phases"].values():
        assert set(phase) == {"peak_bytes", "mapped_bytes", "seconds", "parts"}
        assert phase["seconds"] is None
    assert "time: not calibrated; run halfbyte doctor --calibrate" in plan["reasons"]


@pytest.mark.parametrize("entry", catalogue.entries(), ids=lambda entry: entry.short_name)
def test_every_model_of_the_catalogue_is_planned(entry):
    plan = plan_model(entry.name, memory=64 * GB)
    assert plan.parameters == entry.parameters
    if entry.parameters is None:
        assert set(plan.weights_bytes.values()) == {None}
        assert plan.unknown["parameters"].startswith("unknown, because")
    else:
        assert plan.weights_bytes["bf16"] == 2 * entry.parameters
        assert (plan.fits is None) == ("activations" in plan.unknown)
    for phase in plan.phases.values():
        if None not in phase.parts.values():
            assert phase.peak_bytes == sum(phase.parts.values())
    tune = plan.phases["tune"].parts
    assert (tune["adapter"], tune["gradients"], tune["optimiser"]) == tuple(
        n * plan.adapter_parameters for n in (4, 4, 8)
    )


@pytest.mark.parametrize("weights", ["nf4", "nf4-single", "int8", "bf16", "fp32"])
def test_the_packed_weights_are_mapped_and_no_part_of_the_peak(weights):
    plan = plan_model("llama-3.1-8b", weights=weights, memory=24 * GB, native=plain("as told"))
    mapped = plan.weights_bytes[weights.removesuffix("-single")] + plan.constants_bytes.get(
        weights.replace("-", "_"), 0
    )
    for phase, loaded in (("open", 0), ("evaluate", plan.adapter_bytes), ("tune", 0)):
        assert plan.phases[phase].mapped_bytes == mapped + loaded
        assert "weights" not in plan.phases[phase].parts
    assert (plan.phases["pack"].peak_bytes == 0) == (weights == "bf16")  # in fp32 it is converted
    scratch = plan.phases["tune"].parts["scratch"]  # what the library keeps, and a decoded matrix or converted rows
    assert (scratch > 50 * 10**6) == (weights not in ("bf16", "fp32"))


def test_less_memory_means_more_recomputation_until_nothing_helps():
    def recomputed(memory):
        plan = plan_model("llama-3.1-8b", sequence=1024, memory=memory)
        return plan.settings["recompute"], plan.fits, plan.phases["tune"].peak_bytes

    plenty, some, little, none = (recomputed(size) for size in ("20GB", "9GB", "8.2GB", "1GB"))
    assert plenty[0] == 0 and plenty[1] and none[0] == 32 and none[1] is False
    assert 0 < some[0] < little[0] < 32 and some[2] <= 3.3 * GB and little[2] <= 2.5 * GB  # 5.7 GB are mapped


@pytest.mark.parametrize(("rank", "targets"), [(16, "all"), (32, "attention")])
def test_an_8b_run_in_7_5_gb_recomputes_some_layers_and_in_12_none(rank, targets):
    """The mapped weights are part of the memory."""
    native = Native(True, True, True, True, "as told")
    plans = {memory: plan_model("llama-3.1-8b", rank=rank, targets=targets, memory=memory, native=native)
             for memory in ("7.5GB", "12GB")}  # fmt: skip
    assert 0 < plans["7.5GB"].settings["recompute"] < 32 and plans["12GB"].settings["recompute"] == 0
    tune = plans["7.5GB"].phases["tune"]
    assert tune.peak_bytes + tune.mapped_bytes <= 7.5 * GB
    assert any("the fewest that fit beside the mapped weights" in reason for reason in plans["7.5GB"].reasons)


def test_weights_that_leave_no_room_are_left_out_and_a_reason_says_so():
    plan = plan_model("llama-3.1-8b", memory="6GB", evaluation_batch=1)
    assert plan.fits and any("mapped weights are not counted" in reason for reason in plan.reasons)
    asked = plan_model("llama-3.1-8b", memory="8GB", sequence=2048, recompute=0)
    assert asked.fits is False  # recomputing more would leave the weights their place


def test_the_reason_names_the_native_parts():
    for native, words in ((plain("why not"), "no part native: why not"), (None, "activations: ")):
        assert any(words in reason for reason in plan_model("llama-3.1-8b", native=native).reasons)


def test_a_packed_model_that_is_larger_than_memory_fits_slowly():
    plan = plan_model("llama-3.1-70b", memory="8GB", evaluation_batch=1)
    assert any("read from disk" in reason for reason in plan.reasons)


def test_unknown_stays_unknown():
    plan = plan_model("granite-3.3-8b-base", memory=24 * GB)
    assert plan.fits is None and plan.phases["tune"].peak_bytes is None
    assert plan.constants_bytes["nf4"] > 0 and plan.adapter_parameters > 0
    tied = plan_model("falcon3-1b-base", memory=24 * GB)
    assert "1,400,973,312 if the output head is tied" in tied.unknown["parameters"]


def test_a_family_that_is_not_modelled_gets_bytes_and_says_why_no_more(llama, tmp_path):
    tensors = {
        "model.embed_tokens.weight": ("BF16", (320, 64)),
        "model.layers.0.mlp.up_proj.weight": ("BF16", (128, 64)),
        "model.layers.0.mlp.experts.gate_up_proj": ("BF16", (4, 128, 64)),
    }
    plan = plan_model(str(write_model(tmp_path, llama | {"model_type": "novel"}, tensors)), memory=24 * GB)
    assert plan.weights_bytes["bf16"] == 2 * (320 * 64 + 128 * 64 + 4 * 128 * 64)
    assert plan.phases["tune"].peak_bytes is None and "'novel' are not modelled" in plan.unknown["activations"]
    assert any("experts" in note and "stay in 16 bits" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank must be"),
        ({"sequence": -1}, "sequence must be"),
        ({"weights": "nf5"}, "did you mean 'nf4'"),
        ({"memory": "lots"}, "no amount of memory"),
    ],
)
def test_wrong_settings_are_errors(settings, words):
    with pytest.raises(ConfigError, match=words):
        plan_model("llama-3.1-8b", **settings)


def test_sizes_for_people():
    assert [gb(n) for n in (0, 999, 109_051_904, 5_591_539_712, 32_121_044_992, 10**12)] == [
        "0 B", "999 B", "109 MB", "5.59 GB", "32.1 GB", "1.00 TB"
    ]  # fmt: skip


def test_planning_is_quick_and_imports_no_torch():
    code = (
        "import sys, io; from halfbyte.plan.ladder import plan_model; from halfbyte.plan.render import render_plan;"
        "from rich.console import Console; import halfbyte.plan.activations, halfbyte.targets;"
        "render_plan(plan_model('llama-3.1-8b'), Console(file=io.StringIO()));"
        "sys.exit(' '.join({'torch', 'transformers', 'numpy'} & set(sys.modules)) or 0)"
    )
    started = os.times().children_user + os.times().children_system  # of the processor
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    seconds = os.times().children_user + os.times().children_system - started
    assert done.returncode == 0, done.stderr
    assert seconds < 1.0


@pytest.mark.parametrize("weights", ["nf4", "nf4-single", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_is_what_packing_writes_to_the_byte(family, weights, tmp_path):
    source, packed = tiny_checkpoint(family, tmp_path / "source"), tmp_path / "packed"
    pack(open_checkpoint(str(source)), packed, weights)
    plan = plan_model(str(source), weights=weights, memory=GB)
    tensors = open_checkpoint(str(packed)).tensors
    tables = (".quant_map", ".nested_quant_map", ".weight_format", ".quant_state.bitsandbytes__nf4")
    held = sum(stored.nbytes for name, stored in tensors.items() if not name.endswith(tables))
    assert plan.phases["open"].mapped_bytes == held
    maps = sum(stored.nbytes for name, stored in tensors.items() if name.endswith("quant_map"))
    assert plan.tables_bytes[weights.replace("-", "_")] == maps
    states = sum(s.nbytes for name, s in tensors.items() if name.endswith(tables[2:]))
    assert states == pytest.approx(plan.json_bytes[weights.replace("-", "_")], rel=0.05)
    again = plan_model(str(packed), weights=weights, memory=GB)
    assert again.packed == weights and again.phases["pack"].peak_bytes == 0
    assert (again.weights_bytes, again.constants_bytes) == (plan.weights_bytes, plan.constants_bytes)


def test_packing_holds_what_waits_for_the_disk_not_the_largest_tensor():
    assert (WAITING, LEAST_WAITING) == (BEHIND, FLUSH)
    entry = catalogue.find("llama-3.2-1b")
    plan = plan_model("llama-3.2-1b", weights="int8", memory="8GB")
    largest = 8192 * 2048 + 4 * 8192  # a matrix of the MLP, with the scales of its rows
    assert plan.phases["pack"].parts["tensors"] == WAITING + largest < 2 * 2 * entry.config["vocab_size"] * 2048
    mixture = plan_model("mixtral-8x7b-v0.1", weights="nf4", memory="8GB")  # its experts are put together first
    experts = max(spec.count for spec in take_inventory("mixtral-8x7b-v0.1").tensors if spec.kind == "expert")
    assert mixture.phases["pack"].parts["tensors"] == 2 * 2 * experts
