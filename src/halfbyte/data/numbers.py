"""The number in a text: one reader for references, for a model's answers and for the training median."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z.,)])(?P<sign>[-+−])(?:[$€£¥])?)?"  # a sign, not the dash of a range
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?P<exponent>[eE][-+]?[0-9]+(?![A-Za-z]))?"
)


def parse_number(text: str) -> float | None:
    """The first number in `text`, or None where there is none.

    '$15' and '15 dollars' are 15, '1,299.99' is 1299.99, '1e3' is 1000, '-$3' is -3, '150 - $150' is 150. A comma
    separates thousands and a point decimals; '12,5' is 12. A number too large for a float counts as none.
    """
    match = _NUMBER.search(text)
    if not match:
        return None
    value = float(match["digits"].replace(",", "") + (match["exponent"] or ""))
    if not math.isfinite(value):
        return None
    return -value if match["sign"] in ("-", "−") else value


def several_numbers(text: str) -> bool:
    """Whether `text` holds more than one number; the first is what `parse_number` returns."""
    match = _NUMBER.search(text)
    return match is not None and _NUMBER.search(text, match.end()) is not None
