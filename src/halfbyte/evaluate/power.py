"""What a test set can show: the smallest difference that it would detect, and the items that a given one needs.

Method. Detecting means p below 1 - level with a chance of 80 % (`POWER`).
- Right/wrong of independent items: the exact power of McNemar's exact test (Duffy 1984, Biometrics 40:1005-1015). The
  items on which exactly one side is right are binomial in number, with the share that was seen; of them the better side
  wins a binomial number. A difference larger than that share needs a share as large as itself.
- All else: (t of the level + t of the power) standard errors (Bloom 1995, doi:10.1177/0193841X9501900504), where the
  error of the paired difference is the jackknife's over units, so that groups count as groups. It falls with the root
  of their number.

Trade-off. Both take the spread as it was seen in these two results, never the difference that was seen: the power
"observed" for that says no more than its p. Where few items make up most of the spread it is a rough guide.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from halfbyte.evaluate.statistics import LEVEL

POWER = 0.8
_MOST = 10**9  # items; more is "not by items alone"
_MANY = 10_000  # discordant items; beyond, the normal approximation is as good
_NEGLECTED = 1e-10  # probability beyond the numbers of discordant items that are counted


def detectable(error: float, units: int, *, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest difference that `units` units detect, where its standard error is `error`."""
    freedom = max(1, units - 1)
    return error * float(stats.t.ppf((1 + level) / 2, freedom) + stats.t.ppf(power, freedom))


def units_needed(
    error: float, units: int, difference: float, *, level: float = LEVEL, power: float = POWER
) -> int | None:
    """How many units detect `difference`, where `units` of them give it the standard error `error`; None: too many."""
    return _smallest(lambda n: detectable(error * math.sqrt(units / n), n, level=level, power=power) <= abs(difference))


def right_wrong_power(n: int, discordant: float, difference: float, *, level: float = LEVEL) -> float:
    """The chance that McNemar's exact test on `n` items detects `difference`, a share, where on the share `discordant`
    of the items exactly one side is right (at least `difference`, else that is taken)."""
    share, alpha = max(discordant, abs(difference)), 1 - level
    if share <= 0:
        return 0.0
    low, high = (int(end) for end in stats.binom.ppf((_NEGLECTED, 1 - _NEGLECTED), n, share))
    counts = np.arange(low, high + 1)
    # the largest number of losses that is significant: two-sided, so half of alpha in each tail
    losses = stats.binom.ppf(alpha / 2, counts, 0.5)
    losses -= 2 * stats.binom.cdf(losses, counts, 0.5) >= alpha
    wins = (share + abs(difference)) / 2 / share
    detected = stats.binom.sf(counts - losses - 1, counts, wins) + stats.binom.cdf(losses, counts, wins)
    return float(stats.binom.pmf(counts, n, share) @ np.where(losses >= 0, detected, 0.0))


def right_wrong_detectable(n: int, discordant: float, *, level: float = LEVEL, power: float = POWER) -> float | None:
    """The smallest difference of two shares, in whole items of `n`, that is detected; None where none is."""
    found = _smallest(lambda k: right_wrong_power(n, discordant, k / n, level=level) >= power, most=n)
    return None if found is None else found / n


def right_wrong_needed(
    discordant: float, difference: float, *, level: float = LEVEL, power: float = POWER
) -> int | None:
    """How many items detect `difference`, a share; None: too many. Power rises in a saw-tooth: by a few items it may
    be less again. Where 10,000 items or more are discordant, Connor's formula (1987, Biometrics 43:207-211) says it."""
    size = abs(difference)
    share = max(discordant, size)
    if size > 1:
        return None
    tails = stats.norm.ppf((1 + level) / 2) * math.sqrt(share) + stats.norm.ppf(power) * math.sqrt(share - size**2)
    formula = float(tails / size) ** 2
    if formula * share > _MANY:
        return math.ceil(formula) if formula < _MOST else None
    return _smallest(lambda n: right_wrong_power(n, discordant, size, level=level) >= power)


def _smallest(enough: Callable[[int], bool], *, most: int = _MOST) -> int | None:
    """The smallest number from 1 to `most` that is enough, if larger ones are, too."""
    high = 2
    while high < most and not enough(high):
        high *= 2
    high = min(high, most)
    if not enough(high):
        return None
    low = 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
