"""A model of a real size on this machine: pack it to NF4, generate, take two training steps, and count the memory.

The checkpoint has the shape of Llama 3.1 8B (or 3.2 1B) and random weights in bf16, so nothing is downloaded. Each
phase runs in a process of its own; memory is counted as everywhere in halfbyte (see halfbyte.memory). Writes a CSV
with machine and versions, and removes the checkpoints unless --keep is given.

    python benchmarks/real_size.py --shape 8b --folder /path/with/25GB/free
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
}  # fmt: skip
PHASES = ("pack", "generate", "tune")
TOKENS, STEPS, NEW_TOKENS = 512, 2, 16


def tensors(shape: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, mlp = shape["hidden_size"], shape["intermediate_size"]
    queries = shape["num_attention_heads"] * shape["head_dim"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    yield "model.embed_tokens.weight", (shape["vocab_size"], hidden)
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "self_attn.q_proj.weight", (queries, hidden)
        yield prefix + "self_attn.k_proj.weight", (keys, hidden)
        yield prefix + "self_attn.v_proj.weight", (keys, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, queries)
        yield prefix + "mlp.gate_proj.weight", (mlp, hidden)
        yield prefix + "mlp.up_proj.weight", (mlp, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, mlp)
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not shape["tie_word_embeddings"]:
        yield "lm_head.weight", (shape["vocab_size"], hidden)


def write_checkpoint(shape: dict[str, Any], folder: Path) -> None:
    """A Hugging Face folder of random bf16 weights, one file, written as it is made, with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    config = {**shape, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
              "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "dtype": "bfloat16", "initializer_range": 0.02,
              "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
              "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)

    header, end = {}, 0
    for name, size in tensors(shape):
        count = 2 * torch.Size(size).numel()
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        noise = (torch.randn(1 << 24, generator=generator) * 0.02).bfloat16()
        for name, size in tensors(shape):
            count = torch.Size(size).numel()
            if "norm" in name:
                file.write(torch.ones(count, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
                continue
            # a rotated piece of one long noise: making fresh noise for 8 G weights would take longer than packing
            turn = int(torch.randint(len(noise), (1,), generator=generator))
            rolled = torch.cat([noise[turn:], noise[:turn]]).view(torch.uint8).numpy()
            for start in range(0, count, len(noise)):
                file.write(rolled[: 2 * min(len(noise), count - start)].data)


def run_phase(phase: str, folder: Path) -> dict[str, Any]:
    """One phase in this process: seconds of each part, and memory in bytes."""
    from halfbyte.memory import MemoryMeter

    with MemoryMeter() as meter:
        facts = {"pack": _pack, "generate": _generate, "tune": _tune}[phase](folder)
        return facts | {"peak_bytes": meter.peak_bytes, "mapped_bytes": meter.mapped_bytes}


def _pack(folder: Path) -> dict[str, Any]:
    from halfbyte.checkpoint.pack import pack
    from halfbyte.checkpoint.source import open_checkpoint

    started = time.perf_counter()
    pack(open_checkpoint(str(folder / "bf16")), folder / "nf4", "nf4")
    return {"pack_seconds": time.perf_counter() - started}


def _open(folder: Path) -> tuple[Any, float]:
    from halfbyte.model.build import load_model

    started = time.perf_counter()
    model = load_model(str(folder / "nf4"))
    return model, time.perf_counter() - started


def _generate(folder: Path) -> dict[str, Any]:
    from halfbyte.config import DecodingConfig
    from halfbyte.evaluate.generate import generate

    model, opened = _open(folder)
    started = time.perf_counter()
    generate(model, [list(range(32))], DecodingConfig(max_new_tokens=NEW_TOKENS, stop=[]))
    return {"open_seconds": opened, "generate_seconds": time.perf_counter() - started}


def _tune(folder: Path) -> dict[str, Any]:
    import torch

    from halfbyte.config import AdapterConfig, TuneConfig
    from halfbyte.data.encode import Item
    from halfbyte.tune.loop import Plan, train
    from halfbyte.tune.state import State

    model, opened = _open(folder)
    model.add_adapter(AdapterConfig())
    model.recompute(len(model.layers()))
    options = TuneConfig(batch=1, max_steps=STEPS)
    state = State(model.parameters_to_train(), options)
    ids = torch.randint(256, (STEPS, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    items = [Item(ids=line, learned=[False] + [True] * (TOKENS - 1), prompt_tokens=0, cut=0, origin="") for line in ids]
    plan = Plan(steps=STEPS, steps_per_epoch=STEPS, micro_batch=1, pad_id=258, seed=0, validate_at=frozenset())
    records = list(train(model, items, [], state, options, plan))
    return {"open_seconds": opened, "steps": [round(r.seconds, 2) for r in records],
            "losses": [round(r.loss, 4) for r in records]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--folder", type=Path, default=Path("real_size"), help="holds the checkpoints; removed after")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real_size.csv"))
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        print(json.dumps(run_phase(options.phase, options.folder)))
        return
    from halfbyte.environment import environment

    if not (options.folder / "bf16").exists():
        write_checkpoint(SHAPES[options.shape], options.folder / "bf16")
    rows: list[dict[str, Any]] = []
    shutil.rmtree(options.folder / "nf4", ignore_errors=True)
    for phase in PHASES:
        command = [sys.executable, __file__, "--phase", phase, "--folder", str(options.folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        facts = json.loads(done.stdout.splitlines()[-1])
        print(phase, facts, flush=True)
        rows += [{"shape": options.shape, "phase": phase, "figure": key, "value": facts[key]} for key in facts]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    about = environment()
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "machine", "versions"])
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"machine": json.dumps(about["machine"]), "versions": json.dumps(about["versions"])})
    if not options.keep:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
