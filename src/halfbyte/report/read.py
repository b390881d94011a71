"""Read what a run left. Every part is optional: what is missing is None or empty, what can't be read becomes a note."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from halfbyte.errors import DataError
from halfbyte.plan import measured
from halfbyte.safe_yaml import parse_yaml, read_text

MEDIAN = "median"  # the variant that always answers the training median


@dataclass(frozen=True)
class Prediction:
    """One item's answer. `parsed` is None where nothing could be read from the answer."""

    id: str
    prompt: str
    answer: str
    reference: str
    parsed: Any
    scores: Mapping[str, float]

    @property
    def number(self) -> float | None:
        """The answer as a number."""
        return as_number(self.parsed)

    @property
    def true(self) -> float | None:
        """The reference as a number."""
        return as_number(self.reference)


@dataclass(frozen=True)
class Variant:
    """One evaluation: `result` is result.json, `predictions` the lines of predictions.jsonl."""

    name: str
    result: dict[str, Any]
    predictions: list[Prediction]

    @cached_property
    def by_id(self) -> dict[str, Prediction]:
        return {prediction.id: prediction for prediction in self.predictions}

    def metric(self, name: str) -> dict[str, float] | None:
        """`value`, and `low`, `high`, `n` where they are known; None where the metric has no value."""
        found = (self.result.get("metrics") or {}).get(name)
        if not isinstance(found, Mapping):
            return None
        known = {key: number for key, value in found.items() if (number := as_number(value)) is not None}
        if found.get("method") == "no spread":  # the bootstrap's limits say nothing there
            known = {key: number for key, number in known.items() if key not in ("low", "high")}
        return known if "value" in known else None

    def value(self, name: str) -> float | None:
        found = self.metric(name)
        return found["value"] if found else None

    def better(self, name: str) -> str | None:
        """Whether the metric is better "lower" or "higher"; None where the result does not say."""
        found = (self.result.get("metrics") or {}).get(name)
        better = found.get("better") if isinstance(found, Mapping) else None
        return better if better in ("lower", "higher") else None

    @property
    def metrics(self) -> list[str]:
        return [name for name in self.result.get("metrics") or {} if self.metric(name)]

    @property
    def unanswered(self) -> float | None:
        """Share of the items whose answer could not be read."""
        return as_number(self.result.get("unanswered"))


@dataclass(frozen=True)
class Evidence:
    """All that a run's folder holds for the report. `notes` names the files that are there and can't be read."""

    folder: Path
    config: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    ledger: dict[str, Any] | None = None  # measured.json
    steps: list[dict[str, Any]] = field(default_factory=list)
    variants: dict[str, Variant] = field(default_factory=dict)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def phase(self, name: str) -> dict[str, Any]:
        """What the plan says of a phase; empty where it says nothing."""
        phases = (self.plan or {}).get("phases")
        found = phases.get(name) if isinstance(phases, dict) else None
        return found if isinstance(found, dict) else {}

    def planned(self, phase: str, key: str) -> float | None:
        return as_number(self.phase(phase).get(key))

    def measured(self, phase: str, key: str) -> float | None:
        """The largest `peak_bytes` or `mapped_bytes` that was measured in a phase: "tune" or "evaluate"."""
        lines = self.steps if phase == "tune" else [v.result for n, v in self.variants.items() if n != MEDIAN]
        return max((size for line in lines if (size := as_number(line.get(key)))), default=None)


