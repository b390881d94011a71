"""Which architectures `load_model` refuses: each is tried with a tiny model, and the plan says so of those alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.errors import CheckpointError
from halfbyte.model.build import load_model
from halfbyte.plan import catalogue
from halfbyte.plan.families import NOT_LOADED
from halfbyte.plan.inventory import take_inventory
from tests.plan.mixed import TOWERS, seeing_checkpoint, text_checkpoint
from tests.plan.test_mixtures import SHAPE, TINY

TYPES = {entry.fields["architecture"]: entry.config["model_type"] for entry in catalogue.entries()}
WHOLES = {  # model_type of an architecture with a vision tower
    "Gemma3ForConditionalGeneration": "gemma3",
    "Gemma4ForConditionalGeneration": "gemma4",
    "Llama4ForConditionalGeneration": "llama4",
    "Mistral3ForConditionalGeneration": "mistral3",
    "Qwen3_5ForConditionalGeneration": "qwen3_5",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5_moe",
}
SEEN = {architecture for architecture in TYPES if "Conditional" in architecture}


def tiny(architecture: str, folder: Path) -> Path:
    model_type = TYPES.get(architecture, "llama4_text")
    config = {**SHAPE, **(TINY[model_type][0] if model_type in TINY else {"head_dim": 16})}
    if architecture in WHOLES:
        return seeing_checkpoint(WHOLES[architecture], folder, model_type, config)
    return text_checkpoint(model_type, folder, config)


def test_every_architecture_is_tried() -> None:
    assert set(WHOLES) == SEEN and set(TOWERS) == set(WHOLES.values())
    assert set(TYPES) | {"Llama4ForCausalLM"} >= NOT_LOADED


@pytest.mark.parametrize("architecture", sorted({*TYPES, "Llama4ForCausalLM"}))
def test_what_is_not_loaded_is_noted_by_the_plan(architecture: str, tmp_path: Path) -> None:
    folder = tiny(architecture, tmp_path / "tiny")
    noted = any(f"does not load {architecture} yet" in note for note in take_inventory(str(folder)).notes)
    assert noted == (architecture in NOT_LOADED)
    if noted:
        with pytest.raises(CheckpointError):
            load_model(str(folder), weights="bf16")
    else:
        load_model(str(folder), weights="bf16")


def test_the_catalogue_notes_it_too() -> None:
    for entry in catalogue.entries():
        noted = any("does not load" in note for note in take_inventory(entry.name).notes)
        assert noted == (entry.fields["architecture"] in NOT_LOADED)
