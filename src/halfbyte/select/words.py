"""The recommendation in words, with its reasons and with what the evidence does not decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.evaluate.results import read_evaluation, same_answer
from halfbyte.evaluate.show import figure, interval
from halfbyte.plan.weighing import gb
from halfbyte.select.evidence import Evidence, Variant
from halfbyte.select.ranking import Entry, Ranking, value_of

_NAMED = 3  # variants that a sentence lists
UNANSWERED = 0.05  # share of items without an answer that is worth a word


@dataclass(frozen=True)
class Recommendation:
    """`variant` None: nothing is recommended. `undecided` are those that can't be told apart, the best first."""

    variant: str | None
    undecided: tuple[str, ...]
    reasons: tuple[str, ...]  # sentences


def recommend(
    evidence: Sequence[Evidence],
    base: Ranking | None,
    probed: Ranking | None,
    *,
    guess: dict[str, Any] | None = None,
    beaten: bool | None = None,
    chance: float | None = None,
    steps: int | None = None,
    tuned: dict[str, Any] | None = None,
    leaks: Sequence[str] = (),
) -> Recommendation:
    """The recommendation by the probes (of `steps` steps), where there are some, else by the scores out of the box.

    `guess` is the result of always answering the training median, `beaten` whether the chosen one is better than it;
    `chance` is the share of right answers that choosing at random gives; `tuned` compares the chosen one after its
    probe with itself out of the box; `leaks` says how what a probe learned from gives items away.
    """
    if base is None:
        return Recommendation(None, (), tuple(_nothing(evidence)))
    decisive = probed or base
    chosen = decisive.chosen
    when = f"after a probe of {steps} steps" if probed else "out of the box"
    luck = [] if chance is None else _beside_chance(chance, decisive)
    leader = _leader(decisive, when + _made_worse(tuned, decisive), lucky=bool(luck))
    reasons = [leader, *_decided(decisive), *_flattered(decisive)]
    if probed and leaks:
        reasons.append(f"What the probes learned from gives items away: {'; '.join(leaks)}.")
    if guess is not None and beaten is not None:
        reasons.append(_beside_guess(guess, decisive, beaten, when))
    reasons += [*luck, *_cautions(evidence, base, probed, chosen)]
    undecided = tuple(entry.name for entry in decisive.tied) if len(decisive.tied) > 1 else ()
    return Recommendation(chosen.name, undecided, tuple(reasons))


def score_text(entry: Entry, ranking: Ranking) -> str:
    """As in: mae 15.7 (13.2 to 18.9)."""
    found = entry.result["metrics"][ranking.metric.name]
    limits = interval(found.get("low"), found.get("high"), ranking.metric)
    return f"{ranking.metric.name} {figure(found['value'], ranking.metric)}" + ("" if limits == "-" else f" ({limits})")


def _leader(ranking: Ranking, when: str, *, lucky: bool) -> str:
    """`lucky`: choosing at random may do as well, so that nothing speaks for the best but that it is first."""
    chosen, how = ranking.chosen, "Not recommended, but first" if lucky else "Recommended"
    if not lucky and len(ranking.tied) > 1:
        how += ", though not shown to be the best" if chosen is ranking.best else " for its memory, not for its score"
    items = f"{chosen.result['items']:,} items"
    return f"{how}: {chosen.name}, with {score_text(chosen, ranking)} on {items} {when}."


def _made_worse(tuned: dict[str, Any] | None, ranking: Ranking) -> str:
    """What to say where tuning did the chosen one no good."""
    if tuned is None or tuned["verdict"] == "better":
        return ""
    before, after = tuned["a_value"], tuned["b_value"]
    if before is None or after is None or (after < before if ranking.metric.better == "lower" else after > before):
        return ""
    value = f"{ranking.metric.name} {figure(before, ranking.metric)}"
    if tuned["verdict"] == "worse":
        return f", which made it worse than out of the box ({value})"
    return f", no better than out of the box ({value})"


def _flattered(ranking: Ranking) -> list[str]:
    """That a score which was chosen by it is too good, and the interval that allows for it."""
    limits = interval(ranking.corrected.low, ranking.corrected.high, ranking.metric)
    if ranking.among == 1 or limits == "-":
        return []
    return [f"The items that score {ranking.chosen.name} chose it, too, which flatters it: the interval corrected for "
            f"its choice among {ranking.among} is {limits}."]  # fmt: skip


