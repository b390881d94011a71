"""The errors that a user can meet.

Each message answers four questions: what went wrong, where, what was found there, and what to do about it. The
command line prints it without a traceback and exits with `exit_code`; Python callers catch `HalfbyteError`.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

_LONGEST = 10_000  # characters of a message
_KEPT = "\n\t\u200c\u200d"  # the last two join letters in Persian, Hindi and emoji


def printable(text: str) -> str:
    """`text`, which may come from a stranger's file, with what could move the cursor or turn the text around spelt out
    (`\\x1b`). Line ends, tabs and spaces of every width stay."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(letter if _is_plain(letter) else ascii(letter)[1:-1] for letter in text)


def _is_plain(letter: str) -> bool:
    return letter.isprintable() or letter in _KEPT or unicodedata.category(letter) == "Zs"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


class HalfbyteError(Exception):
    """Something that the user can put right. `str(error)` is the whole message, a line a question."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, found: object = None, do: str | None = None) -> None:
        self.what, self.where, self.found, self.do = what, where, found, do
        lines = [what]
        lines += [f"  {name}: {text}" for name, text in (("where", where), ("found", found), ("do", do)) if text]
        super().__init__(printable(_shortened("\n".join(lines))))


class ConfigError(HalfbyteError):
    """A YAML file, an option or an argument says something that can't be."""

    exit_code = 2


class CheckpointError(HalfbyteError):
    """A model's files are missing, broken, of a kind that is not read, or do not fit together."""


class DataError(HalfbyteError):
    """A data file is missing, empty, broken, or lacks what the template asks for."""


class DoesNotFit(HalfbyteError):
    """The plan says that this machine can't hold the run."""

    exit_code = 3


class MissingDependency(HalfbyteError):
    """An optional library is needed and not installed; `do` names the extra that brings it."""


class TrainingError(HalfbyteError):
    """A run can't go on: a loss that is not finite, a state that does not fit, a full disk."""


def exit_code_of(error: BaseException) -> int:
    """With which a process ends that this error ends: 0 where whoever reads its output has enough."""
    if isinstance(error, HalfbyteError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 0 if isinstance(error, BrokenPipeError) else 1


def nearest(word: str, known: Iterable[str], what: str = "") -> str:
    """A hint that names the known word nearest to `word`, or lists what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    shown = ", ".join(known[:40]) + (", ..." if len(known) > 40 else "")
    return f"known {what or 'names'}: {shown}" if known else "there are none"
