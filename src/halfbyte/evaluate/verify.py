"""An evaluation's folder, taken again from what it recorded: every figure that its predictions give, to the last digit.

The model is not asked and no scoring function is run. What can be taken again: the hash of the experiment, and the
experiment itself where its files are still there, with what choosing at random scores; scores from the answers (kinds
whose judge needs no model and no code of the user's); metrics, intervals, details and the share without an answer from
the scores; digests of files; fingerprints of model, tokenizer and adapter. Leaks and warnings are sentences of then.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from halfbyte.checkpoint.source import open_folder
from halfbyte.checkpoint.tokenizer import tokenizer_fingerprint
from halfbyte.config import TaskConfig
from halfbyte.environment import environment
from halfbyte.errors import HalfbyteError
from halfbyte.evaluate.details import details
from halfbyte.evaluate.fingerprint import differing
from halfbyte.evaluate.judge import judge_of
from halfbyte.evaluate.results import Evaluation, plain, read_evaluation, summarise, unanswered, units_of
from halfbyte.evaluate.tasks import TaskSet, load_task_set
from halfbyte.model.adapter import WEIGHTS, adapter_digest
from halfbyte.model.build import origin
from halfbyte.options import build
from halfbyte.provenance import DIFFERS, OK, Finding, compare_environment, compare_files, digest

_WHOLE = "the harness's, over the whole set"  # `method` of a metric that is not made of items
_NO_JUDGE = {
    "choice": "the likelihoods come from the model",
    "loss": "the likelihoods come from the model",
    "harness": "the harness judges its own tasks",
    "python": "a scoring function is not run here",
}


def verify_evaluation(folder: Path, adapter: Path | None = None) -> list[Finding]:
    """A finding for each thing that result.json in `folder` recorded and that can be taken again (see above), or that
    should be; `adapter`: where the adapter lies that answered.

    Raises DataError as `read_evaluation` does."""
    found = read_evaluation(folder)
    tasks, rows = _experiment(found)
    rows += _scores(found, tasks) + _figures(found)
    rows += compare_files(found.result.get("files"), "file") if found.kind != "harness" else []
    return rows + model_rows(found.result, adapter) + compare_environment(found.result, environment())


def _experiment(found: Evaluation) -> tuple[TaskSet | None, list[Finding]]:
    """The task set as its files give it today (None: they don't), and what the fingerprint says of it."""
    result = found.result
    rows = [Finding.of("fingerprint of its parts", result["fingerprint"], digest(result["fingerprint_parts"]))]
    what = "experiment: items, prompts, decoding"
    stored = result.get("configuration")
    if not isinstance(stored, dict):
        why = "the harness's tasks are not loaded again" if found.kind == "harness" else "its task was not recorded"
        return None, [*rows, Finding.unchecked(what, result["fingerprint"], why)]
    try:
        task = build(TaskConfig, stored, str(found.folder))
        tasks = load_task_set(task, seed=int(result["seed"]), limit=result.get("limit"))
    except HalfbyteError as error:
        return None, [*rows, Finding.unchecked(what, result["fingerprint"], _one_line(error))]
    changed = "; ".join(differing(result["fingerprint_parts"], tasks.parts))
    rows.append(Finding.of(what, result["fingerprint"], tasks.fingerprint, changed))
    if "chance_level" in result:
        rows.append(Finding.of("chance level", result["chance_level"], tasks.chance_level))
    return tasks, rows


def _scores(found: Evaluation, tasks: TaskSet | None) -> list[Finding]:
    """What the answers score today."""
    what, items = "scores of the answers", f"{len(found.predictions)} items"
    task = None if tasks is None else tasks.task
    generated = task is not None and task.generates and task.kind != "python"
    if found.result.get("model") is None:
        return [Finding.unchecked(what, items, "no model answered")]
    if not generated or tasks is None:
        return [Finding.unchecked(what, items, _NO_JUDGE.get(found.kind, "the items are not those of then"))]
    by_id = {item.id: item for item in tasks.items}
    known = [line for line in found.predictions if line["id"] in by_id]
    try:
        judge = judge_of(tasks)
        again = [judge(by_id[line["id"]], line["answer"] or "") for line in known]
    except HalfbyteError as error:
        return [Finding.unchecked(what, items, _one_line(error))]
    other = [old["id"] for old, new in zip(known, again, strict=True)
             if any(old[key] != plain(new[key]) for key in ("scores", "parsed"))]  # fmt: skip
    other += [line["id"] for line in found.predictions if line["id"] not in by_id]
    return [Finding.of(what, items, f"{len(found.predictions) - len(other)} items", _some(other))]


def _figures(found: Evaluation) -> list[Finding]:
    """Metrics with their intervals, and the details, of the predictions' scores."""
    result, kind, lines = found.result, found.kind, found.predictions
    seed, own = int(result.get("seed") or 0), dict(result["metrics"])
    whole = {name for name, metric in own.items() if metric.get("method") == _WHOLE}
    try:
        again = {} if kind == "harness" and not found.declared else summarise(kind, lines, seed, found.declared)[0]
        more = details(kind, lines, units_of(lines), seed, found.declared)
    except (HalfbyteError, KeyError, TypeError, ValueError) as error:
        return [Finding.unchecked("metrics", sorted(own), f"the scores can't be used: {_one_line(error)}")]
    rows = []
    for name in dict.fromkeys([*own, *again]):
        if name in whole:
            rows.append(Finding.unchecked(f"metric {name}", own[name]["value"], _WHOLE))
            continue
        old, new = own.get(name) or {}, plain(again.get(name)) or {}
        other = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
        state = DIFFERS if other else OK
        rows.append(Finding(f"metric {name}", _interval(old), _interval(new), state, ", ".join(other)))
    if result.get("unanswered") is not None and kind != "harness":
        rows.append(Finding.of("unanswered", result["unanswered"], unanswered(lines)))
    if "details" in result:
        rows.append(
            Finding.of("details", digest(result["details"]), digest(plain(more)), "classes, worst items and more")
        )
    return rows


def model_rows(recorded: Any, adapter: Path | None) -> list[Finding]:
    """The fingerprints of model, tokenizer and adapter that a result or a run `recorded`, taken again."""
    prints, place = recorded.get("fingerprints"), recorded.get("model_folder")
    if recorded.get("model", "") is None:
        return []
    if not isinstance(prints, dict) or not isinstance(place, str):
        return [Finding.unchecked("model", recorded.get("model"), "its fingerprint was not recorded")]
    rows, folder = [], Path(place)
    if not folder.is_dir():
        why = f"the model is not here any more: {place}"
        return [Finding.unchecked(what, prints.get(what), why) for what in ("model", "tokenizer")]
    try:
        rows.append(Finding.of("model", prints.get("model"), origin(open_folder(folder)), f"another model in {place}"))
    except (HalfbyteError, OSError) as error:
        rows.append(Finding.unchecked("model", prints.get("model"), _one_line(error)))
    rows.append(Finding.of("tokenizer", prints.get("tokenizer"), tokenizer_fingerprint(folder), f"in {place}"))
    if prints.get("adapter") is not None:
        rows.append(_adapter(prints["adapter"], adapter))
    return rows


def _adapter(recorded: str, folder: Path | None) -> Finding:
    if folder is None or not (folder / WEIGHTS).is_file():
        return Finding.unchecked("adapter", recorded, "which folder it lay in is not known; verify its run instead"
                                 if folder is None else f"there is none in {folder}")  # fmt: skip
    try:
        return Finding.of(
            "adapter", recorded, adapter_digest(load_file(folder / WEIGHTS)), f"another adapter in {folder}"
        )
    except (OSError, SafetensorError) as error:
        return Finding.of("adapter", recorded, "a file that can't be read", _one_line(error))


def _interval(metric: dict[str, Any]) -> str:
    return f"{metric.get('value')} [{metric.get('low')}, {metric.get('high')}]"


def _some(names: Sequence[Any]) -> str:
    return f"others: {', '.join(map(repr, names[:3]))}" + ", ..." * (len(names) > 3) if names else ""


def _one_line(error: Exception) -> str:
    what = error.what if isinstance(error, HalfbyteError) else str(error) or type(error).__name__
    return " ".join(str(what).split())
