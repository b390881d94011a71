"""A model on a task: ask every item, score the answers, write the evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.checkpoint.tokenizer import tokenizer_fingerprint
from halfbyte.config import TaskConfig, ToleranceConfig
from halfbyte.data.asking import with_options
from halfbyte.data.encode import Encoder
from halfbyte.data.lengths import longest_of
from halfbyte.data.sides import task_files
from halfbyte.environment import environment
from halfbyte.errors import ConfigError, DataError
from halfbyte.evaluate.details import details
from halfbyte.evaluate.journal import Journal
from halfbyte.evaluate.judge import judge_of, prediction
from halfbyte.evaluate.options import rendered_options
from halfbyte.evaluate.results import (
    SCHEMA,
    Evaluation,
    Prediction,
    Result,
    read_evaluation,
    same_answer,
    summarise,
    unanswered,
    units_of,
    write_evaluation,
)
from halfbyte.evaluate.scores import choice_scores, loss_scores, number_scores
from halfbyte.evaluate.show import ShownResult
from halfbyte.evaluate.tasks import Item, TaskSet, load_task_set
from halfbyte.memory import MemoryMeter
from halfbyte.plan.answering import Scored, items_at_once
from halfbyte.provenance import file_digests

if TYPE_CHECKING:
    from halfbyte.evaluate.generate import Progress
    from halfbyte.model.build import Model


@dataclass(frozen=True)
class _Asked:
    """The predictions, and how fast they came: `tokens_per_second` is decoding speed (prefill left out) where answers
    are generated, and tokens read a second where they are scored."""

    predictions: list[Prediction]
    tokens_per_second: float | None


def evaluate_task(
    model: Model,
    task: TaskConfig,
    out: Path,
    *,
    variant: str,
    seed: int = 0,
    limit: int | None = None,
    batch: int | str = "auto",
    progress: Progress | None = None,
    leaks: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> Result:
    """Ask `model` every item of `task` (or `limit` of them) and write predictions.jsonl and result.json to `out`.

    `seed` is that of the shots and of the intervals. `batch`: rows that are decoded at once. `leaks`: how what the
    model learned from gives items away, which stands in the result. Returns what result.json holds. Raises DataError
    for what is wrong with the data (see `load_task_set`) or does not fit into the model's context, CheckpointError when
    the model computes NaN or its files were changed meanwhile, HalfbyteError when the disk refuses or a scoring
    function fails. Answers are kept in `out` until the result is written (see `journal`): interrupted, and also after
    such a failure, the same call goes on without asking again, and tells `say` so; `seconds` counts what the kept
    answers took, too.
    """
    with MemoryMeter() as meter:
        began = time.perf_counter()
        tasks = load_task_set(task, seed=seed, limit=limit)
        model.net.eval()
        journal = Journal(out, model, say)
        asked = _ask(task)(model, tasks, batch, progress, journal)
        model.check_files()
        _show_what_was_asked(model, tasks, asked.predictions)
        metrics, warnings = summarise(task.kind, asked.predictions, seed)
        seconds = journal.seconds + time.perf_counter() - began
    result = {
        **_frame(tasks, variant, seed),
        **described(model),
        "items": len(asked.predictions),
        "unanswered": unanswered(asked.predictions),
        "metrics": metrics,
        "details": details(task.kind, asked.predictions, units_of(asked.predictions), seed),
        "seconds": seconds,
        "resumed": journal.resumed,
        "tokens_per_second": asked.tokens_per_second,
        "peak_bytes": meter.peak_bytes,
        "mapped_bytes": meter.mapped_bytes,
        "cuda_peak_bytes": meter.cuda_peak_bytes,
        **environment(),
        "seed": seed,
        "limit": limit,
        **({"leaks": list(leaks)} if leaks else {}),
        "warnings": tasks.warnings + warnings + [f"the model gave {said}" for said in same_answer(asked.predictions)],
    }
    write_evaluation(out, result, asked.predictions)
    journal.remove()
    return ShownResult(result)


def described(model: Model) -> Result:
    """What a result says of the model."""
    from halfbyte.model.adapter import adapter_digest, adapter_tensors

    return {
        "model": model.name,
        "model_folder": str(model.path.absolute()),
        "weights": model.weights,
        "adapter": asdict(model.adapter) if model.adapter is not None else None,
        "fingerprints": {
            "model": model.fingerprint,
            "tokenizer": tokenizer_fingerprint(model.path),
            "adapter": adapter_digest(adapter_tensors(model.net)),
        },
        "device": str(model.device),
        "compute": model.compute,
    }


def _frame(tasks: TaskSet, variant: str, seed: int) -> Result:
    return {
        "schema": SCHEMA,
        "task": tasks.task.name,
        "kind": tasks.task.kind,
        "fingerprint": tasks.fingerprint,
        "fingerprint_parts": tasks.parts,
        "variant": variant,
        "fallback": tasks.fallback,
        "fallback_source": tasks.fallback_source,
        "chance_level": tasks.chance_level,
        "configuration": asdict(tasks.task),
        "files": file_digests(task_files(tasks.task)),
    }


def _show_what_was_asked(model: Model, tasks: TaskSet, predictions: list[Prediction]) -> None:
    """Where shots or a chat template stand around the item's own prompt, the whole is what the predictions show."""
    encoder = Encoder(model.tokenizer, tasks.task.chat)
    if tasks.shots or encoder.chat:
        for line, ids in zip(predictions, encoder.prompts(tasks.asked(encoder)), strict=True):
            line["prompt"] = model.tokenizer.decode(ids)


