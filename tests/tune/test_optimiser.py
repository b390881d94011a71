"""AdamW in 8 bits: it weighs what the plan says, goes on exactly, and says what it needs."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from halfbyte.cli import main
from halfbyte.config import TuneConfig
from halfbyte.errors import MissingDependency
from halfbyte.formats import moment_bytes
from halfbyte.plan.ladder import plan_model
from halfbyte.tune import optimiser
from halfbyte.tune.state import State, last_checkpoint
from tests.tiny import tiny_checkpoint
from tests.tune.test_state import go_on_alike

SIZES = {"small": (7, 9), "blocks": (32, 128), "ragged": (63, 67)}  # 63, 4,096 and 4,221 numbers


def state(seed: int = 0, name: str = "adamw8bit") -> State:
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: nn.Parameter(torch.randn(size, generator=generator)) for name, size in SIZES.items()}
    return State(parameters, TuneConfig(learning_rate=0.01, weight_decay=0.01, optimiser=name))


def step(of: State, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in of.parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    of.reserve()
    of.update()


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_it_weighs_what_the_plan_says(name: str) -> None:
    made = state(name=name)
    step(made, 0)
    numbers = [rows * columns for rows, columns in SIZES.values()]
    exact = {"adamw": 8 * sum(numbers), "adamw8bit": 8 * 63 + 2 * (4096 + 4221) + 8 * (16 + 17)}[name]
    assert made.optimiser_bytes() == moment_bytes(name, numbers) == exact


def test_adamw_is_fused_on_a_cpu_alone_and_takes_over_what_another_one_left() -> None:
    made, plain = state(name="adamw"), state(name="adamw")
    assert made.optimiser.defaults["fused"] is True
    elsewhere = optimiser.make([nn.Parameter(torch.empty(2, 2, device="meta"))], TuneConfig())
    assert elsewhere.defaults["fused"] is None  # as torch decides
    plain.optimiser = torch.optim.AdamW(plain.parameters.values(), lr=0.01, weight_decay=0.01)
    step(plain, 0)
    made.restore(plain.tensors(), plain.progress)
    step(made, 1)
    step(plain, 1)
    for name, parameter in made.parameters.items():
        assert torch.allclose(parameter, plain.parameters[name], rtol=1e-6, atol=1e-7)


def test_a_restored_state_goes_on_bit_for_bit(folder: Path) -> None:
    first, second = state(), state(seed=9)
    for seed in range(3):
        step(first, seed)
    first.save(folder)
    found = last_checkpoint(folder)
    assert found is not None
    second.restore(found.tensors, found.progress)
    assert go_on_alike(first, second, step)


def test_it_is_near_adamw_in_fp32() -> None:
    one, two = state(), state(name="adamw")
    before = [p.detach().clone() for p in one.parameters.values()]
    for seed in range(5):
        step(one, seed)
        step(two, seed)
    for p, q, start in zip(one.parameters.values(), two.parameters.values(), before, strict=True):
        assert 0 < torch.dist(p, q) / torch.dist(q, start) < 0.1 or torch.allclose(p, q, atol=1e-6)


def test_a_run_with_it_weighs_what_was_planned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoint("mistral", folder / "tiny")
    lines = [{"prompt": f"set {i}:", "completion": f" {i % 5}"} for i in range(8)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.yaml").write_text(
        "model: tiny\ncompute: fp32\nadapter: {rank: 64}\ndata: {train: train.jsonl, validation: 0}\nout: out\n"
        "tune: {max_steps: 2, batch: 4, micro_batch: 4, optimiser: adamw8bit}\n"
    )
    monkeypatch.setattr("halfbyte.report.page.report", str)
    assert main(["tune", str(folder / "run.yaml"), "--debug"]) == 0
    planned, measured = (json.loads((folder / "out" / name).read_text()) for name in ("plan.json", "measured.json"))
    assert measured["exact"]["optimiser"] == planned["optimiser_bytes"] < 3 * planned["adapter_parameters"]
    whole = plan_model(str(folder / "tiny"), rank=64)
    assert whole.optimiser_bytes == 8 * whole.adapter_parameters


def test_without_bitsandbytes_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "bitsandbytes":
            raise ModuleNotFoundError("No module named 'bitsandbytes'")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    optimiser.require("adamw")
    with pytest.raises(MissingDependency, match="needs the library bitsandbytes") as caught:
        optimiser.require("adamw8bit")
    assert "pip install bitsandbytes" in str(caught.value)
