"""What a model answers: numbers, options, JSON, texts that are compared."""

from __future__ import annotations

import json

from halfbyte.config import ContainsConfig, ToleranceConfig
from halfbyte.data.numbers import parse_number
from halfbyte.evaluate.judge import named_option
from halfbyte.evaluate.likeness import chrf, rouge_l
from halfbyte.evaluate.scores import contains_scores, exact_scores, json_scores, number_scores
from halfbyte.evaluate.structured import MISSING, read_json

REFERENCE = {"a": 1, "b": {"c": [1, 2], "d": "x"}}
SEEDS = [text.encode() for text in (
    "$1,299.99", "-3e5", "1e999", "12,5", "1" * 5000, '{"a": 1, "b": {"c": [1, 2]}}', "```json\n{}\n```", "[" * 3000,
    '{"a": NaN}', '{"a": 1, "a": 2}', '"\\ud800"', "the insurance change", "yes or no", "", "\u202e",
    "1,111,111,111,111,1",
    '{"a": {"": {"": 1}}}', "9" * 400 + ".5",
)]  # fmt: skip


def run(data: bytes) -> None:
    answer = data.decode("utf-8", "replace")
    number_scores(parse_number(answer), 3.0, 1.0, ToleranceConfig(), logarithmic=True)
    named_option(answer, ["change", "insurance change", "yes", "no", ""])
    found = read_json(answer)
    if found is not MISSING:
        json.dumps(found)
    scores, _ = json_scores(answer, found, REFERENCE, None)
    for rule in (ContainsConfig(), ContainsConfig(case=True, space=True, words=True)):
        scores = scores | contains_scores(answer, "an x", rule)
    scores = scores | exact_scores(answer, "an x") | {"chrf": chrf(answer, "an x"), "rouge": rouge_l(answer, "an x")}
    assert all(isinstance(value, float) for value in scores.values())
