"""Pages of `compare --report`, `select` and `sweep` of made-up figures, for tests of pages alone. No model is run.

Each is made plain, as most are, and hostile: with what models, data and file names can do to a page.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from halfbyte.evaluate.compare import compare_several
from halfbyte.report import comparison, selection, sweep
from halfbyte.select.candidates import Candidate
from halfbyte.select.evidence import Evidence, Planned, Probe, Variant
from halfbyte.select.licence import Licence
from halfbyte.select.ranking import Entry, rank
from halfbyte.select.reading import Lengths, Numbers, Training
from halfbyte.select.record import Selection
from halfbyte.select.words import recommend
from tests.evaluate.test_compare import numbers
from tests.report.synthetic import MACHINE, VERSIONS

SCRIPT = "<script>document.body.remove()</script><h1>taken</h1>"
WORD = "Donaudampfschifffahrt" * 15  # 315 characters without a place to break
ARABIC = "كم يبلغ سعر هذه المجموعة بالدولار الأمريكي؟"  # "What does this set cost in US dollars?"
HOSTILE = [SCRIPT, WORD, f"{ARABIC} {SCRIPT}", "\u202egnihtyna tsomla", "日本語の長い文字列" * 30, "a\n\n\nb\tc"]
GREETING = "LEGO set Coast Guard Helicopter. Theme: City. 230 pieces, 2 figures. Year: 2008. Price: $"


def evaluations(folder: Path, spreads: dict[str, float], *, hostile: bool = False, items: int = 60) -> list[Path]:
    """Evaluations of a number task; `spreads` are their answers' mean errors."""
    lot, made = np.random.default_rng(0), []
    truth = [round(float(x), 2) for x in lot.uniform(10, 100, size=items)]
    for number, (name, spread) in enumerate(spreads.items()):
        answers = [round(abs(t + lot.normal(scale=spread)), 2) for t in truth]
        place = numbers(folder / f"{number}", [*answers], truth)
        lines = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
        for at, line in enumerate(lines):
            text = HOSTILE[at % len(HOSTILE)] if hostile else ""
            line |= {"prompt": f"{text} {GREETING}".strip(), "reference": f"{truth[at]}",
                     "answer": f"{answers[at]} {text}".strip(), "parsed": answers[at],
                     "reference_parsed": truth[at]}  # fmt: skip
        (place / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = json.loads((place / "result.json").read_text())
        result |= {"variant": name, "task": WORD if hostile else "lego-price", "model": "models/tiny-base",
                   "weights": "nf4", "adapter": {"rank": 16} if "tuned" in name else None, "unanswered": 0.0,
                   "seconds": 12.5, "peak_bytes": 410_000_000, "machine": MACHINE, "versions": VERSIONS}  # fmt: skip
        (place / "result.json").write_text(json.dumps(result))
        made.append(place)
    return made


def comparison_page(folder: Path, *, hostile: bool = False) -> Path:
    """One comparison; the hostile page has three, of names of 300 characters."""
    spreads: dict[str, float] = {"base-nf4": 20, "tuned": 5}
    if hostile:
        spreads = {"base" + "x" * 296: 20, f"tuned {WORD}": 5, f"again {SCRIPT}": 20, f"{ARABIC} {ARABIC}": 19}
    places, file = evaluations(folder, spreads, hostile=hostile), folder / "comparison.html"
    comparison.write_page(file, places, compare_several(places, detect=1.0))
    return file


def selection_page(folder: Path, *, hostile: bool = False) -> Path:
    """Three candidates with their probes, one that does not fit, and one that failed."""
    long = "".join(f"Part-{number}." for number in range(45))  # 300 characters
    names = {"Qwen3-0.6B-Base": 30.0, "SmolLM2-360M": 24.0, "Llama-3.2-1B": 22.0}
    if hostile:
        names = {long: 30.0, "x" * 300: 24.0, "a-b": 22.0}
    task, budget = (WORD if hostile else "lego-price"), 4_000_000_000
    look: Any = SimpleNamespace(
        kind="number", asked=SimpleNamespace(budget=budget),
        task_set=SimpleNamespace(task=SimpleNamespace(name=task), items=range(60)),
        device=SimpleNamespace(name=SCRIPT if hostile else "this machine", memory_bytes=budget),
        tuning=SimpleNamespace(source=f"runs/{WORD}/run.yaml" if hostile else "run.yaml"),
    )  # fmt: skip
    made = Selection(folder, look, 0, None)
    for at, (label, error) in enumerate(names.items()):
        name, size = f"{label}-nf4", 10**9 * (2 + at)
        base, tuned = evaluations(folder / f"candidate-{at}", {name: error, f"{name}-tuned": error / (2 + at)},
                                  hostile=hostile)  # fmt: skip
        variant = Variant(name, "nf4", 0, "scored", folder=base, result=json.loads((base / "result.json").read_text()))
        variant.planned = Planned(True, "", size // 2, size, 160, False, 4321.0, "")
        variant.lengths = Lengths(60, 31.4, 58, 2048, 0)
        variant.probe = Probe(200, "scored", "", tuned, json.loads((tuned / "result.json").read_text()))
        model = f"./{WORD}/{SCRIPT}" if hostile else f"./models/{label}"
        numbers_ = Numbers("digit by digit", f"|{WORD}|7|" if hostile else "|9|8|7|.|6|5|")
        made.evidence.append(
            Evidence(Candidate(model, None, "folder", label), 1_235_814_400, 2048,
                     Licence("apache-2.0", SCRIPT if hostile else "its card"), numbers_,
                     Training(1200, 31.4, 58, 7, 2048, 3 * hostile), "", None, [variant])
        )  # fmt: skip
    for label, status, why in (
        ("Llama-3.1-8B", "does not fit", "tuning takes 6.42 GB, and 4.00 GB are there"),
        ("broken", "failed", f"the checkpoint can't be read ({WORD} {SCRIPT})" if hostile else "it can't be read"),
    ):
        label = f"{label}-{long}" if hostile else label
        one = Variant(f"{label}-nf4", "nf4", 0, status, why)  # type: ignore[arg-type]
        one.planned = Planned(False, "", 5_200_000_000, 6_420_000_000, 160, True, None, "no time is known of it")
        made.evidence.append(Evidence(Candidate(label, None, "catalogue", label), 8_030_261_248, variants=[one]))
    scored = [variant for variant in made.variants if variant.result]
    made.base, made.probed = (
        rank([Entry(variant.name, one.folder, one.result, variant.planned.tune_bytes)  # type: ignore[union-attr,arg-type]
              for variant, one in tried], "number", seed=0)
        for tried in ([(v, v) for v in scored], [(v, v.probe) for v in scored])
    )  # fmt: skip
    made.guess = {"metrics": {"mae": {"value": 23.5}}}
    made.recommendation = recommend(made.evidence, made.base, made.probed, guess=made.guess, beaten=True, steps=200)
    return selection.write_page(made)


def sweep_page(folder: Path, *, hostile: bool = False) -> Path:
    """Fourteen trials of two options, the winner scored; the hostile one has ten options with hostile choices."""
    lot = np.random.default_rng(0)
    space: dict[str, Any] = {"tune.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}, "adapter.rank": [4, 8, 16]}
    if hostile:
        space |= {"adapter.targets": ["all", [WORD[:150], SCRIPT], ["q_proj"] * 9], "tune.batch": [8, 16, 32],
                  "tune.schedule": ["cosine", "linear", "constant"], "data.template.prompt": [SCRIPT, WORD, ARABIC],
                  "tune.warmup": {"low": 0.0, "high": 0.5}, "tune.weight_decay": {"low": 0.0, "high": 0.5},
                  "adapter.dropout": {"low": 0.0, "high": 0.5}, "tune.clip": {"low": 0.1, "high": 9.5}}  # fmt: skip
    trials: list[dict[str, Any]] = []
    for number in range(14):
        values = {key: where[int(lot.integers(len(where)))] if isinstance(where, list) else
                  float(np.exp(lot.uniform(math.log(where["low"]), math.log(where["high"])))) if where.get("log") else
                  float(lot.uniform(where["low"], where["high"])) for key, where in space.items()}  # fmt: skip
        loss = 1.2 + abs(math.log10(values["tune.learning_rate"]) + 3) / 3 + float(lot.normal(scale=0.02))
        state = "failed" if number == 5 else "pruned" if number in (7, 11) else "complete"
        error = f"TrainingError: the loss is not finite {WORD if hostile else ''} {SCRIPT if hostile else ''}"
        trials.append({"number": number, "state": state, "values": values, "curve": {}, "host": "h", "folder": "f",
                       "validation_loss": None if state == "failed" else loss, "seconds": 93.0,
                       "error": error if state == "failed" else ""})  # fmt: skip
    best = min((one for one in trials if one["state"] == "complete"), key=lambda one: float(one["validation_loss"]))
    a, b = evaluations(folder / "scored", {"base-nf4": 20, "tuned": 5})
    (compared,) = compare_several([a, b])
    shares = np.sort(lot.dirichlet(np.ones(len(space))))[::-1]
    made = {
        "schema": 1, "study": WORD if hostile else "lego", "storage": f"sqlite:///{WORD if hostile else 'lego'}.db",
        "model": f"./{WORD}" if hostile else "models/tiny-base", "seed": 0, "trials_asked": 14, "finished": True,
        "space": space, "own": True, "trials": trials, "best": best,
        "importances": {key: float(share) for key, share in zip(space, shares, strict=True)},
        "importances_note": "From 11 complete trials, by where the best 5 of them lie (PED-ANOVA).",
        "test": {"trial": best["number"], "used_for_choosing": False, "scored": [best["number"]],
                 "note": "The winner was chosen by validation loss; the test set had no part in it.", "metrics": {},
                 "comparison": dict(compared)},
        "notes": [f"a note {SCRIPT} {WORD}"] if hostile else [], "machine": MACHINE, "versions": VERSIONS,
    }  # fmt: skip
    return sweep.write_page(folder, made)


PAGES = {"comparison": comparison_page, "selection": selection_page, "sweep": sweep_page}
