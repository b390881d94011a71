"""`halfbyte plan --list`: the models of the catalogue, each with what decides whether it is a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from halfbyte.errors import ConfigError
from halfbyte.plan import catalogue
from halfbyte.plan.inventory import from_catalogue
from halfbyte.plan.prose import prose
from halfbyte.plan.weighing import gb, mapped_bytes


@dataclass(frozen=True)
class Listed:
    """One model: None is what no source states. `nf4_bytes` are those of the packed weights with their constants."""

    name: str  # as `plan` takes it
    id: str  # on the hub
    family: str
    parameters: int | None
    context: int | None  # tokens
    licence: str | None
    nf4_bytes: int | None


def listed(words: Sequence[str] = ()) -> list[Listed]:
    """The models whose id or family holds one of `words`, whatever the case; all without any. Raises ConfigError where
    there is none."""
    wanted = [word.lower() for word in words]
    names = {f"{entry.name} {entry.fields['family']}".lower(): entry for entry in catalogue.entries()}
    found = [entry for name, entry in names.items() if not wanted or any(word in name for word in wanted)]
    if not found:
        raise ConfigError("no model of the catalogue has this in its name", found=", ".join(words),
                          do="halfbyte plan --list shows all")  # fmt: skip
    return [_row(entry) for entry in found]


def _row(entry: catalogue.Entry) -> Listed:
    inventory = from_catalogue(entry)
    context, licence = entry.fields.get("max_position_embeddings"), entry.fields.get("licence")
    return Listed(
        name=entry.short_name,
        id=entry.name,
        family=str(entry.fields["family"]),
        parameters=inventory.parameters,
        context=context if isinstance(context, int) else None,
        licence=None if licence is None else str(licence),
        nf4_bytes=mapped_bytes(inventory, "nf4"),
    )


def to_json(rows: Sequence[Listed]) -> dict[str, Any]:
    return {"schema": 1, "models": [asdict(row) for row in rows]}


def render(rows: Sequence[Listed], console: Console) -> None:
    """Print a line a model."""
    cells = [("name", "parameters", "context", "nf4"), *(_figures(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    licences = ["licence", *(row.licence or "unknown" for row in rows)]
    for (name, *sizes), licence in zip(cells, licences, strict=True):
        padded = (size.rjust(width + 2) for size, width in zip(sizes, widths[1:], strict=True))
        prose(console, f"{name:{widths[0]}}{''.join(padded)}  {licence}", "bold" if name is cells[0][0] else "")
    prose(console, f"{len(rows)} of {len(catalogue.entries())} models; unknown is what no source states", "dim")


def _figures(row: Listed) -> tuple[str, str, str, str]:
    context = "unknown" if row.context is None else f"{row.context:,}"
    return row.name, _count(row.parameters), context, "unknown" if row.nf4_bytes is None else gb(row.nf4_bytes)


def _count(parameters: int | None) -> str:
    if parameters is None:
        return "unknown"
    return f"{parameters / 1e9:.2f} B" if parameters >= 10**9 else f"{parameters / 1e6:.0f} M"
