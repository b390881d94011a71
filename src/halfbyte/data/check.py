"""Checks of a run's data, made before a model is loaded: what would go wrong silently stops, or is named.

Examples and items pass by a few thousand at a time; of each some bytes are kept (hashes, a length, its place), so
memory does not grow with the texts of training items. Held-out items go first: their n-grams are what training items
are held against. Until the first of these comes, the held-out items' prompts are kept as text, which is less than the
hashes of their words would be.

`tune` shows its items to a `Check` while it encodes them; `check_run` reads and encodes them itself and keeps none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import numpy.typing as npt

from halfbyte.config import DataConfig, TaskConfig
from halfbyte.data.check_answers import LabelCheck, NumberCheck
from halfbyte.data.check_items import ItemCheck, pad_finding
from halfbyte.data.check_leaks import TEST, TRAIN, VALIDATION, Leaks
from halfbyte.data.check_report import ERROR, NOTE, WARNING, Finding, Report, told_leaks
from halfbyte.data.check_sets import contradictory, repeated
from halfbyte.data.check_tally import Tally
from halfbyte.data.check_texts import TextCheck
from halfbyte.data.dataset import CHUNK, Ranks, group_of
from halfbyte.data.encode import Encoder, Item
from halfbyte.data.sides import value_of
from halfbyte.data.template import Example, iter_examples
from halfbyte.errors import ConfigError, DataError, HalfbyteError

_NAMES = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}
_LEVELS = (ERROR, WARNING, NOTE)
_DIGITS = re.compile(r"\d+")

Flags = npt.NDArray[np.bool_]
Progress = Callable[[int, int | None], None]  # items done, items in all


class Check:
    """Collects what there is to say of a run's data.

    `asked`: the examples of the task's test set; `options`: what a choice task knows; `context` and `vocabulary`: the
    model's, in tokens. Each is left out where there is none or it is not known.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: DataConfig,
        *,
        task: TaskConfig | None = None,
        asked: Sequence[Example] = (),
        options: frozenset[str] = frozenset(),
        context: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        self.encoder = encoder
        self._items = {side: ItemCheck(encoder, data, context, vocabulary) for side in (TRAIN, VALIDATION)}
        self._texts = TextCheck(encoder)
        self._labels = None if task is not None and task.kind == "number" else LabelCheck(options)
        self._numbers = {side: NumberCheck() for side in (TRAIN, TEST)} if self._labels is None else {}
        self._faults: dict[str, tuple[HalfbyteError, Tally]] = {}  # the first of those that say the same
        group = group_of(data) if data.validation else None  # without validation there is nothing to keep together
        columns = {VALIDATION: group, TEST: task.group if task is not None else None}
        self._leaks = Leaks(asked, {side: column for side, column in columns.items() if column is not None}, self.fault)
        self._keys = self._leaks.keys
        for example in asked:
            self._see(TEST, example)

    def add(self, side: str, examples: Sequence[Example], items: Sequence[Item | DataError]) -> None:
        """See examples of "train" or "validation" beside their items; all of validation comes before train."""
        for example, item in zip(examples, items, strict=True):
            self._leaks.see(side, example)
            self._see(side, example)
            if isinstance(item, DataError):
                self.fault(item)
            else:
                self._items[side].add(item)
        self._leaks.hold(side, examples)

    def fault(self, error: HalfbyteError) -> None:
        """Note a record, or a test set, that can't be used."""
        _, tally = self._faults.setdefault(_DIGITS.sub("#", error.what), (error, Tally()))
        tally.add(str(error.where or ""), str(error.found or ""))

    def report(self) -> Report:
        train = self._items[TRAIN]
        found = [*self._fault_findings(), *train.findings(_NAMES[TRAIN]),
                 *self._items[VALIDATION].findings(_NAMES[VALIDATION]), *self._twice(), *self._texts.findings(),
                 *(self._labels.findings() if self._labels else ()),
                 *(one for side, check in self._numbers.items() for one in check.findings(_NAMES[side])),
                 *pad_finding(self.encoder, len(train.lengths))]  # fmt: skip
        return Report(
            encoding=f"items are {self.encoder.reason}",
            sides={side: check.side() for side, check in self._items.items() if len(check.lengths)},
            tested=len(self._keys[TEST]),
            histogram=train.histogram(),
            quantiles=train.quantiles(),
            labels=self._labels.labels() if self._labels else None,
            findings=tuple(sorted(found, key=lambda finding: _LEVELS.index(finding.level))),
        )

    def _see(self, side: str, example: Example) -> None:
        self._texts.add(example, test=side == TEST)
        if example.completion is not None:
            if side in self._numbers:
                self._numbers[side].add(example.completion, example.record.origin)
            if side == TRAIN and self._labels is not None:
                self._labels.add(example.completion, example.record.origin)

    def _fault_findings(self) -> Iterator[Finding]:
        total = sum(map(len, self._keys.values())) + sum(tally.count for _, tally in self._faults.values())
        for first, tally in self._faults.values():
            text = first.what if tally.count == 1 else f"{tally.count:,} records can't be used: {first.what}"
            yield tally.finding("unusable", ERROR, total, text, first.do or "")

    def _twice(self) -> Iterator[Finding]:
        """What stands twice on one side, or on two."""
        train = self._keys[TRAIN]
        again = repeated(train)
        if again.count:
            text = f"{again.count:,} of {len(train):,} training items repeat an earlier one, prompt and answer"
            yield Finding("duplicates", WARNING, again.count, len(train), text, "leave the copies out, or mean them",
                          again.places)  # fmt: skip
        prompts, items = contradictory(train)
        if prompts.count:
            text = f"{prompts.count:,} prompts of {items:,} training items stand with different answers"
            yield Finding("contradictions", WARNING, prompts.count, len(train), text,
                          "let the prompt say what makes them differ", prompts.places)  # fmt: skip
        test = repeated(self._keys[TEST])
        if test.count:
            text = f"{test.count:,} of {len(self._keys[TEST]):,} test items repeat an earlier one: they count twice"
            yield Finding("test_duplicates", WARNING, test.count, len(self._keys[TEST]), text, "leave the copies out",
                          test.places)  # fmt: skip
        yield from self._leaks.findings()


