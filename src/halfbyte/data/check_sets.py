"""The same item twice: within a side, and on two sides.

Two prompts are the same but for letter case and white space (`dataset.text_of`). Of each item two 64-bit hashes are
kept, of its prompt and of prompt with answer, and its place: 28 to 32 bytes.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halfbyte.data.check_report import SHOWN, Place
from halfbyte.data.check_tally import Origins
from halfbyte.data.dataset import text_of, whole_of
from halfbyte.data.template import Example

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Same:
    """How many, and the first few."""

    count: int
    places: tuple[Place, ...]
    share_answers: int = 0  # of them, those whose answer is the same, too


class Keys:
    """The items of a side by their hashes."""

    def __init__(self) -> None:
        self._prompts, self._wholes, self.origins = array("Q"), array("Q"), Origins()

    def add(self, example: Example) -> None:
        text = text_of(example)
        self._prompts.append(_hash(text))
        self._wholes.append(_hash(whole_of(example, text)))
        self.origins.append(example.record.origin)

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def prompts(self) -> Hashes:
        return np.array(self._prompts, dtype=np.uint64)

    @property
    def wholes(self) -> Hashes:
        return np.array(self._wholes, dtype=np.uint64)


def repeated(keys: Keys) -> Same:
    """Items that repeat an earlier one, prompt and answer."""
    wholes = keys.wholes
    _, first, inverse = np.unique(wholes, return_index=True, return_inverse=True)
    earlier = first[inverse]
    again = np.flatnonzero(earlier != np.arange(len(wholes)))
    places = [Place(keys.origins[int(k)], f"as {keys.origins[int(earlier[k])]}") for k in again[:SHOWN]]
    return Same(len(again), tuple(places))


def contradictory(keys: Keys) -> tuple[Same, int]:
    """Prompts that stand with more than one answer, and how many items have them. Blank prompts don't count."""
    prompts, wholes = keys.prompts, keys.wholes
    _, first = np.unique(wholes, return_index=True)
    several, answers = np.unique(prompts[first], return_counts=True)
    several = several[(answers > 1) & (several != _BLANK)]
    involved = np.flatnonzero(np.isin(prompts, several))
    places = []
    for prompt in dict.fromkeys(prompts[involved].tolist()):
        lines = np.sort(first[prompts[first] == prompt])
        places.append(Place(keys.origins[int(lines[0])], f"and {keys.origins[int(lines[1])]}"))
        if len(places) == SHOWN:
            break
    return Same(len(several), tuple(places)), len(involved)


def shared(held: Keys, train: Keys) -> tuple[Same, npt.NDArray[np.bool_]]:
    """Held-out items whose prompt stands in `train`, and which of them all. Where the prompt is blank the answer
    counts, too. Those with the same answer are named first."""
    order = np.argsort(train.prompts, kind="stable")
    prompts, wholes = train.prompts[order], np.sort(train.wholes)
    answered = _within(held.wholes, wholes)
    asked = np.where(held.prompts == _BLANK, answered, _within(held.prompts, prompts))
    places = []
    for number in [*np.flatnonzero(answered), *np.flatnonzero(asked & ~answered)][:SHOWN]:
        if answered[number]:
            twin, how = int(np.flatnonzero(train.wholes == held.wholes[number])[0]), "as"
        else:
            twin, how = int(order[np.searchsorted(prompts, held.prompts[number])]), "another answer in"
        places.append(Place(held.origins[int(number)], f"{how} {train.origins[twin]}"))
    return Same(int(asked.sum()), tuple(places), int(answered.sum())), asked


def _within(some: Hashes, known: Hashes) -> npt.NDArray[np.bool_]:
    if not len(known):
        return np.zeros(len(some), dtype=np.bool_)
    at = np.minimum(np.searchsorted(known, some), len(known) - 1)
    found: npt.NDArray[np.bool_] = known[at] == some
    return found


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


_BLANK = np.uint64(_hash(""))
