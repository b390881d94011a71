"""What a figure was made of: digests of files and of plain data, the git repository, and how they compare later.

Digests are SHA-256 in hexadecimal digits. Reading is in pieces, so a file may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATIENCE = 3.0  # seconds that git may take to look for changes; a large repository on a slow disk takes longer
_LONGEST = 60  # characters of a value that is shown
_PASSING = {"threads", "cuda"}  # of the machine: known only once torch is at work
_QUIET = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}


def digest(value: Any) -> str:
    """Of plain data, whatever the order of its keys; what JSON does not know (a date) counts as its text."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def read_digest(file: Path) -> str:
    """Of a file's bytes; OSError where it can't be read."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_digest(file: Path) -> str | None:
    """Of a file's bytes; None where it can't be read."""
    try:
        return read_digest(file)
    except OSError:
        return None


def file_digests(files: Iterable[Path]) -> dict[str, str | None]:
    """The digest of each file, by its absolute path."""
    return {str(file.absolute()): file_digest(file) for file in files}


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """`commit`, and `dirty` (whether a tracked file is changed), of the repository that `folder` (by default the
    current one) lies in; None where it lies in none, or there is no git. `dirty` is None where git takes too long.

    Of a repository without a commit, `commit` is None. The file-system monitor that its own settings may name is not
    started.
    """
    here = folder or Path.cwd()
    inside = _git(here, "rev-parse", "--is-inside-work-tree")
    if inside != "true":
        return None
    changed = _git(here, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    return {"commit": _git(here, "rev-parse", "--verify", "--quiet", "HEAD") or None,
            "dirty": None if changed is None else bool(changed)}  # fmt: skip


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, is not there or takes too long."""
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, env=os.environ | _QUIET, stdin=subprocess.DEVNULL, timeout=_PATIENCE,
                              capture_output=True, check=True)  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()


OK, DIFFERS, UNCHECKED, OTHER = "ok", "differs", "can't be checked", "other now"


@dataclass(frozen=True)
class Finding:
    """What became of one recorded thing when it was taken again.

    `state`: OK; DIFFERS, so that the record is contradicted; UNCHECKED, because of `note`; OTHER, where the present is
    another one than the record speaks of (a library's version), which contradicts nothing.
    """

    what: str
    recorded: str
    found: str
    state: str
    note: str = ""

    @classmethod
    def of(cls, what: str, recorded: Any, found: Any, note: str = "", *, otherwise: str = DIFFERS) -> Finding:
        """OK where both are equal, else `otherwise`; texts and plain data are shown cut to a line."""
        same = recorded == found
        return cls(what, told(recorded), told(found), OK if same else otherwise, "" if same else note)

    @classmethod
    def unchecked(cls, what: str, recorded: Any, why: str) -> Finding:
        return cls(what, told(recorded), "", UNCHECKED, why)


def told(value: Any) -> str:
    """`value` in one short line; of a digest the first digits."""
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if re.fullmatch("[0-9a-f]{32,}", text):
        return text[:12]
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def compare_environment(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Finding]:
    """Versions, machine and git state that are others now than `recorded`; one line where all are the same."""
    rows: list[Finding] = []
    for part in ("versions", "machine", "git"):
        old, new = recorded.get(part), now.get(part)
        if not isinstance(old, dict) or not isinstance(new, dict):
            if part in recorded and old != new:
                rows.append(Finding.of(part, old, new, otherwise=OTHER))
            elif part not in recorded:
                rows.append(Finding.unchecked(part, None, "not recorded"))
            continue
        keys = [key for key in old if key not in _PASSING]
        changed = [key for key in keys if old[key] != new.get(key)]
        rows += [Finding.of(f"{part}: {key}", old[key], new.get(key), otherwise=OTHER) for key in changed]
        rows += [] if changed else [Finding(part, f"{len(keys)} entries", "the same", OK)]
    return rows


def compare_files(recorded: Any, what: str) -> list[Finding]:
    """The digests of `recorded` files {path: digest}, taken again."""
    if not isinstance(recorded, dict):
        return [Finding.unchecked(what, None, "not recorded")]
    rows = []
    for name, old in recorded.items():
        new = file_digest(Path(name))
        if new is None:
            rows.append(Finding.unchecked(f"{what} {name}", old, "the file is not here any more"))
        else:
            rows.append(Finding.of(f"{what} {name}", old, new, "the file was changed"))
    return rows or [Finding.unchecked(what, None, "there is no local file: the data come from the hub")]