def check_run(data: DataConfig, seed: int, check: Check, progress: Progress = lambda done, total: None) -> Report:
    """Read and encode the data of a run, a few thousand items at a time, and show them to `check`.

    Where validation is a share of train the file is read three times: which items are held out is known only when all
    prompts are. Raises ConfigError where no training data is named, and DataError for a file that can't be read.
    """
    sides, total = _sides(data, seed, check.fault, progress)
    done = 0
    for side, examples in sides.items():
        for part, items in _encoded(examples, check.encoder, data):
            check.add(side, part, items)
            done += len(part)
            progress(done, total)
    return check.report()


def leaks_of(data: DataConfig, seed: int, asked: Sequence[Example], group: str | None = None) -> list[str]:
    """A sentence for each way in which the data that a run learns from give away 1 % or more of the items `asked`, as a
    check of the run with this test set has it, but without a tokenizer. `group`: the column of the items' groups.

    Raises ConfigError where no training data is named, and DataError for a file that can't be read."""
    leaks = Leaks(asked, {} if group is None else {TEST: group})
    for side, examples in _sides(data, seed)[0].items():
        while part := list(islice(examples, CHUNK)):
            for example in part:
                leaks.see(side, example)
            leaks.hold(side, part)
    return told_leaks(leaks.findings())


def _sides(
    data: DataConfig,
    seed: int,
    fault: Callable[[DataError], None] = lambda error: None,
    progress: Progress = lambda done, total: None,
) -> tuple[dict[str, Iterator[Example]], int | None]:
    """The examples that a run validates on, if any, and then those that it trains on; how many, where that is known."""
    if not data.train:
        raise ConfigError("no training data is named", where="data.train", do="add 'data: {train: train.jsonl}'")
    if isinstance(data.validation, str):
        return {VALIDATION: _usable(data.validation, data, fault, "validation"),
                TRAIN: _usable(data.train, data, fault)}, None  # fmt: skip
    if not data.validation:
        return {TRAIN: _usable(data.train, data, fault)}, None
    used, held = _split(data.train, data, seed, fault, progress)
    flags = {VALIDATION: held, TRAIN: used & ~held}
    return {side: _usable(data.train, data, only=only) for side, only in flags.items()}, int(used.sum())


def _split(
    source: str, data: DataConfig, seed: int, fault: Callable[[DataError], None], progress: Progress
) -> tuple[Flags, Flags]:
    """Of each record of `source` whether it is used, and whether it is held out; `fault` is told of those that can't be
    used."""
    ranks, used = Ranks(seed, group_of(data)), bytearray()
    for example in _examples(source, data, group=ranks.group):
        used.append(isinstance(example, Example))
        if isinstance(example, DataError):
            fault(example)
            continue
        ranks.add(example)
        if len(ranks) % CHUNK == 0:
            progress(len(ranks), None)
    flags = np.frombuffer(used, dtype=np.bool_)
    held = np.zeros_like(flags)
    held[flags] = ranks.held_out(float(data.validation or 0.0))
    return flags, held


def _encoded(
    examples: Iterator[Example], encoder: Encoder, data: DataConfig
) -> Iterator[tuple[list[Example], list[Item | DataError]]]:
    """Examples beside their items, CHUNK at a time. The next ones are encoded in a thread while the last are looked at:
    the tokenizer works without the interpreter's lock."""
    with ThreadPoolExecutor(1) as pool:
        last: tuple[list[Example], Future[list[Item | DataError]]] | None = None
        while part := list(islice(examples, CHUNK)):
            following = pool.submit(encoder.items_or_faults, part, data.learn, data.max_tokens)
            if last is not None:
                yield last[0], last[1].result()
            last = part, following
        if last is not None:
            yield last[0], last[1].result()


def _usable(
    source: str,
    data: DataConfig,
    fault: Callable[[DataError], None] = lambda error: None,
    split: str = "train",
    only: Flags | None = None,
) -> Iterator[Example]:
    """The examples of `source` that can be used (of `only` those records, where it is given); `fault` is told of the
    others."""
    for example in _examples(source, data, split, only=only):
        if isinstance(example, DataError):
            fault(example)
        else:
            yield example


def _examples(
    source: str, data: DataConfig, split: str = "train", only: Flags | None = None, group: str | None = None
) -> Iterator[Example | DataError]:
    """The example of each record, or what is wrong with it: it is of no `group`, where there is to be one, too."""
    for example in iter_examples(source, data.template, split=split, only=only):
        if group is not None and isinstance(example, Example):
            try:
                value_of(example.record, group)
            except DataError as error:
                yield error
                continue
        yield example
