"""An evaluation's folder: predictions.jsonl, a line an item, and result.json. Written whole or not at all.

`result.json` is written last and its old version removed first, so a folder that has one is complete.
"""

from __future__ import annotations

import errno
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte import durable
from halfbyte.errors import ConfigError, DataError, HalfbyteError
from halfbyte.evaluate.declared import Declared, metrics_for
from halfbyte.evaluate.metrics import Metric, Table
from halfbyte.evaluate.statistics import ENOUGH_UNITS, LEVEL, SURE_UNITS, Doubt, Estimate, estimate, share

SCHEMA = 1
PREDICTIONS, RESULT = "predictions.jsonl", "result.json"
FILES = {PREDICTIONS, RESULT, "answers.jsonl", *(f".{name}.part" for name in (PREDICTIONS, RESULT))}  # of an evaluation
CONSTANT = 0.5  # share of items with the same answer that is worth a word
Prediction = dict[str, Any]  # id, group, prompt, answer, reference, parsed, scores
Result = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What a folder holds."""

    folder: Path
    result: Result
    predictions: list[Prediction]

    @property
    def kind(self) -> str:
        return str(self.result["fingerprint_parts"]["kind"])

    @property
    def declared(self) -> Declared | None:
        """The metrics that the result declares itself; None: they are those of its kind."""
        found: Declared | None = self.result.get("declared", self.result["fingerprint_parts"].get("metrics"))
        return found  # versions before counted it among the parts


def table_of(predictions: Sequence[Prediction]) -> Table:
    """The scores as columns [items]; "answer" and "reference" hold the texts (of a generated choice: the option that
    the answer names, or "")."""
    names = list(predictions[0]["scores"]) if predictions else []
    table: dict[str, NDArray[Any]] = {
        name: np.array([line["scores"][name] for line in predictions], dtype=np.float64) for name in names
    }
    texts = {"answer": [line.get("option", line["answer"]) for line in predictions],
             "reference": [line["reference"] for line in predictions]}  # fmt: skip
    for name, column in texts.items():
        table[name] = np.array([text or "" for text in column], dtype=object).astype(str)
    return table


def units_of(predictions: Sequence[Prediction]) -> NDArray[Any]:
    """The number of each item's unit [items]: its group, or itself where it has none."""
    numbers: dict[tuple[str, Any], int] = {}
    keys = [("item", at) if p["group"] is None else ("group", p["group"]) for at, p in enumerate(predictions)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def unanswered(predictions: Sequence[Prediction]) -> float:
    """The share of the items that have no answer."""
    return sum(1.0 - float(line["scores"].get("answered", 1.0)) for line in predictions) / len(predictions)


def summarise(
    kind: str, predictions: Sequence[Prediction], seed: int, declared: Declared | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The metrics {name: {value, low, high, n, better, unit, method}} with their 95 % intervals, and warnings."""
    table, unit_of = table_of(predictions), units_of(predictions)
    units = int(unit_of.max()) + 1 if len(unit_of) else 0
    metrics: dict[str, Any] = {}
    doubts: dict[str, Doubt] = {}
    for metric in metrics_for(kind, table, declared):
        found = measured(metric, table, unit_of, seed)
        if found.doubt != doubts.get(metric.name.removesuffix("_answered")):
            doubts[metric.name] = found.doubt
        metrics[metric.name] = {
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "n": metric.n(table),
            "better": metric.better,
            "unit": metric.unit,
            "method": found.method,
        }
    flat = [name for name, found in metrics.items() if found["method"] == "no spread"]
    told = [*([flat_warning(flat)] if flat else []), *doubt_warnings(units, doubts)]
    return metrics, few_units(units, {name: found["method"] for name, found in metrics.items()}) + told


def measured(metric: Metric, table: Table, unit_of: NDArray[Any], seed: int, *, level: float = LEVEL) -> Estimate:
    """The metric with its interval; `unit_of` [items] is each item's unit."""
    units = int(unit_of.max()) + 1 if len(unit_of) else 0
    if metric.share and units == len(unit_of):
        counted = metric.denominator(table)
        return share(round(float((metric.numerator(table) * counted).sum())), int(counted.sum()), level=level)
    found = estimate(metric.statistic(table, unit_of), seed=seed, level=level)
    if metric.share and found.value in (0.0, 1.0) and found.method == "no spread":  # none or all of them
        return share(round(found.value) * units, units, level=level)
    return found


def few_units(units: int, methods: Mapping[str, str]) -> list[str]:
    """A warning where there are few; `methods` {name: method of its interval}. As measured (docs/statistics.md), the
    bootstrap's intervals are then too narrow, those of Wilson and of McNemar's test are not."""
    if units >= ENOUGH_UNITS:
        return []
    narrow = [name for name, method in methods.items() if method in ("bca", "percentile")]
    start = f"only {units} independent items"
    if narrow:
        return [f"{start}: below {ENOUGH_UNITS} the bootstrap's intervals are too narrow ({', '.join(narrow)})"]
    if any(method in ("wilson", "agresti-min") for method in methods.values()):
        return [f"{start}: the intervals hold, but are wide"]
    return [start]


def flat_warning(names: Sequence[str]) -> str:
    return f"no spread in {', '.join(names)}: every resample gives the same, so the interval says nothing"


def doubt_warnings(units: int, doubts: Mapping[str, Doubt]) -> list[str]:
    """What the spread of the items says of the intervals; `doubts` {name: that of its interval}. Of few units, which
    `few_units` warns of, only what is worse."""
    lopsided = [name for name, doubt in doubts.items() if doubt == "lopsided"]
    uneven = [name for name, doubt in doubts.items() if doubt == "uneven" and units >= ENOUGH_UNITS]
    told = []
    if lopsided:
        names = ", ".join(lopsided)
        told.append(f"few items make up most of {names}: such an interval covers less than it says, as a rule")
    if uneven:
        names, few = ", ".join(uneven), f"with fewer than {SURE_UNITS} items"
        told.append(f"large values shape {names}: {few} the interval may cover 92 % instead of 95 %")
    return told


def plain(value: Any) -> Any:
    """`value` with every float that is not finite replaced by None: JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_evaluation(folder: Path, result: Result, predictions: Iterable[Prediction]) -> None:
    """Write both files. Raises HalfbyteError when the disk refuses."""
    lines = "".join(json.dumps(plain(line), ensure_ascii=False, allow_nan=False) + "\n" for line in predictions)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
    except OSError as error:
        raise refused(folder, error) from None
    write_atomically(folder / PREDICTIONS, lines)
    write_json(folder / RESULT, result)


def write_json(file: Path, value: Any) -> None:
    """Write plain data as JSON, atomically, with null for what is not finite. Raises HalfbyteError."""
    write_atomically(file, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_atomically(file: Path, text: str) -> None:
    """Write a file, whole or not at all. Raises HalfbyteError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(file, text)
    except OSError as error:
        raise refused(file, error) from None


def same_answer(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say where one answer makes up most of all, and not because the references are like that."""
    answers = Counter(str(line["parsed"]) for line in predictions if line["parsed"] is not None)
    if not answers:
        return []
    answer, count = answers.most_common(1)[0]
    expected = Counter(str(line["reference"]) for line in predictions).most_common(1)[0][1]
    if count < CONSTANT * len(predictions) or count < 2 * expected:
        return []
    share = f"{100 * count / len(predictions):.0f} % of the items"
    return [f"one answer, {answer[:60]}, to {share}: such a score says little of what it has understood"]


def refused(file: Path, error: OSError) -> HalfbyteError:
    """What to raise when the disk refuses `file`."""
    room = "free some disk space, or " if error.errno == errno.ENOSPC else ""
    return HalfbyteError("the result can't be written", where=file, found=error.strerror or str(error),
                         do=f"{room}name another place with --out")  # fmt: skip


def read_evaluation(folder: Path) -> Evaluation:
    """What `write_evaluation` wrote. Raises DataError for a folder that is none, or is incomplete or broken."""
    folder = Path(folder)
    if not (folder / RESULT).is_file():
        raise _no_evaluation(folder)
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError("the result is broken", where=folder / RESULT, found=str(error), do="evaluate again") from None
    needed = ("schema", "task", "fingerprint", "fingerprint_parts", "variant", "items", "metrics")
    missing = [key for key in needed if not isinstance(result, dict) or key not in result]
    if missing or result["schema"] != SCHEMA:
        found = f"no {', '.join(missing)}" if missing else f"schema {result['schema']}; this version reads {SCHEMA}"
        raise DataError("the result has another schema", where=folder / RESULT, found=found, do="evaluate again")
    odd = [key for key in ("fingerprint_parts", "metrics") if not isinstance(result[key], dict)]
    odd += [] if odd or isinstance(result["fingerprint_parts"].get("kind"), str) else ["fingerprint_parts.kind"]
    odd += (
        [f"metrics.{name}" for name, metric in result["metrics"].items() if not isinstance(metric, dict)]
        if not odd
        else []
    )
    if odd:
        raise DataError("the result is broken", where=folder / RESULT, found=f"{', '.join(odd)}: of another type",
                        do="evaluate again")  # fmt: skip
    predictions = _read_predictions(folder / PREDICTIONS)
    if len(predictions) != result["items"]:
        found = f"{len(predictions)} predictions, {result['items']} items"
        raise DataError("predictions and result don't belong together", where=folder, found=found, do="evaluate again")
    return Evaluation(folder, result, predictions)


def stored_fingerprint(folder: Path) -> str | None:
    """Of the evaluation in `folder`; None where there is none."""
    found = _stored(folder, "fingerprint")
    return None if found is None else str(found)


def stored_parts(folder: Path) -> dict[str, Any] | None:
    """What the fingerprint of the evaluation in `folder` is made of; None where there is none."""
    found = _stored(folder, "fingerprint_parts")
    return found if isinstance(found, dict) else None


def _stored(folder: Path, key: str) -> Any:
    try:
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def require_same_model(folder: Path, model: Result, *, adapter: bool) -> None:
    """Raises ConfigError where the result in `folder` is another model's than `model` (what `described` says of it), or
    with `adapter` another adapter's: it is not overwritten."""
    there, now = _stored(folder, "fingerprints"), model["fingerprints"]
    if not isinstance(there, dict):
        return
    pairs = {"model": (there.get("model"), now["model"]), "format": (_stored(folder, "weights"), model["weights"])}
    pairs |= {"adapter": (there.get("adapter"), now["adapter"])} if adapter else {}
    if other := [what for what, (old, new) in pairs.items() if old != new]:
        raise ConfigError(f"the folder holds a result of another {' and '.join(other)}", where=folder,
                          found=f"{_stored(folder, 'model')}, {_stored(folder, 'weights')}",
                          do="choose another: --out FOLDER or --variant NAME")  # fmt: skip


def other_experiment(folder: Path) -> ConfigError:
    """What to raise where `folder` holds the result of another experiment, which is not overwritten."""
    return ConfigError("the folder holds a result on other items, prompts or decoding", where=folder,
                       do="choose another: --out FOLDER or --variant NAME")  # fmt: skip


def _no_evaluation(folder: Path) -> DataError:
    if not folder.is_dir():
        return DataError("there is no such evaluation", where=folder, found="no folder", do="check the path")
    inside = sorted(entry.parent for entry in folder.glob(f"**/{RESULT}"))[:10]
    found = f"evaluations below it: {', '.join(str(path.relative_to(folder)) for path in inside)}" if inside else None
    return DataError("the folder holds no evaluation", where=folder, found=found or f"no {RESULT}",
                     do="name one of them" if inside else "run halfbyte evaluate first")  # fmt: skip


def _read_predictions(file: Path) -> list[Prediction]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise DataError("the predictions are missing", where=file, do="evaluate again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the predictions can't be read", where=file, found=str(error), do="evaluate again") from None
    predictions: list[Prediction] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            complete = {"id", "group", "prompt", "answer", "reference", "parsed", "scores"} <= value.keys()
        except (ValueError, AttributeError, RecursionError):
            complete = False
        if not complete:
            raise DataError("a line of the predictions is broken", where=f"{file}:{number}", found=repr(line[:80]),
                            do="evaluate again")  # fmt: skip
        predictions.append(value)
        if fault := _fault_in(value["scores"], predictions[0]["scores"]):
            raise DataError("the scores of a prediction can't be used", where=f"{file}:{number}", found=fault,
                            do="evaluate again")  # fmt: skip
    if not predictions:
        raise DataError("there are no predictions", where=file, do="evaluate again")
    return predictions


def _fault_in(scores: Any, first: dict[str, Any]) -> str | None:
    """What is wrong with a line's `scores`, which are {name: number or null} by the names of the first line."""
    if not isinstance(scores, dict):
        return f"no object, but {type(scores).__name__}"
    odd = [f"{name}: {value!r}" for name, value in scores.items() if not isinstance(value, int | float | None)]
    if odd or first.keys() == scores.keys():
        return "; ".join(odd) or None
    return f"{', '.join(scores) or 'none'}; others than those of the first line: {', '.join(first) or 'none'}"
