"""From a configuration to the tensors of a mixture of experts, and of other families that are not built like Llama.

As in `shapes.py`, names and shapes are those that transformers gives them: the experts of a layer are fused into two
tensors, which are no linear layers and stay in 16 bits; what a tensor is, its name says (`kind_of`), so that headers
and configurations count alike. Weights are exact for these families; their activations are not modelled.

A size that is 0 means "there is none" (`q_lora_rank` of a latent attention whose queries are not compressed).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from halfbyte.errors import ConfigError
from halfbyte.plan.families import MIXTURES, Mixture, completed
from halfbyte.plan.shapes import (
    FAMILIES,
    Dimensions,
    Kind,
    TensorSpec,
    attention_tensors,
    dimensions,
    gated_tensors,
    in_layer,
    kind_of,
    linear,
    norm,
    read_dimensions,
    says,
    tensors_from,
    text_config,
    type_of,
)

_LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_DELTA = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
_NEEDED = {"latent": _LATENT, "delta": _DELTA, "delta-fused": _DELTA}


class Shapes(NamedTuple):
    """The tensors of a model. `modelled`: its activations are, too."""

    tensors: list[TensorSpec]
    dims: Dimensions
    modelled: bool


def shapes_of(config: Mapping[str, Any], where: object = "config.json") -> Shapes:
    """The tensors of a model by its configuration, dense or not.

    Raises ConfigError for an unknown model_type, or one that names every key that is missing or no positive number.
    """
    text = text_config(config)
    mixture = MIXTURES.get(type_of(text))
    if mixture is None or type_of(text) in FAMILIES:
        dims = dimensions(config, where)
        return Shapes(tensors_from(dims), dims, True)
    text = completed(mixture, text, where)
    needed = ["hidden_size", "num_hidden_layers", "num_attention_heads", mixture.count, mixture.shared]
    needed += [mixture.width if mixture.count else mixture.dense_width, *_NEEDED.get(mixture.attention, ())]
    needed += ["num_experts", "moe_intermediate_size"] if text.get("enable_moe_block") else []
    if mixture.attention == "gemma4" and text.get("per_layer_config") is None:
        needed.append("global_head_dim")
    family = mixture.family
    if says(family, text, mixture.norm_key):
        family = replace(family, qk_norm="head")
    if says(family, text, mixture.bias_key):
        family = replace(family, qkv_bias=True)
    dims = read_dimensions(family, text, where, [key for key in needed if key])
    try:
        return Shapes(_tensors(mixture, dims, text), dims, False)
    except (
        AttributeError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
    ) as error:  # a key that only some configurations need
        raise ConfigError("the configuration lacks what the shapes follow from", where=where,
                          found=f"{type(error).__name__}: {error}"[:100],
                          do="check that this is the model's own config.json") from None  # fmt: skip


def _tensors(mixture: Mixture, dims: Dimensions, text: Mapping[str, Any]) -> list[TensorSpec]:
    specs: list[TensorSpec] = []
    vocabulary = dims.vocabulary
    if vocabulary is not None:
        specs.append(TensorSpec("model.embed_tokens.weight", (vocabulary, dims.hidden), "embedding"))
    for layer in range(dims.layers):
        specs += in_layer(layer, _block(mixture, dims, text, layer))
    specs += _norms(mixture, "model.norm", dims.hidden)
    specs += _gemma4_outside(dims, text) if mixture.attention == "gemma4" else []
    if vocabulary is not None and dims.tied is False:
        specs += linear("lm_head", vocabulary, dims.hidden, bool(text.get("lm_head_bias")))
    model_type = type_of(text)
    known: dict[tuple[str, int], Kind] = {}  # of a name without its layer, and so many axes
    for at, spec in enumerate(specs):
        key = (spec.name.removeprefix("model.layers.").lstrip("0123456789"), len(spec.shape))
        kind = known.get(key) or known.setdefault(key, kind_of(spec.name, spec.shape, model_type))
        specs[at] = TensorSpec(spec.name, spec.shape, kind)
    return specs


def _block(mixture: Mixture, dims: Dimensions, text: Mapping[str, Any], layer: int) -> list[TensorSpec]:
    if mixture.attention == "gemma4":
        return _gemma4(dims, text, layer)
    if mixture.attention == "latent":
        specs = _latent(dims, text)
    elif mixture.attention != "plain" and not _is_full(text, layer):
        specs = _delta(mixture, dims, text)
    else:
        specs = attention_tensors(dims)
    if mixture.biased:
        specs.append(TensorSpec("self_attn.sinks", (dims.heads,), "other"))
    if mixture.count and _has_experts(mixture, text, layer):
        specs += _experts(mixture, dims, text)
    elif mixture.fused:
        specs += linear(f"{mixture.block}.gate_up_proj", 2 * dims.mlp, dims.hidden)
        specs += linear(f"{mixture.block}.down_proj", dims.hidden, dims.mlp)
    else:
        specs += gated_tensors(mixture.block, dims.hidden, int(text[mixture.dense_width]), dims.mlp_bias)
    for name in mixture.family.norms:
        specs += _norms(mixture, name, dims.hidden)
    return specs


def _norms(mixture: Mixture, name: str, width: int) -> list[TensorSpec]:
    weight = norm(name, width)
    return [weight, TensorSpec(f"{name}.bias", (width,), "bias")] if mixture.layer_norm else [weight]


def _has_experts(mixture: Mixture, text: Mapping[str, Any], layer: int) -> bool:
    """Whether the layer is one of those with experts, by the keys that this family goes by."""
    told = {key: text[key] for key in mixture.places if text.get(key) is not None}
    if "moe_layers" in told:
        return layer in told["moe_layers"]
    if "mlp_layer_types" in told:
        return str(told["mlp_layer_types"][layer]) == "sparse"
    if layer < int(told.get("first_k_dense_replace", mixture.dense_first)) or layer in told.get("mlp_only_layers", ()):
        return False
    step = int(told.get("decoder_sparse_step") or told.get("interleave_moe_layer_step") or 1)
    return (layer + 1) % step == 0


def _experts(mixture: Mixture, dims: Dimensions, text: Mapping[str, Any]) -> list[TensorSpec]:
    """Router, experts and shared expert of a layer."""
    hidden, count, width, block = dims.hidden, int(text[mixture.count]), int(text[mixture.width]), mixture.block
    up, down = (count, 2 * width, hidden), (count, hidden, width)
    if mixture.transposed:
        up, down = (count, hidden, 2 * width), (count, width, hidden)
    specs = [
        TensorSpec(f"{block}.{mixture.router}.weight", (count, hidden), "other"),
        TensorSpec(f"{block}.experts.gate_up_proj", up, "expert"),
        TensorSpec(f"{block}.experts.down_proj", down, "expert"),
    ]
    if mixture.corrected:
        specs.append(TensorSpec(f"{block}.{mixture.router}.e_score_correction_bias", (count,), "buffer"))
    if mixture.biased:
        specs += [
            TensorSpec(f"{block}.{mixture.router}.bias", (count,), "bias"),
            TensorSpec(f"{block}.experts.gate_up_proj_bias", (count, 2 * width), "expert"),
            TensorSpec(f"{block}.experts.down_proj_bias", (count, hidden), "expert"),
        ]
    if mixture.shared:
        size = int(text[mixture.shared])
        size *= width if mixture.shared == "n_shared_experts" else 1
        specs += gated_tensors(f"{block}.{mixture.shared_name}", hidden, size, dims.mlp_bias)
    if mixture.shared_gate:
        specs += linear(f"{block}.shared_expert_gate", 1, hidden)
    return specs


def _latent(dims: Dimensions, text: Mapping[str, Any]) -> list[TensorSpec]:
    """Attention whose keys and values, and often queries, pass through a narrow layer."""
    rank, plain, rotated, value = (int(text[key]) for key in _LATENT)
    hidden, heads, bias, compressed = dims.hidden, dims.heads, dims.out_bias, int(text.get("q_lora_rank") or 0)
    if compressed:
        specs = [
            *linear("self_attn.q_a_proj", compressed, hidden, bias),
            norm("self_attn.q_a_layernorm", compressed),
            *linear("self_attn.q_b_proj", heads * (plain + rotated), compressed),
        ]
    else:
        specs = linear("self_attn.q_proj", heads * (plain + rotated), hidden)
    return [
        *specs,
        *linear("self_attn.kv_a_proj_with_mqa", rank + rotated, hidden, bias),
        norm("self_attn.kv_a_layernorm", rank),
        *linear("self_attn.kv_b_proj", heads * (plain + value), rank),
        *linear("self_attn.o_proj", hidden, heads * value, bias),
    ]


def _is_full(text: Mapping[str, Any], layer: int) -> bool:
    """Whether the layer has attention, where most have a delta net."""
    if text.get("layer_types"):
        return str(text["layer_types"][layer]) == "full_attention"
    return (layer + 1) % int(text.get("full_attention_interval") or 4) == 0


def _delta(mixture: Mixture, dims: Dimensions, text: Mapping[str, Any]) -> list[TensorSpec]:
    """A gated delta net: attention's stand-in, whose state does not grow with the sequence."""
    key_heads, heads, key_dim, value_dim = (int(text[key]) for key in _DELTA)
    hidden, key, value, kernel = dims.hidden, key_heads * key_dim, heads * value_dim, text.get("linear_conv_kernel_dim")
    if mixture.attention == "delta-fused":
        projections = {"in_proj_qkvz": 2 * (key + value), "in_proj_ba": 2 * heads}
    else:
        projections = {"in_proj_qkv": 2 * key + value, "in_proj_z": value, "in_proj_b": heads, "in_proj_a": heads}
    specs = [spec for name, out in projections.items() for spec in linear(f"linear_attn.{name}", out, hidden)]
    return [
        *specs,
        TensorSpec("linear_attn.conv1d.weight", (2 * key + value, 1, int(kernel or 4)), "other"),
        TensorSpec("linear_attn.dt_bias", (heads,), "other"),
        TensorSpec("linear_attn.A_log", (heads,), "other"),
        norm("linear_attn.norm", value_dim),
        *linear("linear_attn.out_proj", hidden, value),
    ]


