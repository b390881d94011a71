"""What is counted: the metrics of a test set, made of the scores of its items (see `scores.py`).

Lower is better for errors and losses, higher for shares and F1. A metric is computed from what `predictions.jsonl`
holds, so a comparison needs no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.evaluate.sums import Floats, MacroF1, Ratio, Sums

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
    most: float | None = None  # the largest value, where it is known and not 100 %

    @property
    def in_percent(self) -> bool:
        """Whether it is shown in per cent, and its differences in percentage points."""
        return self.share or self.f1 or self.percent

    @property
    def widest(self) -> float | None:
        """The largest difference that two results can have; None: it is not known."""
        return 1.0 if self.in_percent else self.most

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
        _mean("chrf", "chrF2 by sacrebleu, 0 to 100: character n-grams; the mean of the items'", "higher", most=100),
        _mean("rouge_l", "ROUGE-L F1, 0 to 1: the longest common subsequence of words", "higher", most=1),
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
