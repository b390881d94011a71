"""config.json: what opening a checkpoint and planning a model read of it, with and without weights beside it."""

from __future__ import annotations

import json
import re

from fuzz.check import folder
from halfbyte.errors import HalfbyteError
from halfbyte.plan.families import MIXTURES
from halfbyte.plan.inventory import from_folder
from tests.checkpoint.hostile import tensor, whole

FULL, BARE = folder(), folder()
(FULL / "model.safetensors").write_bytes(whole({
    "model.embed_tokens.weight": tensor(0, 64, "BF16", [8, 4]),
    "model.layers.0.mlp.up_proj.weight": tensor(64, 96, "BF16", [4, 4]),
    "lm_head.weight": tensor(96, 160, "BF16", [8, 4])}, 160))  # fmt: skip
DENSE = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100,
         "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}  # fmt: skip
MIXED = {**DENSE, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "n_shared_experts": 1,
         "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "q_lora_rank": 8, "kv_lora_rank": 8,
         "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "linear_num_key_heads": 2,
         "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 16,
         "global_head_dim": 16, "first_k_dense_replace": 1, "num_experts_per_tok": 2}  # fmt: skip
SEEDS = [json.dumps(config).encode() for config in (
    DENSE, {**DENSE, "dtype": "float16", "torch_dtype": None}, {"text_config": DENSE}, [], {},
    {"model_type": 3}, {"model_type": {"a": []}},
    {**DENSE, "num_hidden_layers": 96}, {**DENSE, "hidden_size": 2**31}, {**DENSE, "auto_map": {"AutoConfig": "x.y"}},
    {**DENSE, "quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}},
    {**DENSE, "quantization_config": {"quant_method": "gptq", "bits": 4}},
    {**DENSE, "quantization_config": {"load_in_8bit": True}},
    *({**MIXED, "model_type": kind} for kind in MIXTURES),
)]  # fmt: skip


LAYERS = re.compile(rb"layers\"[^0-9]{0,4}[0-9]{3}")  # more layers are more of the same, and slow


def run(data: bytes) -> None:
    if LAYERS.search(data):
        return
    faults = []
    for place in (FULL, BARE):
        (place / "config.json").write_bytes(data)
        try:
            assert all(spec.count >= 0 for spec in from_folder(place).tensors)
        except HalfbyteError as error:
            faults.append(error)
    if faults:
        raise faults[-1]
