"""Shapes from configurations: the whole catalogue to the digit, and the kinds of their tensors."""

from collections import Counter

import pytest

from halfbyte.errors import ConfigError
from halfbyte.plan import catalogue
from halfbyte.plan.families import assumptions
from halfbyte.plan.inventory import count_parameters
from halfbyte.plan.mixtures import shapes_of
from halfbyte.plan.shapes import dimensions, kind_of, tensors_from

KNOWN = [entry for entry in catalogue.entries() if entry.parameters is not None]
STORED_BUFFERS = {
    "HuggingFaceTB/SmolLM3-3B-Base",
    "HuggingFaceTB/SmolLM3-3B",
}  # published with 2,304 rotary frequencies


GPT_OSS = {
    "model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 320,
    "num_attention_heads": 4, "num_local_experts": 2,
}  # fmt: skip


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: entry.short_name)
def test_the_parameters_of_the_catalogue_come_out_to_the_digit(entry):
    tensors = shapes_of(entry.config).tensors
    total = count_parameters(tensors)
    assert total == entry.fields["computed_params"]
    assert sum(spec.count for spec in tensors if spec.kind == "linear") == entry.fields["block_linear_params"]
    published = entry.fields["published_params"]
    if isinstance(published, int):
        assert total == published - 2304 * (entry.name in STORED_BUFFERS)


def test_what_the_catalogue_does_not_know_is_left_open():
    unknown = {entry.short_name: dimensions(entry.config) for entry in catalogue.entries() if entry.parameters is None}
    assert len(KNOWN) + len(unknown) == 198
    assert {name for name, dims in unknown.items() if dims.tied is None} == {
        "falcon3-1b-base", "falcon3-1b-instruct", "falcon3-3b-base", "falcon3-3b-instruct",
        "phi-4-mini-reasoning",
    }  # fmt: skip
    assert {name for name, dims in unknown.items() if dims.vocabulary is None} == {
        "granite-3.3-8b-base", "granite-3.3-2b-base"
    }  # fmt: skip


def test_an_assumption_about_an_unknown_field_is_named():
    (words,) = assumptions(catalogue.find("granite-3.1-2b-base").config)
    assert "'attention_bias'" in words and "unknown, because" in words
    assert assumptions(catalogue.find("llama-3.1-8b").config) == []


def test_mixtures_assume_aloud_too():
    (words,) = assumptions(catalogue.find("deepseek-v2-lite").config)
    assert words.startswith("'mlp_bias': unknown, because") and "counted without" in words
    (words,) = assumptions({"model_type": "gpt_oss", "attention_bias": None})
    assert "counted with, transformers' default" in words
    null, default = (
        shapes_of({**GPT_OSS, **change}).tensors for change in ({"attention_bias": None}, {"attention_bias": True})
    )
    assert null == default


def test_the_kinds_and_shapes_of_a_block(llama):
    specs = {spec.name: spec for spec in tensors_from(dimensions(llama))}
    assert specs["model.layers.0.self_attn.k_proj.weight"].shape == (32, 64)
    assert specs["model.layers.0.mlp.down_proj.weight"].shape == (64, 100)
    assert specs["model.layers.0.mlp.down_proj.weight"].module == "model.layers.0.mlp.down_proj"
    kinds = Counter(spec.kind for spec in specs.values())
    assert kinds == {"linear": 7, "norm": 3, "embedding": 1, "head": 1}
    for name, spec in specs.items():  # headers and configurations are read alike
        assert kind_of(name, spec.shape, "llama") == spec.kind, name


@pytest.mark.parametrize("change", [{"attention_bias": True}, {"mlp_bias": True}, {"tie_word_embeddings": True}])
def test_biases_and_tied_heads_follow_the_configuration(llama, change):
    before = {spec.name for spec in tensors_from(dimensions(llama))}
    after = {spec.name for spec in tensors_from(dimensions(llama | change))}
    assert (
        before ^ after
        == {
            "attention_bias": {f"model.layers.0.self_attn.{name}_proj.bias" for name in "qkvo"},
            "mlp_bias": {f"model.layers.0.mlp.{name}_proj.bias" for name in ("gate", "up", "down")},
            "tie_word_embeddings": {"lm_head.weight"},
        }[next(iter(change))]
    )


def test_a_multimodal_configuration_gives_the_language_model():
    text = {"hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 1, "model_type": "gemma3_text"}
    dims = dimensions({"model_type": "gemma3", "text_config": text})
    assert (dims.heads, dims.kv_heads, dims.head_dim, dims.vocabulary, dims.tied) == (8, 4, 256, 262208, True)


def test_everything_that_is_missing_is_named_at_once(llama):
    del llama["hidden_size"]
    with pytest.raises(ConfigError) as caught:
        dimensions(llama | {"num_hidden_layers": "two", "vocab_size": -1}, where="here/config.json")
    for word in ("here/config.json", "'hidden_size' is missing", "'num_hidden_layers' is 'two'", "'vocab_size' is -1"):
        assert word in str(caught.value)


def test_an_unknown_family_is_an_error_that_says_what_to_do(llama):
    with pytest.raises(ConfigError, match=r"model_type.*not known(.|\n)*'lama'(.|\n)*did you mean 'llama'"):
        dimensions(llama | {"model_type": "lama"})


@pytest.mark.parametrize(
    ("name", "shape", "model_type", "kind"),
    [
        ("model.layers.3.mlp.experts.7.gate_proj.weight", (32, 64), "qwen3_moe", "expert"),
        ("model.layers.3.mlp.experts.gate_up_proj", (4, 64, 64), "mixtral", "expert"),
        ("model.layers.3.block_sparse_moe.gate.weight", (4, 64), "mixtral", "other"),
        ("model.layers.3.mlp.shared_expert_gate.weight", (1, 64), "qwen2_moe", "linear"),
        ("transformer.h.0.attn.c_attn.weight", (64, 192), "gpt2", "other"),
        ("transformer.h.0.ln_1.weight", (64,), "gpt2", "norm"),
        ("transformer.wpe.weight", (256, 64), "gpt2", "embedding"),
        ("model.vision_tower.encoder.layers.0.mlp.fc1.weight", (64, 64), "gemma3", "other"),
        ("model.language_model.layers.0.mlp.up_proj.weight", (64, 64), "gemma3", "linear"),
        ("gpt_neox.layers.0.attention.dense.weight", (64, 64), "gpt_neox", "linear"),
        ("model.layers.0.block_sparse_moe.router.layer.weight", (4, 64), "granitemoe", "other"),
        ("model.layers.0.block_sparse_moe.input_linear.weight", (4, 192, 64), "granitemoe", "expert"),
        ("model.layers.0.block_sparse_moe.output_linear.weight", (4, 64, 96), "granitemoe", "expert"),
        ("model.layers.0.shared_mlp.input_linear.weight", (192, 64), "granitemoeshared", "linear"),
        ("model.layers.3.mlp.gate.e_score_correction_bias", (4,), "deepseek_v3", "buffer"),
        ("model.language_model.layers.3.layer_scalar", (1,), "gemma4", "buffer"),
        ("embed_out.weight", (320, 64), "gpt_neox", "head"),
    ],
)
def test_kinds_of_other_architectures(name, shape, model_type, kind):
    assert kind_of(name, shape, model_type) == kind
