"""Where a run comes from: its `environment.json`.

`versions`, `machine` and `git` are those of the session that last went on with the run; those of sessions before it, as
far as they were others, stand under `earlier`, each with the step that it came to. `fingerprints` say what was trained
on what, and `halfbyte verify` takes them again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from halfbyte import durable
from halfbyte.checkpoint.tokenizer import tokenizer_fingerprint
from halfbyte.config import RunConfig
from halfbyte.data.sides import run_files
from halfbyte.environment import environment
from halfbyte.model.build import Model
from halfbyte.option_files import to_dict
from halfbyte.provenance import digest, file_digest, file_digests

FILE = "environment.json"
ADAPTERS = ("adapter", "adapter-last")
_SESSION = ("versions", "machine", "git")


def of_run(model: Model, config: RunConfig, items: str) -> dict[str, Any]:
    """The object of `environment.json`; `items` is the fingerprint of the training data's tokens."""
    return environment() | {
        "seed": config.seed,
        "model_folder": str(model.path.absolute()),
        "fingerprints": {
            "model": model.fingerprint,
            "tokenizer": tokenizer_fingerprint(model.path),
            "items": items,
            "configuration": digest(to_dict(config)),
        },
        "files": file_digests(run_files(config.data)),
        "adapters": {},
        "earlier": [],
    }


def write(folder: Path, found: dict[str, Any], step: int) -> None:
    """Write `found` (see `of_run`) for a session that begins after `step` optimiser steps.

    What an earlier session wrote about itself is kept.
    """
    before = read(folder)
    if before is not None:
        found["earlier"] = before.get("earlier", [])
        found["adapters"] = before.get("adapters", {})
        session = {key: before.get(key) for key in _SESSION}
        if any(session[key] != found[key] for key in _SESSION):
            found["earlier"] = [*found["earlier"], session | {"until_step": step}]
    _write(folder, found)


def add_adapters(folder: Path) -> None:
    """Write down the digests of the adapters' files, now that they are there."""
    found = read(folder) or {}
    found["adapters"] = adapters(folder)
    _write(folder, found)


def adapters(folder: Path) -> dict[str, str | None]:
    """The digest of each file of a run's adapters, by its path in the run's folder."""
    files = [file for name in ADAPTERS for file in sorted((folder / name).glob("adapter_*")) if file.is_file()]
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files}


def read(folder: Path) -> dict[str, Any] | None:
    """What an earlier session wrote; None where there is nothing that can be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _write(folder: Path, found: dict[str, Any]) -> None:
    durable.write_text(folder / FILE, json.dumps(found, indent=2) + "\n")
