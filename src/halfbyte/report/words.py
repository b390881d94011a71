"""What the figures say, in words and numbers. Nothing is computed here that a file could have said: verdicts, intervals
and p-values are those of comparison.json; counts and means over parts of the predictions are named as such.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from halfbyte.evaluate.declared import metric_named
from halfbyte.evaluate.metrics import METRICS, Metric
from halfbyte.report.read import MEDIAN, Evidence, Prediction, Variant, as_number

# Control characters but tab and line feed, and those that set or end a direction of writing.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
_ALL = {metric.name: metric for metrics in METRICS.values() for metric in metrics}
_PRIMARY = [metrics[0].name for metrics in METRICS.values()]
_LABELS = {
    "mae": "mean absolute error",
    "mae_answered": "mean absolute error of the answered",
    "rmsle": "RMSLE",
    "rmsle_answered": "RMSLE of the answered",
    "within": "within the tolerance",
    "within_answered": "within the tolerance, of the answered",
    "unanswered": "without an answer",
    "accuracy_sum": "accuracy, likelihood of the whole",
    "accuracy_per_token": "accuracy, likelihood a token",
    "accuracy_per_byte": "accuracy, likelihood a byte",
    "contains": "reference in the answer",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "macro_f1": "macro F1",
    "loss": "loss in nats a token",
}
FORMAT_SHARE = 0.05  # of items: so many answers without a number, or absurd ones, are worth a word
_SPACE = "\N{NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}\N{WORD JOINER}"  # no line ends behind it
ABSURD = 10  # times the largest true value


def metric_of(name: str) -> Metric | None:
    """Ours of that name, else the harness's, of which only shares are known."""
    return _ALL.get(name) or metric_named("harness", name)


def label(name: str) -> str:
    """A metric in a few words, its unit included; its bare name where it is not one of ours."""
    return _LABELS.get(name, name.replace("_", " "))


def is_number_metric(name: str) -> bool:
    return name.partition("_")[0] in ("mae", "rmsle", "within")


def primary_metric(evidence: Evidence, base: Variant | None, tuned: Variant | None) -> str | None:
    """The metric that the page is about: that of the comparison of base and tuned, else the task's first."""
    found = comparison(evidence, base, tuned) if base and tuned else None
    if found and isinstance(found.get("metric"), str):
        return str(found["metric"])
    shown = [variant for variant in (tuned, base, *evidence.variants.values()) if variant]
    names = [name for variant in shown for name in variant.metrics]
    return next((name for name in _PRIMARY if name in names), names[0] if names else None)


def sides(evidence: Evidence) -> tuple[Variant | None, Variant | None]:
    """(base, tuned): the tuned model, and the base in the format that it stands on (else that of the run, or any)."""
    variants = evidence.variants
    others = [variant for name, variant in variants.items() if name != MEDIAN]
    tuned = variants.get("tuned") or next((v for v in others if v.result.get("adapter")), None)
    bases = [v for v in others if v is not tuned and not v.result.get("adapter")]
    weights = (tuned.result if tuned else evidence.config or {}).get("weights")
    bases.sort(key=lambda v: (not v.name.startswith("base"), v.result.get("weights") != weights, v.name))
    return (bases[0] if bases else None), tuned


def comparison(evidence: Evidence, a: Variant | None, b: Variant | None) -> dict[str, Any] | None:
    """The first comparison of `b` against `a`."""
    names = (a.name if a else None, b.name if b else None)
    return next((item for item in evidence.comparisons if (item["a"], item["b"]) == names), None)


# Texts of others


def visible(text: str) -> str:
    """`text` with the characters that are not seen, but turn what stands around them, as their codes."""
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def brief(text: str, most: int = 40) -> str:
    """A name in one line of at most `most` characters, where it is too long without its middle: names differ at their
    ends."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[head + 1 - most :]}"


# Numbers and units


def number_text(value: float | None, digits: int = 3) -> str:
    """`value` with at least `digits` significant digits, thousands separated, no exponent where it can be helped."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1e9 or (value and size < 1e-4):
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    whole = len(str(int(size))) if size >= 1 else 0
    text = f"{value:,.{max(0, digits - whole)}f}" if size >= 1 else f"{value:.{digits}g}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", _MINUS)


def bytes_text(size: float | None) -> str:
    """Decimal units, as model sizes are told: 5.59 GB."""
    if size is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{number_text(size / scale)}{_SPACE}{unit}"
    return f"{size:.0f}{_SPACE}B"


def value_text(name: str, value: float | None, unit: str = "") -> str:
    """A metric's value with its unit: a share in per cent, an error in the task's unit, if that is known."""
    if value is None:
        return "–"
    metric = metric_of(name)
    if metric and metric.in_percent:
        return f"{100 * value:.1f}{_SPACE}%".replace("-", _MINUS)
    if unit and name.startswith("mae"):
        sign = _MINUS if value < 0 else ""
        return f"{sign}{unit}{abs(value):,.{0 if abs(value) >= 1000 else 2}f}"
    return number_text(value)


