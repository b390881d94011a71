"""The scores of an item, and how its answer is compared with its reference.

A score is the metric of that item alone, so that `predictions.jsonl` holds everything that a metric is computed from.

`number`: an answer without a number is never taken as zero. It counts as the task's fallback (the training median), in
every metric; the share of such answers and the metrics over the answered alone stand beside.
`choice`, `exact`, `contains`: right or wrong. `json`: right fields of the reference's. `text`: likeness from 0 to 1
(ROUGE-L) or 100 (chrF), the mean of the items'. `python`: what the user's function says. `loss`: nats of the
reference's tokens, the end of the answer (EOS) included, as in the validation loss of a run; bits per byte divide the
same sum by the reference's UTF-8 bytes, so that models with different tokenizers compare.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.config import ContainsConfig, ToleranceConfig
from halfbyte.evaluate.likeness import occurrences
from halfbyte.evaluate.structured import MISSING, Fields, leaves, same, shown_path

Scores = dict[str, float]  # of an item


def number_scores(
    parsed: float | None, reference: float, fallback: float, tolerance: ToleranceConfig, *, logarithmic: bool
) -> Scores:
    """Scores of one number; None counts as `fallback`. `logarithmic`: no reference is negative, so RMSLE is defined."""
    answer = fallback if parsed is None else parsed
    error = abs(answer - reference)
    scores = {"answered": float(parsed is not None), "mae": error}
    if logarithmic:
        scores["rmsle"] = abs(math.log1p(max(0.0, answer)) - math.log1p(reference))
    bounds = []
    if tolerance.relative is not None:
        bounds.append(tolerance.relative * abs(reference))
    if tolerance.absolute is not None:
        bounds.append(tolerance.absolute)
    if bounds:  # a share is a share of decimal numbers: 20 % of 19.99 must not fail on the last bit
        scores["within"] = float(error <= max(bounds) * (1 + 1e-9))
    return scores


_RULES = {"none": "accuracy_sum", "tokens": "accuracy_per_token", "bytes": "accuracy_per_byte"}


def choice_scores(
    nats: Sequence[float], tokens: Sequence[int], sizes: Sequence[int], reference: int, normalise: str = "none"
) -> tuple[int, Scores]:
    """The chosen option and its scores. `nats`: log-likelihood of each option; `tokens`, `sizes`: its tokens and bytes.

    `accuracy` is of the option with the largest sum of log-probabilities (`acc` of the literature), or, as `normalise`
    says, with the largest sum a token or a byte (its `acc_norm`). The two rules that do not decide stand beside it.
    Among equals the first option counts.
    """
    lengths = {"none": [1] * len(nats), "tokens": tokens, "bytes": sizes}
    chosen = {
        rule: max(range(len(nats)), key=lambda i: (nats[i] / max(1, each[i]), -i)) for rule, each in lengths.items()
    }
    beside = {_RULES[rule]: float(place == reference) for rule, place in chosen.items() if rule != normalise}
    return chosen[normalise], {"accuracy": float(chosen[normalise] == reference)} | beside


def exact_scores(answer: str, reference: str) -> Scores:
    """Right or wrong after `normalise`; an answer of nothing but white space is none."""
    return {
        "exact_match": float(normalise(answer) == normalise(reference)),
        "answered": float(bool(answer.strip())),
    }


def contains_scores(answer: str, reference: str, rule: ContainsConfig) -> Scores:
    """Whether the reference occurs in the answer, both written as `rule` has it."""
    text, wanted = _comparable(answer, rule), _comparable(reference, rule)
    there = bool(occurrences(wanted, text)) if rule.words else wanted in text
    return {"contains": float(there), "answered": float(bool(answer.strip()))}


def _comparable(text: str, rule: ContainsConfig) -> str:
    text = unicodedata.normalize("NFKC", text)
    if not rule.case:
        text = text.casefold()
    return text if rule.space else " ".join(text.split())


def json_scores(answer: str, found: Any, reference: Mapping[str, Any], allowed: bool | None) -> tuple[Scores, Fields]:
    """Scores of the JSON value `found` in `answer` (MISSING: none), and whether each field of `reference` is right.

    `allowed`: whether the schema allows it; None: there is no schema.
    """
    wanted, given = leaves(reference), leaves(found) if isinstance(found, dict) else {}
    right = {shown_path(path): path in given and same(given[path], value) for path, value in wanted.items()}
    scores = {
        "field_accuracy": sum(right.values()) / len(right),
        "right_fields": float(sum(right.values())),
        "fields": float(len(right)),
        "object_match": float(found is not MISSING and same(found, dict(reference))),
        "valid": float(found is not MISSING),
        "answered": float(bool(answer.strip())),
    }
    return scores | ({} if allowed is None else {"schema_valid": float(allowed)}), right


def loss_scores(nats: float, tokens: int, size: int) -> Scores:
    """`nats`: summed negative log-likelihood of `tokens` tokens, whose text has `size` bytes."""
    return {
        "loss": nats / tokens,
        "bits_per_byte": nats / size / math.log(2),
        "nats": nats,
        "tokens": float(tokens),
        "bytes": float(size),
    }


_OPEN, _CLOSE = "\"'`*([{<“”‘’«»„‚¡¿", "\"'`*)]}>“”‘’«»„‚.,;:!?…。！？"


def normalise(text: str) -> str:
    """What `exact` compares: Unicode NFKC, case folded, white space collapsed, and the quotes, brackets and marks of
    emphasis around the text and the sentence's punctuation after it stripped. Signs, points and units that belong to a
    number stay ("-5", ".5" and "5 %" are not "5"). A text of nothing but punctuation stays as it is.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = folded
    while True:
        shorter = bare.rstrip(_CLOSE).lstrip(_OPEN).strip()
        if shorter == bare:
            return bare or folded
        bare = shorter