def _gemma4(dims: Dimensions, text: Mapping[str, Any], layer: int) -> list[TensorSpec]:
    """A block of Gemma 4: layers with full attention have wider heads and may use keys as values, the last layers have
    no keys and values of their own, and a mixture stands beside the MLP."""
    hidden, types = dims.hidden, text.get("layer_types")
    full = layer == dims.layers - 1 or (types[layer] == "full_attention" if types else (layer + 1) % 6 == 0)
    shares = layer >= dims.layers - int(text.get("num_kv_shared_layers") or 0)
    same = full and bool(text.get("attention_k_eq_v"))  # keys are values
    head, kv_heads = _gemma4_heads(dims, text, layer, full)
    specs = [*linear("self_attn.q_proj", dims.heads * head, hidden, dims.qkv_bias), norm("self_attn.q_norm", head)]
    if not shares:
        specs += [*linear("self_attn.k_proj", kv_heads * head, hidden, dims.qkv_bias), norm("self_attn.k_norm", head)]
        specs += [] if same else linear("self_attn.v_proj", kv_heads * head, hidden, dims.qkv_bias)
    specs += linear("self_attn.o_proj", hidden, dims.heads * head, dims.out_bias)
    specs += gated_tensors("mlp", hidden, dims.mlp * (1 + (shares and bool(text.get("use_double_wide_mlp")))))
    narrow = _per_layer(text)
    if narrow:
        specs += linear("per_layer_input_gate", narrow, hidden) + linear("per_layer_projection", hidden, narrow)
        specs.append(norm("post_per_layer_input_norm", hidden))
    if text.get("enable_moe_block"):
        count, width = int(text["num_experts"]), int(text["moe_intermediate_size"])
        specs += [
            *linear("router.proj", count, hidden),
            TensorSpec("router.scale", (hidden,), "other"),
            TensorSpec("router.per_expert_scale", (count,), "other"),
            TensorSpec("experts.gate_up_proj", (count, 2 * width, hidden), "expert"),
            TensorSpec("experts.down_proj", (count, hidden, width), "expert"),
            *(norm(f"{name}_feedforward_layernorm_{n}", hidden) for name, n in (("post", 1), ("post", 2), ("pre", 2))),
        ]
    specs.append(TensorSpec("layer_scalar", (1,), "buffer"))
    return specs + [norm(name, hidden) for name in dims.family.norms]