def change_text(name: str, value: float | None, unit: str = "") -> str:
    """A difference of two values of a metric, with its sign; of shares in percentage points."""
    if value is None:
        return "–"
    metric = metric_of(name)
    text = value_text(name, value, unit)
    if metric and metric.in_percent:
        text = text.replace("%", "points")
    return f"+{text}" if value > 0 else text


def change_interval_text(found: Mapping[str, Any], unit: str = "") -> str:
    """The interval of a comparison's difference; "" where it has none."""
    low, high = interval_ends(found)
    if low is None or high is None:
        return ""
    name = str(found.get("metric"))
    return f"{change_text(name, low, unit)} to {change_text(name, high, unit)}".replace(f"{_SPACE}points to", " to")


def interval_text(name: str, low: float | None, high: float | None, unit: str = "") -> str:
    if low is None or high is None:
        return ""
    return f"{value_text(name, low, unit)} to {value_text(name, high, unit)}"


def unit_of(variants: Sequence[Variant]) -> str:
    """The currency sign before the answer, if every prompt ends in the same one."""
    ends = {p.prompt.rstrip()[-1:] for variant in variants for p in variant.predictions}
    return ends.pop() if len(ends) == 1 and ends <= {"$", "€", "£", "¥"} else ""


# Verdicts


def headline(
    evidence: Evidence, base: Variant | None, tuned: Variant | None, metric: str | None, format_only: bool = False
) -> tuple[str, str]:
    """(verdict, sentence): "better", "worse", "same" or "open", and what the page says first.

    `format_only`: `format_note` found that the gain is nothing else.
    """
    if not base and not tuned:
        return "open", "Nothing has been evaluated yet, so nothing is proven."
    if not base or not tuned or not metric:
        have = (tuned or base).name if (tuned or base) else ""  # type: ignore[union-attr]
        lack = "the base model" if not base else "a tuned model"
        return "open", f"Only {have} has been evaluated: without {lack} on the same items there is nothing to compare."
    unit = unit_of([base, tuned])
    change = f"{value_text(metric, base.value(metric), unit)} → {value_text(metric, tuned.value(metric), unit)}"
    found = comparison(evidence, base, tuned)
    if not found:
        return "open", f"{_capital(label(metric))} {change}. Whether that difference is real, no comparison says yet."
    good = "A gain in format only" if format_only else "Tuning made it better"
    words = {"better": ("better", good), "worse": ("worse", "Tuning made it worse")}
    verdict, start = words.get(str(found.get("verdict")), ("same", "No detectable difference"))
    return verdict, f"{start}: {label(metric)} {change}{_items(tuned)}."


def difference_text(found: Mapping[str, Any] | None, unit: str = "") -> str:
    """A comparison's difference with its interval."""
    if not found:
        return ""
    text = change_text(str(found.get("metric")), as_number(found["difference"].get("value")), unit)
    interval = change_interval_text(found, unit)
    p = as_number(found["difference"].get("p_adjusted", found["difference"].get("p")))
    chance = "" if p is None else f", p{_SPACE}<{_SPACE}0.001" if p < 0.001 else f", p{_SPACE}={_SPACE}{p:.3f}"
    return text + (f" ({level_text(found)} interval {interval}{chance})" if interval else "")


def level_text(found: Mapping[str, Any]) -> str:
    """The level of a comparison's interval: 95 %, or more where several were compared."""
    level = as_number(found["difference"].get("level"))
    return f"{100 * (0.95 if level is None else level):.4g} %"


