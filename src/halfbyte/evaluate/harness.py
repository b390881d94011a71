"""A standard benchmark on our model: the harness makes the prompts and judges the answers, we ask and keep the account.

EleutherAI's lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness; Biderman et al. 2024, arXiv:2405.14782)
defines the task; its result becomes one of ours, with a line an item and intervals by our statistics, so that `compare`
pairs two of them. A metric that the harness makes of the whole set and not of items (f1, bleu) keeps the harness's
value, without an interval. Its `acc` is our `accuracy` of kind `choice` (sums of log-probabilities), its `acc_bytes`
our `accuracy_per_byte`, and its `acc_norm`, a sum a character, is the same where options are ASCII; it never counts the
end of an option, which we do where one option begins another.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.environment import environment
from halfbyte.evaluate.declared import NATS, SHARES, WEIGHT
from halfbyte.evaluate.details import details
from halfbyte.evaluate.evaluate import described
from halfbyte.evaluate.harness_tasks import BROKEN, SEED, broken, quiet, seeded
from halfbyte.evaluate.journal import Journal
from halfbyte.evaluate.results import (
    SCHEMA,
    Prediction,
    Result,
    other_experiment,
    stored_parts,
    summarise,
    units_of,
    write_evaluation,
)
from halfbyte.evaluate.show import ShownResult
from halfbyte.memory import MemoryMeter
from halfbyte.provenance import digest

if TYPE_CHECKING:
    from halfbyte.evaluate.generate import Progress
    from halfbyte.model.build import Model

_LARGEST = 700.0  # the exponent of an item's own perplexity stays finite

Sample = Mapping[str, Any]  # what the harness logs of an item and a filter
Scored = tuple[str, dict[str, float]]


def evaluate_harness_task(
    model: Model,
    name: str,
    task: Any,
    out: Path,
    *,
    variant: str,
    seed: int = 0,
    limit: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Run `task` of `load_harness_tasks` on `model` and write predictions.jsonl and result.json to `out`.

    `seed` is that of the intervals; `limit` keeps the first items, as the harness does. Returns what result.json holds.
    Raises ConfigError for a task that wants sampled answers and where `out` holds the result of another experiment,
    both before the model answers; DataError for a broken task and for items that the model can't hold, CheckpointError
    when it computes NaN. Interrupted, it goes on as `evaluate_task` does.
    """
    from lm_eval import evaluator

    from halfbyte.evaluate.harness_model import HarnessModel

    with MemoryMeter() as meter:
        began = time.perf_counter()
        model.net.eval()
        parts: dict[str, Any] = {}

        def look() -> None:
            """The harness has made its requests: what the experiment is, and whether its place is free."""
            parts.update(_parts(name, task))
            there = stored_parts(out)
            if (
                there is not None and {key: there[key] for key in there if key != "metrics"} != parts
            ):  # see results.declared
                raise other_experiment(out)

        journal = Journal(out, model, say)
        asked = HarnessModel(model, progress, journal, look)
        try:
            with quiet(), seeded():
                found = evaluator.evaluate(asked, {"tasks": {name: task}}, limit=limit, bootstrap_iters=0)
        except BROKEN as error:
            if error is asked.failed:
                raise
            raise broken(name, error) from error
        samples: list[Sample] = found["samples"][name]
        declared, whole = _metrics(task, samples)
        predictions = _predictions(task, samples, declared)
        metrics, warnings = summarise("harness", predictions, seed, declared) if declared else ({}, [])
        seconds = journal.seconds + time.perf_counter() - began
    values = found["results"][name]
    result = {
        "schema": SCHEMA,
        "task": name,
        "kind": "harness",
        "fingerprint": digest(parts),
        "fingerprint_parts": parts,
        "declared": declared,
        "variant": variant,
        **described(model),
        "items": len(predictions),
        "unanswered": sum(line["answer"] == "" for line in predictions) / len(predictions),
        "metrics": metrics | {key: _of_the_whole(values[at], better, len(predictions))
                              for key, (at, better) in whole.items()},
        "details": details("harness", predictions, units_of(predictions), seed, declared),
        "seconds": seconds,
        "resumed": journal.resumed,
        "tokens_per_second": asked.tokens_per_second,
        "peak_bytes": meter.peak_bytes,
        "mapped_bytes": meter.mapped_bytes,
        "cuda_peak_bytes": meter.cuda_peak_bytes,
        **_environment(),
        "seed": seed,
        "shots_seed": SEED,
        "limit": limit,
        "warnings": warnings + _warnings(asked, whole),
    }  # fmt: skip
    write_evaluation(out, result, predictions)
    journal.remove()
    return ShownResult(result)


