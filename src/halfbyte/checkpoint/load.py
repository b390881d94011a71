"""The values for a skeleton: every parameter and persistent buffer as a mapped tensor or a packed weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from halfbyte.checkpoint.bnb import read_at_opening, read_packed
from halfbyte.checkpoint.mapped import Mapped
from halfbyte.checkpoint.recipes import Recipe, plan_tensors, ties
from halfbyte.checkpoint.skeleton import linear_layers
from halfbyte.checkpoint.source import Checkpoint
from halfbyte.errors import CheckpointError
from halfbyte.kernels.packed import PackedWeight


def load_state(checkpoint: Checkpoint, model: Any) -> dict[str, Tensor | PackedWeight]:
    """Values for all of `model.state_dict()`, by name; `model` is `skeleton(checkpoint)`.

    Tensors are views of the mapped files: read them, never write to them. Copied are only those that the model wants
    in another dtype than stored, those that transformers has to convert (experts that are fused), and those whose
    place in the file is not aligned. Tied tensors are one tensor under two names.
    Raises CheckpointError that lists everything missing, unexpected, misshapen or packed in a way that is not read.
    """
    mapped = Mapped(checkpoint)
    expected = model.state_dict()
    layers = linear_layers(model)
    state: dict[str, Tensor | PackedWeight] = {}
    faults: list[str] = []
    mapped.prefetch(name for name in checkpoint.tensors if read_at_opening(name))
    for recipe in plan_tensors(checkpoint, model):
        if recipe.packed:
            try:
                state |= _packed(recipe, mapped, expected, layers)
            except CheckpointError as error:
                faults.append(error.what)
        else:
            state |= build(recipe, mapped, model, expected)
    if faults:
        shown = "\n    ".join(faults[:20] + ([f"and {len(faults) - 20} more"] if len(faults) > 20 else []))
        raise CheckpointError(
            "this checkpoint holds packed weights that are not read",
            where=checkpoint.path,
            found=f"\n    {shown}",
            do="pack the model's 16-bit checkpoint instead: halfbyte pack MODEL OUT",
        )
    for target, source in ties(model).items():
        present = state.get(source, state.get(target))
        if present is not None:
            state[target] = state[source] = present
    return state


def build(recipe: Recipe, mapped: Mapped, model: Any, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an unpacked recipe in the dtypes that `expected` has; mapped where nothing has to change."""
    if recipe.parts == 1:
        made = recipe.make(mapped.read, model)
        return {name: _cast(tensor, expected[name].dtype) for name, tensor in made.items()}
    ((name, shape),) = recipe.targets.items()
    whole = torch.empty(shape, dtype=expected[name].dtype)
    for index, piece in enumerate(recipe.pieces(mapped.read, model)):
        whole[index] = piece[0]
    return {name: whole}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _packed(
    recipe: Recipe, mapped: Mapped, expected: dict[str, Tensor], layers: dict[str, str | None]
) -> dict[str, PackedWeight]:
    weights = mapped.checkpoint.weights
    assert weights is not None  # `open_checkpoint` refuses packed tensors without a quantization_config
    found: dict[str, PackedWeight] = {}
    for name in recipe.targets:
        reason = layers.get(name.removesuffix(".weight"), "no linear layer")
        if reason is not None:
            raise CheckpointError(f"{name}: packed, but left in 16 bits here: {reason}")
        found[name] = read_packed(mapped, recipe.source, tuple(expected[name].shape), weights)
    return found
