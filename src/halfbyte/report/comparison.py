"""The page of a comparison, `halfbyte compare A B ... --report FILE.html`: one file that needs nothing else.

It is made of what comparison.json holds and of the predictions; the sections that it shares with a run's page come from
there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte import durable
from halfbyte.errors import HalfbyteError
from halfbyte.evaluate.compare import changes
from halfbyte.evaluate.results import read_evaluation
from halfbyte.evaluate.several import names
from halfbyte.report import sections
from halfbyte.report.fill import fill
from halfbyte.report.read import Evidence, Variant, as_number, prediction
from halfbyte.report.story import Row, Story, counted, verdict_kind
from halfbyte.report.words import (
    brief,
    bytes_text,
    change_interval_text,
    change_text,
    difference_text,
    interval_text,
    label,
    level_text,
    number_text,
    unit_of,
    value_text,
)

MOST_CHANGED = 6  # items of each kind
MOST_TILES = 4  # evaluations beyond which the first screen is the table
_PARTS = {"data": "items (hashes)", "shots": "examples before the prompt (hash)"}


@dataclass(frozen=True)
class Compared:
    """Evaluations of one task, the first one compared with the others. `comparisons` name them as the page does."""

    folders: Sequence[Path]
    variants: Sequence[Variant]
    comparisons: Sequence[dict[str, Any]]
    unit: str

    @classmethod
    def of(cls, folders: Sequence[Path], comparisons: Sequence[dict[str, Any]]) -> Compared:
        known = names(comparisons)
        variants = []
        for folder in folders:
            found = read_evaluation(folder)
            variants.append(
                Variant(known[str(found.folder)], found.result, [prediction(line) for line in found.predictions])
            )
        told = [row | {side: known[row[f"{side}_folder"]] for side in "ab"} for row in comparisons]
        return cls(folders, variants, told, unit_of(variants))

    def story(self, at: int) -> Story:
        """The first evaluation as the base, that of comparison `at` as the tuned one."""
        evidence = Evidence(
            folder=Path(self.folders[at + 1]),
            variants={variant.name: variant for variant in self.variants},
            comparisons=list(self.comparisons),
        )
        metric = str(self.comparisons[at]["metric"])
        return Story(evidence, self.variants[0], self.variants[at + 1], metric, self.unit)


def write_page(file: Path, folders: Sequence[Path], comparisons: Sequence[dict[str, Any]]) -> None:
    """Write the page of `comparisons`, as `compare_several` made them of `folders`. Raises HalfbyteError when the disk
    refuses."""
    page = render(Compared.of(folders, comparisons))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(file, page)
    except OSError as error:
        raise HalfbyteError("the page can't be written", where=file, found=error.strerror or str(error),
                            do="name another file with --report") from None  # fmt: skip


def render(compared: Compared) -> str:
    """The page as HTML."""
    differences = sections.differences(compared.story(0))
    for row, found in zip(differences["rows"], compared.comparisons, strict=True):
        row |= {"change": _change(found, compared.unit), "detectable": _detectable(found, compared.unit)}
    first = compared.comparisons[0]
    verdict, sentence = _headline(compared)
    return fill(
        "comparison.html",
        title=brief(str(first["task"])),
        verdict=verdict,
        sentence=sentence,
        leads=_leads(compared),
        tiles=_tiles(compared),
        differences=differences,
        results=[_result(variant, str(first["metric"]), compared.unit) for variant in compared.variants],
        metric=label(str(first["metric"])),
        changed=[_changed(compared, at) for at in range(len(compared.comparisons))],
        experiment=_experiment(compared.variants[0].result),
    )


def _headline(compared: Compared) -> tuple[str, str]:
    """(verdict, sentence): "better", "worse" or "same", and what the page says first."""
    found = compared.comparisons
    if len(found) == 1:
        (only,) = found
        a, b = brief(only["a"]), brief(only["b"])
        words = {"better": f"{b} is better than {a}", "worse": f"{b} is worse than {a}"}
        start = words.get(only["verdict"], f"No detectable difference between {b} and {a}")
        change = _change(only, compared.unit)
        kind = only["verdict"] if only["verdict"] in words else "same"
        return kind, f"{start}: {label(only['metric'])} {change}, on the same {only['n']:,} items."
    better, worse = ([brief(row["b"]) for row in found if row["verdict"] == word] for word in ("better", "worse"))
    rest = len(found) - len(better) - len(worse)
    parts = [f"better: {', '.join(better)}"] * bool(better) + [f"worse: {', '.join(worse)}"] * bool(worse)
    parts += [f"no detectable difference: {rest}"] * bool(rest)
    kind = "better" if better and not worse else "worse" if worse and not better else "same"
    return (
        kind,
        f"{len(found)} against {brief(found[0]['a'])}, on the same {found[0]['n']:,} items: {'; '.join(parts)}.",
    )


def _leads(compared: Compared) -> list[str]:
    leads = []
    for found in compared.comparisons:
        both = found.get("both_answered")
        if both:
            told = difference_text({"metric": found["metric"], **both}, compared.unit)
            leads.append(f"{brief(found['b'])} against {brief(found['a'])}, on the {both['n']:,} items to which both "
                         f"gave a number: {_change({'metric': found['metric'], **both}, compared.unit)}, {told}: "
                         f"{both['verdict']}.")  # fmt: skip
    return leads


def _tiles(compared: Compared) -> list[Row]:
    """The first one's score, and what each of the others differs by, with its interval; none where they are many."""
    if len(compared.variants) > MOST_TILES:
        return []
    first, metric, unit = compared.variants[0], str(compared.comparisons[0]["metric"]), compared.unit
    score = _result(first, metric, unit)
    lines = [
        label(metric),
        f"95 % interval {score['interval']}" if score["interval"] else "",
        f"{first.result['items']:,} items",
    ]
    tiles = [{"name": brief(first.name, 28), "tag": "", "kind": "base", "value": score["value"], "lines": lines}]
    for row in compared.comparisons:
        interval = change_interval_text(row, unit)
        lines = [f"difference from {brief(row['a'], 28)}", f"{level_text(row)} interval {interval}" if interval else "",
                 counted(row)]  # fmt: skip
        value = change_text(str(row["metric"]), as_number(row["difference"].get("value")), unit)
        tiles.append({"name": brief(row["b"], 28), "tag": row["verdict"], "kind": verdict_kind(row),
                      "value": value, "lines": lines})  # fmt: skip
    return tiles


