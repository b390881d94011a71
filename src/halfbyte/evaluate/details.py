"""What lies behind the metrics: classes, confusions, calibration, fields, the worst items, and those that changed most.

Everything is computed from predictions alone, and stands in result.json under `details` (docs/tasks.md has the keys).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.evaluate.declared import Declared, first_metric
from halfbyte.evaluate.metrics import Metric
from halfbyte.evaluate.results import measured
from halfbyte.evaluate.scores import normalise
from halfbyte.evaluate.statistics import estimate
from halfbyte.evaluate.sums import Floats

Prediction = Mapping[str, Any]
MOST_CLASSES = 200  # of a task that has a table of them
SHOWN = 10  # worst items, and most frequent confusions
_PER_BIN, _BINS = 20, 10  # items in a bin of the calibration at least; bins at most
_LONGEST = 300  # characters of a text that is kept
_RIGHT = Metric("right", "share of items in which a field is right", "higher", "right", lambda table: table["right"],
                lambda table: np.ones(len(table["right"])), share=True)  # fmt: skip
_BY_SUM = ("accuracy", "acc")  # of a choice by the likelihood of whole options, as `log_likelihoods` has it


def details(
    kind: str, predictions: Sequence[Prediction], unit_of: NDArray[Any], seed: int, declared: Declared | None = None
) -> dict[str, Any]:
    """`worst` of every kind; `classes` and `confusions` of `choice`, and of `exact` where its references are few;
    `calibration` of `number`; `fields` of `json`. `unit_of` [items] is each item's unit (see `results.units_of`).

    `declared`: the metrics of a harness's task. Its choices have classes, too, where each item has one right option.
    `worst` is by the first metric, and empty where none is made of items.
    """
    found: dict[str, Any] = {"worst": worst(kind, predictions, declared=declared)}
    if kind in ("choice", "exact") or (kind == "harness" and all(_margin(p) is not None for p in predictions)):
        found |= by_class(predictions, normalise if kind == "exact" else str.strip)
    if kind == "number":
        found["calibration"] = calibration(predictions, unit_of, seed)
    if kind == "json":
        found["fields"] = by_field(predictions, unit_of, seed)
    return found


def by_class(predictions: Sequence[Prediction], key_of: Callable[[str], str] = normalise) -> dict[str, Any]:
    """`classes`: of each class of the references its precision (None where it is never answered), recall, F1 and
    support (items), the most frequent first; `confusions`: the most frequent pairs of reference and wrong answer.

    A class is what `key_of` makes of a reference: options ("C" and "C+") are told apart as they are, the free texts of
    `exact` as it compares them. Empty where there are more than `MOST_CLASSES`, or too few items for them.
    """
    pairs = [(key_of(p["reference"]), key_of(_chosen(p))) for p in predictions]
    names: dict[str, str] = {}
    for key, p in zip(pairs, predictions, strict=True):
        names.setdefault(key[0], p["reference"].strip())
    if not 1 < len(names) <= MOST_CLASSES or 2 * len(names) > len(pairs):
        return {}
    support, answered = Counter(true for true, _ in pairs), Counter(said for _, said in pairs)
    right = Counter(true for true, said in pairs if true == said)
    rows = [
        {"class": name, "precision": right[key] / answered[key] if answered[key] else None,
         "recall": right[key] / support[key], "f1": 2 * right[key] / (support[key] + answered[key]),
         "support": support[key], "answered": answered[key]}
        for key, name in names.items()
    ]  # fmt: skip
    rows.sort(key=lambda row: (-int(str(row["support"])), str(row["class"])))
    return {"classes": rows, "confusions": confusions(predictions, key_of=key_of)}


def _chosen(p: Prediction) -> str:
    return str(p.get("option", p["answer"]) or "")


def confusions(
    predictions: Sequence[Prediction], count: int = SHOWN, key_of: Callable[[str], str] = normalise
) -> list[dict[str, Any]]:
    """The `count` most frequent pairs of a reference and the wrong answer that was given ("": none)."""
    pairs = ((p["reference"].strip(), cut(_chosen(p).strip(), _LONGEST)) for p in predictions)
    wrong = Counter((true, said) for true, said in pairs if key_of(true) != key_of(said))
    most = sorted(wrong.items(), key=lambda pair: (-pair[1], pair[0]))[:count]
    return [{"reference": true, "answer": said, "count": number} for (true, said), number in most]


class Slope:
    """The slope of the line of least squares through y against x, as a function of how often each unit counts.

    `x`, `y` and `unit_of` are per item. It is nan where x does not vary.
    """

    def __init__(self, x: Floats, y: Floats, unit_of: NDArray[Any]) -> None:
        x, y = x - x.mean(), y - y.mean()
        scale = float(np.abs(x).max()) or 1.0  # so that squares of large numbers lose nothing
        x, self._scale = x / scale, scale
        self.units = int(unit_of.max()) + 1
        columns = (np.ones(len(x)), x, y, x * x, x * y)
        self.sums = np.stack([np.bincount(unit_of, column, self.units) for column in columns], axis=1)

    def _of(self, sums: Floats) -> Floats:
        n, x, y, xx, xy = sums.T
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = n * xx - x * x
            steep = (n * xy - x * y) / spread / self._scale
        return np.where(spread > 1e-12 * np.maximum(n * xx, 1e-300), steep, np.nan)

    def value(self, weights: Floats) -> Floats:
        return self._of(weights @ self.sums)

    def left_out(self) -> Floats:
        return self._of(self.sums.sum(axis=0) - self.sums)


def calibration(predictions: Sequence[Prediction], unit_of: NDArray[Any], seed: int) -> dict[str, Any]:
    """True values against answered ones, over the items with a number.

    `slope` is that of the true values by the answers (`value`, `low`, `high`; None where answers do not vary), with
    `intercept`: 1 and 0 are calibrated; below 1 answers are more extreme than the truth, above it too timid. `bins`
    hold about as many items each, by the answer: `low`, `high` and `predicted` are of the answers, `true` is the mean
    of the references.
    """
    kept = [at for at, p in enumerate(predictions) if p["parsed"] is not None]
    found: dict[str, Any] = {"n": len(kept), "slope": None, "intercept": None, "bins": []}
    if not kept:
        return found
    said = np.array([float(predictions[at]["parsed"]) for at in kept])
    true = np.array([float(predictions[at]["reference_parsed"]) for at in kept])
    _, units = np.unique(unit_of[kept], return_inverse=True)
    slope = estimate(Slope(said, true, units), seed=seed)
    if slope.value is not None:
        found["slope"] = {"value": slope.value, "low": slope.low, "high": slope.high}
        found["intercept"] = float(true.mean() - slope.value * said.mean())
    order = np.argsort(said, kind="stable")
    for part in _bins(said[order]):
        rows = order[part]
        found["bins"].append({"low": float(said[rows[0]]), "high": float(said[rows[-1]]), "n": len(rows),
                              "predicted": float(said[rows].mean()), "true": float(true[rows].mean())})  # fmt: skip
    return found


def _bins(ordered: Floats) -> list[slice]:
    """Parts of about the same size; equal answers stay together."""
    count = max(1, min(_BINS, len(ordered) // _PER_BIN))
    ends = {int(np.searchsorted(ordered, ordered[at * len(ordered) // count - 1], "right")) for at in range(1, count)}
    edges = sorted({0, len(ordered)} | ends)
    return [slice(first, last) for first, last in pairwise(edges)]


def by_field(predictions: Sequence[Prediction], unit_of: NDArray[Any], seed: int) -> list[dict[str, Any]]:
    """Accuracy of each field of the references (`field`, `value`, `low`, `high`, `n`), the lowest first."""
    right: dict[str, list[tuple[int, bool]]] = {}
    for unit, p in zip(unit_of.tolist(), predictions, strict=True):
        for path, hit in p["fields"].items():
            right.setdefault(path, []).append((unit, bool(hit)))
    rows = []
    for path, hits in right.items():
        _, units = np.unique([unit for unit, _ in hits], return_inverse=True)
        found = measured(_RIGHT, {"right": np.array([hit for _, hit in hits], dtype=np.float64)}, units, seed)
        rows.append({"field": path, "value": found.value, "low": found.low, "high": found.high, "n": len(hits)})
    return sorted(rows, key=lambda row: (float(row["value"]), str(row["field"])))


def worst(
    kind: str, predictions: Sequence[Prediction], count: int = SHOWN, declared: Declared | None = None
) -> list[dict[str, Any]]:
    """The `count` items with the worst score of the first metric: `id`, `prompt` (its end), `answer`, `reference`,
    `score`; none that is right.

    Of a choice by likelihood: those in which the model was surest of a wrong option (`score` is then by how many nats
    the likelihood of the right one is below that of the chosen one). Of equals, those with the smallest hashes of ids.
    """
    metric = first_metric(kind, declared)
    if metric is None:
        return []
    best = _best(kind, metric)
    sign = 1.0 if metric.item_better == "higher" else -1.0
    margins = [_margin(p) if metric.item in _BY_SUM else None for p in predictions]
    by_margin = None not in margins
    rows = []
    for p, margin in zip(predictions, margins if by_margin else [None] * len(predictions), strict=True):
        score = float(p["scores"][metric.item])
        if score == best:
            continue
        rows.append((sign * score if margin is None else margin, lot(p["id"]), p, score if margin is None else margin))
    rows.sort(key=lambda row: row[:2])
    return [
        {"id": p["id"], "prompt": cut(p["prompt"], _LONGEST, tail=True), "answer": None if p["answer"] is None else
         cut(p["answer"], _LONGEST), "reference": cut(p["reference"], _LONGEST), "score": score}
        for _, _, p, score in rows[:count]
    ]  # fmt: skip


def _best(kind: str, metric: Metric) -> float | None:
    """The score of an item that nothing is wrong with; None where there is no such."""
    if kind == "harness":
        return 1.0 if metric.share else None
    return {"number": 0.0, "text": 100.0, "loss": None, "python": None}.get(kind, 1.0)


def _margin(p: Prediction) -> float | None:
    """By how many nats the right option is behind the chosen one; None where there is no one such."""
    found = p.get("log_likelihoods")
    if not isinstance(found, Mapping) or p["answer"] is None:
        return None
    nats = {str(option).strip(): value for option, value in found.items()}
    right, chosen = p["reference"].strip(), p["answer"].strip()
    return float(nats[right] - nats[chosen]) if right in nats and chosen in nats else None


def lot(identity: str) -> str:
    """What an item draws among equals: the same in every file and run, whatever their order."""
    return hashlib.sha256(identity.encode()).hexdigest()


def cut(text: str, longest: int, *, tail: bool = False) -> str:
    """At most `longest` characters of `text`, with a mark where something is left out."""
    if len(text) <= longest:
        return text
    return f"… {text[-longest:]}" if tail else f"{text[:longest]} …"


def most_changed(
    before: Mapping[str, float], after: Mapping[str, float], *, better: str, count: int = SHOWN
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """(improved, worsened): the items of both, by id with their gain (above 0: better), the largest change first.

    `before` and `after` are the items' scores, `better` is "lower" or "higher". Of equals, those with the smallest
    hashes of their ids, so that neither the order of a file nor a seed decides.
    """
    sign = 1.0 if better == "higher" else -1.0
    gains = [(name, sign * (after[name] - before[name])) for name in before if name in after]

    def most(wanted: Callable[[float], bool]) -> list[tuple[str, float]]:
        return sorted((row for row in gains if wanted(row[1])), key=lambda row: (-abs(row[1]), lot(row[0])))[:count]

    return most(lambda gain: gain > 0), most(lambda gain: gain < 0)
