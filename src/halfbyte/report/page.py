"""The page of a run: RUN/report.html, one file that needs nothing else.

Each section is a function from the evidence to what the template shows: texts, tables, pictures. A section whose files
are missing is still there and says which command makes them. The template escapes everything except our own pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfbyte import durable
from halfbyte.evaluate.details import cut
from halfbyte.evaluate.show import warnings_of
from halfbyte.report import sections
from halfbyte.report.details import details
from halfbyte.report.fill import fill
from halfbyte.report.read import Evidence, Variant, as_number, gather
from halfbyte.report.story import Row, Story, counted, ranked, right_or_wrong, shown, spoken, verdict_kind
from halfbyte.report.words import (
    against_chance,
    against_guess,
    bytes_text,
    change_interval_text,
    change_text,
    comparison,
    difference_text,
    format_note,
    headline,
    interval_text,
    is_number_metric,
    label,
    level_text,
    metric_of,
    number_text,
    value_text,
    wrong_note,
)


def report(run: Path) -> Path:
    """Write `run`/report.html from what the run left, and return its path. Raises DataError where there is no run."""
    run = Path(run)
    page = render(gather(run))
    file = run / "report.html"
    durable.write_text(file, page)
    return file


def in_words(run: Path) -> list[str]:
    """What the page of `run` says first: the verdict in a sentence, and how much of a gain is one in format, if any."""
    summary = _summary(Story.of(gather(run)))
    return [text for text in (summary["sentence"], summary["format"]) if text]


def render(evidence: Evidence) -> str:
    """The page as HTML."""
    story = Story.of(evidence)
    return fill(
        "template.html",
        title=_title(evidence),
        notes=[*_unfinished(evidence), *evidence.notes, *_differing(story)],
        summary=_summary(story),
        scores=_scores(story),
        wrong=_wrong(story),
        memory=sections.memory(story),
        training=sections.training(evidence),
        answers=sections.answers(story),
        details=details(story),
        differences=sections.differences(story),
        samples=sections.samples(story),
        facts=sections.facts(evidence),
    )


def _title(evidence: Evidence) -> str:
    task = next((str(v.result["task"]) for v in evidence.variants.values() if v.result.get("task")), None)
    model = str((evidence.config or {}).get("model") or "").replace("\\", "/").rstrip("/").rpartition("/")[2]
    return " · ".join(part for part in (task, model) if part) or evidence.folder.resolve().name


def _unfinished(evidence: Evidence) -> list[str]:
    """A run that was stopped or killed: its figures are of the sessions so far, and not all of one state."""
    if evidence.ledger is None or evidence.ledger["finished"]:
        return []
    steps = evidence.steps[-1].get("step") if evidence.steps else 0
    return [f"The run is unfinished: it has made {steps} steps, and the figures are those of its sessions so far. "
            "Go on with: halfbyte tune RUN.yaml --resume"]  # fmt: skip


def _differing(story: Story) -> list[str]:
    """Evaluations of other items, templates or decoding than the tuned one's must not be read beside it."""
    by_print: dict[str, list[str]] = {}
    for variant in story.ordered:
        if variant.result.get("fingerprint"):
            by_print.setdefault(str(variant.result["fingerprint"]), []).append(variant.name)
    if len(by_print) < 2:
        return []
    groups = "; ".join(", ".join(names) for names in by_print.values())
    return [f"The evaluations differ in data, template or decoding, so their scores do not compare: {groups}"]


# The first screen


def _summary(story: Story) -> Row:
    found = comparison(story.evidence, story.base, story.tuned)
    leads = [f"Difference {difference_text(found, story.unit)}; {counted(found)}."] if found else []
    leads.append(against_guess(story.evidence, story.tuned, story.metric, story.unit))
    leads.append(against_chance(story.tuned or story.base, story.metric))
    only, note = False, ""
    if story.base and story.tuned and story.metric:
        only, note = format_note(story.evidence, story.base, story.tuned, story.metric, story.unit)
    verdict, sentence = headline(story.evidence, story.base, story.tuned, story.metric, only)
    tiles = [_score_tile(story, story.base, "base"), _score_tile(story, story.tuned, "tuned"),
             _difference_tile(story, found), _memory_tile(story.evidence)]  # fmt: skip
    return {
        "verdict": verdict,
        "sentence": sentence,
        "lead": " ".join(filter(None, leads)),
        "format": note,
        "tiles": tiles,
    }


def _score_tile(story: Story, variant: Variant | None, kind: str) -> Row:
    tile = {"name": {"base": "Base model", "tuned": "Tuned model"}[kind], "kind": kind, "tag": "", "value": "–"}
    if not variant or not story.metric:
        adapter = " --adapter DIR" if kind == "tuned" else ""
        return tile | {"lines": [f"no evaluation yet: halfbyte evaluate MODEL --task TASK.yaml{adapter}"]}
    found = variant.metric(story.metric) or {}
    lines = [f"{label(story.metric)} of {variant.name}"]
    lines += [f"95 % interval {text}"] if (text := _interval(story, found, story.metric)) else []
    lines += [f"{value_text('unanswered', variant.unanswered)} without an answer"] if variant.unanswered else []
    return tile | {"value": value_text(story.metric, found.get("value"), story.unit), "lines": lines}


