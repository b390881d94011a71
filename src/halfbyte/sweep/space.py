"""SPACE.yaml: which options of a run are searched, and where.

    tune.learning_rate: {low: 1e-5, high: 1e-3, log: true}    # a range; `step` for a grid
    adapter.rank: [8, 16, 32]                                 # or a list of values

Keys are options of RUN.yaml, and every value is checked by their declarations in config.py. Options that change what
the validation loss is taken of are refused, for such losses do not compare; so are those that change no result.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.config import RunConfig
from halfbyte.errors import ConfigError
from halfbyte.option_files import flat, read_yaml
from halfbyte.option_files import to_dict as plain
from halfbyte.options import build, describe_type, option_type, option_value, raise_faults

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_OTHER_LOSS = "it changes what the validation loss is taken of, so the trials would not compare"
_SAME_RESULT = "it does not change what is learned"
_REFUSED = {
    "model": f"{_OTHER_LOSS}; `halfbyte select` compares models",
    "revision": _OTHER_LOSS,
    "data": _OTHER_LOSS,
    "tune.validate_every": "it changes at which points the trials are compared",
    "tune.checkpoint_every": _SAME_RESULT,
    "tune.explosion": "it only ends a run that has failed already",
    "tune.micro_batch": _SAME_RESULT,
    "tune.offload_activations": _SAME_RESULT,
    "tune.packing": _SAME_RESULT,
    "tune.recompute": _SAME_RESULT,
    "memory": _SAME_RESULT,
    "device": _SAME_RESULT,
    "stream": _SAME_RESULT,
    "task": "the test set is not there to choose by",
    "out": "every trial gets a folder of its own",
}
_RANGE = {"low", "high", "log", "step"}


@dataclass(frozen=True)
class Knob:
    """An option that is searched: `choices`, or all from `low` to `high`, both included."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    whole: bool = False

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution([_code(choice) for choice in self.choices])
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value(self, code: Any) -> Any:
        """The option's value that the study knows as `code`."""
        return next((choice for choice in self.choices if _code(choice) == code), code)

    def code(self, value: Any) -> Any:
        """What the study calls `value`; None where the knob does not reach it."""
        if self.choices:
            return _code(value) if _code(value) in map(_code, self.choices) else None
        if isinstance(value, (str, bool)) or not isinstance(value, (int, float)):
            return None
        grid = self.step or (1 if self.whole else 0)
        off = grid and not math.isclose((value - self.low) / grid, round((value - self.low) / grid), abs_tol=1e-9)
        return value if self.low <= value <= self.high and not off else None

    def to_json(self) -> Any:
        """As it stands in SPACE.yaml."""
        if self.choices:
            return list(self.choices)
        more: dict[str, Any] = {"log": True} if self.log else {}
        return {"low": self.low, "high": self.high} | more | ({"step": self.step} if self.step else {})