def _change(found: Mapping[str, Any], unit: str) -> str:
    before, after = (value_text(str(found["metric"]), as_number(found[f"{side}_value"]), unit) for side in "ab")
    return f"{before} → {after}"


def _detectable(found: Mapping[str, Any], unit: str) -> str:
    """The smallest difference that these items detect, and what a given one would take."""
    metric, power = str(found["metric"]), found["detectable"]["power"]
    value = as_number(found["detectable"]["value"])
    text = "not known" if value is None else f"{_size(metric, value, unit)} ({100 * power:.0f} % of the time)"
    needed = found.get("needed")
    if not needed:
        return text
    items = "not known" if needed["items"] is None else f"{needed['items']:,} items"
    return f"{text}; {_size(metric, abs(needed['difference']), unit)} would take {items}"


def _size(metric: str, value: float, unit: str) -> str:
    return change_text(metric, value, unit).removeprefix("+")


def _result(variant: Variant, metric: str, unit: str) -> Row:
    found, result = variant.metric(metric) or {}, variant.result
    seconds, adapter = as_number(result.get("seconds")), result.get("adapter")
    return {
        "name": variant.name,
        "model": str(result.get("model") or "–"),
        "weights": str(result.get("weights") or "–"),
        "adapter": f"rank {adapter['rank']}" if isinstance(adapter, Mapping) and "rank" in adapter else "–",
        "value": value_text(metric, found.get("value"), unit),
        "interval": interval_text(metric, found.get("low"), found.get("high"), unit),
        "unanswered": value_text("unanswered", variant.unanswered),
        "memory": bytes_text(as_number(result.get("peak_bytes"))),
        "seconds": "–" if seconds is None else f"{number_text(seconds)} s",
    }


def _changed(compared: Compared, at: int) -> Row:
    """The items that improved most, and those that worsened most, both answers side by side."""
    found, story = compared.comparisons[at], compared.story(at)
    improved, worsened = changes(
        compared.folders[0], compared.folders[at + 1], metric=found["metric"], count=MOST_CHANGED
    )
    assert story.tuned is not None
    groups = [
        {"name": name, "rows": [sections.sample(story, story.tuned.by_id[row.id]) for row in rows]}
        for name, rows in (("Improved most", improved), ("Worsened most", worsened))
    ]
    return {
        "title": f"{brief(found['b'])} against {brief(found['a'])}",
        "heads": [brief(found["a"]), brief(found["b"])],
        "groups": [group for group in groups if group["rows"]],
    }


def _experiment(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What all of them share: the parts of the fingerprint."""
    parts: dict[str, Any] = result["fingerprint_parts"]
    rows = [("task", str(result["task"])), ("fingerprint", str(result["fingerprint"]))]
    told = {_PARTS.get(key) or key: value for key, value in parts.items() if value is not None}
    if isinstance(parts.get("data"), dict):
        told[_PARTS["data"]] = ", ".join(f"{name} {found[:8]}" for name, found in parts["data"].items())
    return rows + [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
                   for key, value in told.items()]  # fmt: skip
