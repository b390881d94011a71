"""Counting while items pass by: how many, and where the first few are."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from halfbyte.data.check_report import ERROR, SHOWN, WARNING, Finding, Place


class Tally:
    """Items of one kind: their number and the first few places."""

    def __init__(self) -> None:
        self.count = 0
        self.places: list[Place] = []

    def add(self, where: str, found: str = "") -> None:
        self.count += 1
        if len(self.places) < SHOWN:
            self.places.append(Place(where, found))

    def finding(self, kind: str, level: str, total: int, text: str, do: str = "") -> Finding:
        return Finding(kind, level, self.count, total, text, do, tuple(self.places))


@dataclass(frozen=True)
class Says:
    """What is said of a kind: its level (or AT_HALF), a sentence with {count}, {total} and more in it, and advice."""

    level: str
    text: str
    do: str = ""


AT_HALF = "error at half"  # see `at_half`


class Tallies(defaultdict[str, Tally]):
    """A tally for each kind."""

    def __init__(self) -> None:
        super().__init__(Tally)

    def findings(self, says: Mapping[str, Says], total: int, **words: object) -> Iterator[Finding]:
        """Of every kind of `says` that was met, in its order; `words` fill the sentences."""
        for kind, say in says.items():
            if kind in self and self[kind].count:
                count = self[kind].count
                level = at_half(count, total) if say.level == AT_HALF else say.level
                filled = [text.format(count=f"{count:,}", total=f"{total:,}", **words) for text in (say.text, say.do)]
                yield self[kind].finding(kind, level, total, *filled)


def at_half(count: int, total: int) -> str:
    """A fault of at least half of the items is one of the set-up and an error; a fault of fewer is a warning."""
    return ERROR if 2 * count >= total else WARNING


class Origins:
    """Places ("file:line"), 12 bytes each."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._names: list[str] = []
        self._file, self._line = array("l"), array("q")

    def append(self, origin: str) -> None:
        name, _, line = origin.rpartition(":")
        if not (line.isascii() and line.isdigit()):  # a place without a line
            name, line = origin, "-1"
        if name not in self._files:
            self._files[name] = len(self._names)
            self._names.append(name)
        self._file.append(self._files[name])
        self._line.append(int(line))

    def __len__(self) -> int:
        return len(self._line)

    def __getitem__(self, number: int) -> str:
        name, line = self._names[self._file[number]], self._line[number]
        return name if line < 0 else f"{name}:{line}"
