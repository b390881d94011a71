"""How likely a model finds given texts: options after a prompt, and whole items.

Options share their prompt: it is computed once, its cache is repeated for the options, and only their own tokens follow
(77 intents after a prompt of 40 tokens: an eighth of the work). Each option's row takes a copy of the whole prompt's
keys and values, so only as many go through the model at once as keep its products busy. Logits are made some positions
at a time, into a buffer that is kept, so that tokens x vocabulary is never materialised. How much is there at once
stands in `halfbyte.plan.answering`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halfbyte.evaluate.generate import (
    Progress,
    batches,
    not_finite,
    pad_left,
    prefill,
    token_budget,
    tokens_at_once,
)
from halfbyte.evaluate.journal import Journal
from halfbyte.kernels.cross_entropy import PLAIN, cross_entropy
from halfbyte.model.loss import LinearHead
from halfbyte.plan import answering

if TYPE_CHECKING:
    from halfbyte.model.build import Model


@dataclass(frozen=True)
class Likelihood:
    """Of one option after its prompt."""

    nats: float  # sum of the log-probabilities of its tokens
    greedy: bool  # whether greedy decoding would say just that: each of its tokens is the likeliest (a tie counts)


def option_log_likelihoods(
    model: Model,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[list[float]]:
    """`nats` of `option_likelihoods`."""
    found = option_likelihoods(model, prompts, options, progress=progress, journal=journal)
    return [[one.nats for one in choices] for choices in found]


def _nats(value: Any) -> bool:
    """Whether a kept value is a sum of log-probabilities."""
    return isinstance(value, float) and math.isfinite(value)


def _scored(value: Any) -> bool:
    """Whether a kept value holds what `Likelihood` does of each option."""
    return isinstance(value, list) and all(
        isinstance(one, (list, tuple)) and len(one) == 2 and _nats(one[0]) and isinstance(one[1], bool) for one in value
    )


def option_likelihoods(
    model: Model,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[list[Likelihood]]:
    """How likely each option is after its prompt.

    `options[i]` are the options of `prompts[i]`, each at least one token. `journal`: see `generate`. Raises
    CheckpointError where the result is not finite.
    """
    found: list[list[Likelihood]] = [[] for _ in prompts]
    pairs = zip(prompts, options, strict=True)
    tokens = [len(choices) * (len(prompt) + max(map(len, choices))) for prompt, choices in pairs]
    done = 0
    everything = list(zip(prompts, options, strict=True))
    kept = (journal or Journal()).section("options", everything, count=len(prompts))

    def ask(group: Sequence[int]) -> list[list[tuple[float, bool]]]:
        scores = _score_options(model, [prompts[item] for item in group], [options[item] for item in group])
        return [[(one.nats, one.greedy) for one in choices] for choices in scores]

    with torch.inference_mode():
        for group in batches(tokens, 0, "auto", model):
            for item, scores in zip(group, kept.batch(group, partial(ask, group), _scored), strict=True):
                found[item] = [Likelihood(*one) for one in scores]
            done += len(group)
            if progress:
                progress(done, len(prompts))
    return found


def _score_options(
    model: Model, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]
) -> list[list[Likelihood]]:
    from halfbyte.model.cache import chosen_rows

    ids, mask, positions = pad_left(prompts, model.device)
    cache = model.new_cache(ids.shape[1] + max(len(option) for choices in options for option in choices))
    last = prefill(model, ids, mask if len(set(map(len, prompts))) > 1 else None, positions, cache)
    rows = [(item, option) for item, choices in enumerate(options) for option in choices]
    items = torch.tensor([item for item, _ in rows], device=model.device)
    firsts = torch.tensor([option[0] for _, option in rows], device=model.device)
    sums = _log_probabilities(model, last, items, firsts)
    longer = [row for row, (_, option) in enumerate(rows) if len(option) > 1]
    for chunk in _chunks(model, longer, [len(option) for _, option in rows], ids.shape[1]):
        own, of = [rows[row][1] for row in chunk], items[chunk]
        sums[chunk] += _rest(model, own, mask[of], positions[of], chosen_rows(cache, of))
    pairs = zip(rows, sums.tolist(), strict=True)
    flat = iter([Likelihood(nats, hits == len(option)) for (_, option), (nats, hits) in pairs])
    return [[next(flat) for _ in choices] for choices in options]


def _chunks(model: Model, longer: list[int], lengths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Numbers of the rows that are computed at once; `lengths` of every row's option, `width` of the prompts."""
    longest = max((lengths[row] for row in longer), default=1)
    size = answering.options_at_once(token_budget(model), width + longest, longest - 1, model.device.type)
    for start in range(0, len(longer), size):
        yield longer[start : start + size]


