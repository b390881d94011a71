"""Greedy decoding in batches, with a cache that is reserved once a batch (`halfbyte.model.cache`).

Prompts are sorted by length (the longest first: what does not fit fails at once) and cut into batches by a budget of
cached tokens. A batch is padded on the LEFT, so that all rows decode in the same column, with position ids that count
from each row's first token; where nothing is padded, there is no mask. The prompts go through the model in pieces of
some columns, so that the activations of long ones stay small, and then one token at a time; only the last position
goes through the output head. A row that ended leaves the batch at once, and the last row moves into its place.

An answer ends at an end token, before the first stop string (matched on decoded text, since a stop may lie across or
within tokens), or at `max_new_tokens`.

Answers hardly depend on batch size, padding or order: in fp32 none changed, in bf16 up to 0.27 % still did. There the
sums of a product come out differently in different shapes, so where two tokens are nearly as likely, either can win:
on the demo's task 5 % of the base's answers changed with the batch, as they do in every library. So a near tie is
decided apart (`settle`): the row alone, without padding or cache, goes through the model again. That costs a prompt's
time for each; of the demo's tokens 6 % are near ties. `benchmarks/invariance.py` measures what is left. Rejected:
kernels that give the same bits for any number of rows; those for few are fast because they scale sums, not weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from halfbyte.config import DecodingConfig
from halfbyte.errors import CheckpointError, DataError
from halfbyte.evaluate.journal import Journal
from halfbyte.plan import answering

if TYPE_CHECKING:
    from halfbyte.model.build import Model

Progress = Callable[[int, int], None]  # prompts done, prompts in all
_NEAR = 2.0**-7  # of the largest logit, a unit or two in bf16's last place: two logits so near are nearly a tie
_BY_LENGTH = {"dynamic", "longrope"}  # position embeddings that depend on the longest position of a forward


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
    settle: bool = True,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> Generated:
    """Greedy answers to `prompts` (token ids). `batch`: rows at once; "auto": as many as the token budget holds.

    `settle`: decide near ties apart, so that answers do not depend on the batch. `ends`: tokens that end an answer, by
    default `end_tokens(model)`. `journal`: where answers are kept, and taken from. Raises DataError for an empty prompt
    and one that does not fit into the model's context together with its answer; CheckpointError when logits are not
    finite.
    """
    check_lengths(model, [len(prompt) + decoding.max_new_tokens for prompt in prompts], what="prompt and answer")
    if any(not prompt for prompt in prompts):
        raise DataError("a prompt has no token, so there is nothing to continue", do="write a prompt")
    ends = end_tokens(model) if ends is None else frozenset(ends)
    stops = _Stops(decoding.stop, model.tokenizer)
    texts, ids, ended = [""] * len(prompts), [[0]] * len(prompts), [""] * len(prompts)
    began, decoded, decode_seconds, done = time.perf_counter(), 0, 0.0, 0
    how = [asdict(decoding), sorted(ends), settle]
    kept = (journal or Journal()).section("generate", how, [list(prompt) for prompt in prompts], count=len(prompts))

    def ask(rows: Sequence[int]) -> list[tuple[list[int], str]]:
        nonlocal decoded, decode_seconds
        asked = [prompts[row] for row in rows]
        answers, seconds = _decode_batch(model, asked, decoding, ends, stops, settle=settle)
        decode_seconds += seconds
        decoded += sum(len(new) + (why == "end") - 1 for new, why in answers)
        return answers

    with torch.inference_mode():
        for rows in batches([len(prompt) for prompt in prompts], decoding.max_new_tokens, batch, model):
            for row, (new, why) in zip(rows, kept.batch(rows, partial(ask, rows), _answer), strict=True):
                ids[row], ended[row], texts[row] = new, why, stops.cut(new)
            done += len(rows)
            if progress:
                progress(done, len(prompts))
    return Generated(texts, ids, ended, sum(map(len, prompts)), time.perf_counter() - began, decoded, decode_seconds)


def _answer(value: Any) -> bool:
    """Whether a kept value is the tokens of an answer and why it ended."""
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not isinstance(value[0], list):
        return False
    return value[1] in ("end", "stop", "length") and all(type(token) is int for token in value[0])


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
    text = model.net.config.get_text_config().to_dict()
    return answering.token_budget(text, model.dtype.itemsize, model.device.type)


def batches(
    lengths: Sequence[int], extra: int, batch: int | str, model: Model, *, budget: int | None = None
) -> Iterator[list[int]]:
    """Indices of the items of each batch, the longest items first. An item takes its length and `extra` tokens.

    `budget`: tokens in a batch, by default those that the cache may hold.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    budget, at = budget or token_budget(model), 0
    while at < len(order):
        if isinstance(batch, int):
            rows = max(1, batch)
        else:
            rows = answering.rows_at_once(budget, lengths[order[at]] + extra)
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
    model: Model,
    prompts: Sequence[Sequence[int]],
    decoding: DecodingConfig,
    ends: Collection[int],
    stops: _Stops,
    *,
    settle: bool,
) -> tuple[list[tuple[list[int], str]], float]:
    """(new tokens, why it ended) of each prompt, and the seconds after the prefill."""
    from halfbyte.model.cache import keep_rows

    new: list[list[int]] = [[] for _ in prompts]
    ended = ["length"] * len(prompts)
    rows = list(range(len(prompts)))  # the prompt that each row of the batch holds
    width = max(map(len, prompts))
    cache = model.new_cache(width + decoding.max_new_tokens)
    ids, mask, positions = pad_left(prompts, model.device)
    mask = F.pad(mask, (0, decoding.max_new_tokens), value=1)
    padded = any(len(prompt) < width for prompt in prompts)
    settle = settle and model.dtype.itemsize < 4
    tokens = _next_tokens(model, prefill(model, ids, mask if padded else None, positions, cache),
                          prompts if settle else None)  # fmt: skip
    positions = positions[:, -1:]
    began = time.perf_counter()
    for step in range(decoding.max_new_tokens):
        if step:
            positions = positions + 1
            seen = mask[:, : width + step] if padded else None
            so_far = [[*prompts[row], *new[row]] for row in rows] if settle else None
            tokens = _next_tokens(model, model.hidden(tokens[:, None], seen, positions, cache)[:, -1], so_far)
        going = []
        for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if token in ends:
                ended[row] = "end"
                continue
            new[row].append(token)
            if stops.found(new[row]):
                ended[row] = "stop"
            else:
                going.append(place)
        if not going:
            break
        if len(going) < len(rows):
            kept = _moved_up(going)
            keep_rows(cache, kept)
            chosen = torch.tensor(kept, device=model.device)
            mask, positions, tokens = mask[chosen], positions[chosen], tokens[chosen]
            rows = [rows[place] for place in kept]
            padded = any(len(prompts[row]) < width for row in rows)
    return list(zip(new, ended, strict=True)), time.perf_counter() - began


