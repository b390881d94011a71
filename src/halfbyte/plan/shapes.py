"""From a configuration to the tensors of the model: names, shapes and what each of them is.

Method: dense decoder families differ in little: which norms a block has, whether queries and keys are normalised (per
head or over the whole width), whether projections are fused, and which biases there are. `FAMILIES` says that, and
one function writes the tensors down, under the names that transformers gives them. A key that a config.json leaves
out has the value that transformers takes; a null in the catalogue is unknown and is never filled in, with one
exception that `assumptions` names.

Rejected: building the model on the meta device and asking it. That is always right, but takes seconds and torch.

For a folder with safetensors files the headers are the truth (`inventory.py`); this file answers when there are none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from halfbyte.errors import ConfigError, nearest

Kind = Literal["linear", "embedding", "head", "norm", "bias", "expert", "buffer", "other"]


@dataclass(frozen=True)
class TensorSpec:
    """One parameter of the model. `linear` is what gets quantised; everything else stays in 16 bits.

    A `buffer` is no parameter, but stands in the checkpoint like one.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def module(self) -> str:
        """Name of the module that holds it: the tensor's name without `.weight`."""
        return self.name.removesuffix(".weight")


@dataclass(frozen=True)
class Family:
    """How one model_type differs from Llama. `defaults` are transformers' values of keys that may be left out."""

    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    qk_norm: Literal["", "head", "width"] = ""
    qkv_bias: bool = False  # always there, without a key
    attention_bias: bool = False  # the key `attention_bias` exists (q, k, v and o)
    out_bias: bool = True  # o has a bias where that key is true
    mlp_bias: bool = False  # the key `mlp_bias` exists
    fused: bool = False  # one matrix for q, k, v and one for gate and up
    gated: bool = False  # the query's matrix also gives a gate for the attention's output
    defaults: Mapping[str, Any] = field(default_factory=dict)


_FOUR_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
_GEMMA = {"tie_word_embeddings": True, "head_dim": 256}

FAMILIES: dict[str, Family] = {
    "llama": Family(attention_bias=True, mlp_bias=True),
    "mistral": Family(defaults={"num_key_value_heads": 8}),
    "ministral": Family(defaults={"num_key_value_heads": 8}),
    "qwen2": Family(qkv_bias=True, defaults={"num_key_value_heads": 32}),
    "qwen3": Family(qk_norm="head", attention_bias=True, defaults={"num_key_value_heads": 32, "head_dim": 128}),
    "gemma": Family(attention_bias=True, defaults={**_GEMMA, "num_key_value_heads": 16}),
    "gemma2": Family(norms=_FOUR_NORMS, attention_bias=True, defaults={**_GEMMA, "num_key_value_heads": 4}),
    "gemma3_text": Family(
        norms=_FOUR_NORMS,
        qk_norm="head",
        attention_bias=True,
        defaults={**_GEMMA, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208},
    ),
    "phi3": Family(fused=True),
    "olmo2": Family(norms=_POST_NORMS, qk_norm="width", attention_bias=True),
    "olmo3": Family(norms=_POST_NORMS, qk_norm="width", attention_bias=True),
    "granite": Family(attention_bias=True, mlp_bias=True),
    "smollm3": Family(
        attention_bias=True, mlp_bias=True, defaults={"tie_word_embeddings": True, "num_key_value_heads": 4}
    ),
}


@dataclass(frozen=True)
class Dimensions:
    """What the shapes follow from. `None` in `vocabulary` or `tied`: unknown."""

    family: Family
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int | None
    tied: bool | None
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool

    @property
    def query(self) -> int:
        """Width of all queries of a token together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all keys of a token together, and of all values."""
        return self.kv_heads * self.head_dim


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's part of a configuration; a multimodal one keeps it under `text_config`."""
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        return dict(config)
    merged = dict(inner)
    if "tie_word_embeddings" in config:
        merged.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
    if merged.get("model_type") is None and config.get("model_type") == "gemma3":
        merged["model_type"] = "gemma3_text"
    return merged


