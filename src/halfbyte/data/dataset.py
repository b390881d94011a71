"""The training data of a run: records -> examples -> items, a part of them held out for validation."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.config import DataConfig, load_task
from halfbyte.data.encode import Encoder, Item
from halfbyte.data.numbers import parse_number
from halfbyte.data.sides import value_of
from halfbyte.data.template import Example, load_examples
from halfbyte.data.units import joined
from halfbyte.errors import ConfigError, DataError


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
            tokens=sum(len(item.ids) for item in kept),
            learned_tokens=sum(item.learned_tokens for item in kept),
            longest=max((len(item.ids) for item in kept), default=0),
        )


@dataclass(frozen=True)
class TrainingData:
    """Items to train on and to validate on, with the examples that they were made of."""

    train: list[Item]
    validation: list[Item]
    examples: list[Example]  # of train, the dropped ones included
    validation_examples: list[Example]
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


def load_training(config: DataConfig, tokenizer: Any, seed: int) -> TrainingData:
    """Read, encode and split the data of a run.

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
    loose = sum(_ends_unanswered(example) for example in train)
    if loose:
        notes.append(f"{loose:,} conversations go on after the assistant's last turn; what follows it is left out")
    spaced = 0 if encoder.chat else sum(example.prompt.endswith(" ") for example in train)
    if spaced:
        notes.append(
            f"{spaced:,} prompts end with a space; most tokenizers join a space to the word after it,"
            " so a base model goes on better where the completion begins with it instead"
        )
    if isinstance(config.validation, str):
        validation = load_examples(config.validation, config.template, split="validation")
        seen = {_text_of(example) for example in train}
        shared = sum(_text_of(example) in seen for example in validation)
        if shared:
            notes.append(f"{shared:,} of {len(validation):,} validation prompts stand in the training data, too")
        notes += _shared_groups(train, validation, group_of(config))
    else:
        train, validation, note = split(train, config.validation or 0.0, seed, group_of(config))
        notes += [note] if note else []
    items, counts = _encode(encoder, train, config)
    held_out, held_counts = _encode(encoder, validation, config)
    if not items:
        found = f"{counts.dropped:,} items, none with a learned token among its first {config.max_tokens:,}"
        raise DataError("nothing would be learned", where=config.train, found=found, do="raise data.max_tokens")
    if validation and not held_out:
        notes.append("no validation: none of its items has a learned token within max_tokens")
    return TrainingData(items, held_out, train, validation, counts, held_counts, encoder.pad, notes)


def group_of(config: DataConfig) -> str | None:
    """The column whose items stay on one side of the split: the run's own, else that of the task that is trained on."""
    if config.group or Path(str(config.train)).suffix.lower() not in (".yaml", ".yml"):
        return config.group
    return load_task(str(config.train), runs=False).group


def _shared_groups(train: Sequence[Example], validation: Sequence[Example], group: str | None) -> list[str]:
    if group is None:
        return []
    known = {value_of(example.record, group) for example in train}
    shared = sum(value_of(example.record, group) in known for example in validation)
    return [f"{shared:,} of {len(validation):,} validation items are of groups that are trained on, too"] * bool(shared)


def _encode(encoder: Encoder, examples: Sequence[Example], config: DataConfig) -> tuple[list[Item], Counts]:
    items = encoder.items(examples, config.learn, config.max_tokens)
    kept = [item for item in items if any(item.learned)]
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
    keys = [_text_of(example) for example in examples]
    if group is not None:
        keys = joined([value_of(example.record, group) for example in examples], keys)
    elif len(set(keys)) == 1:
        keys = [_whole_of(example) for example in examples]
    ranks = {text: _rank(text, seed) for text in set(keys)}
    if len(ranks) == 1:
        what = "distinct item" if group is None else "group"
        return list(examples), [], f"no validation: the training data holds one {what} only"
    first, last = min(ranks, key=ranks.__getitem__), max(ranks, key=ranks.__getitem__)
    chosen = {text for text, rank in ranks.items() if rank < share and text != last} | {first}
    train = [example for example, key in zip(examples, keys, strict=True) if key not in chosen]
    validation = [example for example, key in zip(examples, keys, strict=True) if key in chosen]
    small = len(validation) < 10 and f"the validation loss stands on {len(validation)} items only and is a rough guide"
    return train, validation, small or None


def _rank(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on the text and the seed alone."""
    digest = hashlib.blake2b(f"{seed}\n{text}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _text_of(example: Example) -> str:
    """What makes two examples the same: the prompt without its letter case and white space."""
    return " ".join(f"{example.system or ''} {example.prompt}".split()).casefold()


def _whole_of(example: Example) -> str:
    return f"{_text_of(example)}\n{' '.join((example.completion or '').split()).casefold()}"


def seen_in_training(train: Iterable[Example], asked: Sequence[Example]) -> str | None:
    """A warning where examples that a task asks stand in the training data with the same answer; None where none do.

    The same means: prompt and answer without letter case and white space.
    """
    known = {_whole_of(example) for example in train}
    shared = [example for example in asked if _whole_of(example) in known]
    if not shared:
        return None
    return (f"{len(shared):,} of {len(asked):,} test items stand in the training data, too (the first: "
            f"{shared[0].record.origin}): what the tuned model scores on them is memory")  # fmt: skip


def _ends_unanswered(example: Example) -> bool:
    return example.messages is not None and len(example.messages) < len(example.record.values.get("messages", ()))


def training_median(examples: Iterable[Example]) -> float | None:
    """The median of the numbers in the completions; None where no completion holds one."""
    numbers = [parse_number(example.completion) for example in examples if example.completion is not None]
    known = [number for number in numbers if number is not None]
    return statistics.median(known) if known else None