def interval_ends(found: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return as_number(found["difference"].get("low")), as_number(found["difference"].get("high"))


def against_guess(evidence: Evidence, tuned: Variant | None, metric: str | None, unit: str) -> str:
    """How the tuned model stands against always answering the training median."""
    guess = evidence.variants.get(MEDIAN)
    if not guess or not tuned or not metric or guess.value(metric) is None:
        return ""
    text = f"Always answering the training median scores {value_text(metric, guess.value(metric), unit)}"
    found = comparison(evidence, guess, tuned)
    if not found:
        return text + "; no comparison with it was made."
    verdict = {"better": "the tuned model beats it", "worse": "the tuned model loses to it"}
    told = verdict.get(str(found.get("verdict")), "the tuned model can't be told from it")
    return f"{text}; {told}: difference {difference_text(found, unit)}."


def against_chance(variant: Variant | None, metric: str | None) -> str:
    """How a `choice` task's score stands against choosing an option at random."""
    chance = as_number(variant.result.get("chance_level")) if variant else None
    if variant is None or chance is None or metric not in ("accuracy", "accuracy_per_byte"):
        return ""
    low = as_number((variant.metric(metric) or {}).get("low"))
    told = "does better" if low is not None and low > chance else "can't be shown to do better"
    return f"Choosing at random scores {value_text(metric, chance)}; {variant.name} {told}."


def format_note(evidence: Evidence, base: Variant, tuned: Variant, metric: str, unit: str) -> tuple[bool, str]:
    """(only, text): whether the gain in a number task is nothing but one in format, and what is to say of that, or "".

    Form: the base's answers without a number, or with an absurd one. Scale: a base that is worse than the constant
    guess gains the whole way down to it by learning what such a number looks like at all. A gain that is nothing else,
    because the tuned model does not beat the constant guess, or is no better where both gave a number, is called that.
    """
    before, after = base.value(metric), tuned.value(metric)
    if metric != "mae" or before is None or after is None or after >= before:
        return False, ""
    guess = evidence.variants.get(MEDIAN)
    constant = guess.value(metric) if guess else None
    faults, scale = _faults(base), constant is not None and before > constant
    if not faults and not scale:
        return False, ""
    said, only = [f"{faults[:1].upper()}{faults[1:]}."] * bool(faults), False
    if constant is not None and scale:
        versus = comparison(evidence, guess, tuned)
        only = versus.get("verdict") != "better" if versus else after >= constant
        rest = f"; the rest, down to {value_text(metric, after, unit)}, is read from the items."
        said.append(
            f"The way from {value_text(metric, before, unit)} to {value_text(metric, constant, unit)} is learning what "
            "such a number looks like, which always answering the training median does, too"
            + (", and the tuned model can't be shown to do better than that." if only else rest)
        )
    found = comparison(evidence, base, tuned) or {}
    if "both_answered" in found:
        both = found["both_answered"]
        only = only or not both or (found.get("verdict") == "better" and both.get("verdict") != "better")
        said.append(_told_of_both(both, metric, unit) if both else "There is no item to which both gave a number.")
    return only, " ".join([f"This is {'only' if only else 'partly'} a gain in format.", *said])


def _faults(base: Variant) -> str:
    """What is wrong with the form of the base's answers, where that is worth a word."""
    limit = ABSURD * max((abs(p.true) for p in base.predictions if p.true is not None), default=math.inf)
    numbers = [p.number for p in base.predictions]
    silent = fmean(number is None for number in numbers) if numbers else 0.0
    absurd = fmean(number is not None and abs(number) > limit for number in numbers) if numbers else 0.0
    said = [f"{100 * silent:.0f} % hold no number"] * (silent >= FORMAT_SHARE)
    said += [f"{100 * absurd:.0f} % are more than {ABSURD} times the largest true value"] * (absurd >= FORMAT_SHARE)
    return f"of the base's answers, {' and '.join(said)}" if said else ""


def _told_of_both(both: Mapping[str, Any], metric: str, unit: str) -> str:
    """The comparison over the items to which both gave a number."""
    old, new = (value_text(metric, as_number(both.get(key)), unit) for key in ("a_value", "b_value"))
    change = difference_text({"metric": metric, **both}, unit)
    return f"On the {both.get('n', 0):,} items to which both gave a number: {old} → {new}, {change}."


def wrong_note(tuned: Variant, unit: str) -> list[str]:
    """Number tasks: where the tuned model errs, by size of the true value, and to which side."""
    known = [(p.true, p.number) for p in tuned.predictions if p.true is not None and p.number is not None]
    if len(known) < 8:
        return []
    known.sort(key=lambda pair: pair[0] or 0.0)
    lines = []
    quarter = len(known) // 4
    for name, part in (("smallest", known[:quarter]), ("largest", known[-quarter:])):
        error = fmean(abs((answer or 0.0) - (true or 0.0)) for true, answer in part)
        bound = part[-1][0] if name == "smallest" else part[0][0]
        side = "up to" if name == "smallest" else "from"
        lines.append(
            f"On the quarter with the {name} true values ({side} {money(bound, unit)}) it is off by "
            f"{money(error, unit)} on average."
        )
    low = fmean(answer < true for true, answer in known if true is not None and answer is not None)
    high = fmean(answer > true for true, answer in known if true is not None and answer is not None)
    lines.append(f"{100 * low:.0f} % of its answers are too low, {100 * high:.0f} % too high.")
    return lines


def item_error(variant: Variant, prediction: Prediction, metric: str) -> float | None:
    """The item's own score of `metric`, turned so that more is worse. A metric that is not ours is better the way that
    the result says."""
    known = _ALL.get(metric)
    ours = known is not None and known.item in prediction.scores
    item, better = (known.item, known.item_better) if known and ours else (metric, variant.better(metric))
    score = prediction.scores.get(item)
    return None if score is None else score if better == "lower" else -score


def money(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{unit}{value:,.2f}" if unit else number_text(value)


def _items(variant: Variant) -> str:
    count = variant.result.get("items")
    return f", on the same {count:,} items" if isinstance(count, int) else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
