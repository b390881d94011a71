"""The report's pictures: matplotlib draws, the page colours.

Each function returns an SVG element as text, made to stand inside HTML. Its text stays text (searchable, read aloud),
and its colours are CSS variables of the page, so that one picture serves light, dark and print: matplotlib draws with
stand-in colours (`INK`, `BASE`, ...), which `_svg` then replaces. Widths are chosen so that the text is readable on a
telephone; the page scales them. Nothing here reads a file or decides what to say.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

from halfbyte.report.words import brief, bytes_text, money, number_text, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A stand-in colour and the CSS variable that it becomes.
INK, MUTED, LINE, PAPER = "#000101", "#000102", "#000103", "#000104"
BASE, TUNED, ADAPTER, GUESS = "#000105", "#000106", "#000107", "#000108"
PARTS = {  # of memory, in the order in which they are stacked
    "all": LINE, "runtime": "#000201", "weights": "#000202", "constants": "#000203", "adapter": ADAPTER,
    "narrow_copy": "#000204", "gradients": "#000205", "optimiser": "#000206", "scratch": "#000207",
    "kv_cache": "#000208", "activations": "#000209", "logits": "#00020a", "tensors": "#00020b", "rest": "#00020c",
}  # fmt: skip
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper"} | {
    BASE: "base", TUNED: "tuned", ADAPTER: "adapter", GUESS: "guess"} | {
    colour: name.partition("_")[0] for name, colour in PARTS.items() if name not in ("all", "adapter")}  # fmt: skip
_WIDTH = 400 / 72  # inches: 400 points
MOST_POINTS = 600  # of a scatter
_NAME = 32  # characters of a name beside an axis
_LOGARITHMIC = 20  # times the smallest: then an axis of score_memory is logarithmic
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a "$" is a dollar
    "axes.formatter.use_mathtext": False,
    "font.size": 10,
    "text.color": INK,
}
P = ParamSpec("P")


def _picture(draw: Callable[P, str]) -> Callable[P, str]:
    """Draw in the report's style, whatever the caller's matplotlib is set to."""

    @functools.wraps(draw)
    def styled(*arguments: P.args, **options: P.kwargs) -> str:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            return draw(*arguments, **options)

    return styled


@_picture
def ladder(bytes_of: Mapping[str, float], adapter_bytes: float | None, used: str) -> str:
    """The memory ladder: a square a format, its area to scale, and the adapter as a disc on the same scale.

    `bytes_of` is in the order of drawing; `used` is the format that the run uses.
    """
    from matplotlib.patches import Circle, Rectangle

    sides = {name: math.sqrt(size) for name, size in bytes_of.items()}
    largest = max(sides.values())
    slots = [(name, side, bytes_of[name]) for name, side in sides.items()]
    if adapter_bytes:
        slots.append(("adapter", 2 * math.sqrt(adapter_bytes / math.pi), adapter_bytes))
    widths = [max(side, 0.55 * largest) for _, side, _ in slots]  # room for the text
    gap, below, above = 0.1 * largest, 0.4 * largest, 0.02 * largest
    total = sum(widths) + gap * (len(slots) - 1)
    figure, axes = _figure(_WIDTH * (largest + below + above) / total)
    left = 0.0
    for (name, side, size), width in zip(slots, widths, strict=True):
        centre = left + width / 2
        shape: Any = Rectangle((centre - side / 2, 0), side, side)
        if name == "adapter":
            shape = Circle((centre, side / 2), side / 2)
        shape.set(facecolor=ADAPTER if name == "adapter" else TUNED if name == used else LINE, edgecolor="none")
        axes.add_patch(shape)
        axes.text(centre, -0.06 * largest, name, ha="center", va="top", color=INK, weight="bold")
        axes.text(centre, -0.23 * largest, bytes_text(size), ha="center", va="top", color=MUTED)
        left += width + gap
    axes.set(xlim=(0, total), ylim=(-below, largest + above), aspect="equal")
    axes.axis("off")
    return _svg(figure, "ladder")


@_picture
def phases(rows: Sequence[tuple[str, Mapping[str, float], Mapping[str, float]]]) -> str:
    """Peaks of phases as stacked bars, planned over measured: (phase, planned parts, measured parts) in bytes a row.

    An empty mapping is what is not known. Of the parts, those in `PARTS` have a colour of their own.
    """
    from matplotlib.patches import Patch

    largest = max(sum(parts.values()) for _, *both in rows for parts in both) or 1.0
    figure, axes = _figure(1.3 + 0.62 * len(rows))
    for y, (_, planned, measured) in enumerate(rows):
        for at, parts, word in ((y - 0.2, planned, "planned"), (y + 0.2, measured, "measured")):
            left, total = 0.0, sum(parts.values())
            for name in _stacked(parts):
                axes.barh(at, parts[name], left=left, height=0.36, color=PARTS.get(name, MUTED))
                left += parts[name]
            text = f"{word} {bytes_text(total)}" if parts else f"not {word}"
            axes.text(total + 0.012 * largest, at, text, va="center", color=INK if parts else MUTED, size=9)
    unit, scale = _byte_unit(largest)
    _dress(axes, xlabel=f"peak memory ({unit})", grid="x")
    axes.set(yticks=range(len(rows)), yticklabels=[row[0] for row in rows], xlim=(0, 1.5 * largest),
             ylim=(len(rows) - 0.5, -0.5))  # fmt: skip
    axes.xaxis.set_major_formatter(lambda value, _: number_text(value / scale))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    shown = _stacked({name: 1.0 for _, *both in rows for parts in both for name in parts if name != "all"})
    if shown:
        patches = [Patch(facecolor=PARTS.get(name, MUTED), label=name.replace("_", " ")) for name in shown]
        figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK, fontsize=9)
    return _svg(figure, "phases")


def _stacked(parts: Mapping[str, float]) -> list[str]:
    return [*[name for name in PARTS if name in parts], *sorted(set(parts) - set(PARTS))]


@_picture
def losses(steps: Sequence[Mapping[str, Any]]) -> str:
    """Training loss a step and its running mean, validation loss, and the learning rate beneath."""
    figure, (axes, below) = _figure(3.1, rows=2, height_ratios=[4, 1])
    training = [(step["step"], step["loss"]) for step in steps if _finite(step.get("loss"))]
    validation = [(step["step"], step["validation_loss"]) for step in steps if _finite(step.get("validation_loss"))]
    if training:
        x, y = [step for step, _ in training], [loss for _, loss in training]
        smooth = len(y) >= 10
        axes.plot(x, y, color=TUNED, alpha=0.35 if smooth else 1, linewidth=0.8, label="training, each step")
        if smooth:
            axes.plot(x, _running_mean(y), color=TUNED, linewidth=1.6, label="training, running mean")
    if validation:
        x, y = [step for step, _ in validation], [loss for _, loss in validation]
        axes.plot(x, y, color=BASE, linewidth=1.6, marker="o", markersize=4, label="validation")
    _dress(axes, ylabel="loss (nats a token)")
    if training or validation:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    rates = [(step["step"], step["learning_rate"]) for step in steps if _finite(step.get("learning_rate"))]
    below.plot([step for step, _ in rates], [rate for _, rate in rates], color=MUTED, linewidth=1.4)
    _dress(below, xlabel="optimiser step", ylabel="rate")
    below.set_ylim(bottom=0)
    below.yaxis.set_major_locator(_locator(2))
    below.yaxis.set_major_formatter(lambda value, _: number_text(value))
    below.sharex(axes)
    axes.tick_params(labelbottom=False)
    return _svg(figure, "losses")


@_picture
def scatter(
    points: Sequence[tuple[float, float]],
    limits: tuple[float, float],
    *,
    kind: str,
    logarithmic: bool,
    unit: str = "",
    guess: float | None = None,
    quantity: str = "answer",
) -> str:
    """True (x) against answered (y), the diagonal and the constant guess. Points beyond `limits` lie on the edge."""
    colour = TUNED if kind == "tuned" else BASE
    figure, axes = _figure(4.5)
    if logarithmic:
        axes.set(xscale="log", yscale="log")
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    low, high = limits
    inside = [(x, y) for x, y in points if low <= y <= high]
    above, under = [x for x, y in points if y > high], [x for x, y in points if y < low]
    axes.plot(limits, limits, color=MUTED, linewidth=1, zorder=1)
    if guess is not None:
        axes.axhline(guess, color=GUESS, linewidth=1.3, linestyle=(0, (5, 3)), zorder=1)
        axes.annotate(f"always {money(guess, unit)}", (1, guess), xycoords=("axes fraction", "data"),
                      xytext=(-3, 3), textcoords="offset points", ha="right", color=MUTED, size=9)  # fmt: skip
    axes.plot(*_columns(inside), "o", color=colour, alpha=0.55, markersize=3.6, markeredgewidth=0, zorder=2)
    for edge, marker in ((above, "^"), (under, "v")):
        where = high if marker == "^" else low
        axes.plot(edge, [where] * len(edge), marker, color=colour, markersize=5, markeredgewidth=0, clip_on=False)
    in_unit = f" ({unit})" if unit else ""
    _dress(axes, xlabel=f"true{in_unit}", ylabel=f"{quantity}{in_unit}", grid="both")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: number_text(value))
        axis.set_minor_formatter(lambda value, _: "")
    return _svg(figure, f"scatter-{kind}")


@_picture
def calibration(points: Sequence[tuple[float, float]], *, kind: str, unit: str = "", quantity: str = "answer") -> str:
    """Mean answer (x) against mean true value (y) of each bin, and the diagonal."""
    colour = TUNED if kind == "tuned" else BASE
    x, y = _columns(points)
    logarithmic = min(*x, *y) > 0 and max(*x, *y) > 20 * min(*x, *y)
    figure, axes = _figure(3.6)
    if logarithmic:
        axes.set(xscale="log", yscale="log")
    ends = (min(*x, *y), max(*x, *y))
    axes.plot(ends, ends, color=MUTED, linewidth=1, zorder=1)
    axes.plot(x, y, "o-", color=colour, markersize=5, linewidth=1.4, zorder=2)
    in_unit = f" ({unit})" if unit else ""
    _dress(axes, xlabel=f"mean {quantity}{in_unit}", ylabel=f"mean true value{in_unit}", grid="both")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: number_text(value))
        axis.set_minor_formatter(lambda value, _: "")
    return _svg(figure, f"calibration-{kind}")


@_picture
def before_after(points: Sequence[tuple[float, float]], label: str) -> str:
    """Each item's score before (x) and after (y): below the diagonal it fell."""
    values = [value for point in points for value in point]
    low, high = min(values), max(values)
    margin = 0.05 * ((high - low) or 1.0)
    figure, axes = _figure(4.5)
    axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
    axes.plot((low - margin, high + margin), (low - margin, high + margin), color=MUTED, linewidth=1)
    axes.plot(*_columns(points), "o", color=TUNED, alpha=0.55, markersize=3.6, markeredgewidth=0)
    _dress(axes, xlabel=f"{label}, base", ylabel=f"{label}, tuned", grid="both")
    return _svg(figure, "before-after")


