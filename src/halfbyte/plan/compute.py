"""The type that activations will have, foretold without torch: `kernels.compute` chooses it when a model is opened, on
a CPU by a short measurement. Where that can't be foretold the wider type is planned, which takes more memory."""

from __future__ import annotations

from halfbyte.environment import has_bf16
from halfbyte.formats import COPIED_BYTES, QUANTISED, Weights, check_int8, without_bf16
from halfbyte.plan.devices import Device
from halfbyte.plan.inventory import Inventory
from halfbyte.plan.native import int8_missing


def activation_bytes(weights: str, compute: str = "auto") -> int:
    """Bytes of an activation where the compute type is known, or as narrow as the weights allow."""
    return 4 if compute == "fp32" or (compute == "auto" and weights == "fp32") else 2


def require_int8(where: Device, weights: Weights) -> None:
    """Raise ConfigError, as opening a model would, where there are no products in int8."""
    check_int8(int8_missing(where.kind), weights)


def foretold_compute(inventory: Inventory, weights: Weights, where: Device) -> tuple[str, str]:
    """What `compute: auto` becomes for a model on a device, and why."""
    stored = str(inventory.config.get("dtype") or inventory.config.get("torch_dtype")).removeprefix("torch.")
    if weights == "fp32":
        return "fp32", "as the weights"
    if where.kind == "cuda":
        if where.bf16:
            return ("fp16", "the checkpoint is in fp16") if stored == "float16" else ("bf16", f"{where.name} has it")
        return without_bf16(stored, str(inventory.config.get("model_type", "")), weights)
    if stored == "float16" and weights not in QUANTISED:
        return "fp32", "the checkpoint is in fp16, which fp32 holds exactly and bf16 does not"
    own = "fp16" if stored == "float16" else "bf16"
    experts = sum(2 * spec.count for spec in inventory.tensors if spec.kind == "expert")
    if where.bf16 and 0 < experts <= COPIED_BYTES and not has_bf16():
        return "fp32", "torch multiplies the experts, and is slow in bf16 here"
    others = sum(2 * spec.count for spec in inventory.tensors if spec.kind in ("expert", "other"))
    if others > COPIED_BYTES and (own == "fp16" or not where.bf16):
        return own, "experts are multiplied in their own type"
    if where.bf16:
        by = "this processor multiplies it" if has_bf16() else "native kernels make it faster than fp32 here"
        return "bf16", by
    return "fp32", "no fast bf16 is known of this processor"