def _difference_tile(story: Story, found: Mapping[str, Any] | None) -> Row:
    if not found:
        lines = ["no comparison yet: halfbyte compare A B"]
        return {"name": "Difference", "kind": "open", "tag": "", "value": "–", "lines": lines}
    interval = change_interval_text(found, story.unit)
    lines = [f"{level_text(found)} interval {interval}"] * bool(interval) + [counted(found)]
    value = change_text(str(found.get("metric")), as_number(found["difference"].get("value")), story.unit)
    kind, tag = verdict_kind(found), str(found.get("verdict", ""))
    return {"name": "Difference", "kind": kind, "tag": tag, "value": value, "lines": lines}


def _memory_tile(evidence: Evidence) -> Row:
    peak, planned = evidence.measured("tune", "peak_bytes"), evidence.planned("tune", "peak_bytes")
    lines = ["peak of tuning, measured", *([f"{bytes_text(planned)} planned"] if planned else [])]
    if peak is None:
        lines = ["peak of tuning, planned"] if planned else ["neither planned nor measured yet: halfbyte tune RUN.yaml"]
    adapter = as_number((evidence.plan or {}).get("adapter_bytes"))
    lines += [f"{bytes_text(adapter)} adapter"] if adapter else []
    value = bytes_text(peak if peak is not None else planned)
    return {"name": "Memory", "kind": "open", "tag": "", "value": value, "lines": lines}


def _scores(story: Story) -> Row:
    """A column a variant, a row a metric, the primary one first."""
    variants = story.ordered
    names = list(dict.fromkeys(name for variant in variants for name in variant.metrics))
    if all(variant.unanswered == 0 for variant in variants):  # then these repeat the metrics over all items
        names = [name for name in names if not name.endswith("_answered")]
    if story.metric in names:
        names = [story.metric, *(name for name in names if name != story.metric)]
    rows = [_score_row(story, name, variants) for name in names]
    if variants and "unanswered" not in names:
        cells = [{"value": value_text("unanswered", v.unanswered), "interval": ""} for v in variants]
        rows.append({"name": label("unanswered"), "text": "", "hint": "", "main": False, "cells": cells})
    for name, key, text in (
        ("items", "items", lambda value: f"{value:,.0f}"),
        ("tokens a second", "tokens_per_second", number_text),
        ("peak memory", "peak_bytes", bytes_text),
        ("peak GPU memory", "cuda_peak_bytes", bytes_text),
    ):
        values = [as_number(variant.result.get(key)) for variant in variants]
        if any(value is not None for value in values):
            cells = [{"value": "–" if value is None else text(value), "interval": ""} for value in values]
            rows.append({"name": name, "text": "", "hint": "", "main": False, "cells": cells})
    heads = [{"name": "median guess" if v is story.guess else v.name, "kind": _part(story, v)} for v in variants]
    told = [(v.name, text) for v in variants for text in warnings_of(v.result)]
    return {"heads": heads, "rows": rows, "warnings": [f"{name}: {text}" for name, text in told]}


def _score_row(story: Story, name: str, variants: list[Variant]) -> Row:
    cells = []
    for variant in variants:
        found = variant.metric(name) or {}
        cells.append(
            {"value": value_text(name, found.get("value"), story.unit), "interval": _interval(story, found, name)}
        )
    metric = metric_of(name)
    better = metric.better if metric else next(filter(None, (variant.better(name) for variant in variants)), None)
    hint = f"{better} is better" if better else ""
    return {
        "name": label(name),
        "text": metric.text if metric else "",
        "hint": hint,
        "main": name == story.metric,
        "cells": cells,
    }


def _part(story: Story, variant: Variant) -> str:
    return "tuned" if variant is story.tuned else "guess" if variant is story.guess else "base"


def _interval(story: Story, found: Mapping[str, float], name: str) -> str:
    return interval_text(name, found.get("low"), found.get("high"), story.unit)


def _wrong(story: Story) -> Row:
    """What the tuned model (or, before there is one, the base) gets wrong: in words, and its worst items."""
    variant = story.tuned or story.base
    if not variant or not story.metric or not variant.predictions:
        return {"name": "", "title": "What it gets wrong", "lines": [], "worst": [], "confusions": [], "column": ""}
    order, answers = ranked(variant, story.metric), right_or_wrong(story.metric)
    worst, confusions = [], []
    if answers:
        read = variant.result.get("kind") == "choice"  # the option that the answer names, however it is worded
        wrong = Counter(
            (p.reference, cut(str(p.parsed or ""), 60) if read else shown(p, 60)) for error, p in order if error > -1
        )
        confusions = [
            {"true": cut(true, 60), "answer": answer, "count": count}
            for (true, answer), count in sorted(wrong.items(), key=lambda pair: (-pair[1], pair[0]))[:6]
        ]
    else:
        worst = [
            {
                "prompt": cut(p.prompt, 120, tail=True),
                "true": cut(p.reference, 60),
                "answer": shown(p, 60) if spoken(variant) else value_text(story.metric, abs(error), story.unit),
            }
            for error, p in order[::-1][:3]
            if error != 0
        ]
    lines = wrong_note(variant, story.unit) if is_number_metric(story.metric) else []
    title = "What the tuned model still gets wrong" if variant is story.tuned else "What the base model gets wrong"
    return {"name": variant.name, "title": title, "lines": lines, "worst": worst, "confusions": confusions,
            "column": "answer" if spoken(variant) else label(story.metric)}  # fmt: skip