def _ask_generated(
    model: Model, tasks: TaskSet, batch: int | str, progress: Progress | None, journal: Journal
) -> _Asked:
    """Greedy answers, judged as the kind has it."""
    from halfbyte.evaluate.generate import check_lengths, end_tokens, generate

    judge = judge_of(tasks)
    encoder = Encoder(model.tokenizer, tasks.task.chat)
    prompts = encoder.prompts(tasks.asked(encoder))
    ends = end_tokens(model) | encoder.stops
    origins = [item.origin for item in tasks.items]
    longest = tasks.task.decoding.max_new_tokens
    check_lengths(model, [len(prompt) + longest for prompt in prompts], origins, what="prompt and answer")
    found = generate(model, prompts, tasks.task.decoding, batch=batch, ends=ends, progress=progress, journal=journal)
    lines = [judge(item, answer) for item, answer in zip(tasks.items, found.texts, strict=True)]
    return _Asked(lines, found.tokens_per_second)


def _ask_options(model: Model, tasks: TaskSet, batch: int | str, progress: Progress | None, journal: Journal) -> _Asked:
    """Kind `choice` by the likelihood of each option after the prompt."""
    from halfbyte.evaluate.generate import check_lengths, end_tokens
    from halfbyte.evaluate.likelihood import option_log_likelihoods

    encoder = Encoder(model.tokenizer, tasks.task.chat)
    ends = end_tokens(model) | encoder.stops
    prompts, options, same = [], [], dict[tuple[tuple[int, ...], ...], list[list[int]]]()
    for item, example in zip(tasks.items, tasks.asked(encoder), strict=True):
        prompt, own = with_options(encoder, example, item.options, ends)
        prompts.append(prompt)
        options.append(same.setdefault(tuple(map(tuple, own)), own))  # held once for all items that share them
        if not prompt:
            raise DataError("the prompt has no token, so options can't be scored after it", where=item.origin)
    sizes = [len(p) + max(map(len, choices)) for p, choices in zip(prompts, options, strict=True)]
    check_lengths(model, sizes, [item.origin for item in tasks.items], what="prompt and options")
    began = time.perf_counter()
    nats = option_log_likelihoods(model, prompts, options, progress=progress, journal=journal)
    seconds = time.perf_counter() - began
    read = sum(map(len, prompts)) + sum(len(option) for choices in options for option in choices)
    lines = []
    for item, found, own in zip(tasks.items, nats, options, strict=True):
        assert item.right is not None
        sizes = [len(option.strip().encode()) for option in item.options]
        chosen, scores = choice_scores(found, list(map(len, own)), sizes, item.right, tasks.task.normalise)
        line = prediction(item, item.options[chosen], item.options[chosen].strip(), scores)
        lines.append(line | {"log_likelihoods": dict(zip(item.options, found, strict=True))})
    return _Asked(lines, None if journal.resumed else read / seconds)


