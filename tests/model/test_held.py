"""What is planned to the byte is what a model holds: every family, every format, both widths of the compute type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from halfbyte.config import AdapterConfig, TuneConfig
from halfbyte.formats import WEIGHTS
from halfbyte.model.build import Model, load_model
from halfbyte.model.held import held_bytes
from halfbyte.plan.held import exact_parts
from halfbyte.plan.ladder import plan_model
from halfbyte.tune.state import State
from tests.tiny import FAMILIES, tiny_checkpoint

RANK = 4


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {family: tiny_checkpoint(family, folder / family) for family in FAMILIES}


def held(model: Model) -> dict[str, int | None]:
    """By part, after one optimiser step."""
    state = State(model.parameters_to_train(), TuneConfig())
    model.net.train()
    model.hidden(torch.tensor([[5, 6, 7, 8]])).float().square().sum().backward()  # type: ignore[no-untyped-call]
    state.optimiser.step()
    parts = {"gradients": state.gradient_bytes(), "optimiser": state.optimiser_bytes()}
    return {**held_bytes(model.net), **parts}


def planned(folder: Path, **settings: Any) -> dict[str, int | None]:
    return exact_parts(plan_model(str(folder), rank=RANK, memory="8GB", **settings).to_json())


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_every_format(family: str, weights: Any, checkpoints: dict[str, Path]) -> None:
    model = load_model(str(checkpoints[family]), weights=weights, adapter=AdapterConfig(rank=RANK))
    assert held(model) == planned(checkpoints[family], weights=weights)


@pytest.mark.parametrize(
    ("weights", "compute"), [("nf4", "fp32"), ("bf16", "fp32"), ("fp32", "bf16"), ("int8", "fp16")]
)
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_norms_and_biases_have_the_type_that_is_computed_in(
    family: str, weights: Any, compute: str, checkpoints: dict[str, Path]
) -> None:
    adapter = AdapterConfig(rank=RANK, targets="attention")
    model = load_model(str(checkpoints[family]), weights=weights, adapter=adapter, compute=compute)
    wanted = planned(checkpoints[family], weights=weights, compute=compute, targets="attention")
    assert held(model) == wanted
    as_files = plan_model(str(checkpoints[family]), weights=weights, memory="8GB").weights_bytes[weights]
    assert wanted["weights"] != as_files or compute == "fp16"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_whatever_the_checkpoint_is_stored_in(dtype: str, folder: Path) -> None:
    source = tiny_checkpoint("smollm3", folder / dtype, dtype=dtype)
    for weights in WEIGHTS:
        model = load_model(str(source), weights=weights, adapter=AdapterConfig(rank=RANK), compute="bf16")
        assert held(model) == planned(source, weights=weights, compute="bf16")


def test_a_tied_head_counts_once_and_a_packed_checkpoint_as_it_runs(folder: Path) -> None:
    from halfbyte.checkpoint.pack import pack
    from halfbyte.checkpoint.source import open_checkpoint

    source = tiny_checkpoint("qwen3", folder / "tied")
    pack(open_checkpoint(str(source)), folder / "packed", "nf4")
    model = load_model(str(folder / "packed"), adapter=AdapterConfig(rank=RANK))
    assert held(model) == planned(folder / "packed") == planned(source, weights="nf4")


@pytest.mark.parametrize("turn", [1, -1])
def test_a_part_adds_nothing_to_the_whole_whichever_comes_first(turn: int) -> None:
    net = torch.nn.Module()
    whole = torch.zeros(8)
    for index, tensor in enumerate([whole, whole[:2], torch.zeros(3)][::turn]):
        net.register_buffer(f"part{index}", tensor)
    net.register_buffer("computed", torch.zeros(5), persistent=False)
    assert held_bytes(net) == {"weights": 4 * (8 + 3), "constants": 0, "adapter": 0}
