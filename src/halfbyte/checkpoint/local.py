"""Telling a folder that is not here from a model of the hub, so that a slip of the pen is not looked up. No torch.

`runs/dmo` reads like a hub id. Where `runs` is a folder of runs it can only be meant as one of them; where it is a
folder of something else (`meta-llama/` with one of that owner's models) the hub is asked, and if that has no such
model the error speaks of both.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from halfbyte.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SHOWN = 8  # neighbours that are named


def may_be_hub_id(model: str) -> bool:
    """Whether the hub may be asked for `model`, which is no folder here."""
    if not _HUB_ID.fullmatch(model) or ".." in model or "--" in model or model.endswith((".yaml", ".yml")):
        return False
    return "/" not in model or not _holds_runs(Path(model).parent)


def no_such_folder(model: str, asked: str | None = None) -> CheckpointError:
    """The error for `model`, which is no folder here, and no hub id; `asked`: what the hub said when it was."""
    parent = Path(model).expanduser().parent
    there, found = _folders(parent), "no folder of that name"
    if there:
        found += f" in {parent}, which holds {', '.join(there[:_SHOWN])}" + ", ..." * (len(there) > _SHOWN)
    elif not parent.is_dir():
        found += f", nor {parent}"
    if asked is not None:
        found += f"; and as a hub id: {asked}"
    elif _holds_runs(parent):
        found += f"; and it is no hub id, since {parent} is a folder of runs"
    else:
        found += "; and it can't be a hub id, which reads 'owner/name'"
    near = difflib.get_close_matches(Path(model).name, there, n=1)
    do = "check the path; a model is a folder with config.json and safetensors files, a run one with run.yaml"
    do = f"did you mean '{parent / near[0]}'?" if near else do
    return CheckpointError("there is no such folder", where=model, found=found, do=do)


def has_neighbours(model: str) -> bool:
    """Whether the folder that would hold `model` is here, with folders in it."""
    return "/" in model and bool(_folders(Path(model).parent))


def _folders(parent: Path) -> list[str]:
    try:
        return sorted(path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _holds_runs(parent: Path) -> bool:
    """Whether a folder in `parent` is a run, or holds evaluations."""
    return any((parent / name / mark).exists() for name in _folders(parent) for mark in ("run.yaml", "evaluations"))
