"""What may not be torn apart where data are split: the examples of a group, and those with one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import AnyStr


def joined(groups: Sequence[str], prompts: Sequence[AnyStr]) -> list[str]:
    """The unit of each example [items], named by its smallest group: examples of one group are in one unit, and so are
    those of one prompt (or one digest of it), and what hangs together through both.

    A unit of one group has that group's name whatever else there is. A blank prompt joins nothing, nor does one that
    all examples share.
    """
    root = {group: group for group in groups}

    def unit(group: str) -> str:
        while root[group] != group:
            root[group] = group = root[root[group]]
        return group

    if len(set(prompts)) > 1:
        first: dict[AnyStr, str] = {}
        for group, prompt in zip(groups, prompts, strict=True):
            if prompt.strip():
                one, other = sorted((unit(group), unit(first.setdefault(prompt, group))))
                root[other] = one
    return [unit(group) for group in groups]
