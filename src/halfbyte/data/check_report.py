"""What a check of the data found: findings, counts and lengths, as text, JSON and a notebook's table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from halfbyte.errors import DataError

FILE = "check.json"  # in a run's folder
SCHEMA = 1
ERROR, WARNING, NOTE = "error", "warning", "note"
SHOWN = 5  # places that a finding names
_PRINTED = 3  # of them, on the screen
_TEST_LEAKS = (
    "test_in_train", "test_prompt_in_train", "test_near_train", "test_group_in_train", "test_in_validation"
)  # fmt: skip
_STYLES = {ERROR: "bold red", WARNING: "bold yellow", NOTE: "dim"}
_LABELS = 12  # that are printed
_BAR = 40  # characters


@dataclass(frozen=True)
class Place:
    """An item by file and line, and what was found there."""

    where: str
    found: str = ""

    def __str__(self) -> str:
        return self.where + (f": {self.found}" if self.found else "")


@dataclass(frozen=True)
class Finding:
    """One thing that was found. `kind` is a stable name; `level` is error (stops), warning or note."""

    kind: str
    level: str
    count: int  # items
    total: int  # items that were looked at
    text: str  # a sentence without its full stop
    do: str = ""  # what to do about it
    examples: tuple[Place, ...] = ()  # the first few


@dataclass(frozen=True)
class Side:
    """Items of train or validation, as they are trained on: those without a learned token left out."""

    items: int
    tokens: int
    learned_tokens: int
    truncated: int
    nothing_learned: int
    longest: int  # tokens of the longest item, before it is cut


@dataclass(frozen=True)
class Report:
    """The result of a check; `ok` says that nothing stops a run."""

    encoding: str  # how items become tokens, in words
    sides: Mapping[str, Side]  # "train", "validation"
    tested: int  # items of the task's test set
    histogram: tuple[tuple[int, int, int], ...]  # (from, to, training items), tokens before the cut
    quantiles: Mapping[str, int]  # of the same: "50", "90", "99", "100" (percent)
    labels: Mapping[str, int] | None  # completions of train and how often, most frequent first; None: no classes
    findings: tuple[Finding, ...] = field(default=())  # errors first, then warnings, then notes

    @property
    def ok(self) -> bool:
        return not self.of(ERROR)

    def of(self, level: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == level]

    def test_leaks(self) -> list[str]:
        """See `told_leaks`."""
        return told_leaks(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain data; docs/check.md describes it."""
        lengths = {
            "quantiles": dict(self.quantiles),
            "histogram": [{"from": low, "to": high, "items": count} for low, high, count in self.histogram],
        }
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "encoding": self.encoding,
            "sides": {name: asdict(side) for name, side in self.sides.items()},
            "test_items": self.tested,
            "lengths": lengths,
            "labels": None if self.labels is None else dict(self.labels),
            "findings": [
                asdict(finding) | {"examples": [asdict(place) for place in finding.examples]}
                for finding in self.findings
            ],
        }

    def raise_errors(self) -> None:
        """Raises one DataError for all errors; does nothing where there are none."""
        errors = self.of(ERROR)
        if not errors:
            return
        if len(errors) == 1:
            one, places = errors[0], errors[0].examples[:_PRINTED]
            if len(places) == 1:
                raise DataError(one.text, where=places[0].where, found=places[0].found, do=one.do)
            raise DataError(one.text, found="\n         ".join(map(str, places)) or None, do=one.do)
        lines = [f"{one.text}" + (f" ({one.examples[0]})" if one.examples else "") + f"; {one.do}" for one in errors]
        raise DataError(f"{len(errors)} checks of the data failed", found="\n         ".join(lines),
                        do="put them right; `halfbyte check RUN.yaml` shows more of each")  # fmt: skip

    def findings_text(self, *levels: str) -> Text:
        """Every finding of these levels with its first places."""
        return Text("\n").join(_lines(tuple(finding for finding in self.findings if finding.level in levels)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.encoding)
        for name, side in self.sides.items():
            yield Text(f"{name}: {_side(side)}")
        if self.tested:
            yield Text(f"test: {self.tested:,} items")
        if self.histogram:
            yield Text("\ntokens of a training item, before it is cut:")
            most = max(count for *_, count in self.histogram)
            for low, high, count in self.histogram:
                bar = "█" * max(round(_BAR * count / most), count > 0)
                yield Text(f"  {low:>7,} to {high:>7,}  {count:>9,}  {bar}")
            shares = ", ".join(f"{share} % have at most {length:,}" for share, length in self.quantiles.items())
            yield Text(f"  {shares}")
        if self.labels:
            yield Text(f"\nanswers of the training items ({len(self.labels)} different):")
            for label, count in list(self.labels.items())[:_LABELS]:
                yield Text(f"  {count:>9,}  {label}")
            if len(self.labels) > _LABELS:
                yield Text(f"             and {len(self.labels) - _LABELS} more, "
                           f"the rarest {min(self.labels.values()):,} times")  # fmt: skip
        if self.findings:
            yield Text("")
            yield self.findings_text(ERROR, WARNING, NOTE)
        counts = [f"{len(self.of(level))} {level}{'s' * (len(self.of(level)) != 1)}" for level in (ERROR, WARNING)]
        yield Text("\n" + ", ".join(counts), style=_STYLES[ERROR] if not self.ok else "bold")

    def _repr_html_(self) -> str:
        from halfbyte.notebook import table

        rows = [(f"{one.level}: {one.text}", f"{one.count:,}", one.do, "; ".join(map(str, one.examples[:_PRINTED])))
                for one in self.findings]  # fmt: skip
        notes = [f"{name}: {_side(side)}" for name, side in self.sides.items()]
        verdict = "nothing stops a run" if self.ok else "errors stop a run"
        return table(f"data check: {verdict}", ("finding", "items", "what to do", "where"), rows, notes)


def told_leaks(findings: Iterable[Finding]) -> list[str]:
    """A sentence for each way in which the data that a run learns from give away 1 % or more of a test set."""
    found = [finding for finding in findings if finding.kind in _TEST_LEAKS]
    return [finding.text for finding in found if finding.count >= 0.01 * finding.total]


def _side(side: Side) -> str:
    text = f"{side.items:,} items, {side.tokens:,} tokens, {side.learned_tokens:,} of them learned, "
    text += f"longest {side.longest:,}"
    text += f"; {side.truncated:,} cut" if side.truncated else ""
    return text + (f"; {side.nothing_learned:,} left out, nothing of them is learned" if side.nothing_learned else "")


def _lines(findings: tuple[Finding, ...]) -> Iterator[Text]:
    for one in findings:
        yield Text.assemble((f"{one.level}: ", _STYLES[one.level]), one.text, f"; {one.do}" if one.do else "")
        for place in one.examples[:_PRINTED]:
            yield Text(f"    {place}", style="dim")
        if one.count > _PRINTED and one.examples:
            yield Text(f"    and {one.count - _PRINTED:,} more", style="dim")
