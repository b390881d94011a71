"""The bytes of the base model as a run holds them: in the format that runs and the type that is computed in.

The ladder's `weights_bytes` count everything that is not quantised in 16 bits, as files hold it. In memory, norms and
biases have the type that is computed in; linear layers and vocabulary matrices stay as they are stored, and the
corrections of a router's scores are fp32 always.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.formats import QUANTISED, Weights, packed_bytes
from halfbyte.plan.inventory import Inventory

AS_STORED = ("linear", "embedding", "head")
_ALWAYS_FP32 = ".e_score_correction_bias"  # transformers' `_keep_in_fp32_modules_strict`, in the families that have it


def held_bytes(inventory: Inventory, weights: Weights, dtype_bytes: int) -> dict[str, int | None]:
    """`weights` (codes, and what is not packed) and `constants`, in bytes; `dtype_bytes` is the width of the type that
    is computed in. None where the number of parameters is unknown."""
    if inventory.parameters is None:
        return {"weights": None, "constants": None}
    stored = 4 if weights == "fp32" else 2
    packed = [packed_bytes(weights, *shape) for shape in inventory.quantised.values()] if weights in QUANTISED else []
    dense = set(inventory.linears) - (set(inventory.quantised) if packed else set())
    size = sum(part.codes for part in packed)
    for spec in inventory.tensors:
        if spec.kind == "linear":
            size += stored * spec.count * (spec.module in dense)
        else:
            width = 4 if spec.name.endswith(_ALWAYS_FP32) else dtype_bytes
            size += (stored if spec.kind in AS_STORED else width) * spec.count
    return {"weights": size, "constants": sum(part.constants for part in packed)}


def exact_parts(plan: Mapping[str, Any]) -> dict[str, int | None]:
    """What a plan's JSON object says of the parts that can be counted to the byte; None where it does not say it."""
    held = plan.get("held_bytes")
    held = held if isinstance(held, dict) else {}
    names = {"adapter": "adapter_bytes", "gradients": "gradient_bytes", "optimiser": "optimiser_bytes"}
    found = {"weights": held.get("weights"), "constants": held.get("constants")}
    return found | {name: plan.get(key) for name, key in names.items()}