def _rest(model: Model, options: Sequence[Sequence[int]], mask: Tensor, positions: Tensor, cache: object) -> Tensor:
    """Sums [B, 2] of `_log_probabilities` over all but the first token of each option; the cache has a row for each."""
    width = max(map(len, options)) - 1
    padded = torch.tensor([[*option, *[0] * (width + 1 - len(option))] for option in options], device=model.device)
    there = torch.tensor([[place < len(option) - 1 for place in range(width)] for option in options])
    there = there.to(model.device)
    places = positions[:, -1:] + 1 + torch.arange(width, device=model.device)
    mask = torch.cat([mask, there.to(mask.dtype)], dim=1)
    hidden = model.hidden(padded[:, :-1], mask, places, cache)
    rows, columns = there.nonzero(as_tuple=True)
    flat = rows * width + columns
    scores = _log_probabilities(model, hidden.reshape(-1, hidden.shape[-1]), flat, padded[rows, columns + 1])
    return scores.new_zeros(len(options), 2).index_add_(0, rows, scores)


def learned_log_likelihoods(
    model: Model,
    ids: Sequence[Sequence[int]],
    learned: Sequence[Sequence[bool]],
    *,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[float]:
    """Sum of the log-probabilities (nats) of each item's learned tokens, as the loss of training counts them.

    `learned[i][t]` says that token t of item i counts; the first token never does, since nothing predicts it. Raises
    CheckpointError where the result is not finite.
    """
    found = [0.0] * len(ids)
    done = 0
    asked = [[list(row) for row in rows] for rows in (ids, learned)]
    kept = (journal or Journal()).section("learned", *asked, count=len(ids))

    def ask(group: Sequence[int]) -> list[float]:
        return _sums(model, [ids[item] for item in group], [learned[item] for item in group])

    with torch.inference_mode():
        for group in batches([len(row) for row in ids], 0, "auto", model, budget=tokens_at_once(model)):
            for item, total in zip(group, kept.batch(group, partial(ask, group), _nats), strict=True):
                found[item] = total
            done += len(group)
            if progress:
                progress(done, len(ids))
    return found


def _sums(model: Model, ids: Sequence[Sequence[int]], learned: Sequence[Sequence[bool]]) -> list[float]:
    """`learned_log_likelihoods` of one batch."""
    width = max(map(len, ids))
    padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids])
    counted = [[*flags, *[False] * (width - len(flags))] for flags in learned]
    # No mask: what is padded on the right is seen by no token. Nothing is predicted from the last column, and a
    # text that fills the context and one token more has no position for it.
    seen = padded[:, : max(1, width - 1)]
    hidden = model.hidden(seen.to(model.device))
    rows, columns = torch.tensor(counted)[:, 1:].nonzero(as_tuple=True)
    flat, targets = rows * seen.shape[1] + columns, padded[rows, columns + 1].to(model.device)
    scores = _log_probabilities(model, hidden.reshape(-1, hidden.shape[-1]), flat.to(model.device), targets)[:, 0]
    sums = torch.zeros(len(ids), dtype=scores.dtype).index_add_(0, rows, scores.cpu())
    return [float(total) for total in sums.tolist()]


def _log_probabilities(model: Model, hidden: Tensor, chosen: Tensor, targets: Tensor) -> Tensor:
    """[N, 2] (fp64) of `targets` [N] after the hidden states `hidden[chosen]` of [P, H]: the log-probability, and 1
    where no token is likelier."""
    vocabulary, head = model.net.config.get_text_config().vocab_size, model.head
    step, parts = answering.positions_at_once(vocabulary, model.device.type), []
    for start in range(0, len(chosen), step):
        rows, wanted = hidden[chosen[start : start + step]], targets[start : start + step]
        logits, ending = (head.product(rows), head.ending) if isinstance(head, LinearHead) else (head(rows), PLAIN)
        nats = -cross_entropy(logits, wanted, gradient=False, ending=ending)
        likeliest = logits.gather(1, wanted[:, None])[:, 0] >= logits.amax(dim=1)
        parts.append(torch.stack([nats, likeliest.double()], dim=1))
    scores = torch.cat(parts) if parts else hidden.new_zeros(0, 2, dtype=torch.float64)
    if not bool(torch.isfinite(scores).all()):
        raise not_finite(model)
    return scores
