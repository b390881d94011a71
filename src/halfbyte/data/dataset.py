"""The training data of a run: records -> examples -> items, a part of them held out for validation."""

from __future__ import annotations

import hashlib
import json
import statistics
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from halfbyte.config import DataConfig, load_task
from halfbyte.data.encode import Encoder, Item
from halfbyte.data.numbers import parse_number
from halfbyte.data.sides import value_of
from halfbyte.data.template import Example, load_examples, raise_gathered
from halfbyte.data.units import joined
from halfbyte.errors import ConfigError, DataError

CHUNK = 256  # examples that are encoded at once; of 1,024 the lists left 4 MB more behind


@dataclass(frozen=True)
class Counts:
    """What became of a set of examples."""

    items: int  # that are kept
    cut: int  # of them, cut at max_tokens
    dropped: int  # examples of which no learned token was left
    tokens: int
    learned_tokens: int
    longest: int  # tokens of the longest item

    @classmethod
    def of(cls, kept: Sequence[Item], dropped: int) -> Counts:
        return cls(
            items=len(kept),
            cut=sum(item.cut > 0 for item in kept),
            dropped=dropped,
            tokens=sum(map(len, kept)),
            learned_tokens=sum(item.learned_tokens for item in kept),
            longest=max(map(len, kept), default=0),
        )


@dataclass(frozen=True)
class TrainingData:
    """Items to train on and to validate on. The examples that they were made of are not kept."""

    train: list[Item]
    validation: list[Item]
    counts: Counts
    validation_counts: Counts
    pad_id: int
    notes: list[str] = field(default_factory=list)  # what a user should know; plain sentences

    def describe(self) -> str:
        """A few lines for a person."""
        lines = [f"training data: {_counted(self.counts)}"]
        if self.validation:
            lines.append(f"validation data: {_counted(self.validation_counts)}")
        return "\n".join(lines + self.notes)

    def to_json(self) -> dict[str, Any]:
        return {"train": asdict(self.counts), "validation": asdict(self.validation_counts), "notes": self.notes}


def _counted(counts: Counts) -> str:
    text = f"{counts.items:,} items, {counts.tokens:,} tokens, {counts.learned_tokens:,} of them learned"
    text += f", longest {counts.longest:,}"
    if counts.cut:
        text += f"; {counts.cut:,} cut at max_tokens"
    if counts.dropped:
        text += f"; {counts.dropped:,} left out, as nothing learned lies within max_tokens"
    return text


Watch = Callable[[str, Sequence[Example], Sequence[Item | DataError]], None]


def load_training(config: DataConfig, tokenizer: Any, seed: int, watch: Watch | None = None) -> TrainingData:
    """Read, encode and split the data of a run.

    `watch` sees every example beside its item, or what is wrong with it, up to CHUNK at a time: side ("validation"
    first, then "train"), examples, items.

    `validation` is a file of its own, or a share of train: then each prompt is assigned by its hash and the seed, so
    that an item keeps its side when others join, and equal prompts are never on both sides; nor are the items of a
    group, where `group` or the TASK.yaml that is trained on names one. Raises DataError, and ConfigError when no
    training data is named.
    """
    if not config.train:
        raise ConfigError("no training data is named", where="data.train", do="add 'data: {train: train.jsonl}'")
    encoder = Encoder(tokenizer, config.chat)
    train = load_examples(config.train, config.template)
    notes = [f"items are {encoder.reason}"]
    if isinstance(config.validation, str):
        validation = load_examples(config.validation, config.template, split="validation")
    else:
        train, validation, note = split(train, config.validation or 0.0, seed, group_of(config))
        notes += [note] if note else []
    held_out, held_counts = _encode(encoder, validation, config, "validation", watch)
    items, counts = _encode(encoder, train, config, "train", watch)
    if not items:
        found = f"{counts.dropped:,} items, none with a learned token among its first {config.max_tokens:,}"
        raise DataError("nothing would be learned", where=config.train, found=found, do="raise data.max_tokens")
    if validation and not held_out:
        notes.append("no validation: none of its items has a learned token within max_tokens")
    return TrainingData(items, held_out, counts, held_counts, encoder.pad, notes)


def group_of(config: DataConfig) -> str | None:
    """The column whose items stay on one side of the split: the run's own, else that of the task that is trained on."""
    if config.group or Path(str(config.train)).suffix.lower() not in (".yaml", ".yml"):
        return config.group
    return load_task(str(config.train), runs=False).group


def data_digest(config: DataConfig) -> str:
    """SHA-256 of what `load_training` reads, before any tokenizer: the examples of train and of a validation file with
    their groups. Where the files lie and how they are called does not count. Raises as `load_training` does."""
    total, group = hashlib.sha256(), group_of(config)
    for split_name, source in (("train", config.train), ("validation", config.validation)):
        if not isinstance(source, str):
            continue
        for example in load_examples(source, config.template, split=split_name):
            parts = [example.system, example.prompt, example.completion, example.messages]
            parts += [] if group is None else [value_of(example.record, group)]
            total.update(json.dumps(parts).encode())
        total.update(b"\n")
    return total.hexdigest()


