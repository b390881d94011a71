"""Checkpoints of every architecture of the catalogue, as small as can be: mixtures, and models with a vision tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from tests.tiny import tiny_tokenizer

_SEES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWERS: dict[str, dict[str, Any]] = {  # model_type of the whole: what its vision tower is made of
    "gemma3": {**_SEES, "image_size": 28, "patch_size": 14},
    "gemma4": {**_SEES, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 16},
    "mistral3": {**_SEES, "model_type": "pixtral", "head_dim": 16, "image_size": 28, "patch_size": 14},
    "qwen3_5": {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64},
    "qwen3_5_moe": {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64},
    "llama4": {
        **_SEES,
        "image_size": 28,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    },
}
_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def text_checkpoint(model_type: str, folder: Path, config: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random language model of transformers' `model_type`, and a tokenizer."""
    return _save(AutoModelForCausalLM, AutoConfig.for_model(model_type, **{**_IDS, **config}), folder, dtype)


def seeing_checkpoint(model_type: str, folder: Path, text_type: str, config: dict[str, Any]) -> Path:
    """The same with a vision tower beside it."""
    text = {**_IDS, **config, "model_type": text_type}
    whole = AutoConfig.for_model(model_type, text_config=text, vision_config=TOWERS[model_type])
    return _save(AutoModelForImageTextToText, whole, folder, torch.bfloat16)


def _save(kind: Any, config: Any, folder: Path, dtype: torch.dtype) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.from_config(config, dtype=torch.float32)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_()
    model.to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
