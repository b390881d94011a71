"""Which mixtures of experts, and other families that are not built like Llama, have shapes that are known.

How each is built is said here as data; `mixtures.py` makes tensors of it. `defaults` are what transformers' own
configuration classes take for keys that are left out, where shapes follow from them (checked against transformers, key
by key, in `tests/plan/test_mixtures.py`). Sizes without which there is no model have none: they must be stated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from halfbyte.errors import ConfigError
from halfbyte.plan.shapes import FAMILIES, Family

Attention = Literal["plain", "latent", "delta", "delta-fused", "gemma4"]


@dataclass(frozen=True)
class Mixture:
    """How one model_type is built. `count`, `width`, `shared` and `dense_width` are keys of a config.json."""

    family: Family = field(default_factory=Family)
    attention: Attention = "plain"  # delta: most layers have a delta net in its place
    count: str = "num_experts"  # the key with the number of experts; empty: every layer is dense
    width: str = "moe_intermediate_size"  # the key with the width of one
    block: str = "mlp"
    router: str = "gate"
    transposed: bool = False  # experts hold their matrices the other way round
    biased: bool = False  # experts and router have biases, attention has sinks
    shared: str = ""  # the key with the width of the expert that every token passes
    shared_name: str = "shared_expert"
    shared_gate: bool = False
    dense_width: str = "intermediate_size"  # of the layers without experts
    places: tuple[str, ...] = ()  # the keys that say which layers have experts
    dense_first: int = 0  # layers without experts, where no key says which
    corrected: bool = False  # the router has a buffer that corrects its scores
    fused: bool = False  # one matrix for gate and up
    norm_key: str = ""  # the key that says whether queries and keys are normalised
    bias_key: str = ""  # the key that says whether queries, keys and values have biases
    layer_norm: bool = False  # norms have biases


_SHARED = "shared_expert_intermediate_size"
_QWEN_PLACES = ("decoder_sparse_step", "mlp_only_layers")


def _gated(kv_heads: int) -> Family:
    defaults = {"head_dim": 256, "num_key_value_heads": kv_heads}
    return Family(qk_norm="head", attention_bias=True, gated=True, defaults=defaults)


_GEMMA4 = Family(
    attention_bias=True,
    defaults={"head_dim": 256, "num_key_value_heads": 4, "tie_word_embeddings": True},
    norms=("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)

MIXTURES: dict[str, Mixture] = {
    "mixtral": Mixture(
        Family(defaults={"num_key_value_heads": 8}), count="num_local_experts", width="intermediate_size"
    ),
    "qwen2_moe": Mixture(
        Family(defaults={"num_key_value_heads": 16, "qkv_bias": True}),
        shared=_SHARED,
        shared_gate=True,
        places=_QWEN_PLACES,
        bias_key="qkv_bias",
    ),
    "qwen3_moe": Mixture(
        Family(qk_norm="head", attention_bias=True, defaults={"num_key_value_heads": 4}), places=_QWEN_PLACES
    ),
    "qwen3_next": Mixture(_gated(2), attention="delta-fused", shared=_SHARED, shared_gate=True, places=_QWEN_PLACES),
    "qwen3_5_text": Mixture(_gated(4), attention="delta", count=""),
    "qwen3_5_moe_text": Mixture(_gated(2), attention="delta", shared=_SHARED, shared_gate=True),
    "olmoe": Mixture(Family(qk_norm="width", attention_bias=True), width="intermediate_size"),
    "gpt_oss": Mixture(
        Family(attention_bias=True, defaults={"attention_bias": True, "num_key_value_heads": 8, "head_dim": 64}),
        count="num_local_experts",
        width="intermediate_size",
        router="router",
        transposed=True,
        biased=True,
    ),
    "phimoe": Mixture(
        Family(attention_bias=True, defaults={"num_key_value_heads": 8}),
        count="num_local_experts",
        width="intermediate_size",
        router="router",
        layer_norm=True,
    ),
    "granitemoe": Mixture(
        Family(attention_bias=True),
        count="num_local_experts",
        width="intermediate_size",
        block="block_sparse_moe",
        router="router",
    ),
    "llama4_text": Mixture(
        Family(attention_bias=True, defaults={"num_key_value_heads": 8, "head_dim": 128}),
        count="num_local_experts",
        width="intermediate_size",
        block="feed_forward",
        router="router",
        transposed=True,
        shared="intermediate_size",
        dense_width="intermediate_size_mlp",
        places=("moe_layers", "interleave_moe_layer_step"),
    ),
    "deepseek_v2": Mixture(
        Family(attention_bias=True, mlp_bias=True, defaults={"q_lora_rank": 1536, "first_k_dense_replace": 0}),
        attention="latent",
        places=("first_k_dense_replace",),
        count="n_routed_experts",
        shared="n_shared_experts",
        shared_name="shared_experts",
    ),
    "deepseek_v3": Mixture(
        Family(attention_bias=True, defaults={"q_lora_rank": 1536, "first_k_dense_replace": 3}),
        attention="latent",
        places=("first_k_dense_replace",),
        corrected=True,
        count="n_routed_experts",
        shared="n_shared_experts",
        shared_name="shared_experts",
    ),
    "glm4_moe_lite": Mixture(
        Family(attention_bias=True, defaults={"q_lora_rank": 768}),
        attention="latent",
        places=("mlp_layer_types",),
        corrected=True,
        count="n_routed_experts",
        shared="n_shared_experts",
        shared_name="shared_experts",
        dense_first=1,
    ),
    "glm4_moe": Mixture(
        Family(attention_bias=True, out_bias=False, defaults={"num_key_value_heads": 8, "first_k_dense_replace": 1}),
        count="n_routed_experts",
        shared="n_shared_experts",
        shared_name="shared_experts",
        places=("first_k_dense_replace",),
        corrected=True,
        norm_key="use_qk_norm",
    ),
    "glm4": Mixture(
        Family(
            norms=(
                *("input_layernorm", "post_attention_layernorm"),
                *("post_self_attn_layernorm", "post_mlp_layernorm"),
            ),
            attention_bias=True,
            out_bias=False,
            defaults={"attention_bias": True, "num_key_value_heads": 2, "head_dim": 128},
        ),
        count="",
        fused=True,
    ),
    "gemma4_text": Mixture(_GEMMA4, attention="gemma4", count=""),
    "ministral3": Mixture(Family(defaults={"num_key_value_heads": 8, "head_dim": 128}), count=""),
    "exaone4": Mixture(
        Family(
            norms=("post_attention_layernorm", "post_feedforward_layernorm"),
            qk_norm="head",
            defaults={"num_key_value_heads": 32},
        ),
        count="",
    ),
}

# What `load_model` refuses of the architectures that are planned; found out by trying (tests/plan/test_loaded.py).
NOT_LOADED = frozenset(("Llama4ForCausalLM", "Llama4ForConditionalGeneration", "Mistral3ForConditionalGeneration"))
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")  # names of one thing; files have any of them


def completed(mixture: Mixture, text: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The configuration with transformers' values of keys that are left out, and the experts counted under the key that
    the family reads. A null is no key that is left out: it stays.

    Raises ConfigError where two names of the number of experts say different numbers.
    """
    values = {**mixture.family.defaults, **text}
    told = {key: text[key] for key in _COUNTS if text.get(key) is not None} if mixture.count else {}
    if any(value != next(iter(told.values())) for value in told.values()):
        raise ConfigError("the configuration says the number of experts twice, and not the same", where=where,
                          found=", ".join(f"'{key}' is {str(value)[:100]}" for key, value in told.items()),
                          do="check that this is the model's own config.json")  # fmt: skip
    return {**values, mixture.count: next(iter(told.values()))} if told else values