def _ask_loss(model: Model, tasks: TaskSet, batch: int | str, progress: Progress | None, journal: Journal) -> _Asked:
    """Kind `loss`: the likelihood of the reference and its end, as the loss of training counts it."""
    from halfbyte.evaluate.generate import check_lengths
    from halfbyte.evaluate.likelihood import learned_log_likelihoods

    encoder = Encoder(model.tokenizer, tasks.task.chat)
    encoded = encoder.items(tasks.asked(encoder))
    check_lengths(model, [*map(len, encoded)], [row.origin for row in encoded], what="prompt and reference")
    empty = [row.origin for row in encoded if not row.learned_tokens]
    if empty:
        raise DataError("an item has no token that the loss could count", where=empty[0], found=f"{len(empty)} items")
    began = time.perf_counter()
    ids, learned = [row.ids for row in encoded], [row.learned for row in encoded]
    nats = learned_log_likelihoods(model, ids, learned, progress=progress, journal=journal)
    seconds = time.perf_counter() - began
    lines = []
    for item, row, found in zip(tasks.items, encoded, nats, strict=True):
        scores = loss_scores(-found, row.learned_tokens, len(_learned_text(item).encode()))
        lines.append(prediction(item, None, None, scores))
    return _Asked(lines, None if journal.resumed else sum(map(len, ids)) / seconds)


def _learned_text(item: Item) -> str:
    """What the loss counts: the reference; of a conversation every answer."""
    turns = item.example.messages
    if turns is None:
        return item.reference
    return "".join(turn["content"] for turn in turns if turn["role"] == "assistant")


def largest_batch(model: Model, task: TaskConfig, seed: int = 0) -> tuple[int, int, int, Scored | None]:
    """(items at once, tokens of the longest with its answer, those of them that are generated, what is scored where
    nothing is) of the batch that takes most memory for `task`. Of scored items the longest ones are encoded. Raises
    DataError as `load_task_set` does, and for an item that can't be scored."""
    from halfbyte.evaluate.generate import batches, end_tokens, token_budget

    tasks, encoder = load_task_set(task, seed=seed), Encoder(model.tokenizer, task.chat)
    asked = tasks.asked(encoder)
    if task.generates:
        lengths, new = [len(ids) for ids in encoder.prompts(asked)], task.decoding.max_new_tokens
        cut = (list(rows) for rows in batches(lengths, new, "auto", model))
        sizes = [(len(rows), max(lengths[row] for row in rows) + new) for rows in cut]
        return *max(sizes, key=lambda one: one[0] * one[1]), new, None
    ends = end_tokens(model) | encoder.stops
    longest = longest_of(task, encoder, asked, lambda example: rendered_options(example, task)[0], ends)
    scored = Scored(longest.options, longest.own)
    most = items_at_once(token_budget(model), longest.tokens, model.device.type, scored)
    return min(len(asked), most), longest.tokens, 0, scored


def _ask(task: TaskConfig) -> Callable[[Model, TaskSet, int | str, Progress | None, Journal], _Asked]:
    return _ask_generated if task.generates else {"choice": _ask_options, "loss": _ask_loss}[task.kind]


def constant_folder(evaluation: Path, out: Path, *, told: Sequence[str] = (), variant: str = "median") -> Result:
    """Write to `out` what always answering the fallback (the training median) scores on the items of `evaluation`.

    It has the schema of every evaluation, so `compare` takes it. `told`: the warnings of the task itself. What gave
    items away to the model that answered them is left out: a constant has learned no prompt. Raises DataError as
    `read_evaluation` does, and ConfigError for a task that is not of kind `number`.
    """
    source: Evaluation = read_evaluation(evaluation)
    if source.kind != "number":
        raise ConfigError("a constant guess needs a task of kind 'number'", where=evaluation, found=source.kind)
    parts, guess = source.result["fingerprint_parts"], float(source.result["fallback"])
    tolerance = ToleranceConfig(**parts["tolerance"])
    logarithmic = all(line["reference_parsed"] >= 0 for line in source.predictions)
    predictions = [
        line
        | {"answer": f"{guess:g}", "parsed": guess}
        | {"scores": number_scores(guess, line["reference_parsed"], guess, tolerance, logarithmic=logarithmic)}
        for line in source.predictions
    ]
    seed = int(source.result["seed"])
    metrics, warnings = summarise("number", predictions, seed)
    nothing = ("model", "weights", "adapter", "seconds", "tokens_per_second", "peak_bytes", "mapped_bytes")
    own = {"variant": variant, "resumed": 0, "unanswered": 0.0, "metrics": metrics, "warnings": [*told, *warnings]}
    own["details"] = details("number", predictions, units_of(predictions), seed)
    nowhere = dict.fromkeys([*nothing, "cuda_peak_bytes", "device", "model_folder", "fingerprints"])
    result = source.result | nowhere | own | environment()
    result.pop("leaks", None)
    write_evaluation(out, result, predictions)
    return result
