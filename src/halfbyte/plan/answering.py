"""Answering a task: how much goes through a model at once, and the bytes that this takes.

`evaluate.generate` and `evaluate.likelihood` cut their work by these numbers, so that what is planned is what is done.
Answers are generated: keys and values are reserved for a batch, prompts go through the model in pieces of some columns,
then a token a row. Options are scored: the prompts of some items go through it once, then rows of options, each with a
copy of its prompt's keys and values. Texts are scored whole, without a cache. Logits are there for some positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfbyte.plan.activations import MAPPED, ShapeInfo, head_tile_bytes, heap_bytes, known_dims, slack_bytes

_CACHE_BYTES = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}  # keys and values of one batch
_MOST_TOKENS, _MOST_ROWS = 16384, 128
_AT_ONCE = {"cpu": 2048}  # tokens in one forward; more give the products nothing but take memory
_OF_OPTIONS = {"cpu": 512}  # the same of options' own tokens: each row takes the keys and values of its whole prompt
_LOGITS = {"cpu": 2**23}  # numbers in the logits of scored tokens at once: 32 MiB in fp32
_MOST_LOGITS = 2**25
_POSITION = 4096  # bytes a token of positions, their angles, cosines and sines (fp32), and of the mask
_PAGE = 4096  # bytes
_FEW = 16  # positions up to which the head is multiplied as it is stored (kernels/product/cpu.py)


@dataclass(frozen=True)
class Scored:
    """What a task scores where nothing is generated: `options` after a prompt, at most so many, or (0) whole texts.

    `tokens`: of the longest option; of a text those whose likelihood counts, at most.
    """

    options: int
    tokens: int


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


def options_at_once(budget: int, tokens: int, own: int, kind: str) -> int:
    """Options in one forward, of at most `own` tokens that are not in the cache yet, with their prompt `tokens`."""
    most = -(-_OF_OPTIONS.get(kind, _MOST_TOKENS) // max(1, own))
    return max(1, min(most, budget // max(1, tokens)))


def positions_at_once(vocabulary: int, kind: str) -> int:
    """Scored tokens whose logits are there at once."""
    return max(1, _LOGITS.get(kind, _MOST_LOGITS) // max(1, vocabulary))


def items_at_once(budget: int, tokens: int, kind: str, scored: Scored | None) -> int:
    """Items in one batch, of `tokens` tokens with their answer, or their longest option."""
    if scored is None:
        return rows_at_once(budget, tokens)
    if not scored.options:
        return rows_at_once(tokens_at_once(kind), tokens)
    return rows_at_once(budget, scored.options * tokens)


@dataclass(frozen=True)
class Pieces:
    """The largest of each that is there at once."""

    cached: int  # tokens with keys and values
    tokens: int  # in one forward
    positions: int  # with logits


def pieces(
    rows: int, tokens: int, kind: str, budget: int, vocabulary: int, scored: Scored | None = None, new: int = 0
) -> Pieces:
    """Of `rows` items that end with `tokens` tokens, prompt and answer; the last `new` of them are generated."""
    forward, positions = max(rows, tokens_at_once(kind)), positions_at_once(vocabulary, kind)
    if scored is None:
        return Pieces(rows * tokens, min(rows * max(1, tokens - new), forward), rows)
    if not scored.options:
        return Pieces(0, rows * tokens, min(rows * scored.tokens, positions))
    prompts, every, own = rows * tokens, rows * scored.options, scored.tokens - 1
    copies = min(every, options_at_once(budget, tokens, own, kind)) if own else 0
    last = max(every, copies * own)  # the options' first tokens are scored together
    return Pieces(prompts + copies * tokens, max(min(prompts, forward), copies * own), min(last, positions))


def evaluation_bytes(
    info: ShapeInfo, rows: int, tokens: int, dtype_bytes: int = 2, kind: str = "cpu", budget: int = _MOST_TOKENS,
    scored: Scored | None = None, new: int = 0,
) -> dict[str, int]:  # fmt: skip
    """Parts in bytes of answering `rows` items that end with `tokens` tokens: cache, one layer, logits.

    `budget`: tokens that may be in the cache at once; `scored`: what is scored, where nothing is generated; `new`: of
    the tokens those that are generated, one at a time (0: not known).
    """
    dims, b = known_dims(info), dtype_bytes
    there = pieces(rows, tokens, kind, budget, dims.vocabulary or 0, scored, new)
    # Of hidden states the model holds its embeddings and each layer's input, the layer what it adds to and the norm
    # of it.
    mlp = b * (3 * dims.mlp + 4 * dims.hidden)
    # Of queries: what is turned, two products, and the turned half or the sum; plain, both, and one block more before a
    # norm of their own.
    blocks = 4 if info.native.norms else 5 + bool(dims.family.qk_norm)
    attention = b * (blocks * dims.query + 3 * dims.key + 3 * dims.hidden)
    if info.scores:
        attention += dims.heads * tokens * (b + 4 + b)
    heap = heap_bytes(info, b * there.tokens)
    working = max(there.tokens * mlp + heap, there.tokens * attention) + there.tokens * _POSITION
    if scored is None:
        each = b * (1 + (b < 4 or info.scaled))  # near ties are looked for in a copy
    else:
        each = b * (1 + info.ends_in_torch) + 4 * (not info.native.norms)  # else the softmax's logarithm
    logits = there.positions * (dims.vocabulary or 0) * each
    in_head = there.tokens * b * dims.hidden + logits + heap
    in_head += head_tile_bytes(info, b) if there.positions > _FEW else 0
    # While the prompts go through, nothing was written yet where keys and values of the answers will stand. After
    # that the blocks of the MLP are still there (kernels.pool), and a token a row takes next to nothing.
    late = _unwritten_bytes(info, rows, tokens, new, b)
    after = there.tokens * b * (3 * dims.mlp + dims.hidden) + heap if late else 0
    cache, peak = there.cached * dims.layers * 2 * dims.key * b, max(working - late, after, in_head)
    return {
        "kv_cache": cache,
        "activations": peak - logits + slack_bytes(info, peak),
        "logits": logits,
    }


def _unwritten_bytes(info: ShapeInfo, rows: int, tokens: int, new: int, b: int) -> int:
    """Bytes of whole pages that the last `new` of `tokens` tokens have in the cache, where a buffer is mapped by
    itself: a row and head's columns lie together."""
    dims = known_dims(info)
    if rows * tokens * dims.key * b < MAPPED:
        return 0
    return 2 * dims.layers * rows * dims.kv_heads * max(0, new * dims.key // dims.kv_heads * b - _PAGE)
