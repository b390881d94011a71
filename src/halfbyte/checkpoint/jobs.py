"""What packing writes: every tensor of the model in its order, in which type, and what is not quantised and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from halfbyte.checkpoint import bnb
from halfbyte.checkpoint.headers import DTYPES
from halfbyte.checkpoint.recipes import Recipe, plan_tensors
from halfbyte.checkpoint.skeleton import kept_in_fp32, linear_layers
from halfbyte.checkpoint.source import Checkpoint
from halfbyte.checkpoint.writer import Entry
from halfbyte.errors import CheckpointError
from halfbyte.formats import QUANTISED, Weights, packed_bytes

_SAFETENSORS = {name: short for short, (name, _) in DTYPES.items()}


@dataclass(frozen=True)
class Left:
    """What stays in 16 bits (or in 32) beside quantised layers: its name, its bytes as written, and why."""

    name: str
    nbytes: int
    reason: str


@dataclass(frozen=True)
class Job:
    """A tensor of the model on its way to the new checkpoint."""

    recipe: Recipe
    target: str
    dtype: str  # safetensors' name, of what is not quantised
    entries: tuple[Entry, ...]
    quantised: bool

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries if entry.room is None)


def plan_jobs(checkpoint: Checkpoint, model: Any, weights: Weights) -> tuple[list[Job], list[Left]]:
    """What is to be written, in the model's order, and what of it is not quantised and why."""
    layers = linear_layers(model)
    wanted = {f"{name}.weight" for name, reason in layers.items() if reason is None} if weights in QUANTISED else set()
    dtype = "float32" if weights == "fp32" else "float16" if checkpoint.dtype == "float16" else "bfloat16"
    keep = kept_in_fp32(model, getattr(torch, dtype))
    expected = model.state_dict()
    jobs: list[Job] = []
    for recipe in plan_tensors(checkpoint, model):
        for target, shape in recipe.targets.items():
            quantised = target in wanted and (checkpoint.weights is None or recipe.packed)
            floating = expected[target].is_floating_point()
            short = "F32" if target in keep else _SAFETENSORS[dtype if floating else str(expected[target].dtype)[6:]]
            entries = [Entry(target, short, shape)]
            if quantised:
                stored = bnb.layout(target, weights, (shape[0], shape[1]))
                entries = [Entry(n, d, s, bnb.STATE_ROOM if bnb.STATE in n else None) for n, (d, s) in stored.items()]
            jobs.append(Job(recipe, target, short, tuple(entries), quantised))
    if weights in QUANTISED and not any(job.quantised for job in jobs):
        reasons = ", ".join(f"{name} ({reason})" for name, reason in list(layers.items())[:5])
        raise CheckpointError(
            f"this model has no linear layer that can be quantised to {weights}",
            where=checkpoint.path,
            found=reasons or "no linear layers",
            do="use it in 16 bits: --weights bf16",
        )
    return jobs, _left(jobs, layers, model) if weights in QUANTISED else []


def packed_nbytes(job: Job, weights: Weights) -> int:
    rows, columns = job.recipe.targets[job.target]
    size = packed_bytes(weights, rows, columns)
    return size.codes + size.constants


def _left(jobs: list[Job], layers: dict[str, str | None], model: Any) -> list[Left]:
    """Every matrix that is not quantised, by name; vectors together, since there are many and they are small."""
    embedding = model.get_input_embeddings()
    left: list[Left] = []
    small: list[Job] = []
    for job in jobs:
        (entry, *_), owner = job.entries, job.target.rpartition(".")[0]
        if job.quantised:
            continue
        if len(entry.shape) < 2:
            small.append(job)
        elif model.get_submodule(owner) is embedding:
            left.append(Left(job.target, job.nbytes, "the embedding"))
        elif owner in layers:
            left.append(Left(job.target, job.nbytes, layers[owner] or "left so by whoever packed it"))
        else:
            kind = type(model.get_submodule(owner)).__name__
            left.append(Left(job.target, job.nbytes, f"no linear layer: {list(entry.shape)} of {kind}"))
    if small:
        total = sum(job.nbytes for job in small)
        left.append(Left(f"{len(small)} norms, biases and other vectors", total, "no matrix"))
    return left
