"""What `halfbyte doctor --calibrate` measured on this machine, read without torch; and nothing where it was not.

The measuring is `halfbyte.calibrate`'s; here is what it leaves behind: of each operation the seconds that a unit of its
work takes (a call, a weight decoded, a multiplication, ...), fitted to measured times. The units are counted by
`operations.py`, for the fit as for the prediction. A measurement belongs to one machine, one build of the kernels and
one set of versions; when any of them changes it counts as none, and the reason names what changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from math import exp, log2
from pathlib import Path
from typing import Any

from halfbyte.checkpoint.source import cache_folder
from halfbyte.environment import cores, processor, versions

FILE = "calibration.json"
SCHEMA = 4
NOT_CALIBRATED = "not calibrated; run halfbyte doctor --calibrate"
_KERNELS = Path(__file__).parents[1] / "kernels"
_VERSIONS = ("halfbyte", "python", "torch", "transformers")
_VARIABLES = ("HALFBYTE_KERNELS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY")

Units = Mapping[str, float]
_NEAR, _FAR = 0.7, 0.05  # a point counts within a factor of about two; the weight of the fit itself


@dataclass(frozen=True)
class Cost:
    """Seconds of one kind of operation: the sum over `units` of count times seconds each, and how far measured times
    lay from that. Near a measured point its own ratio counts: no sum of terms follows every cache and every tile."""

    units: dict[str, float]
    points: list[list[float]] = field(default_factory=list)  # counts in the order of `units`, then measured by fitted
    error: float = 0.0  # mean relative error of the fit over them

    def seconds(self, counted: Units) -> float:
        """Raises KeyError for a unit that was not measured."""
        fitted = sum(count * self.units[name] for name, count in counted.items() if count)
        return fitted * self._ratio([float(counted.get(name, 0)) for name in self.units])

    def _ratio(self, counts: list[float]) -> float:
        """The ratios of the measured points around `counts`, by a Gaussian over the logarithms of the counts."""
        here = [log2(1 + count) for count in counts]
        total, weights = 0.0, _FAR
        for *there, ratio in self.points:
            squares = [(a - log2(1 + b)) ** 2 for a, b in zip(here, there, strict=True)]
            weight = exp(-sum(squares) / (2 * _NEAR**2 * len(squares)))
            total, weights = total + weight * log2(ratio), weights + weight
        return float(2 ** (total / weights))


@dataclass(frozen=True)
class Calibration:
    """`costs` by compute type ("bf16", "fp32") and operation; `rates` in bytes, weights or operations a second: for
    people, but for "write", which is not there where nothing could be written."""

    identity: dict[str, Any]
    made: str  # date
    took: float  # seconds
    costs: dict[str, dict[str, Cost]]
    rates: dict[str, float] = field(default_factory=dict)

    def of(self, compute: str) -> dict[str, Cost] | None:
        return self.costs.get(compute)

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


def identity() -> dict[str, Any]:
    """What a measurement depends on: processor, cores, versions, the native library, variables that steer them."""
    known = versions()
    return {
        "processor": processor(),
        "cores": cores(),
        **{name: known.get(name) for name in _VERSIONS},
        "library": _library(),
        **{name: os.environ.get(name) for name in _VARIABLES},
    }


def _library() -> str | None:
    """The beginning of the native library's SHA-256; None where it was not built."""
    found = next((file for suffix in EXTENSION_SUFFIXES if (file := _KERNELS / f"_native{suffix}").exists()), None)
    return None if found is None else hashlib.sha256(found.read_bytes()).hexdigest()[:16]


def store(calibration: Calibration) -> Path:
    """Write it to the cache; returns the file."""
    file = cache_folder() / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(calibration.to_json(), indent=1) + "\n", encoding="utf-8")
    part.replace(file)
    return file


def load() -> tuple[Calibration | None, str]:
    """The calibration that holds here and when it was made, or None and why there is none."""
    file = cache_folder() / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            return None, f"{NOT_CALIBRATED} (the one in the cache is of another schema)"
        costs = {compute: {name: Cost(**cost) for name, cost in table.items()}
                 for compute, table in found["costs"].items()}  # fmt: skip
        made = Calibration(found["identity"], found["made"], found["took"], costs, found["rates"])
    except FileNotFoundError:
        return None, NOT_CALIBRATED
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, f"{NOT_CALIBRATED} (the one in the cache can't be read)"
    here = identity()
    changed = [f"{key} {made.identity.get(key)} -> {value}" for key, value in here.items()
               if made.identity.get(key) != value]  # fmt: skip
    if changed:
        return None, f"{NOT_CALIBRATED} (since the last time changed: {', '.join(changed)})"
    return made, f"calibrated here on {made.made}"
