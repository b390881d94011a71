"""What is packed and what is not, by name."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from halfbyte.errors import CheckpointError
from tests.checkpoint.conftest import Make
from tests.checkpoint.packing import packed, state_of
from tests.checkpoint.plain import logits, plain_model


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_fused_experts_stay_and_are_named(family: str, tiny: Make, tmp_path: Path) -> None:
    report = packed(tiny(family), tmp_path / "out", "nf4")
    state = state_of(tmp_path / "out")
    left = {item.name: item for item in report.left}
    experts = [name for name in state if "experts" in name]
    assert len(experts) == 4
    for name in experts:
        assert state[name].dtype == torch.bfloat16 and left[name].nbytes == state[name].nbytes
        assert left[name].reason.startswith("no linear layer: [4, ")
    stays = {id(value): value.nbytes for value in state.values() if isinstance(value, Tensor)}
    assert sum(item.nbytes for item in report.left) == sum(stays.values())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu").train()
    assert torch.equal(logits(theirs), logits(plain_model(tmp_path / "out", torch.bfloat16)))


def test_a_model_without_a_linear_layer_is_refused(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no linear layer that can be quantised to nf4") as caught:
        packed(tiny("gpt2"), tmp_path / "out", "nf4")
    assert "Conv1D" in str(caught.value) and not (tmp_path / "out").exists()
