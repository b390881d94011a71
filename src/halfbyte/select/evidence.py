"""What is known of a candidate before it is scored: from its files' headers, its tokenizer and the plan.

A budget is what tuning and evaluating may take, mapped weights in full: a candidate whose weights would be read from
disk again and again does not fit here, though `plan` would let it run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from halfbyte.checkpoint.tokenizer import GENERATION, tokenizer_fingerprint
from halfbyte.data.encode import Encoder
from halfbyte.errors import CheckpointError, HalfbyteError
from halfbyte.evaluate.tasks import TaskSet
from halfbyte.plan import budget as budgets
from halfbyte.plan.devices import Device
from halfbyte.plan.inventory import take_inventory
from halfbyte.plan.ladder import SEQUENCE, Plan, plan_model
from halfbyte.plan.shapes import text_config
from halfbyte.plan.weighing import gb
from halfbyte.provenance import digest
from halfbyte.select.candidates import Asked, Candidate, variant_name
from halfbyte.select.licence import Licence, licence_of
from halfbyte.select.reading import (
    Lengths,
    Numbers,
    Training,
    asked_lengths,
    context_of,
    numbers_of,
    training_lengths,
)
from halfbyte.select.tuning import Tuning

Status = Literal["to score", "scored", "planned", "does not fit", "too long", "failed"]
LIKELIHOODS = ("choice", "loss")  # kinds whose answers are scored and not generated


@dataclass(frozen=True)
class Planned:
    """What the plan says of a variant. Bytes include the mapped weights; None: unknown."""

    fits: bool | None
    reason: str
    evaluate_bytes: int | None
    tune_bytes: int | None  # one item at a time
    tune_tokens: int  # of the longest item
    assumed: bool  # the tokens are not of the user's data, because the tokenizer is not here
    seconds: float | None  # of the whole tuning
    seconds_reason: str


@dataclass
class Probe:
    """A short tuning: what came of it."""

    steps: int
    status: Literal["scored", "failed"]
    reason: str = ""
    folder: Path | None = None  # of the evaluation
    result: dict[str, Any] | None = None


@dataclass
class Variant:
    """A candidate in one format with so many examples before each prompt."""

    name: str
    weights: str
    shots: int
    status: Status = "to score"
    reason: str = ""
    planned: Planned | None = None
    lengths: Lengths | None = None
    folder: Path | None = None  # of the evaluation
    result: dict[str, Any] | None = None
    probe: Probe | None = None


@dataclass
class Evidence:
    """A candidate and all that was found out about it."""

    candidate: Candidate
    parameters: int | None = None
    context: int | None = None
    licence: Licence | None = None
    numbers: Numbers | None = None
    training: Training | None = None
    fingerprint: str = ""  # of the checkpoint
    error: HalfbyteError | None = None
    variants: list[Variant] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    identity: str = ""  # digest of all files that answers depend on: weights, tokenizer, template, generation

    def fail(self, error: HalfbyteError) -> None:
        """The candidate can't be looked at: all that is not settled of it failed."""
        self.error = error
        for variant in self.variants:
            if variant.status == "to score":
                variant.status, variant.reason = "failed", said(error)


@dataclass(frozen=True)
class Look:
    """What every candidate is looked at with."""

    asked: Asked
    tasks: Mapping[int, TaskSet]  # by the number of shots
    tuning: Tuning
    device: Device  # that is planned for
    place: str = "auto"  # where models are loaded: auto, cpu, cuda or cuda:N

    @property
    def task_set(self) -> TaskSet:
        """The task with some number of shots: items and kind are the same with all of them."""
        return next(iter(self.tasks.values()))

    @property
    def kind(self) -> str:
        return self.task_set.task.kind


def said(error: HalfbyteError) -> str:
    """An error in one line."""
    found, do = (" ".join(str(part).split()) if part else "" for part in (error.found, error.do))
    return error.what + (f" ({found})" if found else "") + (f"; {do}" if do else "")


