"""Do the intervals cover what they say, and how often is chance called a difference? By simulation.

    python benchmarks/coverage.py                                   # everything: a quarter of an hour at most
    python benchmarks/coverage.py --only normal --items 100         # a part; its rows replace those in the file
    python benchmarks/coverage.py --render               # the table of docs/statistics.md, of the file alone

Each repetition draws a test set whose truth is known and asks `evaluate/statistics.py` and `evaluate/differences.py`
as `evaluate` and `compare` do. A row is one kind of figure on one kind of data: how often its 95 % interval holds the
truth, how often it lies wholly below or above it, how often two models of equal skill are told apart (false alarms),
and how often the user is warned, or told that too few items show whether to be (noted). Where two models are of equal
skill, the interval of their difference holds 0 exactly where there is no false alarm; so the coverage of a difference
is that of one which is not 0.

The bootstrap draws 1,999 resamples, the fewest that halfbyte ever draws. A hundred repetitions share their weights, so
that all their resamples are one product of matrices; what is made of them is halfbyte's own code, one by one.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import product
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import scipy
from numpy.typing import NDArray

from benchmarks.common import RESULTS, ROOT, say
from halfbyte.evaluate import statistics
from halfbyte.evaluate.differences import (
    Test,
    agreeing,
    both,
    right_wrong_difference,
    swapped_test,
    swaps,
    verdict,
)
from halfbyte.evaluate.several import holm
from halfbyte.evaluate.statistics import ENOUGH_UNITS, LEVEL, Estimate, Resampled, below, resampled, resamples, share
from halfbyte.evaluate.sums import Difference, Ratio

FILE = RESULTS / "coverage" / "coverage.csv"
PAGE = ROOT / "docs" / "statistics.md"
BEGIN, END = "<!-- coverage: written by benchmarks/coverage.py -->", "<!-- end of coverage -->"
SEED = 0
GROUP = 4  # items of a group
FAMILY = 3  # models compared with one
TOGETHER = 100  # repetitions that share their weights
CHANGE = 0.3  # the true difference whose coverage is measured; of shares: CHANGE_SHARE of what differs
CHANGE_SHARE = 0.6
Floats = NDArray[np.float64]
Generator = np.random.Generator


@dataclass(frozen=True)
class Data:
    """A distribution of an item's score, and its mean."""

    draw: Callable[[Generator, int], Floats]
    mean: float


# by how much their tails weigh; from "student 2" on, the second moment is infinite; the truth of "cauchy" is its middle
DATA = {
    "normal": Data(lambda g, n: g.normal(size=n), 0.0),
    "exponential": Data(lambda g, n: g.exponential(size=n), 1.0),
    "lognormal 1": Data(lambda g, n: g.lognormal(sigma=1, size=n), math.exp(0.5)),
    "lognormal 2": Data(lambda g, n: g.lognormal(sigma=2, size=n), math.exp(2)),
    "student 3": Data(lambda g, n: g.standard_t(3, size=n), 0.0),
    "student 2": Data(lambda g, n: g.standard_t(2, size=n), 0.0),
    "pareto 1.5": Data(lambda g, n: 1 + g.pareto(1.5, size=n), 3.0),
    "cauchy": Data(lambda g, n: g.standard_cauchy(size=n), 0.0),
}
SYMMETRIC = ("normal", "student 3", "student 2", "cauchy")
SIZES = (20, 50, 100, 300, 1000)  # independent items, or groups
SHARES = (0.1, 0.3, 0.5)
DISCORDANT = (0.05, 0.2, 0.5)


@dataclass(frozen=True)
class Row:
    """Shares of the repetitions; None where the figure has no such thing. `units` are the groups, or the items."""

    distribution: str
    figure: str
    items: int
    units: int
    repetitions: int
    coverage: float | None
    below: float | None
    above: float | None
    false_alarms: float | None
    warned: float | None
    noted: float | None