def _encode(
    encoder: Encoder, examples: Sequence[Example], config: DataConfig, side: str, watch: Watch | None
) -> tuple[list[Item], Counts]:
    items, faults = list[Item](), list[DataError]()
    for start in range(0, len(examples), CHUNK):
        part = examples[start : start + CHUNK]
        made = encoder.items_or_faults(part, config.learn, config.max_tokens)
        if watch is not None:
            watch(side, part, made)
        faults += [item for item in made if isinstance(item, DataError)]
        items += [item for item in made if isinstance(item, Item)]
    raise_gathered(faults, len(examples), "examples")
    kept = [item for item in items if item.learned_tokens]
    return kept, Counts.of(kept, len(items) - len(kept))


def split(
    examples: Sequence[Example], share: float, seed: int, group: str | None = None
) -> tuple[list[Example], list[Example], str | None]:
    """(train, validation, note): about `share` of the distinct prompts held out, with at least one on each side.

    Where all prompts are equal (as with texts that have none), the completion counts as well. `group`: a column; then
    about `share` of the groups are held out, and those that share a prompt stay together, too.
    """
    if not share:
        return list(examples), [], None
    ranks = Ranks(seed, group)
    for example in examples:
        ranks.add(example)
    held = ranks.held_out(share)
    if not held.any():
        what = "distinct item" if group is None else "group"
        return list(examples), [], f"no validation: the training data holds one {what} only"
    train = [example for example, out in zip(examples, held, strict=True) if not out]
    validation = [example for example, out in zip(examples, held, strict=True) if out]
    small = len(validation) < 10 and f"the validation loss stands on {len(validation)} items only and is a rough guide"
    return train, validation, small or None


class Ranks:
    """Which examples are held out, settled from 8 bytes of each; where they are grouped, from their groups' names and
    a digest of each prompt."""

    def __init__(self, seed: int, group: str | None = None) -> None:
        self.seed, self.group = seed, group
        self._prompts, self._wholes = array("d"), array("d")  # the latter only while all prompts are the same
        self._names: dict[str, str] = {}
        self._groups, self._digests = list[str](), list[bytes]()  # only where there is a `group`

    def add(self, example: Example) -> None:
        """Raises DataError where the example has no group."""
        text = text_of(example)
        if self.group is not None:
            name = value_of(example.record, self.group)
            self._groups.append(self._names.setdefault(name, name))
            self._digests.append(_digest(text) if text else b"")
            return
        self._prompts.append(_rank(text, self.seed))
        if self._prompts[0] == self._prompts[-1] and len(self._wholes) == len(self._prompts) - 1:
            self._wholes.append(_rank(whole_of(example), self.seed))

    def __len__(self) -> int:
        return len(self._prompts) if self.group is None else len(self._groups)

    def held_out(self, share: float) -> npt.NDArray[np.bool_]:
        """One flag an example, in their order; none is set where all examples are the same, or of one group."""
        ranks = np.array(self._ranks())
        if not len(ranks) or not share or ranks.min() == ranks.max():
            return np.zeros(len(ranks), dtype=np.bool_)
        held: npt.NDArray[np.bool_] = ((ranks < share) & (ranks != ranks.max())) | (ranks == ranks.min())
        return held

    def _ranks(self) -> Sequence[float]:
        if self.group is not None:
            units = joined(self._groups, self._digests)
            ranks = {unit: _rank(unit, self.seed) for unit in set(units)}
            return [ranks[unit] for unit in units]
        return self._wholes if len(self._wholes) == len(self._prompts) else self._prompts


def _rank(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on the text and the seed alone."""
    return int.from_bytes(_digest(f"{seed}\n{text}"), "big") / 2**64


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()


def text_of(example: Example) -> str:
    """What makes two examples the same: the prompt without its letter case and white space."""
    return " ".join(f"{example.system or ''} {example.prompt}".split()).casefold()


def whole_of(example: Example, text: str | None = None) -> str:
    """With the answer; `text`: what `text_of` makes of the example, where it is known already."""
    text = text_of(example) if text is None else text
    return f"{text}\n{' '.join((example.completion or '').split()).casefold()}"


def ends_unanswered(example: Example) -> bool:
    """Whether a conversation goes on after its last answer; what follows is left out."""
    return example.messages is not None and len(example.messages) < len(example.record.values.get("messages", ()))


def training_median(examples: Iterable[Example]) -> float | None:
    """The median of the numbers in the completions; None where no completion holds one."""
    numbers = [parse_number(example.completion) for example in examples if example.completion is not None]
    known = [number for number in numbers if number is not None]
    return statistics.median(known) if known else None