def defaults_of(model_type: object) -> Mapping[str, Any]:
    """What transformers takes for keys that a config.json of this model_type leaves out."""
    return (_family(model_type) or Family()).defaults


def assumptions(config: Mapping[str, Any]) -> list[str]:
    """Unknown fields that are read as transformers' default nevertheless, because the shapes need an answer."""
    family, mixture = _family(config.get("model_type")), MIXTURES.get(str(config.get("model_type")), Mixture())
    if family is None:
        return []
    used = {"attention_bias": family.attention_bias, "mlp_bias": family.mlp_bias}
    used |= {key: True for key in (mixture.norm_key, mixture.bias_key) if key}
    missing = [key for key, is_used in used.items() if is_used and key in config and config[key] is None]
    said = []
    for words, default in (("without", False), ("with", True)):
        keys = [f"'{key}'" for key in missing if bool(family.defaults.get(key)) is default]
        if keys:
            said.append(f"{' and '.join(keys)}: unknown, because no source states it; counted {words}, transformers' "
                        "default")  # fmt: skip
    return said


def not_loaded(config: Mapping[str, Any]) -> list[str]:
    """A note for a model that can be planned, but not run; `config` is the whole of a config.json."""
    named = config.get("architectures")
    names = [name for name in named if name in NOT_LOADED] if isinstance(named, list) else []
    return [f"halfbyte does not load {names[0]} yet: such a model can be planned here, but not run"] if names else []


def _family(model_type: object) -> Family | None:
    mixture = MIXTURES.get(str(model_type))
    return FAMILIES.get(str(model_type)) or (mixture.family if mixture else None)
