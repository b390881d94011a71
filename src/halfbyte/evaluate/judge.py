"""From an answer that a model wrote to a line of predictions.jsonl: one judge a kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from halfbyte.data.numbers import parse_number
from halfbyte.evaluate.likeness import chrf, occurrences, rouge_l
from halfbyte.evaluate.scorer import load_scorer, score
from halfbyte.evaluate.scores import Scores, contains_scores, exact_scores, json_scores, normalise, number_scores
from halfbyte.evaluate.structured import MISSING, allows, checker, load_schema, read_json
from halfbyte.evaluate.tasks import Item, TaskSet

Prediction = dict[str, Any]  # id, group, prompt, answer, reference, parsed, scores
Judge = Callable[[Item, str], Prediction]


def judge_of(tasks: TaskSet) -> Judge:
    """What scores the answers of this task. A scoring function's file is run here, before anything is asked, and the
    function is tried on the first item: with its reference, and with no answer at all, as a model may give it.

    Raises ConfigError for such a file that fails, HalfbyteError for such a trial, and what the kind's library raises;
    the judge itself raises HalfbyteError where the scoring function fails on an item.
    """
    return _JUDGES[tasks.task.kind](tasks)


def check_judge(tasks: TaskSet) -> None:
    """Raises what `judge_of` does; of a kind without generated answers there is nothing to check."""
    if tasks.task.generates:
        judge_of(tasks)


def prediction(item: Item, answer: str | None, parsed: Any, scores: Scores, **more: Any) -> Prediction:
    """A line of predictions.jsonl."""
    return {
        "id": item.id,
        "group": item.group,
        "prompt": item.example.prompt,
        "answer": answer,
        "reference": item.reference,
        "parsed": parsed,
        "scores": scores,
        **more,
    }


def _number(tasks: TaskSet) -> Judge:
    fallback, tolerance = tasks.fallback, tasks.task.tolerance
    numbers = [item.number for item in tasks.items if item.number is not None]
    assert fallback is not None and len(numbers) == len(tasks.items)
    logarithmic = min(numbers) >= 0

    def judge(item: Item, answer: str) -> Prediction:
        assert item.number is not None
        parsed = parse_number(answer)
        scores = number_scores(parsed, item.number, fallback, tolerance, logarithmic=logarithmic)
        return prediction(item, answer, parsed, scores, reference_parsed=item.number)

    return judge


def _exact(tasks: TaskSet) -> Judge:
    return lambda item, answer: prediction(item, answer, answer.strip() or None, exact_scores(answer, item.reference))


def _contains(tasks: TaskSet) -> Judge:
    rule = tasks.task.contains
    return lambda item, answer: prediction(
        item, answer, answer.strip() or None, contains_scores(answer, item.reference, rule)
    )


def _choice(tasks: TaskSet) -> Judge:
    def judge(item: Item, answer: str) -> Prediction:
        place = named_option(answer, item.options)
        scores = {"accuracy": float(place == item.right), "answered": float(place is not None)}
        chosen = "" if place is None else item.options[place]
        return prediction(item, answer, chosen.strip() or None, scores, option=chosen)

    return judge


def named_option(answer: str, options: Sequence[str]) -> int | None:
    """The place of the option that a written answer names; None where it names none, or several.

    That is the option that equals the answer, both normalised as kind `exact` does it. Else it is the only option that
    stands in the answer, with no letter or digit at its ends; a place that lies within that of a longer option
    ("change" in "insurance change") does not count.
    """
    text, names = normalise(answer), [normalise(option) for option in options]
    if text in names:
        return names.index(text)
    spans = [(first, -end, place) for place, name in enumerate(names) for first, end in occurrences(name, text)]
    named, outer = set(), (-1, 0)  # the one that reaches farthest so far: what ends within it does not count
    for first, end, place in sorted(spans):
        if end < outer[1] or (first, end) == outer:
            outer = (first, end)
            named.add(place)
    return named.pop() if len(named) == 1 else None


def _json(tasks: TaskSet) -> Judge:
    file = tasks.task.schema
    check = None if file is None else checker(file, load_schema(file))

    def judge(item: Item, answer: str) -> Prediction:
        found = read_json(answer)
        allowed = None if check is None or file is None else allows(check, found, file)
        scores, fields = json_scores(answer, found, item.fields, allowed)
        return prediction(item, answer, None if found is MISSING else found, scores, fields=fields)

    return judge


def _text(tasks: TaskSet) -> Judge:
    def judge(item: Item, answer: str) -> Prediction:
        scores = {"chrf": chrf(answer, item.reference), "rouge_l": rouge_l(answer, item.reference)}
        return prediction(item, answer, answer.strip() or None, scores | {"answered": float(bool(answer.strip()))})

    return judge


def _python(tasks: TaskSet) -> Judge:
    named = tasks.task.scorer
    assert named is not None
    scorer, first = load_scorer(named), tasks.items[0]
    for answer in (first.reference, ""):
        score(scorer, named, answer, first.reference, first.example.record.values, first.origin)

    def judge(item: Item, answer: str) -> Prediction:
        found = score(scorer, named, answer, item.reference, item.example.record.values, item.origin)
        return prediction(
            item, answer, answer.strip() or None, {"score": found, "answered": float(bool(answer.strip()))}
        )

    return judge


_JUDGES: dict[str, Callable[[TaskSet], Judge]] = {
    "number": _number,
    "exact": _exact,
    "contains": _contains,
    "choice": _choice,
    "json": _json,
    "text": _text,
    "python": _python,
}