@_picture
def differences(rows: Sequence[tuple[str, float, float, float, str]], label: str, scale: float = 1) -> str:
    """(name, difference, low, high, verdict) a row, with its interval, against zero, all times `scale`."""
    figure, axes = _figure(0.75 + 0.5 * len(rows))
    axes.axvline(0, color=INK, linewidth=1)
    for y, (_, value, low, high, verdict) in enumerate(rows):
        colour = {"better": TUNED, "worse": ADAPTER}.get(verdict, MUTED)
        axes.plot((scale * low, scale * high), (y, y), color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot(scale * value, y, "o", color=colour, markersize=7)
    _dress(axes, xlabel=label, grid="x")
    axes.set(yticks=range(len(rows)), yticklabels=[brief(row[0], _NAME) for row in rows], ylim=(len(rows) - 0.5, -0.5))
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(_locator(4))
    axes.xaxis.set_major_formatter(lambda value, _: number_text(value))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    return _svg(figure, "differences-" + re.sub(r"\W+", "-", label))


@_picture
def score_memory(
    points: Sequence[tuple[str, float, float, float | None, float | None, str]],
    label: str,
    *,
    scale: float = 1,
    budget: float | None = None,
    guess: float | None = None,
) -> str:
    """Scores against memory: (mark, bytes, value, low, high, kind) a point, with its interval where there is one.

    `kind` is "base" or "tuned"; scores are drawn times `scale`, and an axis whose values differ much is logarithmic.
    `budget` in bytes is a line where it is near enough, `guess` the score of the constant guess. The mark stands beside
    its point.
    """
    figure, axes = _figure(3.6)
    sizes = [size for _, size, *_ in points]
    unit, by = _byte_unit(max(sizes))
    if max(sizes) > _LOGARITHMIC * min(sizes):
        axes.set_xscale("log")
    for _, size, value, low, high, kind in points:
        colour = TUNED if kind == "tuned" else BASE
        if low is not None and high is not None:
            axes.plot((size, size), (scale * low, scale * high), color=colour, linewidth=1.8, solid_capstyle="round")
        axes.plot(size, scale * value, "o", color=colour, markersize=7)
    ends = [end for _, _, *three, _ in points for end in three if end is not None] + ([guess] if guess else [])
    if min(ends) > 0 and max(ends) > _LOGARITHMIC * min(ends):
        axes.set_yscale("log")
    axes.margins(x=0.2, y=0.12)
    _mark(axes, [(mark, size, scale * value, kind == "tuned") for mark, size, value, _, _, kind in points])
    if budget is not None and budget <= 2 * max(sizes):
        axes.axvline(budget, color=ADAPTER, linewidth=1.3, linestyle=(0, (5, 3)))
        axes.annotate("budget", (budget, 1), xycoords=("data", "axes fraction"), xytext=(-3, -3), ha="right", va="top",
                      textcoords="offset points", color=MUTED, size=9)  # fmt: skip
    if guess is not None:
        axes.axhline(scale * guess, color=GUESS, linewidth=1.3, linestyle=(0, (5, 3)), zorder=1)
        axes.annotate("always the median", (1, scale * guess), xycoords=("axes fraction", "data"), xytext=(-3, 3),
                      textcoords="offset points", ha="right", color=MUTED, size=9,
                      bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1})  # fmt: skip
    _dress(axes, xlabel=f"memory to tune it ({unit})", ylabel=label, grid="both")
    axes.xaxis.set_major_formatter(lambda value, _: number_text(value / by))
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.yaxis.set_major_formatter(lambda value, _: number_text(value))
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    return _svg(figure, "score-memory")


