"""Greedy decoding in batches, with transformers' cache.

Prompts are sorted by length (the longest first: what does not fit fails at once) and cut into batches by a budget of
cached tokens. A batch is padded on the LEFT, so that all rows decode in the same column, with position ids that count
from each row's first token. One prefill, then a token at a time; only the last position goes through the output head.
Rows that ended are dropped from the cache once they are half of it.

An answer ends at an end token, before the first stop string (matched on decoded text, since a stop may lie across or
within tokens), or at `max_new_tokens`. Answers do not depend on batch size, padding or order up to rounding: in fp32
none changes; in bf16 near-ties can fall either way, as they do in every library, since matrix products round
differently in different shapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halfbyte.config import DecodingConfig
from halfbyte.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from halfbyte.model.build import Model

Progress = Callable[[int, int], None]  # prompts done, prompts in all
_CACHE_BYTES = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}  # keys and values of one batch
_MOST_TOKENS, _MOST_ROWS = 16384, 128


@dataclass(frozen=True)
class Generated:
    """Answers in the order of the prompts."""

    texts: list[str]  # before the first stop string, without end tokens
    ids: list[list[int]]  # the new tokens of each, as generated; the end token left out
    ended: list[str]  # why each ended: "end" | "stop" | "length"
    prompt_tokens: int
    seconds: float
    decoded_tokens: int  # after the first of each answer, which the prefill brings
    decode_seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Decoded tokens of all rows of a batch together, prefill left out; None if there was none."""
        return self.decoded_tokens / self.decode_seconds if self.decoded_tokens else None


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    decoding: DecodingConfig,
    *,
    batch: int | str = "auto",
    ends: Collection[int] | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Greedy answers to `prompts` (token ids). `batch`: rows at once; "auto": as many as the token budget holds.

    `ends`: tokens that end an answer, by default `end_tokens(model)`. Raises DataError for an empty prompt and one that
    does not fit into the model's context together with its answer; CheckpointError when logits are not finite.
    """
    check_lengths(model, [len(prompt) + decoding.max_new_tokens for prompt in prompts], what="prompt and answer")
    if any(not prompt for prompt in prompts):
        raise DataError("a prompt has no token, so there is nothing to continue", do="write a prompt")
    ends = end_tokens(model) if ends is None else frozenset(ends)
    stops = _Stops(decoding.stop, model.tokenizer)
    texts, ids, ended = [""] * len(prompts), [[0]] * len(prompts), [""] * len(prompts)
    began, decoded, decode_seconds, done = time.perf_counter(), 0, 0.0, 0
    with torch.inference_mode():
        for rows in batches([len(prompt) for prompt in prompts], decoding.max_new_tokens, batch, model):
            answers, seconds = _decode_batch(model, [prompts[row] for row in rows], decoding, ends, stops)
            decode_seconds += seconds
            for row, (new, why) in zip(rows, answers, strict=True):
                ids[row], ended[row], texts[row] = new, why, stops.cut(new)
                decoded += len(new) + (why == "end") - 1
            done += len(rows)
            if progress:
                progress(done, len(prompts))
    return Generated(texts, ids, ended, sum(map(len, prompts)), time.perf_counter() - began, decoded, decode_seconds)


def end_tokens(model: Model) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's EOS and those of the model's own generation configuration."""
    found: set[int] = set()
    generation = getattr(model.net, "generation_config", None)
    for named in (
        model.tokenizer.eos_token_id,
        getattr(generation, "eos_token_id", None),
        getattr(model.net.config, "eos_token_id", None),
    ):
        found.update(named if isinstance(named, (list, tuple)) else [] if named is None else [named])
    return frozenset(int(token) for token in found)


def check_lengths(model: Model, lengths: Sequence[int], origins: Sequence[str] | None = None, *, what: str) -> None:
    """Raises DataError when an item of these `lengths` (in tokens) is longer than the model's context."""
    context = context_tokens(model)
    if context is None:
        return
    over = [index for index, length in enumerate(lengths) if length > context]
    if over:
        longest = max(over, key=lambda index: lengths[index])
        raise DataError(
            f"{what} do not fit into the model's context of {context} tokens",
            where=origins[longest] if origins else f"prompt {longest + 1}",
            found=f"{len(over)} of {len(lengths)} are too long, the longest with {lengths[longest]} tokens",
            do="shorten them, lower decoding.max_new_tokens, or take a model with a longer context",
        )