@dataclass
class Count:
    """What became of the repetitions of one row."""

    truth: float
    repetitions: int = 0
    below: int = 0
    above: int = 0
    alarms: int = 0
    warned: int = 0
    noted: int = 0

    def add(self, found: Estimate, units: int) -> None:
        assert found.low is not None and found.high is not None
        self.repetitions += 1
        self.below += found.high < self.truth
        self.above += found.low > self.truth
        warned = found.doubt == "lopsided" or units < ENOUGH_UNITS or found.method == "no spread"
        self.warned += warned
        self.noted += found.doubt == "uneven" and not warned

    def alarm(self, found: Estimate, test: Test) -> None:
        """`found` is of two models of equal skill."""
        self.alarms += verdict(found, below(test.p, LEVEL), "higher") != "no detectable difference"

    def row(self, distribution: str, figure: str, items: int, units: int, *, compared: bool) -> Row:
        n = self.repetitions
        return Row(distribution, figure, items, units, n, 1 - (self.below + self.above) / n, self.below / n,
                   self.above / n, self.alarms / n if compared else None, self.warned / n, self.noted / n)  # fmt: skip


def mean(values: Floats, groups: int | None = None) -> Ratio:
    """The mean of `values`; of so many groups of equal size, item after item."""
    if groups is None:
        return Ratio(values, np.ones(len(values)))
    return Ratio(values.reshape(groups, -1).sum(1), np.full(groups, len(values) / groups))


def shifted(values: Ratio, by: float) -> Ratio:
    return Ratio(values.sums[:, 0] + by * values.sums[:, 1], values.sums[:, 1])


def intervals(means: Sequence[Ratio], seed: int) -> Iterator[Estimate]:
    """As `estimate` for each of them, all resampled alike."""
    for each, drawn in zip(means, _resampled(means, seed, LEVEL), strict=True):
        yield resampled(each, drawn).estimate()


def tested(pairs: Sequence[tuple[Ratio, Ratio]], seed: int, level: float = LEVEL) -> Iterator[tuple[Resampled, Test]]:
    """As `paired_test` for each of them, all resampled and swapped alike."""
    firsts, seconds = ([pair[side] for pair in pairs] for side in (0, 1))
    drawn = zip(_resampled(firsts, seed, level), _resampled(seconds, seed, level), strict=True)
    change = np.hstack([b.sums - a.sums for a, b in pairs])
    moved = np.vstack([swap @ change for swap in swaps(firsts[0].units, seed, level)])
    for (a, b), (one, other), part in zip(pairs, drawn, _parts(moved), strict=True):
        found = resampled(Difference(a, b), other - one)
        yield found, both(found, swapped_test(a, b, [part]))


def compared(pairs: Sequence[tuple[Ratio, Ratio]], seed: int) -> Iterator[tuple[Estimate, Test]]:
    """As `paired_difference` for each of them."""
    for found, test in tested(pairs, seed):
        yield agreeing(found.estimate(), below(test.p, LEVEL)), test


def _resampled(means: Sequence[Ratio], seed: int, level: float) -> Iterator[Floats]:
    columns = np.hstack([each.sums for each in means])
    products = np.vstack([weights @ columns for weights in resamples(means[0].units, seed, level)])
    return (each.finish(part) for each, part in zip(means, _parts(products), strict=True))


def _parts(products: Floats) -> Iterator[Floats]:
    """Two columns each, numerator and denominator."""
    return (products[:, at : at + 2] for at in range(0, products.shape[1], 2))


def blocks(name: str, units: int, repetitions: int) -> Iterator[tuple[int, list[Generator]]]:
    """(seed, a generator for each repetition) of those that share their weights, whatever the number of repetitions."""
    for first in range(0, repetitions, TOGETHER):
        seeds = range(first, min(first + TOGETHER, repetitions))
        yield first, [np.random.default_rng([SEED, zlib.crc32(name.encode()), units, seed]) for seed in seeds]


