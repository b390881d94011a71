"""The plan from checkpoint to model: which stored tensors each of the model's tensors is made of, and how.

A checkpoint's names are often not the model's: names changed over the years, and transformers fuses what files keep
apart (the experts of a mixture become one 3-D parameter). transformers knows all of that and applies it inside
`from_pretrained`, to all tensors at once and in memory. Here its own rules (`conversion_mapping`) are applied tensor by
tensor, so that a plan can be checked before a byte is read, and so that a packer can stream.

Shapes are found by running the conversion on meta tensors. A stack of experts is made expert by expert (`Recipe.parts`
> 1): its operations treat each expert alike, so a model's largest tensor never has to be in memory whole.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from halfbyte.checkpoint.headers import DTYPES
from halfbyte.checkpoint.source import QUANT_STATE, Checkpoint, is_packed_part
from halfbyte.errors import CheckpointError

Read = Callable[[str], Tensor]
_PLAIN = {"F16", "BF16", "F32", "F64"}  # what a weight of floating point may be stored as


@dataclass(frozen=True)
class Recipe:
    """How some of the model's tensors are made. Without a converter, `sources` is one tensor that becomes `targets`."""

    targets: dict[str, tuple[int, ...]]  # the model's names and shapes
    sources: dict[str, tuple[str, ...]]  # pattern of the conversion: stored tensors, in order
    converter: Any = None  # transformers' WeightConverter
    parts: int = 1  # how many pieces along dim 0 can be made one by one
    packed: bool = False  # the source is a weight that bitsandbytes packed

    @property
    def source(self) -> str:
        """The one stored tensor of a recipe without a converter."""
        ((name,),) = self.sources.values()
        return name

    def make(self, read: Read, model: Any) -> dict[str, Tensor]:
        """The model's tensors from stored ones, whole."""
        return self._convert({pattern: [read(n) for n in names] for pattern, names in self.sources.items()}, model)

    def pieces(self, read: Read, model: Any) -> Iterator[Tensor]:
        """The one target of a recipe that has parts, piece by piece along dim 0."""
        for index in range(self.parts):
            taken = {pattern: [read(names[index])] for pattern, names in self.sources.items()}
            (piece,) = self._convert(taken, model).values()
            yield piece

    def _convert(self, tensors: dict[str, list[Tensor]], model: Any) -> dict[str, Tensor]:
        if self.converter is None:
            ((tensor,),) = tensors.values()
            return dict.fromkeys(self.targets, tensor)
        return _run(self.converter, tensors, next(iter(self.targets)), model)


def ties(model: Any) -> dict[str, str]:
    """Tensors of the model that are the same tensor as another: {name: the other's name}."""
    return dict(model.all_tied_weights_keys)


def plan_tensors(checkpoint: Checkpoint, model: Any) -> list[Recipe]:
    """Recipes for every parameter and persistent buffer of `model`, in the model's order.

    `model` is transformers' causal LM on the meta device. A tensor that is tied to another needs no recipe.
    Raises CheckpointError that lists all tensors which are missing, unexpected, of the wrong shape or dtype.
    """
    expected = model.state_dict()
    recipes, faults = _group(checkpoint, model, expected)
    made = {target for recipe in recipes for target in recipe.targets}
    for target, source in ties(model).items():
        if target in made and source in made:  # the same values twice; `skeleton` has checked that
            recipes = [recipe for recipe in recipes if target not in recipe.targets]
        elif target in made or source in made:
            made |= {target, source}
    faults += [f"missing: {name} {list(tensor.shape)}" for name, tensor in expected.items() if name not in made]
    for recipe in recipes:
        faults += _mismatches(recipe, checkpoint, expected)
    if faults:
        shown = "\n    ".join(faults[:40] + ([f"and {len(faults) - 40} more"] if len(faults) > 40 else []))
        raise CheckpointError(
            f"the checkpoint does not fit the model that its config.json describes ({type(model).__name__})",
            where=checkpoint.path,
            found=f"\n    {shown}",
            do="use config.json and weights of the same model and revision",
        )
    order = {name: index for index, name in enumerate(expected)}
    return sorted(recipes, key=lambda recipe: min(order[target] for target in recipe.targets))


