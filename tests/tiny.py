"""Tiny random checkpoints of every family that the tests cover, made on the spot by transformers itself.

Between them they have tied and untied heads, biases, fused projections, soft caps, scaled embeddings, sliding windows,
and widths that are no multiple of 64, so that blocks straddle rows and a matrix' last block is ragged. No width over 64
is a multiple of 16 but not of 64: bitsandbytes' AVX-512 code (0.50.2) decodes those with the absmax of other blocks, so
nothing could be compared with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 320
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"

_CORPUS = """The set of the little castle has a price of ten dollars and holds one hundred pieces in a box.
A number of small models on one machine learn from examples: prompt, answer, prompt, answer, and so on.
0 1 2 3 4 5 6 7 8 9 10 20 50 100 9.99 19.99 29.99 49.99 99.99 199.99 dollars, euros and pounds."""

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 36, "intermediate_size": 52, "num_key_value_heads": 1, "head_dim": 10},
    "mistral": {"head_dim": 16, "sliding_window": 16},
    "qwen2": {"hidden_size": 40, "intermediate_size": 84, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 22, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma3": {"head_dim": 18, "query_pre_attn_scalar": 18, "sliding_window": 8,
               "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"hidden_size": 56, "intermediate_size": 72, "num_attention_heads": 2},
    "olmo2": {"intermediate_size": 92},
    "granite": {"embedding_multiplier": 2.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
                "attention_multiplier": 0.2, "tie_word_embeddings": True},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
}  # fmt: skip

OTHERS: dict[str, dict[str, Any]] = {  # not dense, or not made of nn.Linear
    "mixtral": {"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
}
_TYPES = {"gemma3": "gemma3_text"}


def tiny_checkpoint(
    family: str,
    folder: Path,
    dtype: str = "bfloat16",
    *,
    seed: int = 0,
    add_bos: bool = True,
    chat_template: str | None = None,
    max_shard_size: str = "5GB",
    **overrides: Any,
) -> Path:
    """Write a random model of `family` (of FAMILIES or OTHERS) and its tokenizer to `folder` and return it.

    `overrides` are keys of the family's transformers configuration. The same arguments give the same bytes.
    """
    options = {**_SHAPE, **(FAMILIES | OTHERS)[family], **overrides}
    tokenizer = tiny_tokenizer(add_bos=add_bos, chat_template=chat_template)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(_TYPES.get(family, family), **{**ids, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():  # norms and biases, too, so that losing one shows
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tokenizer(*, add_bos: bool = True, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `VOCABULARY` tokens that loses no text. It puts a BOS first if `add_bos`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD, "<|endoftext|>"],  # the last one: Qwen2Tokenizer adds it where it is missing
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS.splitlines(), trainer)
    if add_bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer
