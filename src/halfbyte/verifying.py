"""`halfbyte verify`: what a run or an evaluation recorded, taken again and set beside the record. Nothing is written,
nothing is downloaded, no model answers and no code of the user's is run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from halfbyte.config import RunConfig
from halfbyte.environment import environment
from halfbyte.errors import ConfigError, HalfbyteError
from halfbyte.option_files import flat, read_yaml, to_dict
from halfbyte.options import build
from halfbyte.plan.prose import prose
from halfbyte.provenance import (
    DIFFERS,
    OK,
    OTHER,
    UNCHECKED,
    Finding,
    compare_environment,
    compare_files,
    digest,
    told,
)

DIFFERENT = 4  # exit code where something recorded is contradicted
_STYLES = {OK: "green", DIFFERS: "bold red", UNCHECKED: "yellow", OTHER: "yellow"}
_PLACES = {"a_folder", "b_folder"}  # of a comparison: a run may have been moved
# What anybody's JSON may bring about: none, other types, an infinite step, an integer beyond a float, endless depth
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_CONTIGUOUS = "steps in order"


def verify(target: Path, as_json: bool, console: Console, *, whole: bool = False) -> int:
    """`halfbyte verify RUN`: a run's folder (or its RUN.yaml), or an evaluation's. 0, or `DIFFERENT`.

    Printed is what does not agree, and how much does; `whole`: all of it, as JSON has it in any case.

    Raises ConfigError for a folder that is neither, DataError for an evaluation that can't be read.
    """
    rows, kind = findings(target)
    different = any(row.state == DIFFERS for row in rows)
    if as_json:
        agrees = {"schema": 1, "target": str(target), "kind": kind, "agrees": not different}
        print(json.dumps(agrees | {"findings": [asdict(row) for row in rows]}, indent=2))
    else:
        _show(rows, target, whole, console)
    return DIFFERENT if different else 0


def findings(target: Path) -> tuple[list[Finding], str]:
    """(a finding for each thing that was recorded, "run" or "evaluation"); raises as `verify` does."""
    from halfbyte.evaluate.results import PREDICTIONS, RESULT
    from halfbyte.evaluate.verify import verify_evaluation
    from halfbyte.pipeline import run_folder

    if target.is_dir() and not (target / "run.yaml").is_file():
        if (target / RESULT).is_file() or (target / PREDICTIONS).is_file():
            beside = target.parent.parent  # runs/NAME/evaluations/VARIANT
            return verify_evaluation(
                target, beside / "adapter" if (beside / "run.yaml").is_file() else None
            ), "evaluation"
        raise ConfigError("this is neither a run nor an evaluation", where=target, found="no run.yaml, no result.json",
                          do="name a folder that halfbyte tune or halfbyte evaluate left")  # fmt: skip
    return _run(run_folder(target)), "run"


def _run(folder: Path) -> list[Finding]:
    from halfbyte.evaluate.verify import model_rows
    from halfbyte.tune import origin

    recorded = origin.read(folder)
    if recorded is None:
        return [_broken(origin.FILE, f"{folder / origin.FILE} is missing or broken"), *_files(folder, {}, None)]
    config, rows = _configuration(folder, recorded)
    if config is not None and "seed" in recorded:
        rows.append(Finding.of("seed", recorded["seed"], config.seed))
    rows += compare_files(recorded.get("files"), "data file")
    rows += model_rows({"model": "its model", **recorded}, None)
    rows.append(_items(config, recorded))
    return rows + _files(folder, recorded, config) + compare_environment(recorded, environment())


def _files(folder: Path, recorded: Mapping[str, Any], config: RunConfig | None) -> list[Finding]:
    """What lies in the run's folder beside its options."""
    rows = [*_adapters(folder, recorded), *_steps(folder, config)]
    for place in sorted(path.parent for path in (folder / "evaluations").glob("*/result.json")):
        rows += _evaluation(place, folder)
    for file in (folder / "comparison.json", *sorted((folder / "comparisons").glob("*.json"))):
        rows += _comparison(file, folder) if file.is_file() else []
    return rows