def gather(folder: Path) -> Evidence:
    """Read the run in `folder`. Raises DataError where there is no folder, or nothing that a run left in it."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else None
        raise DataError("there is no such run folder", where=folder, found=found, do="name the folder that a run left")
    notes: list[str] = []
    evidence = Evidence(
        folder=folder,
        config=_mapping(folder / "run.yaml", notes),
        plan=_mapping(folder / "plan.json", notes),
        environment=_mapping(folder / "environment.json", notes),
        ledger=_ledger(folder / measured.FILE, notes),
        steps=list(_lines(folder / "metrics.jsonl", notes)),
        variants={variant.name: variant for variant in _variants(folder / "evaluations", notes)},
        comparisons=list(_comparisons(folder, notes)),
        notes=notes,
    )
    left = (evidence.plan, evidence.environment, evidence.steps, evidence.variants, evidence.comparisons)
    if not any(left) and not notes:
        raise _nothing_of_a_run(folder, evidence.config)
    return evidence


def _nothing_of_a_run(folder: Path, config: dict[str, Any] | None) -> DataError:
    """Options alone are no run: they may be what one is yet to be started with, and then its folder is another."""
    if config is None:
        do = "name a folder with run.yaml or evaluations/ in it, as halfbyte tune leaves it"
        return DataError("the folder holds nothing of a run", where=folder, do=do)
    file, out = folder / "run.yaml", config.get("out")
    do = f"start it: halfbyte tune {file}; then name the folder that it leaves"
    do += f" ({out})" if out and isinstance(out, str) else " (its 'out')"
    return DataError("the folder holds nothing of a run but its options", where=folder, found="run.yaml alone", do=do)


def as_number(value: object) -> float | None:
    """`value` as a finite float: a number, or text that is one; None otherwise."""
    if isinstance(value, str):
        try:
            value = float(value.strip().lstrip("$€£").replace(",", ""))
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an int with more digits than a float holds
        return None


def _ledger(file: Path, notes: list[str]) -> dict[str, Any] | None:
    """What the run measured by phase; None where it did not (with a note where the file is broken)."""
    found = _mapping(file, notes)
    try:
        return None if found is None else measured.checked(found, file)
    except DataError as error:
        notes.append(f"{file.parent.name}/{file.name} can't be read: {error.found}")
        return None


def _variants(folder: Path, notes: list[str]) -> Iterator[Variant]:
    for place in sorted(path for path in folder.glob("*") if path.is_dir()):
        result = _mapping(place / "result.json", notes)
        if result is None:
            if not (place / "result.json").exists():
                notes.append(f"evaluations/{place.name} has no result.json: that evaluation did not end")
            continue
        predictions = [prediction(line) for line in _lines(place / "predictions.jsonl", notes)]
        yield Variant(place.name, result, predictions)


def prediction(line: dict[str, Any]) -> Prediction:
    """A line of predictions.jsonl."""
    scores = line.get("scores")
    numbers = {key: as_number(value) for key, value in scores.items()} if isinstance(scores, dict) else {}
    return Prediction(
        id=str(line.get("id")),
        prompt=_text(line.get("prompt")),
        answer=_text(line.get("answer")),
        reference=_text(line.get("reference")),
        parsed=line.get("parsed"),
        scores={key: value for key, value in numbers.items() if value is not None},
    )


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _comparisons(folder: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """comparison.json (one, or a list of them) and comparisons/*.json, without repetitions."""
    seen = set()
    for file in (folder / "comparison.json", *sorted((folder / "comparisons").glob("*.json"))):
        found = _json(file, notes)
        for item in found if isinstance(found, list) else [found]:
            if not isinstance(item, dict) or not isinstance(item.get("difference"), dict):
                if item is not None:
                    notes.append(f"{file.relative_to(folder)} holds no comparison")
                continue
            made = item | {"a": _name(item.get("a")), "b": _name(item.get("b"))}
            key = (made["a"], made["b"], made.get("metric"))
            if key not in seen:
                seen.add(key)
                yield made


def _name(side: object) -> str:
    """A side of a comparison as a variant's name: it may be a name, a folder, or an object that names the variant."""
    if isinstance(side, dict):
        side = side.get("variant") or side.get("name") or side.get("folder")
    return str(side).replace("\\", "/").rstrip("/").rpartition("/")[2]


def _mapping(file: Path, notes: list[str]) -> dict[str, Any] | None:
    found = _json(file, notes)
    if found is not None and not isinstance(found, dict):
        notes.append(f"{file.parent.name}/{file.name} holds no mapping")
        return None
    return found


def _json(file: Path, notes: list[str]) -> Any:
    """What a JSON or YAML file holds; None where it is missing or (with a note) broken."""
    try:
        if file.suffix == ".yaml":
            return parse_yaml(read_text(file))
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{file.parent.name}/{file.name} can't be read: {' '.join(str(error).split())}")
        return None


def _lines(file: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; a line that is none (the last one of a run that was killed) becomes a note."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return
    except OSError as error:
        notes.append(f"{file.parent.name}/{file.name} can't be read: {error}")
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            yield found
        else:
            notes.append(f"line {number} of {file.parent.name}/{file.name} is broken and is left out")
