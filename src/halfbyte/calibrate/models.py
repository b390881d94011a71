"""Small whole models: what they take beyond the operations that are priced, a layer of them; and packing."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from halfbyte.calibrate.fit import Points, both, once, typical
from halfbyte.calibrate.operations import RANK
from halfbyte.config import AdapterConfig
from halfbyte.plan import operations as count
from halfbyte.plan.calibration import Cost
from halfbyte.plan.operations import FEW
from halfbyte.plan.shapes import dimensions
from halfbyte.plan.time import Speed

ROUNDS, CACHED = 3, 64  # of all measurements, so that a moment's noise meets a third of them; tokens in the cache
MODELS: dict[str, dict[str, int]] = {
    "narrow": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4,
               "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512},
    "wide": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 512},
}  # fmt: skip


def rest(dtype: torch.dtype, costs: Mapping[str, Cost], folder: Path, packing: Points) -> dict[str, Points]:
    """What small models take beyond the operations that are priced already, a layer of them."""
    points = {"forward": Points(), "backward": Points(), "decode": Points()}
    for name, shape in MODELS.items():
        packed = _packed_model(shape, folder / name, packing)
        model = _opened(packed, dtype)
        _rest_of(model, shape, costs, points)
    return points


def _rest_of(model: Any, shape: Mapping[str, int], costs: Mapping[str, Cost], points: dict[str, Points]) -> None:
    dims = dimensions({"model_type": "llama", "tie_word_embeddings": True, **shape})
    linears = {name: (layer.out_features, layer.in_features) for name, layer in model.quant_linears.items()}
    work = count.work(linears, dims, RANK, "all", {})
    b = model.dtype.itemsize
    none = Cost({"call": 0.0, "byte": 0.0})
    speed = Speed(work, "nf4", {**costs, **{f"rest/{kind}": none for kind in points}}, b)
    fresh = functools.partial(model.net.zero_grad, set_to_none=False)
    for _ in range(ROUNDS):
        model.net.train()
        for batch, tokens in ((1, 32), (1, 128), (1, 512), (4, 64)):
            ids = torch.randint(4, dims.vocabulary or 4, (batch, tokens))
            forward, backward = both(lambda ids=ids: model.hidden(ids), fresh=fresh, least=2)  # type: ignore[misc]
            parts = speed.step_parts(batch, tokens, 0)
            attention = speed.attention("forward", batch, tokens, tokens)
            units = {name: dims.layers * many for name, many in count.rest(dims, batch * tokens, b).items()}
            points["forward"].add(units, forward - parts["products forward"] - attention, forward)
            priced = parts["products backward"] + parts["attention"] - attention
            points["backward"].add(units, backward - priced, backward)
        model.net.eval()
        for rows in (1, 4, FEW):
            with torch.inference_mode():
                took = _decoding(model, rows, CACHED)
            units = {name: dims.layers * many for name, many in count.rest(dims, rows, b).items()}
            points["decode"].add(units, took - speed.decode(rows, CACHED), took)


def _decoding(model: Any, rows: int, cached: int) -> float:
    """Seconds of a token more for `rows` sequences, hidden states and logits."""
    cache = model.new_cache(cached + 64)
    ids = torch.randint(4, 100, (rows, cached))
    model.hidden(ids, None, torch.arange(cached).expand(rows, -1), cache)
    took = []
    for step in range(32):
        positions = torch.full((rows, 1), cached + step)
        took.append(once(lambda p=positions: model.logits(model.hidden(ids[:, :1], None, p, cache)[:, -1]).max(-1)))  # type: ignore[misc]
    return typical(took[4:])


def _packed_model(shape: Mapping[str, int], folder: Path, packing: Points) -> Path:
    """A checkpoint with random weights, and packed to NF4, which is timed with the source out of the page cache."""
    from halfbyte.checkpoint.pack import pack
    from halfbyte.checkpoint.source import open_checkpoint

    packed = folder / "nf4"
    if packed.is_dir():
        return packed
    source = _write(shape, folder / "bf16")
    file = source / "model.safetensors"
    _forget(file)
    checkpoint = open_checkpoint(str(source))
    pack(checkpoint, folder / "first", "nf4")  # imports and code on first use do not count
    _forget(file)
    took = once(lambda: pack(checkpoint, packed, "nf4"))
    packing.add(count.packing(file.stat().st_size, len(checkpoint.tensors)), took)
    return packed


def _forget(file: Path) -> None:
    """Ask the system to drop the file's pages, so that reading it is timed."""
    with suppress(OSError, AttributeError), file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write(shape: Mapping[str, int], folder: Path) -> Path:
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from halfbyte.plan.shapes import tensors_from

    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True,
              "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "dtype": "bfloat16",
              **shape}  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {spec.name: torch.randn(spec.shape).mul_(0.02).bfloat16() for spec in tensors_from(dimensions(config))}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    words = Tokenizer(models.WordLevel({str(number): number for number in range(100)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="1").save_pretrained(folder)
    return folder


def _opened(folder: Path, dtype: torch.dtype) -> Any:
    from halfbyte.kernels.compute import compute_name
    from halfbyte.model.adapter import quant_linears
    from halfbyte.model.build import load_model

    model: Any = load_model(str(folder), device="cpu", compute=compute_name(dtype))
    model.add_adapter(AdapterConfig(rank=RANK))
    model.quant_linears = quant_linears(model.net)
    return model
