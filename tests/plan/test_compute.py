"""The compute type is foretold as it will be chosen, and what can't be foretold is planned wide."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from halfbyte.environment import has_bf16
from halfbyte.formats import Weights
from halfbyte.plan import devices
from halfbyte.plan.compute import activation_bytes, foretold_compute
from halfbyte.plan.devices import Device
from halfbyte.plan.inventory import Inventory, take_inventory
from halfbyte.plan.ladder import plan_model

FAST = Device("cpu", "a server", 10**10, True, "")
SLOW = dataclasses.replace(FAST, name="a laptop", bf16=False)
CARD, OLD = Device("cuda", "A10", 10**10, True, ""), Device("cuda", "T4", 10**10, False, "")


def stored_as(dtype: str | None, name: str = "llama-3.2-1b") -> Inventory:
    found = take_inventory(name)
    return dataclasses.replace(found, config={**found.config, "dtype": dtype, "torch_dtype": None})


@pytest.mark.parametrize(
    ("dtype", "weights", "where", "compute"),
    [
        ("bfloat16", "nf4", FAST, "bf16"),
        ("bfloat16", "nf4", SLOW, "fp32"),
        (None, "nf4", SLOW, "fp32"),
        ("bfloat16", "bf16", SLOW, "fp32"),
        ("bfloat16", "fp32", FAST, "fp32"),
        ("float32", "nf4", FAST, "bf16"),
        ("torch.float32", "int8", SLOW, "fp32"),
        ("float16", "nf4", FAST, "bf16"),
        ("float16", "bf16", FAST, "fp32"),
        ("float16", "nf4", CARD, "fp16"),
        ("bfloat16", "nf4", CARD, "bf16"),
        ("bfloat16", "nf4", OLD, "fp16"),
        ("bfloat16", "bf16", OLD, "fp32"),
    ],
)
def test_it_follows_from_the_stored_type_the_format_and_the_device(
    dtype: str | None, weights: Weights, where: Device, compute: str
) -> None:
    assert foretold_compute(stored_as(dtype), weights, where)[0] == compute


def test_a_mixtures_experts_keep_their_own_type() -> None:
    compute, why = foretold_compute(stored_as("bfloat16", "qwen3-30b-a3b"), "nf4", SLOW)
    assert compute == "bf16" and "experts" in why


@pytest.mark.parametrize(
    ("line", "there"),
    [
        ("flags\t\t: fpu sse2 avx2 fma f16c", False),
        ("flags\t\t: avx512f avx512bw avx512_bf16", True),
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx512f avx512_bf16", False),
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx512f avx512_bf16 amx_bf16", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("Features\t: fp asimd", False),
        ("Model\t\t: Raspberry Pi", False),
    ],
)
def test_the_processors_flags_say_whether_it_has_bf16(tmp_path: Path, line: str, there: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")
    assert has_bf16(file) == there and not has_bf16(tmp_path / "none")


def test_a_processor_without_bf16_is_planned_with_activations_twice_as_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(there: bool, **asked: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(devices, "multiplies_bf16", lambda: there)
        made = plan_model("llama-3.2-1b", device="cpu", memory="8GB", **asked)  # type: ignore[arg-type]
        return made.phases["tune"].peak_bytes or 0, made.reasons

    fast, slow = plan(True), plan(False)
    assert slow[0] > 1.3 * fast[0] and slow[0] == plan(True, compute="fp32")[0]
    assert "compute fp32: no fast bf16 is known of this processor" in slow[1]
    assert "compute fp32: as asked" in plan(True, compute="fp32")[1]
    assert (activation_bytes("nf4", "fp32"), activation_bytes("nf4"), activation_bytes("fp32")) == (4, 2, 4)