def rename(checkpoint: Checkpoint, model: Any) -> dict[str, tuple[str, Any, str | None]]:
    """For every stored weight: the model's name for it, and the converter and its pattern if it takes part in one."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    expected, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, tuple[str, Any, str | None]] = {}
    for name in sorted((name for name in checkpoint.tensors if not is_packed_part(name)), key=dot_natural_key):
        new, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if new not in expected and name in expected:  # it bears the model's name already
            new, pattern = rename_source_key(name, [], [], prefix, expected)
        found[name] = (new, by_pattern[pattern] if pattern is not None else None, pattern)
    return found


def _group(checkpoint: Checkpoint, model: Any, expected: dict[str, Tensor]) -> tuple[list[Recipe], list[str]]:
    ignored = _ignored(model)
    packed, faults = _packed_weights(checkpoint)
    plain: dict[str, str] = {}
    groups: dict[str, tuple[Any, dict[str, list[str]]]] = {}
    for name, (new, converter, pattern) in rename(checkpoint, model).items():
        if new not in expected:
            if not ignored.search(new) and not ignored.search(name):
                faults.append(f"unexpected: {name} {list(checkpoint.tensors[name].shape)}")
        elif converter is None:
            if new in plain:
                faults.append(f"{new}: stored twice, as {plain[new]} and {name}")
            plain[new] = name
        elif name in packed:
            faults.append(f"{name}: packed, but the model needs it converted ({_operations(converter)}): not read")
        else:
            groups.setdefault(new, (converter, {}))[1].setdefault(str(pattern), []).append(name)
    recipes = [
        Recipe({new: tuple(expected[new].shape)}, {name: (name,)}, packed=name in packed) for new, name in plain.items()
    ]
    for new, (converter, sources) in groups.items():
        try:
            recipes.append(_converted(checkpoint, model, new, converter, sources))
        except Exception as error:  # transformers' operations raise whatever torch does
            faults.append(f"{new}: can't be made of {sum(map(len, sources.values()))} stored tensors ({error})")
    return recipes, faults


def _converted(checkpoint: Checkpoint, model: Any, first: str, converter: Any, sources: dict[str, list[str]]) -> Recipe:
    def empty(name: str) -> Tensor:
        stored = checkpoint.tensors[name]
        return torch.empty(stored.shape, dtype=getattr(torch, DTYPES[stored.dtype][0]), device="meta")

    def outcome(count: int | None) -> dict[str, tuple[int, ...]]:
        taken = {pattern: [empty(name) for name in names[:count]] for pattern, names in sources.items()}
        return {name: tuple(tensor.shape) for name, tensor in _run(converter, taken, first, model).items()}

    targets, parts = outcome(None), 1
    if len(targets) == 1 and _acts_on_each(converter) and len({len(names) for names in sources.values()}) == 1:
        count = len(next(iter(sources.values())))
        (whole,), (one,) = targets.values(), outcome(1).values()
        if whole == (count, *one[1:]) and one[0] == 1:
            parts = count
    return Recipe(targets, {pattern: tuple(names) for pattern, names in sources.items()}, converter, parts)


def _acts_on_each(converter: Any) -> bool:
    """Whether the operations stack tensors along dim 0 and then leave that dimension alone."""
    first, *rest = converter.operations
    return (
        type(first) is MergeModulelist
        and first.dim == 0
        and all(
            (type(op) is Concatenate and op.dim > 0) or (type(op) is Transpose and min(op.dim0, op.dim1) > 0)
            for op in rest
        )
    )


def _run(converter: Any, tensors: dict[str, list[Tensor]], first: str, model: Any) -> dict[str, Tensor]:
    worker = copy.deepcopy(converter)
    for pattern, items in tensors.items():
        for tensor in items:
            worker.add_tensor(first, pattern, pattern, tensor)
    made = worker.convert(first, model=model, config=model.config)
    return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


def _operations(converter: Any) -> str:
    return ", ".join(type(operation).__name__ for operation in converter.operations)


def _packed_weights(checkpoint: Checkpoint) -> tuple[set[str], list[str]]:
    """The packed weights among the stored tensors, and the parts of packed weights that belong to none."""
    packed: set[str] = set()
    faults: list[str] = []
    for name in checkpoint.tensors:
        if is_packed_part(name):
            owner = name.split(QUANT_STATE)[0] if QUANT_STATE in name else name.rpartition(".")[0]
            if name.endswith((".SCB", ".weight_format")):
                owner += ".weight"
            packed.add(owner)
            if owner not in checkpoint.tensors:
                faults.append(f"unexpected: {name}, without its weight")
    return packed, faults


def _ignored(model: Any) -> re.Pattern[str]:
    """Stored tensors that are no weights of this model: what transformers leaves aside, and buffers of old versions."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or []), r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$"]
    return re.compile("|".join(f"({pattern})" for pattern in patterns))


def _mismatches(recipe: Recipe, checkpoint: Checkpoint, expected: dict[str, Tensor]) -> list[str]:
    faults = []
    for target, shape in recipe.targets.items():
        if target not in expected:
            faults.append(f"unexpected: {target}, made of {', '.join(n for ns in recipe.sources.values() for n in ns)}")
            continue
        if recipe.packed:
            continue  # its shape stands in its quant state, which `bnb` checks
        stored = [checkpoint.tensors[name] for names in recipe.sources.values() for name in names]
        if recipe.converter is None:
            shape = stored[0].shape
        if tuple(expected[target].shape) != shape:
            faults.append(f"wrong shape: {target} is {list(shape)}, the model needs {list(expected[target].shape)}")
        odd = {s.dtype for s in stored} - _PLAIN
        if expected[target].is_floating_point() and odd:
            faults.append(f"{target}: stored as {', '.join(sorted(odd))}, which is no 16 or 32 bit float: not read")
    return faults
