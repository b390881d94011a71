"""What is counted: the scores of an item, and the metrics of a test set that are made of them.

A score is the metric of that item alone, so that `predictions.jsonl` holds everything that a metric is computed from,
and a comparison needs no model. Lower is better for errors and losses, higher for shares and F1.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.config import ContainsConfig, ToleranceConfig
from halfbyte.evaluate.likeness import occurrences
from halfbyte.evaluate.structured import MISSING, Fields, leaves, same, shown_path
from halfbyte.evaluate.sums import Floats, MacroF1, Ratio, Sums

Scores = dict[str, float]  # of an item
Table = Mapping[str, NDArray[Any]]  # the scores of all items, a column a score; "answer" and "reference" hold texts


@dataclass(frozen=True)
class Metric:
    """A figure of a test set. `item` is the score by which two answers to one item compare."""

    name: str
    text: str
    better: str  # "lower" | "higher"
    item: str
    numerator: Callable[[Table], Floats]
    denominator: Callable[[Table], Floats]
    finish: Callable[[Floats], Floats] | None = None
    share: bool = False  # of right or wrong items: numerator and denominator are 0 or 1
    unit: str = ""
    f1: bool = False
    percent: bool = False  # a share of something else than items

    @property
    def in_percent(self) -> bool:
        """Whether it is shown in per cent, and its differences in percentage points."""
        return self.share or self.f1 or self.percent

    @property
    def item_better(self) -> str:
        """Whether `item` is better "lower" or "higher"; it is the metric's own way but for the share of unanswered."""
        return "higher" if self.item == "answered" else self.better

    def n(self, table: Table) -> int:
        """Items that it is computed from."""
        return int(np.count_nonzero(self.denominator(table)))

    def statistic(self, table: Table, unit_of: NDArray[Any]) -> Sums:
        """The metric as a function of how often each unit counts; `unit_of` [items] is each item's unit."""
        return self.statistics([table], unit_of)[0]

    def statistics(self, tables: Sequence[Table], unit_of: NDArray[Any]) -> list[Sums]:
        """The same of several models on the same items, whose sums have the same columns."""
        if self.f1:
            return _macro_f1(tables, unit_of)
        units = int(unit_of.max()) + 1 if len(unit_of) else 0
        made: list[Sums] = []
        for table in tables:
            above = np.bincount(unit_of, self.numerator(table), units).astype(np.float64)
            below = np.bincount(unit_of, self.denominator(table), units).astype(np.float64)
            made.append(Ratio(above, below, self.finish))
        return made


def _macro_f1(tables: Sequence[Table], unit_of: NDArray[Any]) -> list[Sums]:
    """Of the classes that `tables` name; "" is no answer."""
    texts = np.concatenate([table[side] for table in tables for side in ("reference", "answer")])
    names, numbers = np.unique(texts, return_inverse=True)
    if len(names) and names[0] == "":
        names, numbers = names[1:], numbers - 1
    sides = numbers.reshape(len(tables), 2, -1)
    return [MacroF1(references, answers, unit_of, len(names)) for references, answers in sides]


def _column(name: str, power: int = 1) -> Callable[[Table], Floats]:
    return lambda table: np.asarray(table[name] ** power, dtype=np.float64)


def _ones(table: Table) -> Floats:
    return np.ones(len(next(iter(table.values()))))


def _answered(name: str, power: int = 1) -> Callable[[Table], Floats]:
    return lambda table: np.asarray(table[name] ** power * table["answered"], dtype=np.float64)


def _mean(name: str, text: str, better: str, **options: Any) -> Metric:
    return Metric(name, text, better, name, _column(name), _ones, **options)


_ERROR = "mean absolute error"
_RMSLE = "root mean squared logarithmic error; a negative answer counts as 0"
_WITHIN = "share of answers within the tolerance"
_UNANSWERED = Metric("unanswered", "share of items without an answer", "lower", "answered",
                     lambda table: 1.0 - table["answered"], _ones, share=True)  # fmt: skip

METRICS: dict[str, tuple[Metric, ...]] = {  # the first one of a kind decides its comparisons
    "number": (
        _mean("mae", _ERROR, "lower"),
        Metric("rmsle", _RMSLE, "lower", "rmsle", _column("rmsle", 2), _ones, np.sqrt),
        _mean("within", _WITHIN, "higher", share=True),
        _UNANSWERED,
        Metric("mae_answered", _ERROR + " of the answered", "lower", "mae", _answered("mae"), _column("answered")),
        Metric("rmsle_answered", _RMSLE + "; of the answered", "lower", "rmsle",
               _answered("rmsle", 2), _column("answered"), np.sqrt),
        Metric("within_answered", _WITHIN + ", of the answered", "higher", "within",
               _answered("within"), _column("answered"), share=True),
    ),
    "choice": (
        _mean("accuracy", "share of right choices", "higher", share=True),
        Metric("macro_f1", "mean F1 of the classes", "higher", "accuracy", _column("accuracy"), _ones, f1=True),
        _mean("accuracy_sum", "the same by the likelihood of each whole option", "higher", share=True),
        _mean("accuracy_per_token", "the same by the likelihood a token of each option", "higher", share=True),
        _mean("accuracy_per_byte", "the same by the likelihood a byte of each option", "higher", share=True),
        _UNANSWERED,
    ),
    "exact": (
        _mean("exact_match", "share of answers that equal the reference, both normalised", "higher", share=True),
        _UNANSWERED,
    ),
    "contains": (
        _mean("contains", "share of answers in which the reference occurs", "higher", share=True),
        _UNANSWERED,
    ),
    "json": (
        Metric("field_accuracy", "share of the references' fields that are right", "higher", "field_accuracy",
               _column("right_fields"), _column("fields"), percent=True),
        _mean("object_match", "share of answers that are the reference object", "higher", share=True),
        _mean("valid", "share of answers that are JSON", "higher", share=True),
        _mean("schema_valid", "share of answers that the schema allows", "higher", share=True),
        _UNANSWERED,
    ),
    "text": (
        _mean("chrf", "chrF2 by sacrebleu, 0 to 100: character n-grams; the mean of the items'", "higher"),
        _mean("rouge_l", "ROUGE-L F1, 0 to 1: the longest common subsequence of words", "higher"),
        _UNANSWERED,
    ),
    "python": (
        _mean("score", "mean of the user's function", "higher"),
        _UNANSWERED,
    ),
    "loss": (
        Metric("loss", "negative log-likelihood a token of the reference and its end", "lower", "loss",
               _column("nats"), _column("tokens"), unit="nats/token"),
        Metric("perplexity", "exp(loss)", "lower", "loss", _column("nats"), _column("tokens"), np.exp),
        Metric("bits_per_byte", "the same in bits, a UTF-8 byte of the reference", "lower", "bits_per_byte",
               _column("nats"), _column("bytes"), lambda ratio: ratio / math.log(2), unit="bits/byte"),
    ),
}  # fmt: skip


def metric_for(kind: str) -> Metric:
    """The metric that ranks models: the kind's first, but bits a byte for `loss`, since their tokenizers differ."""
    known = {metric.name: metric for metric in METRICS[kind]}
    return known["bits_per_byte"] if kind == "loss" else next(iter(known.values()))


def metrics_of(kind: str, table: Table) -> list[Metric]:
    """The metrics of `kind` whose scores are in `table` (e.g. no `within` without a tolerance)."""
    needed = {"rmsle_answered": "rmsle", "within_answered": "within"}
    return [m for m in METRICS[kind] if needed.get(m.name, m.item) in table]


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
