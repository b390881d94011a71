"""The first example as the model will see it, with what is learned set apart."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from halfbyte.data.encode import Item

LEARNED, SPECIAL, REST = "bold green", "magenta", "dim"
_LONGEST = 2000  # characters of one run that are shown


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one kind, as text."""

    text: str
    learned: bool
    special: bool


def runs(item: Item, tokenizer: Any) -> list[Run]:
    """The item's text in runs; joined, they spell what the tokens decode to."""
    special = set(tokenizer.all_special_ids)
    kinds = [(learned, token in special) for token, learned in zip(item.ids, item.learned, strict=True)]
    made, end, before = [], 0, ""
    for (learned, is_special), group in groupby(kinds):
        end += len(list(group))
        # from the start each time: a token's text may depend on those before it
        text = tokenizer.decode(item.ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        made.append(Run(text[len(before) :], learned, is_special))
        before = text
    return made


@dataclass(frozen=True)
class Shown:
    """What `first_example` returns: in colour on a terminal, with [[ ]] around what is learned elsewhere."""

    heading: str
    runs: list[Run]

    @property
    def text(self) -> Text:
        text = Text(self.heading + " (learned: green)\n")
        for run in self.runs:
            style = LEARNED if run.learned else SPECIAL if run.special else REST
            text.append(_shortened(run.text), style=f"{style} underline" if run.learned and run.special else style)
        return text

    @property
    def plain(self) -> str:
        parts = []
        for learned, group in groupby(self.runs, key=lambda run: run.learned):
            text = "".join(_shortened(run.text) for run in group)
            parts.append(f"[[{text}]]" if learned else text)
        return f"{self.heading} (learned: [[ ]])\n" + "".join(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text if console.is_terminal and console.color_system else Text(self.plain)


def first_example(item: Item, tokenizer: Any) -> Shown:
    """The item for `console.print`; `.text` and `.plain` are its two forms."""
    heading = f"first example ({item.origin}): {len(item):,} tokens, {item.learned_tokens:,} of them learned"
    return Shown(heading, runs(item, tokenizer))


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} ... {len(text) - 2 * half:,} characters ... {text[-half:]}"
