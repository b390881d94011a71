"""Held-out items that the training data give away: exact, with another answer, and nearly in the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from halfbyte.data.check_near import SHARE, WORDS, Hashed, NearIndex
from halfbyte.data.check_report import NOTE, WARNING, Finding
from halfbyte.data.check_sets import Keys, Same, shared
from halfbyte.data.check_tally import Tally, at_half
from halfbyte.data.sides import value_of
from halfbyte.data.template import Example
from halfbyte.errors import DataError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SCORE = {"test": "what the tuned model scores on them is memory", "validation": "their loss says nothing of new items"}
_TAKE = "take them out of the {} data"


class Leaks:
    """Sides beside each other. `asked`: the test set; `groups`: of a held-out side the column that holds its groups;
    `fault` is told of an example without its group. All of validation comes before train."""

    def __init__(
        self, asked: Sequence[Example], groups: Mapping[str, str], fault: Callable[[DataError], None] = lambda _: None
    ) -> None:
        self.keys = {side: Keys() for side in (TRAIN, VALIDATION, TEST)}
        self._fault = fault
        self._groups = {side: GroupCheck(side, column) for side, column in groups.items()}
        self._held = {TEST: [_compared(example) for example in asked], VALIDATION: list[str]()}
        self._near: dict[str, NearIndex] | None = None
        self._twins: dict[str, dict[int, tuple[str, float]]] = {TEST: {}, VALIDATION: {}}
        for example in asked:
            self.see(TEST, example)

    def see(self, side: str, example: Example) -> None:
        self.keys[side].add(example)
        for held, groups in self._groups.items():
            try:
                if side == held:
                    groups.hold_out(example, len(self.keys[side]) - 1)
                elif side == TRAIN:
                    groups.train_on(example)
            except DataError as error:
                self._fault(error)

    def hold(self, side: str, examples: Sequence[Example]) -> None:
        """Keep the words of validation; of train look for near twins of held-out items: the nearest one is kept."""
        if side == VALIDATION:
            assert self._near is None, "validation comes before train"
            self._held[VALIDATION] += map(_compared, examples)
            return
        if self._near is None:
            self._near = {held: NearIndex(Hashed.of(texts)) for held, texts in self._held.items() if texts}
            self._held = {}
        texts = Hashed.of([_compared(example) for example in examples] if self._near else [])
        for held, index in self._near.items():
            twins = self._twins[held]
            for place, number, share in index.matches(texts):
                if number not in twins or share > twins[number][1]:
                    twins[number] = (examples[place].record.origin, share)

    def findings(self) -> Iterator[Finding]:
        for held, other in ((TEST, TRAIN), (VALIDATION, TRAIN), (TEST, VALIDATION)):
            keys, against = self.keys[held], self.keys[other]
            if not len(keys) or not len(against):
                continue
            same, which = shared(keys, against)
            yield from exact_findings(held, other, same, len(keys))
            if other == TRAIN:
                twins = {number: twin for number, twin in self._twins[held].items() if not which[number]}
                yield from near_finding(held, twins, keys)
        for held, groups in self._groups.items():
            yield from groups.findings(self.keys[held])


def _compared(example: Example) -> str:
    """The text that is held against others: what is asked; where nothing is, the answer."""
    return example.prompt if example.prompt.strip() else example.completion or ""


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
    """Held-out items whose group is trained on, too. `held`: their side, test or validation, all of which comes first;
    `column` holds the groups. Training data that a run does not split by it may lack the column: that is counted."""

    def __init__(self, held: str, column: str) -> None:
        self.held, self.column = held, column
        self._held: dict[str, list[int]] = {}  # the numbers of each group's held-out items
        self._trained: dict[str, str] = {}  # of these groups, those that are trained on, and where first
        self._items = 0  # training items of such groups
        self._seen, self._unknown = 0, Tally()  # training items, and those of them whose group is not known

    def hold_out(self, example: Example, number: int) -> None:
        """Raises DataError where the example has no group."""
        self._held.setdefault(value_of(example.record, self.column), []).append(number)

    def train_on(self, example: Example) -> None:
        """Raises DataError where the example has no group and the run is split by groups."""
        self._seen += 1
        value = example.record.values.get(self.column)
        if self.held == "test" and (value is None or value == "" or isinstance(value, (list, dict))):
            self._unknown.add(example.record.origin)
            return
        group = value_of(example.record, self.column)
        if group in self._held:
            self._items += 1
            self._trained.setdefault(group, example.record.origin)

    def findings(self, keys: Keys) -> Iterator[Finding]:
        """`keys`: those of the held-out items."""
        tally = Tally()
        for number, name in sorted((k, group) for group in self._trained for k in self._held[group]):
            tally.add(keys.origins[number], f"{self.column} {name!r}, as {self._trained[name]}")
        if tally.count:
            items = f"{self._items:,} training item{'s are' if self._items > 1 else ' is'}"
            text = f"{tally.count:,} of {len(keys):,} {self.held} items are of groups that {items} of, too"
            yield tally.finding(f"{self.held}_group_in_train", WARNING, len(keys), text, "keep a group on one side")
        if self._unknown.count:
            text = f"{self._unknown.count:,} of {self._seen:,} training items have no '{self.column}', which is the"
            text += " task's group: whether test items are of the same groups is not known"
            yield self._unknown.finding("test_group_unknown", NOTE, self._seen, text,
                                        "give the training data that column, too")  # fmt: skip
