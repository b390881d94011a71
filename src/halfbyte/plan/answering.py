"""Answering a task: how many prompts go through a model at once, and the bytes that this takes.

`evaluate.generate` cuts its batches by these numbers, so that what is planned is what is done: the cache of keys and
values is reserved for a batch, prompts go through the model in pieces of some columns, then a token a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.plan.activations import ShapeInfo, known_dims

_CACHE_BYTES = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}  # keys and values of one batch
_MOST_TOKENS, _MOST_ROWS = 16384, 128
_AT_ONCE = {"cpu": 2048}  # tokens in one forward; more give the products nothing but take memory


def token_budget(text: Mapping[str, Any], dtype_bytes: int, kind: str) -> int:
    """Tokens that may be in the cache at once, from the configuration of the text model; `kind`: cpu, cuda."""
    queries = int(text.get("num_attention_heads") or 1)
    heads = int(text.get("num_key_value_heads") or queries)
    size = int(text.get("head_dim") or int(text.get("hidden_size") or 1) // queries)
    bytes_per_token = 2 * int(text.get("num_hidden_layers") or 1) * heads * size * dtype_bytes
    return max(512, min(_MOST_TOKENS, _CACHE_BYTES.get(kind, 2**29) // max(1, bytes_per_token)))


def rows_at_once(budget: int, tokens: int) -> int:
    """Sequences of `tokens` tokens, prompt and answer, in one batch."""
    return max(1, min(_MOST_ROWS, budget // max(1, tokens)))


def tokens_at_once(kind: str) -> int:
    """Tokens that go through the model in one forward: their activations are what takes memory beside the cache."""
    return _AT_ONCE.get(kind, _MOST_TOKENS)


def evaluation_bytes(
    info: ShapeInfo, rows: int, tokens: int, dtype_bytes: int = 2, kind: str = "cpu"
) -> dict[str, int]:
    """Parts in bytes of generating for `rows` sequences that end with `tokens` tokens: cache, one layer, logits."""
    dims, b = known_dims(info), dtype_bytes
    at_once = min(rows * tokens, max(rows, tokens_at_once(kind)))
    mlp = 3 * dims.mlp + 3 * dims.hidden
    attention = 4 * dims.query + 2 * dims.key + 2 * dims.hidden
    working = b * max(mlp, attention)
    if info.scores:
        working = max(working, b * attention + dims.heads * tokens * (b + 4 + b))
    return {
        "kv_cache": rows * tokens * dims.layers * 2 * dims.key * b,
        "activations": at_once * working,
        "logits": rows * (dims.vocabulary or 0) * b,
    }
