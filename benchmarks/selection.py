"""A real selection on real weights: which of some tiny models, for two tasks, out of the box and after a probe.

The candidates are the demo's base model, stories260K (a pretrained model of 260,032 parameters that the tests ship),
and whatever `--model` names, such as another size that `tools/train_tiny_base.py` made. The tasks are the demo's LEGO
prices and, where `--banking77` names a folder with its files, the intents of Banking77 (Casanueva et al. 2020,
arXiv:2003.04807; CC BY 4.0). Everything is done by the verb; what it has finished is not done again, so this goes on
after an interruption. At the end a Markdown table a task is printed, with the recommendation.

    python benchmarks/selection.py --model small=tiny-small --banking77 data/banking77 --probe 200
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from benchmarks import common
from benchmarks.common import say

DEMO = common.ROOT / "src" / "halfbyte" / "demo"
BANKING77 = ("banking77_train.csv", "banking77_test.csv")


def main(given: Sequence[str] | None = None) -> int:
    options = _options(given)
    common.quiet()
    from halfbyte.cli import main as halfbyte

    folder = options.folder.resolve()
    candidates = place_candidates(folder / "models", options.model)
    tasks = {"lego-price": (DEMO / "task.yaml", DEMO / "run.yaml")}
    if options.banking77 is not None:
        tasks["banking77"] = write_banking77(options.banking77, folder / "banking77", DEMO / "base")
    worst = 0
    for name, (task, run) in tasks.items():
        say(f"{name}: {len(candidates)} candidates")
        asked = [
            "select",
            str(task),
            "--candidates",
            ",".join(map(str, candidates)),
            "--run",
            str(run),
            "--weights",
            options.weights,
            "--shots",
            options.shots,
            "--out",
            str(folder / "selections" / name),
        ]
        for option in ("budget", "probe", "probe_best", "limit"):
            value = getattr(options, option)
            asked += [] if value is None else [f"--{option.replace('_', '-')}", str(value)]
        worst = max(worst, halfbyte(asked))
    for name in tasks:
        file = folder / "selections" / name / "select.json"
        if file.is_file():
            print("\n" + "\n".join(markdown(json.loads(file.read_text(encoding="utf-8")))))
    return worst


def place_candidates(folder: Path, named: Sequence[str]) -> list[Path]:
    """Folders whose last part is the candidate's name: the demo's base, stories260K, and NAME=PATH or PATH each."""
    from tests.stories import SOURCE, stories

    place = stories(folder / "stories260K")
    for file in SOURCE.glob("LICENSE*"):
        shutil.copyfile(file, place / file.name)
    links = {"tiny-base": DEMO / "base"}
    for text in named:
        name, equals, path = text.partition("=")
        source = Path(path if equals else name).expanduser().resolve()
        if not source.is_dir():
            raise SystemExit(f"there is no such folder: {source}")
        links[name if equals else source.name] = source
    for name, source in links.items():
        place = folder / name
        if place.is_symlink():
            place.unlink()
        place.symlink_to(source, target_is_directory=True)
    return [folder / "stories260K", *(folder / name for name in links)]


def write_banking77(source: Path, folder: Path, model: Path) -> tuple[Path, Path]:
    """A task and a run on the files of Banking77 in `source`; an intent is written as words ("card arrival")."""
    folder.mkdir(parents=True, exist_ok=True)
    intents: set[str] = set()
    for side, name in zip(("train", "test"), BANKING77, strict=True):
        if not (source / name).is_file():
            raise SystemExit(f"there is no {name} in {source}")
        rows = list(_rows(source / name))
        intents |= {row["intent"] for row in rows}
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{side}.jsonl").write_text(text, encoding="utf-8")
    template = {"prompt": "A customer asks a bank: {text}\nThis is about:", "completion": " {intent}"}
    task = {"name": "banking77", "kind": "choice", "data": "test.jsonl", "train": "train.jsonl",
            "template": template, "options": sorted(intents)}  # fmt: skip
    run = {"model": str(model), "data": {"train": "train.jsonl", "template": template, "max_tokens": 256},
           "tune": {"batch": 32, "learning_rate": 1e-3}}  # fmt: skip
    for name, values in (("task.yaml", task), ("run.yaml", run)):
        (folder / name).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder / "task.yaml", folder / "run.yaml"


def _rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            yield {"text": " ".join(row["text"].split()), "intent": row["category"].replace("_", " ").strip()}


def markdown(found: dict[str, Any]) -> Iterator[str]:
    """The lines of a selection's section: what select.json holds, as a table, and the recommendation below it."""
    name, probing = found["metric"], any(v["probe"] for _, v in _variants(found))
    yield f"## {found['task']}: {name} on {found['items']:,} items"
    yield ""
    heads = ["candidate", "parameters", "weights", "shots", f"{name} (95 % interval)", *["after the probe"] * probing,
             "memory to tune", "tokens an item", "beside the best"]  # fmt: skip
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    order = (found["probe_ranking"] or {}).get("order", []) + (found["ranking"] or {}).get("order", [])
    place = {variant: at for at, variant in reversed(list(enumerate(order)))}
    for one, variant in sorted(_variants(found), key=lambda pair: place.get(pair[1]["name"], len(order))):
        plan, tokens = variant["plan"] or {}, variant["tokens"]
        size = plan.get("tune_bytes")
        cells = [one["label"], "–" if one["parameters"] is None else f"{one['parameters']:,}", variant["weights"],
                 str(variant["shots"]), _score(variant["evaluation"], found["kind"]),
                 *([_score((variant["probe"] or {}).get("evaluation"), found["kind"])] if probing else []),
                 "–" if size is None else f"{size / 1e6:,.0f} MB", "–" if tokens is None else f"{tokens['mean']:.0f}",
                 _beside(found, variant)]  # fmt: skip
        yield f"| {' | '.join(cells)} |"
    yield ""
    for reason in (found["recommendation"] or {}).get("reasons", []):
        yield f"- {reason}"


def _variants(found: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(one, variant) for one in found["candidates"] for variant in one["variants"]]


def _score(evaluation: dict[str, Any] | None, kind: str) -> str:
    from halfbyte.evaluate.show import figure, interval
    from halfbyte.select.ranking import metric_for

    if evaluation is None:
        return "–"
    metric = metric_for(kind)
    score = evaluation["metrics"][metric.name]
    return f"{figure(score['value'], metric)} ({interval(score['low'], score['high'], metric)})"


def _beside(found: dict[str, Any], variant: dict[str, Any]) -> str:
    decisive = found["probe_ranking"] or found["ranking"]
    if variant["evaluation"] is None or decisive is None:
        return str(variant["status"])
    if variant["name"] == decisive["order"][0]:
        return "best"
    if variant["name"] not in decisive["order"]:
        return "not probed"
    return "tied" if variant["name"] in decisive["tied"] else "worse"


def _options(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="[NAME=]PATH", help="a further candidate")
    parser.add_argument("--banking77", type=Path, metavar="FOLDER", help=f"with {' and '.join(BANKING77)}")
    parser.add_argument("--folder", type=Path, default=common.ROOT / "build" / "selection", help="(%(default)s)")
    parser.add_argument("--weights", default="nf4,int8")
    parser.add_argument("--shots", default="0,4")
    parser.add_argument("--budget", default="4GB")
    for name, text in (("probe", "steps"), ("probe-best", "candidates"), ("limit", "items of each task")):
        parser.add_argument(f"--{name}", type=int, help=text)
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