def _code(value: Any) -> Any:
    """Optuna keeps plain values; a list of targets becomes its JSON text."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


@dataclass(frozen=True)
class Space:
    knobs: tuple[Knob, ...]

    def distributions(self) -> dict[str, BaseDistribution]:
        return {knob.key: knob.distribution() for knob in self.knobs}

    def values(self, codes: Mapping[str, Any]) -> dict[str, Any]:
        """Values of options of what a trial of the study holds."""
        return {knob.key: knob.value(codes[knob.key]) for knob in self.knobs if knob.key in codes}

    def own(self, config: RunConfig) -> dict[str, Any] | None:
        """The run's own options as the study calls them; None where they lie outside the space."""
        options = flat(plain(config))
        codes = {knob.key: knob.code(options[knob.key]) for knob in self.knobs}
        inside = all(codes[knob.key] is not None or None in knob.choices for knob in self.knobs)
        return codes if inside else None

    def apply(self, config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
        """The run with `values` in place of its own."""
        options = plain(config)
        for key, value in values.items():
            *groups, name = key.split(".")
            inner = options
            for group in groups:
                inner = inner[group]
            inner[name] = value
        return build(RunConfig, options, "the trial")

    def to_json(self) -> dict[str, Any]:
        return {knob.key: knob.to_json() for knob in self.knobs}


def load_space(path: str | Path, config: RunConfig) -> Space:
    """Read SPACE.yaml for the run `config`; nothing of the run is read or loaded.

    Raises ConfigError, which names every fault: an unknown key, a value of the wrong type or out of range, a range
    that is none, an option that can't be searched.
    """
    file = Path(path)
    faults: list[str] = []
    knobs = [_knob(str(key), value, config, faults) for key, value in read_yaml(file).items()]
    raise_faults(faults, str(file), "docs/files.md says what a space holds")
    if not knobs:
        raise ConfigError("the space names no option", where=file, do="write e.g. 'adapter.rank: [8, 16, 32]'")
    return Space(tuple(knob for knob in knobs if knob is not None))


def _knob(key: str, value: Any, config: RunConfig, faults: list[str]) -> Knob | None:
    before = len(faults)
    hint = option_type(RunConfig, key)
    if hint is None:
        _check(key, {}, faults)
        if len(faults) == before:
            faults.append(f"'{key}' is a group of options: name one of them, e.g. {_first_of(key)}")
        return None
    reason = _REFUSED.get(key) or _REFUSED.get(key.partition(".")[0])
    if key == "seed" and not isinstance(config.data.validation, str):
        reason = "it moves items between training and validation (unless data.validation is a file)"
    if reason:
        faults.append(f"'{key}' can't be searched: {reason}")
        return None
    knob = None
    if isinstance(value, list):
        knob = Knob(key, choices=tuple(_check(key, one, faults) for one in value))
        if len({json.dumps(_code(one)) for one in knob.choices}) < max(2, len(value)) and len(faults) == before:
            faults.append(f"'{key}' must list at least two values, each once, not {value!r}")
    elif isinstance(value, dict) and {"low", "high"} <= set(value) <= _RANGE:
        knob = _range(key, value, hint, faults)
    else:
        faults.append(f"'{key}' must be a list of values or a range {{low, high, log, step}}, not {value!r}")
    return knob if len(faults) == before else None


def _first_of(group: str) -> str:
    return next(key for key in flat(plain(RunConfig())) if key.startswith(group + "."))


def _check(key: str, value: Any, faults: list[str]) -> Any:
    try:
        return option_value(RunConfig, key, value)
    except ConfigError as error:
        faults.append(error.what)
        return None


def _range(key: str, value: dict[str, Any], hint: Any, faults: list[str]) -> Knob | None:
    types = typing.get_args(hint) or (hint,)
    if not {int, float} & set(types):
        faults.append(f"'{key}' takes {describe_type(hint)} and has no range: write a list of values")
        return None
    before = len(faults)
    low, high, step, log = value["low"], value["high"], value.get("step"), value.get("log", False)
    for name, bound in (("low", low), ("high", high), ("step", step)):
        number = isinstance(bound, (int, float)) and not isinstance(bound, bool) and math.isfinite(bound)
        if not number and not (name == "step" and bound is None):
            faults.append(f"'{key}': {name} must be a number, not {bound!r}")
    if not isinstance(log, bool):
        faults.append(f"'{key}': log must be true or false, not {log!r}")
    if len(faults) > before:
        return None
    low, high = _check(key, low, faults), _check(key, high, faults)
    if len(faults) > before:
        return None
    if low >= high:
        faults.append(f"'{key}': low must be under high, not {low:g} to {high:g}")
    if log and low <= 0:
        faults.append(f"'{key}': a logarithmic range begins above 0; low is {low:g}")
    if step is not None and (log or not 0 < step <= high - low):
        faults.append(f"'{key}': step must be above 0 and fit into the range, and goes without log; it is {step:g}")
    whole = float not in types
    if whole and step is not None and step != int(step):
        faults.append(f"'{key}': step must be a whole number, not {step:g}")
    if len(faults) > before:
        return None
    if step is not None:  # the grid ends where its last step does
        high = low + step * math.floor((high - low) / step + 1e-9)
    return dataclasses.replace(Knob(key), low=low, high=high, log=log, step=step, whole=whole)
