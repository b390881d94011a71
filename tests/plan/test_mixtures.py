"""Mixtures of experts and families that are not built like Llama: names, shapes and kinds as transformers has them."""

import json

import pytest

from halfbyte.errors import ConfigError
from halfbyte.plan import catalogue
from halfbyte.plan.families import MIXTURES
from halfbyte.plan.inventory import from_folder
from halfbyte.plan.ladder import plan_model
from halfbyte.plan.mixtures import shapes_of
from halfbyte.plan.shapes import FAMILIES

SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 40}
LATENT = {
    "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 3, "moe_intermediate_size": 24, "n_group": 2,
    "topk_group": 1, "num_experts_per_tok": 2, "kv_lora_rank": 32, "q_lora_rank": 20, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 12,
}  # fmt: skip
DELTA = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
    "head_dim": 20,
}  # fmt: skip
GEMMA4 = {
    **EXPERTS, "head_dim": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 8, "tie_word_embeddings": True,
    "vocab_size_per_layer_input": 320, "layer_types": 2 * ["sliding_attention", "full_attention"] + ["full_attention"],
}  # fmt: skip
TINY = {
    "mixtral": [{"num_local_experts": 4}, {"num_local_experts": 4, "tie_word_embeddings": True}],
    "qwen2_moe": [SHARED, SHARED | {"decoder_sparse_step": 2, "mlp_only_layers": [1]}],
    "qwen3_moe": [EXPERTS | {"head_dim": 20}, EXPERTS | {"mlp_only_layers": [0, 3], "attention_bias": True}],
    "qwen3_next": [SHARED | DELTA],
    "qwen3_5_text": [DELTA, DELTA | {"layer_types": ["full_attention"] + 4 * ["linear_attention"]}],
    "qwen3_5_moe_text": [SHARED | DELTA | {"tie_word_embeddings": True}],
    "olmoe": [{"num_experts": 4, "num_key_value_heads": 4}, {"num_experts": 4}],
    "gpt_oss": [{"num_local_experts": 4, "head_dim": 20}],
    "phimoe": [{"num_local_experts": 4}, {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True}],
    "granitemoe": [{"num_local_experts": 4}],
    "llama4_text": [
        {"num_local_experts": 4, "head_dim": 20},
        {"num_local_experts": 4, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 128},
    ],
    "deepseek_v2": [LATENT, LATENT | {"q_lora_rank": None}],
    "deepseek_v3": [LATENT, LATENT | {"attention_bias": True}],
    "glm4_moe_lite": [LATENT, LATENT | {"mlp_layer_types": ["dense", "sparse"] * 2 + ["dense"]}],
    "glm4_moe": [
        LATENT | {"head_dim": 20, "attention_bias": True, "use_qk_norm": True},
        LATENT | {"head_dim": 20, "first_k_dense_replace": 0},
    ],
    "glm4": [{"head_dim": 20, "pad_token_id": 0}, {"head_dim": 20, "pad_token_id": 0, "attention_bias": False}],
    "gemma4_text": [
        GEMMA4,
        GEMMA4 | {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
        GEMMA4 | {"enable_moe_block": True, "top_k_experts": 2, "use_double_wide_mlp": True, "num_kv_shared_layers": 2},
    ],
    "ministral3": [{"head_dim": 20}],
    "exaone4": [{"head_dim": 20}],
}


def built(model_type, config):
    """What transformers makes of a configuration, without memory: all that a checkpoint holds, the buffers among it,
    and the linear layers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from halfbyte.checkpoint.skeleton import linear_names

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
    tied = set(model.all_tied_weights_keys)
    stored = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    return stored, set(stored) - {name for name, _ in model.named_parameters()}, set(linear_names(model))


def agree(model_type, config, ours):
    stored, buffers, linears = built(model_type, config)
    tensors = shapes_of(ours | {"model_type": model_type}).tensors
    assert {spec.name: spec.shape for spec in tensors} == stored
    assert {spec.name for spec in tensors if spec.kind == "buffer"} == buffers
    assert {spec.module for spec in tensors if spec.kind == "linear"} == linears


def test_every_family_is_tested():
    assert set(TINY) == set(MIXTURES) and not set(MIXTURES) & set(FAMILIES)


EVERY = pytest.mark.parametrize(
    ("model_type", "config"), [(name, config) for name, all_ in TINY.items() for config in all_]
)


@EVERY
def test_names_and_shapes_are_those_of_transformers(model_type, config):
    agree(model_type, SHAPE | config, SHAPE | config)


@EVERY
def test_a_configuration_that_transformers_wrote_gives_the_same(model_type, config, tmp_path):
    """Its files have other keys than its arguments: aliases, and sizes by layer."""
    from transformers import AutoConfig

    AutoConfig.for_model(model_type, **(SHAPE | config)).save_pretrained(tmp_path)
    agree(model_type, SHAPE | config, json.loads((tmp_path / "config.json").read_text()))


DENSE = {name: {"pad_token_id": 0, "head_dim": 16 if name.startswith("gemma") else 20} for name in FAMILIES}


@pytest.mark.parametrize(
    ("model_type", "config"), [*DENSE.items(), *((name, config) for name, all_ in TINY.items() for config in all_)]
)
@pytest.mark.parametrize("null", [False, True], ids=["left_out", "null"])
def test_a_key_that_is_not_there_is_what_transformers_takes_or_an_error(model_type, config, null):
    whole = {**SHAPE, **config}
    for key in whole:
        changed = {name: value for name, value in whole.items() if name != key} | ({key: None} if null else {})
        try:
            shapes_of(changed | {"model_type": model_type})
        except ConfigError:
            assert key in NO_DEFAULT, key
            continue
        try:
            built(model_type, changed)
        except Exception:
            assert null or key in REFUSED.get(model_type, ()), key
            continue
        if not (null and key in UNKNOWN):
            agree(model_type, changed, changed)


REFUSED = {  # transformers' own defaults do not fit models as small as these, or none at all
    **dict.fromkeys(("phi3", "smollm3", "glm4"), ("pad_token_id",)),
    "gemma4_text": ("layer_types",),
    "ministral": ("head_dim",),
}
UNKNOWN = {"vocab_size", "tie_word_embeddings"}  # null: not known, in the catalogue
NO_DEFAULT = {  # nothing is assumed of these
    *("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "num_experts", "num_local_experts"),
    *("n_routed_experts", "n_shared_experts", "moe_intermediate_size", "shared_expert_intermediate_size"),
    *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "global_head_dim"),
    *("linear_num_value_heads", "linear_num_key_heads", "linear_key_head_dim", "linear_value_head_dim"),
    *("intermediate_size_mlp", "num_hidden_layers"),
}


@pytest.mark.parametrize("count", ["num_experts", "num_local_experts", "n_routed_experts"])
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_the_number_of_experts_has_three_names(model_type, count):
    config = SHAPE | TINY[model_type][0] | {"model_type": model_type}
    own = MIXTURES[model_type].count
    renamed = {key: value for key, value in config.items() if key != own} | {count: 4}
    assert shapes_of(renamed).tensors == shapes_of(config).tensors
    if count != own:
        with pytest.raises(ConfigError, match=rf"twice(.|\n)*{count}' is 5"):
            shapes_of(config | {count: 5})


@pytest.mark.parametrize(
    "change", [{"per_layer_config": {"1": {"skip": ["mlp"]}}}, {"per_layer_config": [16]}, {"global_head_dim": None}]
)
def test_a_gemma_4_whose_heads_are_not_known_is_refused(change):
    with pytest.raises(ConfigError, match="lacks what the shapes follow from"):
        shapes_of(SHAPE | GEMMA4 | {"model_type": "gemma4_text"} | change)


ARCHITECTURES = {  # one model of each: the smallest
    entry.fields["architecture"]: entry
    for entry in sorted(catalogue.entries(), key=lambda entry: -(entry.parameters or 0))
    if entry.parameters is not None
}


@pytest.mark.parametrize("entry", ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def test_the_catalogue_is_what_transformers_builds(entry):
    """With the model's own sizes, of its first five layers where the others are like them."""
    ours = entry.config
    if not ours.get("layer_types"):
        ours |= {"num_hidden_layers": min(5, ours["num_hidden_layers"])}
    ropes = ("rope_theta", "rope_scaling", "rope_local_base_freq", "architectures", "model_type")  # no shape's business
    known = {key: value for key, value in ours.items() if value is not None and key not in ropes}
    agree(ours["model_type"], known | ({"q_lora_rank": None} if known.get("q_lora_rank") == 0 else {}), ours)


@pytest.mark.parametrize("entry", catalogue.entries(), ids=lambda entry: entry.short_name)
def test_every_model_is_planned(entry):
    plan = plan_model(entry.name, memory=16 * 10**9)
    assert json.loads(json.dumps(plan.to_json()))["model"] == entry.name
    assert plan.parameters == entry.parameters
    if plan.parameters is None:
        assert plan.unknown["parameters"].startswith("unknown, because") and plan.weights_bytes["nf4"] is None
    else:
        assert plan.weights_bytes["bf16"] == 2 * plan.parameters
    modelled = entry.config["model_type"] in FAMILIES
    assert ("activations" in plan.unknown) != modelled
    assert modelled or (plan.fits is not True and "are not modelled" in " ".join(plan.reasons))


def test_experts_stay_in_16_bits_and_are_named():
    plan = plan_model("mixtral-8x7b-v0.1", memory=16 * 10**9)
    assert plan.expert_parameters == 32 * 8 * 3 * 4096 * 14336
    assert plan.weights_bytes["nf4"] > 2 * plan.expert_parameters
    assert any("mlp.experts.gate_up_proj" in note and "16 bits" in note for note in plan.notes)


def test_a_folder_of_a_mixture_without_weights_is_planned_from_its_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, **SHARED, "model_type": "qwen2_moe"}))
    taken = from_folder(tmp_path)
    assert taken.dims is None and taken.source == "config" and taken.parameters > 0


def test_everything_that_a_mixture_lacks_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        shapes_of({**SHAPE, "model_type": "deepseek_v3", "v_head_dim": 0})
    for word in ("'n_routed_experts' is missing", "'kv_lora_rank' is missing", "'v_head_dim' is 0"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"layer_types": ["full_attention"]}, {"linear_conv_kernel_dim": "four"}, {"mlp_only_layers": 7}],
)
def test_a_key_of_the_wrong_kind_is_one_clear_error(change):
    config = {**SHAPE, **SHARED, **DELTA, "model_type": "qwen3_next", **change}
    with pytest.raises(ConfigError, match="lacks what the shapes follow from"):
        shapes_of(config, where="here/config.json")


def test_a_dense_layer_without_its_width_is_one_clear_error():
    config = {**SHAPE, **TINY["llama4_text"][0], "model_type": "llama4_text", "interleave_moe_layer_step": 2}
    with pytest.raises(ConfigError, match="intermediate_size_mlp"):
        shapes_of(config)