def look_at(candidate: Candidate, look: Look) -> Evidence:
    """Plan a candidate in every variant and read the user's data with its tokenizer. Nothing is loaded.

    A model of the hub is planned from its headers first, for items of the default length; it is downloaded only if one
    of its variants fits. What is wrong with the candidate stands in `error` and in its variants, and is not raised.
    """
    found = Evidence(candidate, variants=_variants(candidate, look.asked, None))
    try:
        inventory = take_inventory(candidate.model, candidate.revision)
        found.parameters, found.context = inventory.parameters, context_of(inventory.config)
        found.variants = _variants(candidate, look.asked, inventory.packed)
        for variant in found.variants:
            _check_format(variant, inventory.packed)
        if candidate.kind != "folder":
            _plan(found, look, assumed=True)
        if candidate.kind == "catalogue":
            _only_planned(found, inventory.name)
        elif any(variant.status == "to score" for variant in found.variants):
            _read(found, look)
        own = Path(candidate.model).expanduser() if candidate.kind == "folder" else None
        found.licence = found.licence or licence_of(candidate.model, own)
    except HalfbyteError as error:
        found.fail(error)
    except Exception as error:  # of a library that met something odd in the folder; the others go on
        found.fail(CheckpointError("the candidate can't be looked at", where=candidate.model,
                                   found=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                                   do="check its files"))  # fmt: skip
    return found


def _variants(candidate: Candidate, asked: Asked, packed: str | None) -> list[Variant]:
    formats = asked.weights or (packed or "nf4",)
    return [Variant(variant_name(candidate.label, weights, shots), weights, shots)
            for weights in formats for shots in asked.shots]  # fmt: skip


def _check_format(variant: Variant, packed: str | None) -> None:
    if packed is not None and variant.weights != packed:
        variant.status = "failed"
        variant.reason = f"the checkpoint is packed as {packed} and can't be repacked"


def _only_planned(found: Evidence, name: str) -> None:
    for variant in found.variants:
        if variant.status == "to score":
            fits = f"{variant.planned.reason}; " if variant.planned else ""
            variant.status = "planned"
            variant.reason = f"{fits}a name of the catalogue has no score: for one, name the hub id {name}"


def _read(found: Evidence, look: Look) -> None:
    """With the tokenizer: lengths and numbers; then the plan for these lengths. Downloads a model of the hub."""
    from halfbyte.checkpoint.source import open_checkpoint
    from halfbyte.model.build import load_tokenizer

    candidate = found.candidate
    checkpoint = open_checkpoint(candidate.model, candidate.revision)
    config = text_config(checkpoint.config)
    found.fingerprint, found.context = checkpoint.fingerprint, context_of(config)
    found.identity = digest([checkpoint.identity, tokenizer_fingerprint(checkpoint.path, GENERATION)])
    found.licence = licence_of(candidate.model, checkpoint.path)
    tokenizer = load_tokenizer(checkpoint, int(config.get("vocab_size") or 2**31))
    encoder = Encoder(tokenizer, look.task_set.task.chat)
    found.notes.append(f"items are {encoder.reason}")
    found.numbers = numbers_of(tokenizer, [item.reference for item in look.task_set.items])
    if look.tuning.train is not None:
        data = look.tuning.config.data
        found.training = training_lengths(Encoder(tokenizer, data.chat), look.tuning.train, data, found.context)
    lengths = {shots: asked_lengths(encoder, tasks, found.context) for shots, tasks in look.tasks.items()}
    for variant in found.variants:
        variant.lengths = own = lengths[variant.shots]
        if own.beyond and variant.status == "to score":
            variant.status = "too long"
            variant.reason = (f"{own.beyond:,} of {own.items:,} items are longer than its context of {own.context:,} "
                              f"tokens, the longest with {own.longest:,}")  # fmt: skip
    _plan(found, look, assumed=False)