def type_of(text: Mapping[str, Any]) -> str:
    """The model_type in what `text_config` gives, as text whatever the file holds."""
    return str(text.get("model_type"))


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether the shapes of this model_type follow from its configuration alone."""
    return type_of(text_config(config)) in FAMILIES


_MOST_LAYERS = 4096  # the tensors are written down one by one
_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def dimensions(config: Mapping[str, Any], where: object = "config.json") -> Dimensions:
    """Read the dimensions of a dense model of a known family.

    Raises ConfigError for an unknown model_type, and what `read_dimensions` does.
    """
    text = text_config(config)
    model_type = type_of(text)
    if model_type not in FAMILIES:
        raise ConfigError(
            "the shapes of this model_type are not known from its configuration alone",
            where=where,
            found=repr(text.get("model_type"))[:100],
            do=f"plan a folder that holds its safetensors files, too; {nearest(model_type, FAMILIES, 'types')}",
        )
    family = FAMILIES[model_type]
    return read_dimensions(family, {**family.defaults, **text}, where)


def read_dimensions(
    family: Family, values: Mapping[str, Any], where: object = "config.json", needed: Sequence[str] = _NEEDED
) -> Dimensions:
    """As `dimensions`, of a family that is given, whose defaults `values` hold already. A size that is not `needed` is
    0 where it is missing.

    Raises ConfigError that names every key that is missing or no positive number.
    """
    faults = [f"'{key}' is {_found(values.get(key))}" for key in needed if not _is_count(values.get(key))]
    catalogued = "vocab_size" in values and values["vocab_size"] is None  # unknown, not left out
    if not catalogued and not _is_count(values.get("vocab_size")):
        faults.append(f"'vocab_size' is {_found(values.get('vocab_size'))}")
    for key in ("num_key_value_heads", "head_dim"):
        if values.get(key) is not None and not _is_count(values[key]):
            faults.append(f"'{key}' is {_found(values[key])}")
    if _is_count(values.get("num_hidden_layers")) and int(values["num_hidden_layers"]) > _MOST_LAYERS:
        faults.append(f"'num_hidden_layers' is {values['num_hidden_layers']}, more than any model has")
    if faults:
        raise ConfigError(
            "the configuration lacks what the shapes follow from",
            where=where,
            found="; ".join(faults),
            do="check that this is the model's own config.json",
        )
    heads, hidden = int(values["num_attention_heads"]), int(values["hidden_size"])
    bias = family.attention_bias and says(family, values, "attention_bias")
    tied = values.get("tie_word_embeddings", False)
    return Dimensions(
        family=family,
        hidden=hidden,
        mlp=int(values.get("intermediate_size") or 0),
        layers=int(values["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or hidden // heads),
        vocabulary=None if catalogued else int(values["vocab_size"]),
        tied=None if tied is None else bool(tied),
        qkv_bias=family.qkv_bias or bias,
        out_bias=bias and family.out_bias,
        mlp_bias=family.mlp_bias and says(family, values, "mlp_bias"),
    )


def says(family: Family, values: Mapping[str, Any], key: str) -> bool:
    """Whether `values` says yes to `key`; where it is null, and so unknown, transformers' default."""
    value = values.get(key)
    return bool(family.defaults.get(key) if value is None else value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _found(value: object) -> str:
    return "missing" if value is None else f"{repr(value)[:100]}, no positive whole number"


def tensors_from(dims: Dimensions) -> list[TensorSpec]:
    """Every parameter, in the order of the model. What is unknown is left out: the embedding and head of an unknown
    vocabulary, the head where it is unknown whether it is tied."""
    tensors: list[TensorSpec] = []
    vocabulary = dims.vocabulary
    if vocabulary is not None:
        tensors.append(TensorSpec("model.embed_tokens.weight", (vocabulary, dims.hidden), "embedding"))
    block = _block(dims)
    for layer in range(dims.layers):
        tensors += in_layer(layer, block)
    tensors.append(norm("model.norm", dims.hidden))
    if vocabulary is not None and dims.tied is False:
        tensors.append(TensorSpec("lm_head.weight", (vocabulary, dims.hidden), "head"))
    return tensors


def in_layer(layer: int, block: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The tensors of a block under their full names."""
    return [TensorSpec(f"model.layers.{layer}.{spec.name}", spec.shape, spec.kind) for spec in block]


def _block(dims: Dimensions) -> list[TensorSpec]:
    """The parameters of one block, under their names inside it."""
    specs = attention_tensors(dims)
    if dims.family.fused:
        specs += linear("mlp.gate_up_proj", 2 * dims.mlp, dims.hidden, dims.mlp_bias)
        specs += linear("mlp.down_proj", dims.hidden, dims.mlp, dims.mlp_bias)
    else:
        specs += gated_tensors("mlp", dims.hidden, dims.mlp, dims.mlp_bias)
    return specs + [norm(name, dims.hidden) for name in dims.family.norms]


def attention_tensors(dims: Dimensions) -> list[TensorSpec]:
    """The parameters of attention in one block."""
    hidden, query, key = dims.hidden, dims.query, dims.key
    specs: list[TensorSpec] = []
    if dims.family.fused:
        specs += linear("self_attn.qkv_proj", query + 2 * key, hidden, dims.qkv_bias)
    else:
        specs += linear("self_attn.q_proj", query * (1 + dims.family.gated), hidden, dims.qkv_bias)
        specs += linear("self_attn.k_proj", key, hidden, dims.qkv_bias)
        specs += linear("self_attn.v_proj", key, hidden, dims.qkv_bias)
    specs += linear("self_attn.o_proj", hidden, query, dims.out_bias)
    if dims.family.qk_norm:
        per_head = dims.family.qk_norm == "head"
        specs.append(norm("self_attn.q_norm", dims.head_dim if per_head else query))
        specs.append(norm("self_attn.k_norm", dims.head_dim if per_head else key))
    return specs


def gated_tensors(name: str, hidden: int, width: int, bias: bool = False) -> list[TensorSpec]:
    """The parameters of a gated MLP."""
    return [
        *linear(f"{name}.gate_proj", width, hidden, bias),
        *linear(f"{name}.up_proj", width, hidden, bias),
        *linear(f"{name}.down_proj", hidden, width, bias),
    ]


def linear(name: str, out: int, columns: int, bias: bool = False) -> list[TensorSpec]:
    """A linear layer's weight, and its bias if it has one."""
    weight = TensorSpec(f"{name}.weight", (out, columns), "linear")
    return [weight, TensorSpec(f"{name}.bias", (out,), "bias")] if bias else [weight]


def norm(name: str, width: int) -> TensorSpec:
    """A norm's weight."""
    return TensorSpec(f"{name}.weight", (width,), "norm")


_IN_BLOCK = re.compile(r"(^|\.)(layers|h|blocks|block|layer)\.\d+\.")
_BESIDE = re.compile(
    r"(^|\.)per_layer_model_projection\.weight$"
)  # Gemma 3n, Gemma 4: a linear layer outside the blocks
_VISION = re.compile(r"(^|\.)(vision_\w+|visual|vision|multi_modal_projector|mm_projector|audio_\w+|embed_vision)\.")
_BUFFER = re.compile(r"\.(gate\.e_score_correction_bias|layer_scalar)$")  # of the checkpoint, not computed
_EXPERT = re.compile(r"\.(experts?\.(\d+\.)?|block_sparse_moe\.(input|output)_linear\.)")  # the latter: Granite MoE
_ROUTER = re.compile(r"\.(gate|router|router\.layer|wg)\.weight$")
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|wpe|word_embeddings|embed_in|tok_embeddings|embed_positions)\.weight$"
)
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
_CONV1D_TYPES = frozenset(("gpt2", "openai-gpt", "imagegpt", "decision_transformer"))  # their matrices are no nn.Linear


def kind_of(name: str, shape: tuple[int, ...], model_type: str) -> Kind:
    """What a tensor of a checkpoint is, by its name and shape: the counterpart of the names above for any model."""
    if _VISION.search(name):
        return "other"
    if _BUFFER.search(name):
        return "buffer"
    if _EMBEDDING.search(name):
        return "embedding"
    if _HEAD.search(name) and not _IN_BLOCK.search(name):
        return "head"
    if _EXPERT.search(name):
        return "expert"
    if name.endswith(".bias"):
        return "bias"
    if _ROUTER.search(name) or model_type in _CONV1D_TYPES:
        return "norm" if len(shape) == 1 else "other"
    if len(shape) == 2 and name.endswith(".weight") and (_IN_BLOCK.search(name) or _BESIDE.search(name)):
        return "linear"
    return "norm" if len(shape) == 1 and name.endswith(".weight") else "other"
