"""Fill a template of this folder: one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halfbyte.report.words import visible


def fill(template: str, **values: Any) -> str:
    """The page as HTML. Everything is escaped except the style and what the filter `picture` is put on: our own SVG,
    in which matplotlib has escaped the texts. Characters that would turn the text around them show as their codes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: visible(value) if type(value) is str else value,
    )  # fmt: skip
    environment.filters["picture"] = Markup
    style = Markup((here / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **values)
