"""Under which licence a model may be used, as far as its files or the catalogue say. Nothing is fetched for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from halfbyte.plan import catalogue
from halfbyte.safe_yaml import parse_yaml

_CARDS = ("README.md", "MODEL_CARD.md", "model_card.md")
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_LINE = re.compile(r"^[^\w\n]{0,20}licen[cs]e\W{1,20}(\S[^\n]*)", re.IGNORECASE | re.MULTILINE)
_LONGEST = 80  # characters that are shown
_READ = 200_000  # bytes of a file


@dataclass(frozen=True)
class Licence:
    """`value` None: unknown. `source` says who states it, or where it was looked for."""

    value: str | None
    source: str


def licence_of(model: str, folder: Path | None) -> Licence:
    """Of a model's own `folder`, where it is here: the card's metadata, a line of the card, a LICENSE file; else of the
    catalogue's entry for `model`."""
    found = (_of_card(folder) or _of_file(folder)) if folder is not None else None
    if found is not None:
        return found
    entry = None if Path(model).expanduser().is_dir() else catalogue.lookup(model)
    if entry is not None and entry.fields.get("licence"):
        said = entry.fields.get("licence_source")
        return Licence(_short(str(entry.fields["licence"])), "the catalogue" + (f" ({said})" if said else ""))
    looked = ["no model card or LICENSE file of it says one"] * (folder is not None)
    looked += ["the catalogue does not have it" if entry is None else "no source of the catalogue states it"]
    return Licence(None, "; ".join(looked))


def _of_card(folder: Path) -> Licence | None:
    for name in _CARDS:
        text = _text(folder / name)
        front = _FRONT.match(text)
        value = _metadata(front[1]) if front else None
        if value is not None:
            return Licence(_short(value), f"{name}, metadata")
        line = _LINE.search(text[front.end() :] if front else text)
        if line:
            return Licence(_short(line[1].strip(" *_:#")), name)
    return None


def _metadata(text: str) -> str | None:
    try:
        values = parse_yaml(text)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    own = values.get("license_name") if values.get("license") in (None, "other") else values["license"]
    value = own or values.get("license")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value) if value else None


def _of_file(folder: Path) -> Licence | None:
    """The first line of a LICENSE file, which is its title."""
    try:
        files = sorted(path for path in folder.iterdir() if re.match(r"(?i)(licen[cs]e|copying)\b", path.name))
    except OSError:
        return None
    for file in files:
        lines = [line.strip() for line in _text(file).splitlines() if line.strip()]
        if lines:
            return Licence(_short(lines[0]), file.name)
    return None


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(_READ).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