def _count(count: Count, pairs: Sequence[tuple[Ratio, Ratio]], seed: int) -> None:
    """`pairs` are of equal skill; the second ones are shifted to see the coverage."""
    for found, test in compared(pairs, seed):
        count.alarm(found, test)
    for found, _ in compared([(a, shifted(b, count.truth)) for a, b in pairs], seed):
        count.add(found, pairs[0][0].units)


def of_means(name: str, n: int, repetitions: int) -> Iterator[Row]:
    """A mean; the difference of two models with the same scores but for chance; and a lopsided difference: one model
    is as good as the other on average, by few items on which it is much better (or worse)."""
    data = DATA[name]
    alone, pair, lopsided = Count(data.mean), Count(CHANGE), Count(CHANGE)
    for seed, generators in blocks(name, n, repetitions):
        drawn = [[data.draw(generator, n) for _ in range(3)] for generator in generators]
        for found in intervals([mean(a) for a, _, _ in drawn], seed):
            alone.add(found, n)
        _count(pair, [(mean(a), mean(b)) for a, b, _ in drawn], seed)
        if name not in SYMMETRIC:
            _count(lopsided, [(mean(np.zeros(n)), mean(c - data.mean)) for _, _, c in drawn], seed)
    yield alone.row(name, "mean", n, n, compared=False)
    yield pair.row(name, "difference", n, n, compared=True)
    if name not in SYMMETRIC:
        yield lopsided.row(name, "lopsided difference", n, n, compared=True)


def of_shares(name: str, n: int, repetitions: int) -> Iterator[Row]:
    """Right and wrong: a share, and the difference of two models."""
    generator = np.random.default_rng([SEED, zlib.crc32(name.encode()), n])
    repetitions *= 5  # these are cheap
    for p in SHARES:
        alone, one = Count(p), cache(lambda hits: share(hits, n))
        for hits in generator.binomial(n, p, size=repetitions):
            alone.add(one(int(hits)), n)
        yield alone.row(name, f"share of {p:g}", n, n, compared=False)
    for discordant in DISCORDANT:
        pair, two = (
            Count(CHANGE_SHARE * discordant),
            cache(lambda wins, losses: right_wrong_difference(wins, losses, n)),
        )
        for truth in (0.0, pair.truth):
            chances = [(discordant + truth) / 2, (discordant - truth) / 2, 1 - discordant]
            for wins, losses, _ in generator.multinomial(n, chances, size=repetitions):
                found, test = two(int(wins), int(losses))
                if truth == 0:
                    pair.alarm(found, test)
                else:
                    pair.add(found, n)
        yield pair.row(name, f"difference, {100 * discordant:g} % differ", n, n, compared=True)


def of_groups(name: str, groups: int, repetitions: int) -> Iterator[Row]:
    """Groups of items that share half of their variance (or are right and wrong together more often than not)."""
    alone, pair, right = Count(0.0), Count(CHANGE), Count(CHANGE)
    for seed, generators in blocks(name, groups, repetitions):
        drawn = [[_in_groups(generator, groups) for _ in range(2)] for generator in generators]
        for found in intervals([mean(a, groups) for a, _ in drawn], seed):
            alone.add(found, groups)
        _count(pair, [(mean(a, groups), mean(b, groups)) for a, b in drawn], seed)
        hits = [[mean((scores > 0.5).astype(float), groups) for scores in both_] for both_ in drawn]
        _count(right, [(a, b) for a, b in hits], seed)
    for figure, count in (("mean", alone), ("difference", pair), ("difference of shares", right)):
        yield count.row(name, figure, groups * GROUP, groups, compared=figure != "mean")


def _in_groups(generator: Generator, groups: int) -> Floats:
    common = np.repeat(generator.normal(size=groups), GROUP)
    return np.asarray((common + generator.normal(size=groups * GROUP)) / math.sqrt(2))


