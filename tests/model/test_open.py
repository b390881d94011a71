"""Opening a packed checkpoint of the 8B shape: a sparse file, since only the header and small tensors are read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from halfbyte.checkpoint import bnb
from halfbyte.checkpoint.headers import DTYPES
from halfbyte.formats import DYNAMIC_CODE, NF4_CODE
from tests.tiny import tiny_tokenizer

LAYERS, HIDDEN, MLP, KEYS, VOCABULARY = 32, 4096, 14336, 1024, 128256
LINEAR = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
          "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (MLP, HIDDEN), "mlp.up_proj": (MLP, HIDDEN),
          "mlp.down_proj": (HIDDEN, MLP)}  # fmt: skip
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": MLP,
          "num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
          "vocab_size": VOCABULARY, "tie_word_embeddings": False, "dtype": "bfloat16",
          "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
                                  "bnb_4bit_use_double_quant": True}}  # fmt: skip

MEASURE = """
import sys, time
from pathlib import Path
import torch, transformers
from halfbyte.model.build import load_model

def held():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmSwap"))

before, started = held(), time.perf_counter()
model = load_model(sys.argv[1])
print(time.perf_counter() - started, held() - before)
"""


def sparse_checkpoint(folder: Path) -> Path:
    """A folder as `pack` writes it, the codes all zero and not on disk."""
    header: dict[str, object] = {}
    values: dict[int, bytes] = {}
    end = 0

    def add(name: str, dtype: str, shape: tuple[int, ...], value: bytes = b"") -> None:
        nonlocal end
        size = len(value) or math.prod(shape) * DTYPES[dtype][1]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        values[end] = value
        end += size

    tables = {".quant_map": NF4_CODE, ".nested_quant_map": DYNAMIC_CODE}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, shape in LINEAR.items():
            for part, (dtype, size) in bnb.layout(f"{prefix}{name}.weight", "nf4", shape).items():
                table = next(
                    (torch.tensor(t).numpy().tobytes() for end, t in tables.items() if part.endswith(end)), b""
                )
                if bnb.STATE not in part:
                    add(part, dtype, size, table)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            add(f"{prefix}{norm}.weight", "BF16", (HIDDEN,))
    add("model.norm.weight", "BF16", (HIDDEN,))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        add(name, "BF16", (VOCABULARY, HIDDEN))
    for layer in range(LAYERS):
        for name, shape in LINEAR.items():
            state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape),
                     "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05}  # fmt: skip
            text = json.dumps(state).encode()
            add(f"model.layers.{layer}.{name}.weight{bnb.STATE}", "U8", (len(text),), text)

    folder.mkdir()
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for place, value in values.items():
            if value:
                file.seek(8 + len(text) + place)
                file.write(value)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process' anonymous memory, in /proc")
def test_the_8b_shape_opens_at_once_and_takes_no_memory(folder: Path) -> None:
    command = [sys.executable, "-c", MEASURE, str(sparse_checkpoint(folder / "8b"))]
    best = min((subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)),
               key=lambda text: float(text.split()[0]))  # fmt: skip
    seconds, grown = map(float, best.split())
    print(f"opened in {seconds:.2f} s, {grown / 1e6:.0f} MB")
    assert seconds < 2 and grown < 200e6
