"""What a figure was made of: digests of files and of plain data, and the state of the working folder's git repository.

Digests are SHA-256 in hexadecimal digits. Reading is in pieces, so a file may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PATIENCE = 3.0  # seconds that git may take to look for changes; a large repository on a slow disk takes longer
_QUIET = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}


def digest(value: Any) -> str:
    """Of plain data, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def file_digest(file: Path) -> str | None:
    """Of a file's bytes; None where it can't be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def file_digests(files: Iterable[Path]) -> dict[str, str | None]:
    """The digest of each file, by its absolute path."""
    return {str(file.absolute()): file_digest(file) for file in files}


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """`commit`, and `dirty` (whether a tracked file is changed), of the repository that `folder` (by default the
    current one) lies in; None where it lies in none, or there is no git. `dirty` is None where git takes too long.

    Of a repository without a commit, `commit` is None. Its file-system monitor, a program that its own settings name, is
    not started.
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
