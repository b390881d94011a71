"""Telling a folder that is not here from a model of the hub, so that a slip of the pen is not looked up. No torch.

`runs/dmo` reads like a hub id. It is taken as a run, as what lies beside runs is, unless a revision is named: that only
the hub has. Where it is a folder of something else (`meta-llama/` with one of that owner's models) the hub is
asked, and if that has no such model the error speaks of both.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path

from halfbyte.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SHOWN = 8  # neighbours that are named


def is_yaml(model: str) -> bool:
    """Whether `model` is meant as a file with options."""
    return model.endswith((".yaml", ".yml"))


def may_be_hub_id(model: str, revision: str | None = None) -> bool:
    """Whether the hub may be asked for `model`, which is no folder here."""
    if not _reads_like_hub_id(model):
        return False
    return bool(revision) or "/" not in model or not _holds_runs(Path(model).parent)


def _reads_like_hub_id(model: str) -> bool:
    return bool(_HUB_ID.fullmatch(model)) and ".." not in model and "--" not in model and not is_yaml(model)


def not_here(model: str) -> CheckpointError:
    """The error for `model`, which is neither a folder here nor a name that the hub is asked for."""
    parent, kind = Path(model).expanduser().parent, "file" if is_yaml(model) else "folder"
    beside_runs = "/" in model and _holds_runs(parent)
    found = f"no {kind} of that name{_neighbours(model)}"
    if (near := _near(model)) is not None:
        do = f"did you mean '{near}'?"
    elif beside_runs and kind == "folder":
        do = "name one that is there, or start a run: halfbyte tune RUN.yaml."
    else:
        do = "check the path"
        if kind == "folder":
            do += "; a model is a folder with config.json and safetensors files, a run one with run.yaml"
    if _reads_like_hub_id(model) and beside_runs:
        found += f"; and it is taken for no hub id, since runs lie in {parent}"
        do += " If the hub's model of that name is meant, name its revision, too: main"
    elif not is_yaml(model):
        found += "; and it can't be a hub id, which reads 'owner/name'"
    return CheckpointError(f"there is no such {kind}", where=model, found=found, do=do)


def beside_the_hub(model: str, error: CheckpointError) -> CheckpointError:
    """The hub's `error` about `model`, with what lies where a folder of that name would."""
    near, neighbours = _near(model), _neighbours(model) if "/" in model else ""
    if not neighbours:
        return error
    do = f"{error.do}; or did you mean '{near}'?" if near else error.do
    found = f"{error.found}; no folder of that name{neighbours}"
    return type(error)(error.what, where=error.where, found=found, do=do)


def _near(model: str) -> Path | None:
    parent = Path(model).expanduser().parent
    found = difflib.get_close_matches(Path(model).name, _there(model), n=1)
    return parent / found[0] if found else None


def _neighbours(model: str) -> str:
    parent, there = Path(model).expanduser().parent, _there(model)
    if there:
        return f" in {parent}, which holds {', '.join(there[:_SHOWN])}" + ", ..." * (len(there) > _SHOWN)
    return "" if parent.is_dir() or "/" not in model else f", nor {parent}"


def _there(model: str) -> list[str]:
    """What `model` may have been meant as: the folders, or YAML files, that lie where it would."""
    parent = Path(model).expanduser().parent
    if not is_yaml(model):
        return _folders(parent)
    return _names(parent, lambda path: path.is_file() and is_yaml(path.name))


def _folders(parent: Path) -> list[str]:
    return _names(parent, Path.is_dir)


def _names(parent: Path, wanted: Callable[[Path], bool]) -> list[str]:
    try:
        return sorted(path.name for path in parent.iterdir() if wanted(path) and not path.name.startswith("."))
    except OSError:
        return []


def _holds_runs(parent: Path) -> bool:
    """Whether `parent` is where runs go unless they say otherwise, or a folder in it is one, or holds evaluations."""
    return parent.name == "runs" or any(
        (parent / name / mark).exists() for name in _folders(parent) for mark in ("run.yaml", "evaluations")
    )