def _mark(axes: Axes, points: Sequence[tuple[str, float, float, bool]]) -> None:
    """Write (mark, x, y, after the probe) beside its point: on the left out of the box, on the right after the probe.
    Marks that would lie upon each other stand one above the other."""
    placed: list[tuple[float, float, bool]] = []
    for mark, x, y, right in sorted(points, key=lambda point: point[2]):
        across, up = axes.transData.transform((x, y)) * 72 / axes.figure.dpi
        first = up
        while any(side == right and abs(at - across) < 14 and abs(up - height) < 11 for at, height, side in placed):
            up += 1
        placed.append((across, up, right))
        axes.annotate(mark, (x, y), xytext=(7 if right else -7, up - first), textcoords="offset points", color=INK,
                      size=9, ha="left" if right else "right", va="center")  # fmt: skip


def _figure(height: float, rows: int = 1, **grid: Any) -> Any:
    """(figure, axes), drawn without pyplot: no global state, no window system."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, gridspec_kw=grid or None)


def _dress(axes: Axes, *, xlabel: str = "", ylabel: str = "", grid: Literal["both", "x", "y"] = "y") -> None:
    axes.set_xlabel(xlabel, color=MUTED)
    axes.set_ylabel(ylabel, color=MUTED)
    axes.grid(True, axis=grid, color=LINE, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    axes.tick_params(which="both", color=LINE, labelcolor=MUTED, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _running_mean(values: Sequence[float]) -> list[float]:
    """The mean of up to a twentieth of all values, around each."""
    reach = max(1, len(values) // 40)
    windows = (values[max(0, at - reach) : at + reach + 1] for at in range(len(values)))
    return [math.fsum(window) / len(window) for window in windows]


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _byte_unit(largest: float) -> tuple[str, float]:
    return ("GB", 1e9) if largest >= 2e9 else ("MB", 1e6) if largest >= 2e6 else ("kB", 1e3)


def _locator(ticks: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(ticks)


def _svg(figure: Figure, name: str) -> str:
    """`figure` as an SVG element for HTML: no prologue, own ids under `name`, colours by the page's variables."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):  # ids, and so the whole page, are the same every time
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = visible(buffer.getvalue())
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    rest = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", rest, flags=re.DOTALL)
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    rest = rest.replace("xlink:href", "href").replace('id="', f'id="{name}-').replace('href="#', f'href="#{name}-')
    rest = rest.replace("url(#", f"url(#{name}-")
    rest = re.sub(r"font-family:[^;\"]*;? ?", "", rest)
    rest = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 inherit", rest)
    for colour, variable in _VARIABLES.items():
        rest = rest.replace(colour, f"var(--{variable})")
    return f'<svg {box[0] if box else ""} aria-hidden="true">{rest}'.strip()