def context_tokens(model: Model) -> int | None:
    """The longest sequence that the model was built for; None where its configuration does not say."""
    context = getattr(model.net.config.get_text_config(), "max_position_embeddings", None)
    return int(context) if context else None


def token_budget(model: Model) -> int:
    """Tokens that may be in the cache at once."""
    config = model.net.config.get_text_config()
    queries = int(getattr(config, "num_attention_heads", None) or 1)
    heads = int(getattr(config, "num_key_value_heads", None) or queries)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // queries)
    bytes_per_token = 2 * int(getattr(config, "num_hidden_layers", 1)) * heads * size * model.dtype.itemsize
    return max(512, min(_MOST_TOKENS, _CACHE_BYTES.get(model.device.type, 2**29) // bytes_per_token))


def batches(lengths: Sequence[int], extra: int, batch: int | str, model: Model) -> Iterator[list[int]]:
    """Indices of the items of each batch, the longest items first. An item takes its length and `extra` tokens."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    budget, at = token_budget(model), 0
    while at < len(order):
        if isinstance(batch, int):
            rows = max(1, batch)
        else:
            rows = max(1, min(_MOST_ROWS, budget // max(1, lengths[order[at]] + extra)))
        yield order[at : at + rows]
        at += rows


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`rows` of token ids as input_ids, attention_mask and position_ids [B, T] (int64), padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return ids.to(device), mask.to(device), positions.to(device)


def _decode_batch(
    model: Model, prompts: Sequence[Sequence[int]], decoding: DecodingConfig, ends: Collection[int], stops: _Stops
) -> tuple[list[tuple[list[int], str]], float]:
    """(new tokens, why it ended) of each prompt, and the seconds after the prefill."""
    new: list[list[int]] = [[] for _ in prompts]
    ended = ["length"] * len(prompts)
    alive = [True] * len(prompts)
    rows = list(range(len(prompts)))  # the prompt that each row of the batch holds
    cache = model.new_cache()
    ids, mask, positions = pad_left(prompts, model.device)
    tokens = _next_tokens(model, model.hidden(ids, mask, positions, cache))
    positions = positions[:, -1:]
    began = time.perf_counter()
    for step in range(decoding.max_new_tokens):
        if step:
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            positions = positions + 1
            tokens = _next_tokens(model, model.hidden(tokens[:, None], mask, positions, cache))
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if not alive[row]:
                continue
            if token in ends:
                alive[row], ended[row] = False, "end"
                continue
            new[row].append(token)
            if stops.found(new[row]):
                alive[row], ended[row] = False, "stop"
        kept = [place for place, row in enumerate(rows) if alive[row]]
        if not kept:
            break
        if 2 * len(kept) <= len(rows):
            chosen = torch.tensor(kept, device=model.device)
            cache.batch_select_indices(chosen)
            rows = [rows[place] for place in kept]
            mask, positions, tokens = mask[chosen], positions[chosen], tokens[chosen]
    return list(zip(new, ended, strict=True)), time.perf_counter() - began


def _next_tokens(model: Model, hidden: Tensor) -> Tensor:
    """The likeliest next token [B] after hidden states [B, T, H]."""
    best, tokens = model.logits(hidden[:, -1]).max(dim=-1)
    if not bool(torch.isfinite(best).all()):
        raise not_finite(model)
    return tokens


def not_finite(model: Model) -> CheckpointError:
    """What to raise when a model computes NaN or infinity."""
    return CheckpointError(
        "the model computes numbers that are not finite", where=model.name, found=f"compute in {model.dtype}",
        do="check the checkpoint and the adapter; some models overflow in float16: convert those to bfloat16",
    )  # fmt: skip


class _Stops:
    """Finds stop strings in the text of new tokens."""

    def __init__(self, strings: Sequence[str], tokenizer: Any) -> None:
        self.strings = [string for string in strings if string]
        self.tokenizer = tokenizer
        # A token holds at least a byte, so a stop that just came about lies within so many last tokens (and a few more,
        # for tokenizers that treat a text's first token differently).
        self.window = max((len(string.encode()) for string in self.strings), default=0) + 4

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def found(self, ids: Sequence[int]) -> bool:
        if not self.strings:
            return False
        recent = self.text(ids[-self.window :])
        if not any(string in recent for string in self.strings):
            return False
        return len(ids) <= self.window or self.cut(ids) != self.text(ids)

    def cut(self, ids: Sequence[int]) -> str:
        """The text before the first stop string."""
        text = self.text(ids)
        places = [place for string in self.strings if (place := text.find(string)) >= 0]
        return text[: min(places)] if places else text
