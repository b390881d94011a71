"""What a selection is asked for: the candidates, and the variants of each (format of the weights, number of shots)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from halfbyte.checkpoint.local import may_be_hub_id
from halfbyte.errors import ConfigError, nearest
from halfbyte.formats import WEIGHTS
from halfbyte.options import parse_bytes
from halfbyte.plan import catalogue

Kind = Literal["folder", "hub", "catalogue"]
_LISTS = (".txt", ".list")
_MOST_SHOTS = 64  # as TASK.yaml's own option


@dataclass(frozen=True)
class Candidate:
    """A model to choose from. `label` is its short name, of its own among the candidates."""

    model: str  # a local folder, a hub id or a name of the catalogue
    revision: str | None
    kind: Kind
    label: str


@dataclass(frozen=True)
class Asked:
    """The whole request. `weights` None: nf4, or as the checkpoint is packed already."""

    candidates: tuple[Candidate, ...]
    weights: tuple[str, ...] | None
    shots: tuple[int, ...]
    budget: int | None  # bytes; None: what is free

    @property
    def variants(self) -> int:
        return len(self.candidates) * len(self.weights or ("",)) * len(self.shots)


def read_request(candidates: str, weights: str | None, shots: str | None, budget: str | None, *, own: int) -> Asked:
    """The request that the command line makes; `own` are the task's own shots, which count where none are named.

    `candidates` is a list with commas, or a file with a model a line. Raises ConfigError for an empty list, a model
    that stands twice, a format that there is not, shots that are no number, and a budget that is no amount of memory.
    """
    return Asked(
        candidates=_candidates(candidates),
        weights=_weights(weights),
        shots=_shots(shots) if shots is not None else (own,),
        budget=_budget(budget),
    )


def variant_name(label: str, weights: str, shots: int) -> str:
    """How a variant is called everywhere: "tiny-base-nf4", "tiny-base-nf4-4shot"."""
    return f"{label}-{weights}" + (f"-{shots}shot" if shots else "")


def _candidates(text: str) -> tuple[Candidate, ...]:
    names, base = _names(text)
    if not names:
        do = "name models: --candidates ./Llama-3.2-1B,org/name, or a file with one a line"
        raise ConfigError("no candidate is named", where="--candidates", found=repr(text), do=do)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError("a candidate stands twice", where="--candidates", found=twice[0], do="name it once")
    placed = [_placed(name, base) for name in names]
    labels = _labels([model for model, _, _ in placed])
    return tuple(Candidate(*one, label) for one, label in zip(placed, labels, strict=True))


def _names(text: str) -> tuple[list[str], Path]:
    """The names, and the folder that relative paths among them start from."""
    file = Path(text.strip()).expanduser()
    if text.strip() and (file.is_file() or file.suffix in _LISTS):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            found = getattr(error, "strerror", None) or str(error)
            raise ConfigError("the list of candidates can't be read", where=file, found=found,
                              do="a text file with a model a line; # begins a remark") from None  # fmt: skip
        bare = (line.split("#")[0].strip() for line in lines)
        return [line for line in bare if line], file.parent
    return [part.strip() for part in text.split(",") if part.strip()], Path()


def _placed(name: str, base: Path) -> tuple[str, str | None, Kind]:
    """(model, revision, kind); a folder is one that is there, or that is written as a path."""
    path = Path(name).expanduser()
    moved = name if path.is_absolute() or base == Path() else str(base / path)
    if Path(moved).expanduser().is_dir() or name.startswith((".", "~", "/")):
        return moved, None, "folder"
    model, at, revision = name.partition("@")
    if "/" in model and may_be_hub_id(model, revision or None):
        return model, revision or None, "hub"
    if not at and "/" not in name and catalogue.lookup(name) is not None:
        return name, None, "catalogue"
    return name, None, "folder"  # which is not there: said when it is looked at


def _labels(models: Sequence[str]) -> list[str]:
    """Names that can be folders' names: the last part of each, with as many parts before it as tell them apart."""
    parts = [[part for part in re.split(r"[/\\]", model) if part not in ("", ".", "..")] or [model] for model in models]
    length = [1] * len(models)
    while True:
        made = ["-".join(own[-count:]) for own, count in zip(parts, length, strict=True)]
        made = [re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.") or "model" for label in made]
        again = [i for i, label in enumerate(made) if made.count(label) > 1 and length[i] < len(parts[i])]
        if not again:
            return [f"{label}-{i + 1}" if made.count(label) > 1 else label for i, label in enumerate(made)]
        for i in again:
            length[i] += 1


def _weights(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in WEIGHTS:
            raise ConfigError("unknown format", where="--weights", found=repr(name), do=nearest(name, WEIGHTS))
    if not names:
        raise ConfigError("no format is named", where="--weights", do=f"name some of {', '.join(WEIGHTS)}")
    return tuple(dict.fromkeys(names))


def _shots(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or any(not part.isdecimal() or int(part) > _MOST_SHOTS for part in parts):
        raise ConfigError("shots are whole numbers", where="--shots", found=repr(text),
                          do=f"e.g. --shots 0,4; at most {_MOST_SHOTS}")  # fmt: skip
    return tuple(dict.fromkeys(map(int, parts)))


def _budget(text: str | None) -> int | None:
    if text is None or text == "auto":
        return None
    try:
        size = parse_bytes(text)
    except ConfigError as error:
        raise ConfigError(error.what, where="--budget", found=error.found, do=error.do) from None
    if size < 1:
        raise ConfigError("this is no amount of memory", where="--budget", found=repr(text), do="write e.g. 12GB")
    return size
