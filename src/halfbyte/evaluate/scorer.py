"""A user's own scoring function: a Python file that runs only when the command line names it (see `config.load_task`).

    def score(answer: str, reference: str, record: dict) -> float | bool: ...

`record` holds the columns of the item's line. More is better; the metric is the mean. The file's hash is part of the
task's fingerprint, so results of two versions of it do not compare; what it imports is not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError, HalfbyteError

Scorer = Callable[[str, str, Mapping[str, Any]], Any]


def describe_scorer(named: str) -> dict[str, str]:
    """What the fingerprint holds of `file.py:function`; the file is read, not run. Raises ConfigError."""
    file, _, function = named.rpartition(":")
    return {"function": function, "sha256": hashlib.sha256(_source(Path(file))).hexdigest()}


def _source(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError("the scoring function's file can't be read", where=file, found=error.strerror,
                          do="check the path before the colon") from None  # fmt: skip


def load_scorer(named: str) -> Scorer:
    """Run the file and return its function. Raises ConfigError for what is missing or fails."""
    path, _, function = named.rpartition(":")
    file = Path(path)
    name = f"halfbyte_scorer_{hashlib.sha256(_source(file)).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError("the scoring function's file is no Python file", where=file, do="name it .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError("the scoring function's file fails when it is run", where=_line(error, file),
                          found=_said(error)) from None  # fmt: skip
    scorer = getattr(module, function, None)
    if not callable(scorer):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        found = f"functions: {', '.join(names) or 'none'}"
        raise ConfigError(f"there is no function '{function}' in the file", where=file, found=found,
                          do="name one of them after the colon")  # fmt: skip
    return scorer  # type: ignore[no-any-return]


def score(scorer: Scorer, named: str, answer: str, reference: str, record: Mapping[str, Any], origin: str) -> float:
    """One answer's score. Raises HalfbyteError, naming the item, for an exception or for what is no finite number."""
    file = Path(named.rpartition(":")[0])
    try:
        value = scorer(answer, reference, dict(record))
    except (Exception, SystemExit) as error:
        raise HalfbyteError(f"the scoring function fails on the item {origin}", where=_line(error, file),
                            found=_said(error), do=f"make it take this answer: {answer[:200]!r}") from None  # fmt: skip
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number):
        raise HalfbyteError(f"the scoring function gives no number for the item {origin}", where=named,
                            found=repr(value)[:200], do="return a finite number, or True or False")  # fmt: skip
    return number


def _line(error: BaseException, file: Path) -> str:
    """The deepest place in `file` that `error` went through."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{file}:{error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file]
    return f"{file}:{lines[-1]}" if lines else str(file)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
