"""Held-out items that the training data give away: exact, with another answer, and nearly in the same words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from halfbyte.data.check_near import SHARE, WORDS
from halfbyte.data.check_report import NOTE, WARNING, Finding
from halfbyte.data.check_sets import Keys, Same
from halfbyte.data.check_tally import Tally, at_half
from halfbyte.data.sides import value_of
from halfbyte.data.template import Example

_SCORE = {"test": "what the tuned model scores on them is memory", "validation": "their loss says nothing of new items"}
_TAKE = "take them out of the {} data"


def exact_findings(held: str, other: str, same: Same, total: int) -> Iterator[Finding]:
    """`held`, `other`: names of sides; `same`: the items of the one whose prompt stands in the other."""
    place, take = {"train": "the training data", "validation": "the validation data"}[other], _TAKE.format(other)
    answered, asked = same.share_answers, same.count - same.share_answers
    if answered:
        text = f"{answered:,} of {total:,} {held} items stand in {place}, too"
        if other == "train":  # half of the test set in train: that is no accident of single items
            level, text = at_half(answered, total) if held == "test" else WARNING, f"{text}: {_SCORE[held]}"
        else:
            level, text = WARNING, f"{text}: they choose the adapter that is tested on them"
        yield Finding(f"{held}_in_{other}", level, answered, total, text, take.replace("train ", "training "),
                      same.places[:answered])  # fmt: skip
    if asked:
        text = f"{asked:,} of {total:,} {held} items have a prompt that stands in {place} with another answer"
        yield Finding(f"{held}_prompt_in_{other}", NOTE if held == "validation" else WARNING, asked, total, text,
                      "look whether they are meant to be told apart", same.places[answered:])  # fmt: skip


def near_finding(held: str, twins: Mapping[int, tuple[str, float]], keys: Keys) -> Iterator[Finding]:
    """`twins`: of held-out items (by number) the nearest training item and the share of n-grams that it has."""
    tally = Tally()
    for number, (origin, share) in sorted(twins.items()):
        tally.add(keys.origins[number], f"{100 * share:.0f} % of it in {origin}")
    if tally.count:
        text = f"{tally.count:,} of {len(keys):,} {held} items stand in the training data in nearly the same words"
        text += f" (at least {100 * SHARE:.0f} % of their runs of {WORDS} words)"
        do = "look at them: copies belong on one side" if held == "test" else "group them on one side"
        yield tally.finding(f"{held}_near_train", WARNING if held == "test" else NOTE, len(keys), text, do)


class GroupCheck:
    """Validation items whose group is trained on, too. `column` holds the groups. All of validation comes first."""

    def __init__(self, column: str) -> None:
        self.column = column
        self._held: dict[str, list[int]] = {}  # the numbers of each group's validation items
        self._trained: dict[str, str] = {}  # of these groups, those that are trained on, and where first

    def hold_out(self, example: Example, number: int) -> None:
        """Raises DataError where the example has no group."""
        self._held.setdefault(value_of(example.record, self.column), []).append(number)

    def train_on(self, example: Example) -> None:
        """Raises DataError where the example has no group."""
        group = value_of(example.record, self.column)
        if group in self._held:
            self._trained.setdefault(group, example.record.origin)

    def findings(self, keys: Keys) -> Iterator[Finding]:
        """`keys`: those of the validation items."""
        tally = Tally()
        for number, name in sorted((k, group) for group in self._trained for k in self._held[group]):
            tally.add(keys.origins[number], f"{self.column} {name!r}, as {self._trained[name]}")
        if tally.count:
            text = f"{tally.count:,} of {len(keys):,} validation items are of groups that are trained on, too"
            yield tally.finding("validation_group_in_train", WARNING, len(keys), text, "keep a group on one side")