def _plan(found: Evidence, look: Look, *, assumed: bool) -> None:
    """The plan of every variant; one that does not fit gets that status. Variants that differ in nothing that the plan
    knows share it."""
    plans: dict[tuple[str, int | None], Planned] = {}
    for variant in found.variants:
        if variant.status == "failed":
            continue
        asked = None if assumed or variant.lengths is None else min(variant.lengths.longest, found.context or 2**31)
        key = (variant.weights, asked)
        if key not in plans:
            plans[key] = _planned(found, variant.weights, asked, look)
        variant.planned = plans[key]
        if variant.planned.fits is False and variant.status == "to score":
            variant.status, variant.reason = "does not fit", variant.planned.reason


def _planned(found: Evidence, weights: str, asked: int | None, look: Look) -> Planned:
    tuning, candidate, training = look.tuning, found.candidate, found.training
    longest = training.longest if training else asked or SEQUENCE
    items = None if look.kind in LIKELIHOODS else look.task_set.items

    def made(tokens: int, batch: int = 1) -> Plan:
        config = tuning.config
        more: dict[str, Any] = {} if items is None else {"items": len(items)}
        return plan_model(
            candidate.model,
            revision=candidate.revision,
            weights=weights,
            rank=config.adapter.rank,
            targets=config.adapter.targets,
            sequence=tokens,
            batch=batch,
            memory=look.asked.budget,
            recompute=config.tune.recompute,
            compute=config.compute,
            evaluation_sequence=asked or SEQUENCE,
            learned=training.learned if training and config.data.learn == "completion" else None,
            device=look.device,
            length=tuning.length,
            **more,
        )

    plan = made(longest)
    fits, reason = _fits(plan)
    seconds, why = _seconds(plan, made, round(training.mean) if training else longest, tuning)
    needs = _needs(plan)
    return Planned(fits, reason, needs["evaluate"], needs["tune"], longest, asked is None, seconds, why)


def _needs(plan: Plan) -> dict[str, int | None]:
    """Bytes of each phase that does something, mapped weights included. Packing is the host's."""
    on_card = plan.device.get("kind") == "cuda"
    found: dict[str, int | None] = {}
    for name, phase in plan.phases.items():
        if phase.parts and not (on_card and name == "pack"):
            peak, mapped = phase.peak_bytes, phase.mapped_bytes
            found[name] = None if peak is None or mapped is None else peak + mapped
    return found


def _fits(plan: Plan) -> tuple[bool | None, str]:
    memory = plan.memory_bytes
    if memory is None:
        return None, "unknown, because this system does not tell how much memory is free: name a --budget"
    needs = _needs(plan)
    over = {name: need for name, need in needs.items() if need is not None and need > memory}
    if over:
        name, need = max(over.items(), key=lambda pair: pair[1])
        first = plan.fit.get("first") if name == "tune" else None
        words = f"to {name} needs {gb(need)} with its weights, {gb(memory)} are there"
        return False, words + (f"; {first} would make it fit" if first else "")
    if None in needs.values():
        return None, f"unknown: {next(iter(plan.unknown.values()), 'a part of the need is not modelled')}"
    return True, f"fits into {gb(memory)}"


def _seconds(plan: Plan, made: Any, mean: int, tuning: Tuning) -> tuple[float | None, str]:
    """Seconds of the whole tuning, for items of the mean length and as many at once as `tune` would take."""
    if tuning.length is None:
        return None, "no training data are known"
    if not plan.time["calibrated"]:
        return None, plan.time["reason"]
    options = tuning.config.tune
    if options.micro_batch == "auto":
        fit = plan.fit["largest"].get("batch", {}).get("value") or 1
        batch = max(1, min(fit, options.batch, budgets.MOST_ITEMS, budgets.MOST_TOKENS // max(1, mean)))
    else:
        batch = int(options.micro_batch)
    run = made(max(1, mean), batch).time["run"]
    return (run["seconds"], f"{run['steps']:,} steps") if run else (None, "unknown")
