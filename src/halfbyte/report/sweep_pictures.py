"""Pictures of a sweep, drawn as those of a run (`pictures.py`): what mattered, and the loss against each knob."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from halfbyte.report.pictures import ADAPTER, GUESS, INK, LINE, MUTED, TUNED, _dress, _figure, _picture, _svg
from halfbyte.report.words import brief, number_text

FAR = 3  # losses so many times as far from the best as the median lie on the upper edge


class Point(NamedTuple):
    """A trial: the knob's value, its loss, its state ("best" for the winner)."""

    value: Any
    loss: float
    state: str


@_picture
def importances(shares: Mapping[str, float]) -> str:
    """A bar a knob, the largest on top."""
    names = list(shares)
    figure, axes = _figure(0.7 + 0.34 * len(names))
    axes.barh(range(len(names)), [shares[name] for name in names], height=0.62, color=TUNED)
    for y, name in enumerate(names):
        axes.text(shares[name] + 0.01, y, f"{100 * shares[name]:.0f} %", va="center", color=INK, size=9)
    _dress(axes, xlabel="share", grid="x")
    axes.set(
        yticks=range(len(names)),
        yticklabels=[brief(name, 30) for name in names],
        xlim=(0, 1.12),
        ylim=(len(names) - 0.5, -0.5),
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %" if value <= 1 else "")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    return _svg(figure, "importances")


@_picture
def against(name: str, key: str, where: Any, points: Sequence[Point]) -> str:
    """Validation loss (y) against a knob (x): `where` is its list of values or its range, as in sweep.json.

    Filled: complete; hollow: pruned or not ended, its lowest loss; a triangle on the upper edge: beyond the picture.
    """
    choices = where if isinstance(where, list) else None
    figure, axes = _figure(2.5)
    losses = [point.loss for point in points if math.isfinite(point.loss)]
    low, high = min(losses, default=0.0), max(losses, default=1.0)
    edge = min(high, low + FAR * (median(losses) - low)) if losses else high
    edge = edge if edge > low else high
    margin = 0.06 * ((edge - low) or abs(low) or 1.0)
    for state, colour, filled, size in (
        ("other", GUESS, False, 4.5), ("complete", TUNED, True, 4.5), ("best", ADAPTER, True, 7),
    ):  # fmt: skip
        kept = [point for point in points if (point.state if point.state in ("best", "complete") else "other") == state]
        xs = [_place(point.value, choices) for point in kept]
        for marker, far in (("o", False), ("^", True)):
            chosen = [(x, p.loss) for x, p in zip(xs, kept, strict=True) if (not p.loss <= edge) == far]
            ys = [edge + margin if far else loss for _, loss in chosen]
            axes.plot([x for x, _ in chosen], ys, marker, color=colour, markersize=size, clip_on=False,
                      markerfacecolor=colour if filled else "none", alpha=1 if state == "best" else 0.8)  # fmt: skip
    axes.set_ylim(low - margin, edge + margin)
    _dress(axes, xlabel=key, ylabel="validation loss (nats a token)", grid="y")
    if choices is not None:
        axes.set(xticks=range(len(choices)), xlim=(-0.5, len(choices) - 0.5))
        axes.set_xticklabels([_short(choice) for choice in choices])
    else:
        if where.get("log"):
            axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: number_text(value))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.tick_params(axis="x", which="both", color=LINE, labelcolor=MUTED)
    axes.yaxis.set_major_formatter(lambda value, _: number_text(value, 4))
    return _svg(figure, name)


def _place(value: Any, choices: Sequence[Any] | None) -> float:
    return float(value) if choices is None else float(choices.index(value))


def _short(choice: Any) -> str:
    return brief(", ".join(map(str, choice)) if isinstance(choice, list) else str(choice), 18)
