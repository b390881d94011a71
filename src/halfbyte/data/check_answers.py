"""Checks of what is to be answered: classes and their balance, numbers and how they are read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from halfbyte.data.check_report import NOTE, WARNING, Finding
from halfbyte.data.check_tally import AT_HALF, Says, Tallies
from halfbyte.data.numbers import parse_number, several_numbers

_MOST_LABELS = 1000  # different answers; more are no classes, and are not kept
_LONGEST_LABEL = 200  # characters
_FEW = 100  # different answers of a run without a choice task, and at most a fifth of its items
_DOMINANT = 0.9
_COMMA = re.compile(r"(?<![\d,.])\d+,(?:\d{1,2}|\d{4,})(?![\d,])")


_LABELS = {
    "label_unknown": Says(
        AT_HALF,
        "{count} of {total} training answers are none of the task's options",
        "write them as the task's template does",
    ),
}
_NUMBERS = {
    "number_missing": Says(
        AT_HALF,
        "{count} of {total} {name} answers hold no number that can be read, and the task is to answer with one",
        "check the template's completion, or leave those records out",
    ),
    "number_comma": Says(
        WARNING,
        "{count} of {total} {name} answers hold a comma that does not separate thousands",
        "write decimals with a point: 12.5",
    ),
    "number_several": Says(
        AT_HALF,
        "{count} of {total} {name} answers hold several numbers; the first one counts",
        "let the completion hold the one that is meant",
    ),
}


class LabelCheck:
    """Counts answers. `options`: what a choice task knows, without outer white space; empty: there is none."""

    def __init__(self, options: frozenset[str] = frozenset()) -> None:
        self.options = options if len(options) <= _MOST_LABELS else frozenset[str]()
        self._counts: Counter[str] | None = Counter()
        self._tallies = Tallies()
        self._total = 0

    def add(self, answer: str, origin: str) -> None:
        self._total += 1
        label = answer.strip()
        if self.options and label not in self.options:
            self._tallies["label_unknown"].add(origin, repr(label[:60]))
        if self._counts is None:
            return
        if len(label) > _LONGEST_LABEL or (len(self._counts) >= _MOST_LABELS and label not in self._counts):
            self._counts = None
        else:
            self._counts[label] += 1

    def labels(self) -> dict[str, int] | None:
        """Each answer and how often, most frequent first; None where answers are no classes."""
        if not self._counts or (not self.options and (len(self._counts) > _FEW or 5 * len(self._counts) > self._total)):
            return None
        return dict(self._counts.most_common())

    def findings(self) -> Iterator[Finding]:
        yield from self._tallies.findings(_LABELS, self._total)
        labels, total = self.labels(), self._total
        if not labels:
            return
        if missing := sorted(self.options - labels.keys()):
            shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
            text = f"{len(missing):,} of {len(self.options):,} options are the answer of no training item: {shown}"
            yield Finding("label_missing", WARNING, len(missing), len(self.options), text, "add examples of them")
        (first, most), least = next(iter(labels.items())), min(labels.values())
        shown = repr(first[:60])
        if most > _DOMINANT * total:
            text = f"{100 * most / total:.0f} % of the training items have the answer {shown}: "
            text += "a model that always gives it looks good"
            yield Finding("label_balance", WARNING, most, total, text, "add examples of the other answers")
        else:
            text = (
                f"{len(labels):,} different answers, the most frequent {most:,} times ({shown}), the rarest {least:,}"
            )
            yield Finding("label_balance", NOTE, total, total, text)


class NumberCheck:
    """Answers of a number task that are read otherwise than meant, or not at all."""

    def __init__(self) -> None:
        self._tallies = Tallies()
        self._total = 0

    def add(self, answer: str, origin: str) -> None:
        self._total += 1
        number, shown = parse_number(answer), repr(answer.strip()[:60])
        if number is None:
            self._tallies["number_missing"].add(origin, shown)
        elif _COMMA.search(answer):
            self._tallies["number_comma"].add(origin, f"{shown} is read as {number:g}")
        elif several_numbers(answer):
            self._tallies["number_several"].add(origin, f"{shown} is read as {number:g}")

    def findings(self, name: str) -> Iterator[Finding]:
        yield from self._tallies.findings(_NUMBERS, self._total, name=name)