def prefill(model: Model, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
    """Hidden states [B, H] of the last column, after all of `ids` [B, T] went into the cache, some columns at a time.

    `mask` has at least T columns.
    """
    rows, width = ids.shape
    columns = max(1, tokens_at_once(model) // rows)
    if _positions_by_length(model):
        columns = width
    for start in range(0, width, columns):
        stop = min(width, start + columns)
        seen = None if mask is None else mask[:, :stop]
        hidden = model.hidden(ids[:, start:stop], seen, positions[:, start:stop], cache)
    return hidden[:, -1]


def tokens_at_once(model: Model) -> int:
    """Tokens that go through the model in one forward: their activations are what takes memory beside the cache."""
    return answering.tokens_at_once(model.device.type)


def _positions_by_length(model: Model) -> bool:
    """Whether a prompt in pieces would get other position embeddings than the whole."""
    rope = getattr(model.net.config.get_text_config(), "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # some families: one for a layer type
    return any(part.get("rope_type") in _BY_LENGTH for part in parts)


def _moved_up(going: Sequence[int]) -> list[int]:
    """The places of the rows that go on, in an order that moves few: each gap is filled from the end."""
    staying, behind = set(going), [place for place in going if place >= len(going)]
    return [place if place in staying else behind.pop() for place in range(len(going))]


def _next_tokens(model: Model, hidden: Tensor, so_far: Sequence[Sequence[int]] | None) -> Tensor:
    """The likeliest next token [B] after hidden states [B, H]. With the rows' tokens `so_far`, near ties are decided
    apart."""
    logits = model.logits(hidden)
    best, tokens = _largest(logits)
    if not bool(torch.isfinite(best).all()):
        raise not_finite(model)
    if so_far is None:
        return tokens
    second, _ = _largest(logits.scatter(1, tokens[:, None], -torch.inf))
    near = best.float() - second.float() <= _NEAR * best.float().abs()
    for row in near.nonzero()[:, 0].tolist():
        tokens[row] = _alone(model, so_far[row])
    return tokens


def _alone(model: Model, ids: Sequence[int]) -> int:
    """The likeliest next token after `ids`, computed in the same shapes whatever else is asked."""
    inputs, _, positions = pad_left([ids], model.device)
    hidden = prefill(model, inputs, None, positions, model.new_cache(len(ids)))
    return int(_largest(model.logits(hidden))[1])


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row of `logits` [B, V] and its place, the first of equals; NaN where there is one.

    As `logits.max(dim=-1)`, which goes through a row one by one: here blocks are compared first, which is vectorised.
    """
    rows, vocabulary = logits.shape
    size = next((size for size in range(2048, 31, -1) if vocabulary % size == 0), None)
    if size is None:
        return logits.max(dim=-1)
    blocks = logits.view(rows, -1, size)
    best, block = blocks.amax(dim=-1).max(dim=-1)
    place = blocks[torch.arange(rows, device=logits.device), block].max(dim=-1).indices
    return best, block * size + place


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
