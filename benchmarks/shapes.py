"""Models of a real shape with random weights, so that nothing is downloaded; and the folder that holds them.

A folder has `bf16/` (a Hugging Face checkpoint in bf16, one file) and `nf4/` (the same, packed by halfbyte).
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512, "tie_word_embeddings": True},
}  # fmt: skip
NAMES = {"8b": "Llama-3.1-8B", "1b": "Llama-3.2-1B", "tiny": "a tiny model's"}


def linears(shape: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers of one decoder layer, by name."""
    hidden, mlp = shape["hidden_size"], shape["intermediate_size"]
    queries = shape["num_attention_heads"] * shape["head_dim"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    return {"self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (mlp, hidden), "mlp.up_proj": (mlp, hidden), "mlp.down_proj": (hidden, mlp)}  # fmt: skip


def tensors(shape: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of the checkpoint, in the order of the file."""
    hidden, vocabulary = shape["hidden_size"], shape["vocab_size"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, size in linears(shape).items():
            yield f"{prefix}{name}.weight", size
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not shape["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)


@contextmanager
def checkpoints(shape: str, folder: Path | None) -> Iterator[Path]:
    """The folder with the checkpoints of `shape`, made where they are missing; without a name it is removed after."""
    with roomy(folder, f"halfbyte-{shape}-") as place:
        if not (place / "bf16").is_dir():
            write_checkpoint(SHAPES[shape], place / "bf16")
        found = json.loads((place / "bf16" / "config.json").read_text(encoding="utf-8"))
        if any(found.get(key) != value for key, value in SHAPES[shape].items()):
            raise ValueError(f"{place} holds another shape than {shape}")
        if not (place / "nf4").is_dir():
            pack_to(place / "bf16", place / "nf4")
        yield place


@contextmanager
def roomy(folder: Path | None, prefix: str) -> Iterator[Path]:
    """`folder`; where it is None, one for temporary files with room for gigabytes, which is removed after."""
    place = folder or Path(tempfile.mkdtemp(prefix=prefix, dir=_roomy()))
    try:
        yield place
    finally:
        if folder is None:
            shutil.rmtree(place)


def _roomy() -> Path:
    """A folder for gigabytes: /var/tmp is a disk where /tmp may be memory."""
    return Path("/var/tmp") if Path("/var/tmp").is_dir() else Path(tempfile.gettempdir())


def pack_to(bf16: Path, nf4: Path) -> None:
    from halfbyte.checkpoint.pack import pack
    from halfbyte.checkpoint.source import open_checkpoint

    pack(open_checkpoint(str(bf16)), nf4, "nf4")


def write_checkpoint(shape: dict[str, Any], folder: Path) -> None:
    """A Hugging Face folder of random bf16 weights, one file, written as it is made, with a byte-level tokenizer."""
    folder.mkdir(parents=True)
    config = {**shape, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
              "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "dtype": "bfloat16", "initializer_range": 0.02,
              "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
              "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    write_tokenizer(folder)
    write_weights(folder / "model.safetensors", list(tensors(shape)))


def write_weights(to: Path, sizes: list[tuple[str, tuple[int, ...]]]) -> None:
    """A safetensors file of random bf16 tensors with these names and shapes; norms are ones."""
    import torch

    header, end = {}, 0
    for name, size in sizes:
        count = 2 * torch.Size(size).numel()
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    with to.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        noise = (torch.randn(1 << 24, generator=generator) * 0.02).bfloat16()
        for name, size in sizes:
            count = torch.Size(size).numel()
            if "norm" in name:
                file.write(torch.ones(count, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
                continue
            # a rotated piece of one long noise: making fresh noise for 8 G weights would take longer than packing
            turn = int(torch.randint(len(noise), (1,), generator=generator))
            rolled = torch.cat([noise[turn:], noise[:turn]]).view(torch.uint8).numpy()
            for start in range(0, count, len(noise)):
                file.write(rolled[: 2 * min(len(noise), count - start)].data)


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