def _decided(ranking: Ranking) -> list[str]:
    """What the comparison with the best decides, and what it does not."""
    others, tied, chosen = ranking.order[1:], ranking.tied, ranking.chosen
    if not others and ranking.among > 1:
        return [f"It is the only one with a score after a probe, so there is nothing to compare it with; it is one of "
                f"{ranking.among} that were scored."]  # fmt: skip
    if not others:
        return ["It is the only one with a score, so there is nothing to compare it with."]
    worse = [one for one in ranking.against if one.verdict == "worse"]
    if len(tied) == 1:
        most = max(one.p_adjusted for one in worse) if worse else 1.0
        each = "the other one is" if len(others) == 1 else f"each of the {len(others)} others is"
        return [
            f"Item by item, {each} worse than it (p at most {most:.2g}, adjusted for all pairs of {ranking.among})."
        ]
    names = ", ".join(f"{entry.name} ({score_text(entry, ranking)})" for entry in tied)
    count = {2: "two", 3: "three", 4: "four", 5: "five"}.get(len(tied), str(len(tied)))
    said = [f"The evidence does not decide: these {count} can't be told apart on {chosen.result['items']:,} items: "
            f"{names}."]  # fmt: skip
    said += _could_detect(ranking)
    if chosen.memory is not None:
        said.append(f"Of these, {chosen.name} is named since none takes clearly less memory to tune "
                    f"({gb(chosen.memory)})" + ("" if chosen is ranking.best else
                    f"; {ranking.best.name} has the best score but takes {_size(ranking.best)}") + ".")  # fmt: skip
    if worse:
        out = _listed([one.other for one in worse]) if len(worse) <= _NAMED else f"the other {len(worse)}"
        said.append(f"The evidence does rule out {out}: worse than the best.")
    return said


def _could_detect(ranking: Ranking) -> list[str]:
    """What these items could have shown of those that are tied."""
    tied = {entry.name for entry in ranking.tied}
    sizes = [one.detectable for one in ranking.against if one.other in tied and one.detectable is not None]
    if not sizes:
        return []
    return [f"Of these, only a difference of {figure(max(sizes), ranking.metric, sign=True).lstrip('+')} or more would "
            "have been detected for certain enough (4 times in 5): more items would tell smaller ones."]  # fmt: skip


def _beside_guess(guess: dict[str, Any], ranking: Ranking, beaten: bool, when: str) -> str:
    value = figure(value_of(guess, ranking.metric), ranking.metric)
    scores = f"Always answering the training median scores {ranking.metric.name} {value}"
    if beaten:
        return f"{scores}; {ranking.chosen.name} beats it{_corrected(ranking)}."
    return f"{scores}; {when} {ranking.chosen.name} does not detectably beat that{_corrected(ranking)}."


def _beside_chance(chance: float, ranking: Ranking) -> list[str]:
    """Nothing where the chosen one's interval, at the level corrected for its choice, is above."""
    if ranking.corrected.low is not None and ranking.corrected.low > chance:
        return []
    return [f"Choosing at random scores {figure(chance, ranking.metric)}: {ranking.chosen.name} can't be shown to do "
            f"better{_corrected(ranking)}."]  # fmt: skip


def _corrected(ranking: Ranking) -> str:
    return f" (corrected for its choice among {ranking.among})" if ranking.among > 1 else ""


def _cautions(evidence: Sequence[Evidence], base: Ranking, probed: Ranking | None, chosen: Entry) -> list[str]:
    owner, variant = _find(evidence, chosen.name)
    said: list[str] = []
    if probed is None:
        said.append("Scores out of the box rank tuned scores poorly: --probe 200 tunes the best for 200 steps each.")
    elif base.best.name != probed.best.name:
        said.append(f"Out of the box {base.best.name} was first ({score_text(base.best, base)}): tuning changed the "
                    "order.")  # fmt: skip
    elif len(base.order) > 1:
        said.append("Out of the box it was first, too." if chosen.name == base.best.name else "Out of the box "
                    f"{base.best.name} was first, too.")  # fmt: skip
    if chosen.result.get("unanswered", 0) >= UNANSWERED:
        said.append(f"It gave no answer to {100 * chosen.result['unanswered']:.0f} % of the items.")
    said += _same_answer(chosen)
    if owner.licence is None or owner.licence.value is None:
        said.append("Its licence is not known here: read it before you use the model.")
    if owner.training is not None and owner.training.cut:
        said.append(f"In tuning, {owner.training.cut:,} of {owner.training.items:,} training items would be cut at "
                    f"{owner.training.most:,} of its tokens.")  # fmt: skip
    if variant.planned is not None and variant.planned.fits is None:
        said.append(f"Whether tuning it fits is {variant.planned.reason}.")
    types = {str(entry.result["compute"]) for entry in base.order if entry.result.get("compute")}
    if len(types) > 1:
        said.append(f"Not all were computed in the same type ({', '.join(sorted(types))}).")
    return said


def _same_answer(chosen: Entry) -> list[str]:
    """A caution where one answer makes up most of all, and not because the references are like that."""
    return [f"It gave {said}." for said in same_answer(read_evaluation(chosen.folder).predictions)]


def _nothing(evidence: Sequence[Evidence]) -> list[str]:
    variants = [variant for one in evidence for variant in one.variants]
    said = ["Nothing is recommended: no candidate has a score."]
    kinds = {
        "planned": "Only planned",
        "does not fit": "Too large",
        "too long": "Too short a context",
        "failed": "Failed",
    }
    for status, words in kinds.items():
        names = [variant.name for variant in variants if variant.status == status]
        said += [f"{words}: {_listed(names)}."] if names else []
    return said


def _find(evidence: Sequence[Evidence], name: str) -> tuple[Evidence, Variant]:
    return next((one, variant) for one in evidence for variant in one.variants if variant.name == name)


def _size(entry: Entry) -> str:
    return "an unknown amount" if entry.memory is None else gb(entry.memory)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)
