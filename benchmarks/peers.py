"""The stock stack as its documentation says to use it: transformers, bitsandbytes (NF4) and PEFT."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

TARGETS = {"attention": ["q_proj", "k_proj", "v_proj", "o_proj"], "all": "all-linear"}


def load(folder: str, *, quantised: bool = True) -> Any:
    """The causal LM in `folder`/bf16: quantised to NF4 with double quantisation while it is read, or in bf16."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=torch.bfloat16)  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        Path(folder) / "bf16", dtype=torch.bfloat16, quantization_config=config if quantised else None
    )


def with_adapter(net: Any, rank: int, targets: str) -> Any:
    """PEFT's LoRA around `net`; targets: "attention" or "all"."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(net, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS[targets]))


def to_train(folder: str, *, rank: int, targets: str, recompute: bool, quantised: bool = True) -> Any:
    """A model ready to train; what is quantised goes through PEFT's own preparation."""
    from peft import prepare_model_for_kbit_training

    net = load(folder, quantised=quantised)
    if quantised:
        net = prepare_model_for_kbit_training(net, use_gradient_checkpointing=recompute)
    elif recompute:
        net.gradient_checkpointing_enable()
        net.enable_input_require_grads()
    return with_adapter(net, rank, targets).train()


def decode(net: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[list[list[int]], float, float]:
    """Greedy answers of `new_tokens` tokens each; the seconds until the first token, and those of all after it.

    Prompts of several lengths are padded on the left.
    """
    from transformers import StoppingCriteriaList

    times: list[float] = []

    def note(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool)

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    began = time.perf_counter()
    with torch.inference_mode():
        made = net.generate(input_ids=ids, attention_mask=mask, do_sample=False, use_cache=True, pad_token_id=0,
                            max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                            stopping_criteria=StoppingCriteriaList([note]))  # fmt: skip
    assert made.shape[1] == width + new_tokens
    return made[:, width:].tolist(), times[0] - began, times[-1] - times[0]