def of_several(name: str, n: int, repetitions: int) -> Iterator[Row]:
    """Three models of equal skill against a fourth: how often is even one of them called better or worse?"""
    alarms = {"with Holm's correction": 0, "without": 0}
    for seed, generators in blocks(name, n, repetitions):
        drawn = [[mean(generator.normal(size=n)) for _ in range(1 + FAMILY)] for generator in generators]
        pairs = [(a, b) for a, *others in drawn for b in others]
        p_values = [test.p for _, test in tested(pairs, seed, 1 - (1 - LEVEL) / FAMILY)]
        for first in range(0, len(p_values), FAMILY):
            family = p_values[first : first + FAMILY]
            alarms["without"] += any(below(p, LEVEL) for p in family)
            alarms["with Holm's correction"] += any(one.detected for one in holm(family))
    for told, count in alarms.items():
        yield Row(name, f"any of {FAMILY} differences, {told}", n, n, repetitions, None, None, None,
                  count / repetitions, None, None)  # fmt: skip


CASES: dict[str, Callable[[str, int, int], Iterator[Row]]] = {
    **dict.fromkeys(DATA, of_means), "binary": of_shares, "groups of 4": of_groups, "several": of_several,
}  # fmt: skip


def run(names: Iterable[str], sizes: Iterable[int], repetitions: int, file: Path) -> None:
    """Simulate the cases `names` with so many units and put their rows in the place of those that are in `file`."""
    for name, units in product(names, sizes):
        made = list(CASES[name](name, units, repetitions))
        for row in made:
            cover = "" if row.coverage is None else f"covers {100 * row.coverage:.1f} %"
            alarms = "" if row.false_alarms is None else f"false alarms {100 * row.false_alarms:.1f} %"
            say(f"{name:12} {row.figure:40} {row.items:6} {cover:16} {alarms}")
        kept = [row for row in read(file) if (row.distribution, row.units) != (name, units)] + made
        kept.sort(key=lambda row: (list(CASES).index(row.distribution), row.units))
        write(kept, file)


def write(rows: Sequence[Row], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    names = [item.name for item in fields(Row)]
    versions = json.dumps({"numpy": np.__version__, "scipy": scipy.__version__})
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow([*names, "seed", "versions"])
        for row in rows:
            cells = [getattr(row, name) for name in names]
            told = ["" if cell is None else f"{cell:.5g}" if isinstance(cell, float) else cell for cell in cells]
            writer.writerow([*told, SEED, versions])


def read(file: Path) -> list[Row]:
    """The rows of `file`; none where there is no such file."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return [_row(cells) for cells in csv.DictReader(lines)]


def _row(cells: dict[str, str]) -> Row:
    figures = ("coverage", "below", "above", "false_alarms", "warned", "noted")
    known = {name: float(cells[name]) if cells.get(name) else None for name in figures}
    return Row(cells["distribution"], cells["figure"], int(cells["items"]), int(cells["units"]),
               int(cells["repetitions"]), **known)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    head = ("data", "figure", "items", "groups", "interval covers", "too low", "too high", "false alarms", "warned",
            "noted", "repetitions")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        shares = [row.coverage, row.below, row.above, row.false_alarms, row.warned, row.noted]
        told = ["" if value is None else f"{100 * value:.1f} %" for value in shares]
        groups = str(row.units) if row.units != row.items else ""
        cells = [row.distribution, row.figure, f"{row.items:,}", groups, *told, f"{row.repetitions:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rendered(page: str, rows: Sequence[Row]) -> str:
    """`page` with the table of `rows` in its place."""
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(CASES), help="this case (may be given several times)")
    parser.add_argument("--items", action="append", type=int, choices=SIZES, help="so many items, or groups")
    parser.add_argument("--repetitions", type=int, default=2000, help="of each row (%(default)s)")
    parser.add_argument("--file", type=Path, default=FILE, help="CSV (%(default)s)")
    parser.add_argument("--render", action="store_true", help="simulate nothing, write the page")
    options = parser.parse_args(given)
    if not options.render:
        statistics._WORK = 1  # 1,999 resamples
        run(options.only or CASES, options.items or SIZES, options.repetitions, options.file)
    if options.file == FILE:
        PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), read(FILE)), encoding="utf-8")


if __name__ == "__main__":
    main()
