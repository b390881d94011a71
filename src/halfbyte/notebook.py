"""What a notebook shows of an object: a small HTML table. All of its text is escaped, since models and data write some.

An object that a public function returns has `_repr_html_`, which Jupyter and its kin call; nothing here needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]], notes: Iterable[str] = ()) -> str:
    """`title` above `rows` under `head` (empty: none), `notes` below. The first column is text, the others figures."""
    lines = [f"<p><b>{escape(title)}</b></p>", "<table>"]
    if head:
        lines.append(f"<thead>{_row('th', head)}</thead>")
    lines += ["<tbody>", *(_row("td", row) for row in rows), "</tbody>", "</table>"]
    lines += [f"<p>{escape(note)}</p>" for note in notes]
    return "\n".join(lines)


def _row(tag: str, cells: Sequence[object]) -> str:
    made = []
    for place, cell in enumerate(cells):
        style = f"padding:.15em .8em;vertical-align:top;text-align:{'right' if place else 'left'}"
        made.append(f'<{tag} style="{style}">{escape(str(cell))}</{tag}>')
    return f"<tr>{''.join(made)}</tr>"
