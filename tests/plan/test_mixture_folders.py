"""Mixtures on disk: a folder with weights is planned like its configuration alone, and as it runs, to the byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from halfbyte.config import AdapterConfig
from halfbyte.model.build import load_model
from halfbyte.model.held import held_bytes
from halfbyte.plan.families import MIXTURES
from halfbyte.plan.held import exact_parts
from halfbyte.plan.ladder import plan_model
from tests.plan.mixed import text_checkpoint
from tests.plan.test_mixtures import SHAPE, TINY

RANK = 4
LOADED = sorted(set(MIXTURES) - {"llama4_text"})  # see test_loaded.py


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixtures")
    return {name: text_checkpoint(name, folder / name, SHAPE | TINY[name][0]) for name in MIXTURES}


def planned(folder: Path, **settings: Any) -> Any:
    return plan_model(str(folder), rank=RANK, memory="8GB", **settings)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_a_folder_with_weights_is_planned_like_its_configuration_alone(
    model_type: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(folders[model_type] / "config.json", tmp_path)
    stored, alone = planned(folders[model_type]), planned(tmp_path)
    for name in ("parameters", "linear_parameters", "linear_layers", "expert_parameters", "adapter_parameters",
                 "weights_bytes", "held_bytes"):  # fmt: skip
        assert getattr(stored, name) == getattr(alone, name), name
    assert bool(stored.expert_parameters) == (bool(MIXTURES[model_type].count))


@pytest.mark.parametrize(
    ("weights", "compute"), [("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "bf16"), ("nf4", "bf16"), ("int8", "fp32")]
)
@pytest.mark.parametrize("model_type", LOADED)
def test_what_is_planned_is_what_a_mixture_holds(
    model_type: str, weights: Any, compute: str, folders: dict[str, Path]
) -> None:
    adapter = AdapterConfig(rank=RANK)
    model = load_model(str(folders[model_type]), weights=weights, adapter=adapter, compute=compute)
    held = held_bytes(model.net)
    wanted = exact_parts(planned(folders[model_type], weights=weights, compute=compute).to_json())
    assert held == {name: wanted[name] for name in held}


@pytest.mark.parametrize("weights", ["bf16", "nf4"])
@pytest.mark.parametrize("model_type", sorted(name for name, mixture in MIXTURES.items() if mixture.corrected))
def test_the_corrections_of_a_router_stay_fp32(model_type: str, weights: Any, tmp_path: Path) -> None:
    """As transformers keeps them: rounded, they would send tokens to other experts."""
    config = {**SHAPE, **TINY[model_type][0], "num_key_value_heads": SHAPE["num_attention_heads"]}
    folder = text_checkpoint(model_type, tmp_path / "tiny", config, torch.float32)
    model = load_model(str(folder), weights=weights, compute="bf16")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    wanted = {name: buffer for name, buffer in theirs.named_buffers() if name.endswith("e_score_correction_bias")}
    ours = dict(model.net.named_buffers())
    assert wanted
    for name, buffer in wanted.items():
        assert ours[name].dtype == buffer.dtype == torch.float32 and torch.equal(ours[name], buffer)
    assert model.hidden(torch.tensor([[5, 6, 7, 8]])).isfinite().all()
