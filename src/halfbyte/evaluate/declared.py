"""Metrics that a result declares itself, because they are not among `METRICS`: those of the harness's tasks.

The declaration is plain data and a part of the result, so that a comparison reads from the folder alone which way each
metric is better and how the items' scores make it. It is no part of the fingerprint: whether a metric is of right and
wrong items only is seen from what the model answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from halfbyte.errors import ConfigError
from halfbyte.evaluate.metrics import METRICS, Metric, Table, metrics_of
from halfbyte.evaluate.sums import Floats

Declared = Mapping[str, Mapping[str, str]]  # name: better ("lower" | "higher"), form (see `_metric`)
SHARES = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"})  # the harness's: right or wrong
NATS, WEIGHT = ":nats", ":weight"  # columns of a metric that is no mean
_FINISH: dict[str, Callable[[Floats], Floats]] = {"perplexity": np.exp, "bits": lambda ratio: ratio / math.log(2)}


def metrics_for(kind: str, table: Table, declared: Declared | None) -> list[Metric]:
    """The metrics of `kind`, or the `declared` ones. Raises ConfigError where none is made of the items' scores."""
    if declared is None:
        return metrics_of(kind, table)
    if not declared:
        raise ConfigError("none of the task's metrics is made of its items' scores, so there is nothing to compare",
                          do="take a task with a metric by item, such as acc or exact_match")  # fmt: skip
    return [_metric(name, **facts) for name, facts in declared.items()]


def declared_by_both(one: Declared | None, other: Declared | None) -> Declared | None:
    """What holds for two results: a metric that only one knows as right or wrong is a mean of both. Raises ConfigError
    where they have none in common."""
    if one is None or other is None:
        return one
    both: dict[str, Mapping[str, str]] = {}
    for name, facts in one.items():
        theirs = other.get(name)
        if theirs == facts:
            both[name] = facts
        elif theirs is not None and {facts["form"], theirs["form"]} == {"right", "mean"}:
            both[name] = {**facts, "form": "mean"}
    if one and other and not both:
        raise ConfigError("the two results have no metric in common", found=f"{', '.join(one)} and {', '.join(other)}",
                          do="look for values that are no numbers in result.json, and evaluate again")  # fmt: skip
    return both


def first_metric(kind: str, declared: Declared | None) -> Metric | None:
    """The metric that decides the comparisons; None where none is made of the items' scores."""
    if declared is None:
        return METRICS[kind][0]
    return next((_metric(name, **facts) for name, facts in declared.items()), None)


def metric_named(kind: str, name: str) -> Metric | None:
    """How a metric of a result of `kind` is shown; None: as a plain number."""
    if kind == "harness":
        return _metric(name, "higher", "right") if name.partition(",")[0] in SHARES else None
    return next((metric for metric in METRICS.get(kind, ()) if metric.name == name), None)


def _metric(name: str, better: str, form: str) -> Metric:
    """`form`: "right" (0 or 1 an item), "mean"; "perplexity" and "bits" of summed nats over summed weights."""
    if form in ("right", "mean"):
        return Metric(name, "", better, name, _column(name), _ones, share=form == "right")
    return Metric(name, "", better, name, _column(name + NATS), _column(name + WEIGHT), _FINISH[form])


def _column(name: str) -> Callable[[Table], Floats]:
    return lambda table: np.asarray(table[name], dtype=np.float64)


def _ones(table: Table) -> Floats:
    return np.ones(len(table["answer"]))