def _gemma4_heads(dims: Dimensions, text: Mapping[str, Any], layer: int, full: bool) -> tuple[int, int]:
    """Width of a head and number of key heads. Configurations of transformers 5.23 and later say it layer by layer,
    those before once for all layers with full attention."""
    by_layer = text.get("per_layer_config")
    if by_layer is None:
        others = text.get("num_global_key_value_heads") if full and text.get("attention_k_eq_v") else None
        return int(text["global_head_dim"]) if full else dims.head_dim, int(others or dims.kv_heads)
    own: Mapping[str, Any] = next((value for key, value in by_layer.items() if int(key) == layer), {})
    if odd := sorted(set(own) - {"head_dim", "num_key_value_heads"}):
        raise ValueError(f"'per_layer_config' of layer {layer} has {odd[0]!r}, whose effect is not known")
    return int(own.get("head_dim", dims.head_dim)), int(own.get("num_key_value_heads", dims.kv_heads))


def _gemma4_outside(dims: Dimensions, text: Mapping[str, Any]) -> list[TensorSpec]:
    """What gives each layer of Gemma 4 an input of its own."""
    narrow, vocabulary = _per_layer(text), int(text.get("vocab_size_per_layer_input") or 262_144)
    if not narrow:
        return []
    return [
        TensorSpec("model.embed_tokens_per_layer.weight", (vocabulary, dims.layers * narrow), "other"),
        *linear("model.per_layer_model_projection", dims.layers * narrow, dims.hidden),
        norm("model.per_layer_projection_norm", narrow),
    ]


def _per_layer(text: Mapping[str, Any]) -> int:
    value = text.get("hidden_size_per_layer_input")
    return 256 if value is None else int(value)
