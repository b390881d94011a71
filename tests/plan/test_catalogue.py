"""The packaged catalogue: names, what is unknown, and that nothing was lost on the way in."""

import re

import pytest

from halfbyte.errors import ConfigError
from halfbyte.plan import catalogue


def test_every_model_is_there_once_with_its_sources():
    names = [entry.name for entry in catalogue.entries()]
    assert len(names) == len(set(names)) == 198
    assert len({entry.short_name for entry in catalogue.entries()}) == 198
    for entry in catalogue.entries():
        assert entry.fields["source"], entry.name
        assert {"conflicts", "notes", "licence", "computed_params"} <= set(entry.fields)


SHAPES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts"),
    *("moe_intermediate_size", "shared_expert_intermediate_size", "first_k_dense_replace", "kv_lora_rank"),
    *("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "linear_num_key_heads", "layer_types"),
    *("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim", "intermediate_size_mlp"),
    *("global_head_dim", "num_global_key_value_heads", "num_kv_shared_layers", "hidden_size_per_layer_input"),
)


@pytest.mark.parametrize("entry", catalogue.entries(), ids=lambda entry: entry.short_name)
def test_two_sources_state_each_shape_or_the_entry_says_why_not(entry):
    fields = entry.fields
    told = f"{fields['notes']} {fields['conflicts']}"
    for name in SHAPES:
        value = fields.get(name)
        derived = name == "head_dim" and value == fields["hidden_size"] // fields["num_attention_heads"]
        counted = type(fields["published_params"]) is int and entry.parameters is not None  # test_shapes compares them
        if value is None or name in fields["fields_confirmed_by_2plus"] or derived or counted:
            continue
        assert re.search(rf"\b{name}\b", told) or "every shape by one source" in told, (entry.name, name)
    assert len(fields["source"]) > 1 or "one source alone" in told


@pytest.mark.parametrize("name", ["llama-3.1-8b", "LLAMA-3.1-8B", "meta-llama/Llama-3.1-8B", "meta-llama/llama-3.1-8b"])
def test_a_model_is_found_by_its_id_and_by_its_short_name(name):
    assert catalogue.find(name).name == "meta-llama/Llama-3.1-8B"


def test_short_names_of_base_and_instruct_models_differ():
    assert catalogue.find("qwen3-0.6b").name == "Qwen/Qwen3-0.6B"
    assert catalogue.find("qwen3-0.6b-base").name == "Qwen/Qwen3-0.6B-Base"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("llama-3.1-9b", "llama-3.1-8b"),
        ("gemma-3-1b", "gemma-3-1b-pt or gemma-3-1b-it"),
        ("zzz", "198 models of 43 families"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(name, hint):
    with pytest.raises(ConfigError, match="no model") as caught:
        catalogue.find(name)
    assert hint in str(caught.value)


def test_a_null_is_unknown_because():
    entry = catalogue.find("falcon3-1b-base")
    assert entry.fields["tie_word_embeddings"] is None and entry.parameters is None
    assert entry.unknown("tie_word_embeddings").startswith("unknown, because none of the catalogue's sources states")


def test_the_configuration_holds_the_keys_of_a_config_json():
    config = catalogue.find("google/gemma-3-4b-pt").config
    assert config["model_type"] == "gemma3_text" and config["hidden_size"] == 2560
    assert not {"source", "notes", "published_params", "sibling"} & set(config)