def _configuration(folder: Path, recorded: Mapping[str, Any]) -> tuple[RunConfig | None, list[Finding]]:
    """run.yaml: whether it can be read, says every option, and says what it said."""
    known = flat(to_dict(RunConfig()))
    try:
        values = read_yaml(folder / "run.yaml")
        config = build(RunConfig, values, str(folder / "run.yaml"))
    except HalfbyteError as error:
        return None, [_broken("run.yaml", " ".join(str(error).split()))]
    missing = sorted(known.keys() - flat(values).keys() - {key for key in known if key.startswith("data.template")})
    old, new = _prints(recorded).get("configuration"), digest(_of_these(to_dict(config), values))
    newer = old in (None, new)  # the file is as it was written, or nobody knows: by a version without these options
    rows = [Finding.of("run.yaml: every option", f"{len(known)} options", f"{len(known) - len(missing)} options",
                       f"{'newer than the run' if newer else 'missing'}: {', '.join(missing)}",
                       otherwise=OTHER if newer else DIFFERS)]  # fmt: skip
    if old is None:
        return config, [*rows, Finding.unchecked("configuration", None, "not recorded")]
    return config, [*rows, Finding.of("configuration", old, new, "run.yaml was changed")]


def _of_these(options: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options` that `values` has, too."""
    both = {key: (option, values[key]) for key, option in options.items() if key in values}
    return {key: _of_these(option, value) if isinstance(option, dict) and isinstance(value, dict) else option
            for key, (option, value) in both.items()}  # fmt: skip


def _prints(recorded: Mapping[str, Any]) -> Mapping[str, Any]:
    found = recorded.get("fingerprints")
    return found if isinstance(found, dict) else {}


def _items(config: RunConfig | None, recorded: Mapping[str, Any]) -> Finding:
    """The tokens that were trained on, made again by the model's tokenizer."""
    from halfbyte.checkpoint.source import open_folder
    from halfbyte.data.dataset import load_training
    from halfbyte.model.build import load_tokenizer
    from halfbyte.plan.shapes import text_config
    from halfbyte.tune.inputs import fingerprint

    what, old, place = "training items, token by token", _prints(recorded).get("items"), recorded.get("model_folder")
    if config is None or old is None or not isinstance(place, str):
        return Finding.unchecked(
            what, old, "not recorded" if old is None else "run.yaml or the model's place is missing"
        )
    if not recorded.get("files"):
        return Finding.unchecked(what, old, "the data come from the hub")
    try:
        checkpoint = open_folder(Path(place))
        vocabulary = int(text_config(checkpoint.config).get("vocab_size") or 2**31)
        data = load_training(config.data, load_tokenizer(checkpoint, vocabulary), config.seed)
    except HalfbyteError as error:
        return Finding.unchecked(what, old, error.what)
    return Finding.of(what, old, fingerprint(data), "other items, another split or other tokens")


def _adapters(folder: Path, recorded: Mapping[str, Any]) -> Iterator[Finding]:
    """Digests of the adapters' files, and that they belong to the run's base model."""
    from halfbyte.model.adapter import WEIGHTS, trained_on
    from halfbyte.tune import origin

    old, new = recorded.get("adapters") or {}, origin.adapters(folder)
    if not old:
        yield Finding.unchecked("adapter", None, "not recorded: the training was not finished, or is from before")
    for name in dict.fromkeys([*old, *(new if old else ())]):
        yield Finding.of(name, old.get(name), new.get(name), "the file was changed" if name in new else "it is gone")
    base = _prints(recorded).get("model")
    for name in origin.ADAPTERS:
        file = folder / name / WEIGHTS
        if base is not None and file.is_file():
            yield Finding.of(f"{name}: its base model", base, trained_on(file), "of another base, or not to be read")


def _steps(folder: Path, config: RunConfig | None) -> Iterator[Finding]:
    """metrics.jsonl: steps from 1 on without a gap, as far as the newest checkpoint, whose best loss it names; and
    the digests that lie beside each checkpoint's files."""
    from halfbyte.tune.state import check, checkpoints

    there = checkpoints(folder / "checkpoints")
    for place in there:
        name = f"checkpoints/{place.name}"
        try:
            yield Finding.of(f"{name}: SHA256SUMS", *2 * (f"{len(check(place))} files as written",))
        except (OSError, ValueError) as error:
            yield _broken(name, " ".join(str(error).split()))
    file = folder / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        steps = [int(line["step"]) for line in lines]
        finite = all(math.isfinite(line["loss"]) for line in lines)
        losses = {line["step"]: line["validation_loss"] for line in lines if line.get("validation_loss") is not None}
        lowest = min(losses, key=losses.__getitem__, default=None)
    except FileNotFoundError:
        yield Finding.unchecked("metrics.jsonl", None, "the run has not come to its training")
        return
    except (OSError, *_MALFORMED) as error:
        yield _broken("metrics.jsonl", f"a line is broken: {' '.join(str(error).split())}")
        return
    whole = steps == list(range(1, len(steps) + 1))
    gap = next((step for step, wanted in zip(steps, range(1, len(steps) + 1), strict=True) if step != wanted), None)
    yield Finding.of("metrics.jsonl", _CONTIGUOUS, _CONTIGUOUS if whole else f"step {gap} out of order")
    yield Finding.of("metrics.jsonl: losses", "finite", "finite" if finite else "not all finite")
    if not there:
        yield Finding.unchecked("last checkpoint", None, "there is none")
        return
    try:
        progress = json.loads((there[-1] / "state.json").read_text(encoding="utf-8"))
        last, best, at = progress["step"], progress["best_loss"], progress["best_step"]
    except (OSError, *_MALFORMED) as error:
        yield _broken(f"checkpoints/{there[-1].name}", " ".join(str(error).split()))
        return
    yield Finding.of("last step: checkpoint, metrics.jsonl", last, steps[-1] if steps else 0)
    found = None if lowest is None else {"loss": losses[lowest], "step": lowest}
    yield Finding.of("best validation loss", None if at is None else {"loss": best, "step": at}, found)


def _evaluation(place: Path, folder: Path) -> list[Finding]:
    from halfbyte.evaluate.verify import verify_evaluation

    name = place.relative_to(folder).as_posix()
    try:
        rows = verify_evaluation(place, folder / "adapter")
    except HalfbyteError as error:
        return [_broken(name, " ".join(str(error).split()))]
    return [replace(row, what=f"{name}: {row.what}") for row in rows]


def _comparison(file: Path, folder: Path) -> list[Finding]:
    """Every figure of a comparison, made again of the two evaluations."""
    from halfbyte.evaluate.compare import compare_folders

    name = file.relative_to(folder).as_posix()
    try:
        old = json.loads(file.read_text(encoding="utf-8"))
        sides = [folder / "evaluations" / old[side] for side in ("a", "b")]
        sides = [own if own.is_dir() else Path(old[f"{side}_folder"]) for own, side in zip(sides, "ab", strict=True)]
        metric = None if "both_answered" in old else old["metric"]
        new = json.loads(json.dumps(compare_folders(*sides, metric=metric, seed=int(old["seed"]))))
    except HalfbyteError as error:
        return [Finding.unchecked(name, None, error.what)]
    except (OSError, *_MALFORMED) as error:
        return [_broken(name, f"{type(error).__name__}: {' '.join(str(error).split())}")]
    keys = [key for key in dict.fromkeys([*old, *new]) if key not in _PLACES]
    other = [key for key in keys if old.get(key) != new.get(key)]
    rows = [Finding.of(f"{name}: {key}", old.get(key), new.get(key)) for key in other]
    return rows or [Finding(name, f"{len(keys)} entries", told(f"the same; {old['verdict']}"), OK)]


def _broken(what: str, why: str) -> Finding:
    return Finding(what, "", "can't be read", DIFFERS, why)


def _show(rows: list[Finding], target: Path, whole: bool, console: Console) -> None:
    """A line for each finding that does not agree (`whole`: for every one), then how many do. Figures stay whole."""
    for row in rows:
        if whole or row.state != OK:
            prose(console, f"{row.state}: {row.what}: {_in_words(row)}", _STYLES[row.state])
    counts = {state: sum(row.state == state for row in rows) for state in _STYLES}
    others = "".join(f"; {state}: {count}" for state, count in counts.items() if count and state != OK)
    prose(console, f"{target}: {counts[OK]} of {len(rows)} agree{others}", "" if counts[DIFFERS] else _STYLES[OK])


def _in_words(row: Finding) -> str:
    if row.state == OK:
        return row.recorded if row.recorded == row.found else f"{row.recorded}, {row.found}"
    if row.state == UNCHECKED:
        return row.note
    found = f"recorded {row.recorded}, now {row.found}" if row.recorded else row.found
    return found + (f" ({row.note})" if row.note else "")