def _environment() -> dict[str, Any]:
    from importlib import metadata

    found = environment()
    return found | {"versions": found["versions"] | {"lm_eval": metadata.version("lm_eval")}}


def _warnings(asked: Any, whole: Iterable[str]) -> list[str]:
    said = [f"{asked.cut} prompts were longer than the model's context and lost their beginning"] * bool(asked.cut)
    said += [f"options of decoding that mean nothing here: {', '.join(sorted(asked.ignored))}"] * bool(asked.ignored)
    names = ", ".join(whole)
    said += [f"{names}: made of the whole set, not of items, so without an interval and not compared"] * bool(names)
    return said


# Metrics


def _key(metric: str, filtered: str) -> str:
    """The harness's own name of a metric; its filter is left out where there is none."""
    return metric if filtered == "none" else f"{metric},{filtered}"


def _metrics(task: Any, samples: Sequence[Sample]) -> tuple[dict[str, dict[str, str]], dict[str, tuple[str, str]]]:
    """(metrics made of items {name: declaration}, those of the whole set {name: (the harness's key, better)})."""
    declared: dict[str, dict[str, str]] = {}
    whole: dict[str, tuple[str, str]] = {}
    values: dict[tuple[str, str], list[Any]] = {}
    filters: dict[str, int] = {}
    for sample in samples:
        filters[sample["filter"]] = filters.get(sample["filter"], 0) + 1
        for metric in sample["metrics"]:
            values.setdefault((metric, sample["filter"]), []).append(sample[metric])
    for (metric, filtered), items in values.items():
        better = "higher" if task.higher_is_better().get(metric, True) else "lower"
        form = _form(task, metric, items) if len(items) == filters[filtered] else None
        if form is None:
            whole[_key(metric, filtered)] = (f"{metric},{filtered}", better)
        else:
            declared[_key(metric, filtered)] = {"better": better, "form": form}
    return declared, whole


def _form(task: Any, metric: str, items: Sequence[Any]) -> str | None:
    """How the harness makes the metric of the items' values, in the words of `declared`; None: not of single items."""
    from lm_eval.api import metrics

    aggregate = task.aggregation().get(metric, metrics.mean)
    if aggregate is metrics.mean and all(_is_number(value) for value in items):
        own_judge = callable(getattr(task.config, "process_results", None))
        sure = metric in SHARES and not own_judge and all(value in (0, 1) for value in items)
        return "right" if sure else "mean"
    if aggregate in (metrics.perplexity, metrics.weighted_perplexity):
        return "perplexity"
    return "bits" if aggregate is metrics.bits_per_byte else None


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (str, tuple, list)) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _scores(key: str, form: str, value: Any) -> dict[str, float]:
    """The columns of one item."""
    if form in ("right", "mean"):
        return {key: float(value)}
    nats, weight = (-float(value[0]), float(value[1])) if isinstance(value, (tuple, list)) else (-float(value), 1.0)
    own = nats / max(weight, 1.0)
    own = own / math.log(2) if form == "bits" else math.exp(min(own, _LARGEST))
    return {key: own, key + NATS: nats, key + WEIGHT: weight}


def _of_the_whole(value: Any, better: str, items: int) -> dict[str, Any]:
    number = float(value) if _is_number(value) else None
    return {"value": number, "low": None, "high": None, "n": items, "better": better, "unit": "",
            "method": "the harness's, over the whole set"}  # fmt: skip


# Items


def _predictions(task: Any, samples: Sequence[Sample], declared: Mapping[str, Mapping[str, str]]) -> list[Prediction]:
    """A line an item: the harness logs one for each filter."""
    lines: dict[str, Prediction] = {}
    for sample in samples:
        name = str(sample["doc_id"])
        if name not in lines:
            lines[name] = {"id": name, "group": None} | _said(task, sample) | {"scores": {}}
        for metric in sample["metrics"]:
            key = _key(metric, sample["filter"])
            if key in declared:
                lines[name]["scores"] |= _scores(key, declared[key]["form"], sample[metric])
    return list(lines.values())


def _said(task: Any, sample: Sample) -> Prediction:
    """prompt, answer, reference and parsed; of a choice also how likely each option was."""
    asked, target = sample["arguments"], sample["target"]
    if task.OUTPUT_TYPE == "generate_until":
        parsed = sample["filtered_resps"][0]
        return {"prompt": str(asked[0][0]), "answer": str(sample["resps"][0][0]), "reference": _reference(target, []),
                "parsed": parsed if isinstance(parsed, (str, int, float)) else str(parsed)}  # fmt: skip
    if task.OUTPUT_TYPE == "multiple_choice":
        count = len(asked) // 2 if "acc_mutual_info" in sample["metrics"] else len(asked)
        contexts, options = [str(one[0]) for one in asked[:count]], [str(one[1]) for one in asked[:count]]
        prompt, gold = contexts[0], target
        if getattr(task, "multiple_input", False):  # the options stand before what they are judged by
            prompt, options, gold = options[0], contexts, task.doc_to_text(sample["doc"])
        nats = [float(one[0]) for one in sample["filtered_resps"][:count]]
        chosen = options[max(range(count), key=lambda at: (nats[at], -at))]
        return {"prompt": prompt, "answer": chosen, "reference": _reference(gold, options), "parsed": chosen.strip(),
                "log_likelihoods": dict(zip(options, nats, strict=True))}  # fmt: skip
    prompt, reference = (asked[0][0], asked[0][1]) if len(asked[0]) > 1 else ("", asked[0][0])
    return {"prompt": str(prompt), "answer": None, "reference": str(reference), "parsed": None}


def _reference(target: Any, options: Sequence[str]) -> str:
    """The right answer, or all of them, as text."""
    if isinstance(target, (list, tuple)):
        return " | ".join(_reference(one, options) for one in target)
    if isinstance(target, int) and 0 <= target < len(options):
        return options[target].strip()
    return str(target)


def _parts(name: str, task: Any) -> dict[str, Any]:
    """What the fingerprint is made of: all that is asked (options of decoding too) and how it is
    judged. The task's requests are made."""
    items: dict[Any, list[Any]] = {}
    for request in task.instances:
        items.setdefault(request.doc_id, []).append(request)
    asked = [[item, _plain([one.args for one in sorted(requests, key=lambda one: one.idx)]),
              _plain(task.doc_to_target(requests[0].doc))] for item, requests in items.items()]  # fmt: skip
    judging = {key: task.get_config(key) for key in ("filter_list", "metric_list")}
    return {
        "kind": "harness",
        "task": name,
        "version": str(task.VERSION),
        "items": len(asked),
        "data": digest(asked),
        "shots": task.get_config("num_fewshot"),
        "judging": digest(_plain(judging)),
    }


def _plain(value: Any) -> Any:
    """As plain data; functions, which a task's YAML may name, by their names."""
    return json.loads(json.dumps(value, default=lambda one: getattr(one, "__qualname__", type(one).__name__)))
