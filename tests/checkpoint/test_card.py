"""Quantised part by part, a matrix has the bits that it has whole; no more than two parts are on their way at once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.checkpoint import card as module
from halfbyte.checkpoint import pack as packing
from halfbyte.checkpoint.card import Card
from halfbyte.checkpoint.pack import pack
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.errors import CheckpointError
from halfbyte.formats import QUANTISED, Weights
from tests.checkpoint.conftest import Make

CPU = torch.device("cpu")


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (70, 130), (9, 33), (1, 5), (300, 7), (3, 5000)], ids=str)
def test_parts_have_the_bits_of_the_whole(weights: Weights, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Whole parts and ragged ones, less than a block, rows longer than a part."""
    card, draw = Card(CPU, part=1024), torch.Generator().manual_seed(shape[0])
    for matrix in (torch.randn(shape, generator=draw).to(dtype), torch.randn(shape[::-1], generator=draw).to(dtype).T):
        ours, whole = card.quantise(matrix, weights), kernels.quantise(matrix, weights)
        assert type(ours) is type(whole) and ours.shape == whole.shape and ours.weights == weights
        for name in ("codes", "absmax", "nested_absmax", "scale"):
            ours_part, whole_part = getattr(ours, name, None), getattr(whole, name, None)
            assert (ours_part is None) == (whole_part is None)
            assert whole_part is None or torch.equal(ours_part, whole_part)
        assert getattr(ours, "offset", None) == getattr(whole, "offset", None)


@pytest.mark.parametrize("weights", QUANTISED)
def test_a_fault_in_a_part_is_told_by_its_place_in_the_matrix(weights: Weights) -> None:
    matrix = torch.ones(90, 70)
    matrix[61, 13] = math.nan
    with pytest.raises(CheckpointError, match=r"row 61, column 13") as caught:
        Card(CPU, part=1024).quantise(matrix, weights, name="layers.3.q_proj.weight")
    assert "layers.3.q_proj.weight" in str(caught.value)
    with pytest.raises(CheckpointError, match="only a matrix"):
        Card(CPU).quantise(torch.ones(3), weights)


def test_a_mean_that_overflows_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="overflows") as caught:
        Card(CPU, part=1024).quantise(torch.full((40, 64), 3e38), "nf4", name="huge.weight")
    assert "huge.weight" in str(caught.value)


def test_a_part_is_sent_before_the_one_before_it_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    send, quantise = module._Slot.send, kernels.quantise

    def sent(slot: module._Slot, part: Tensor) -> None:
        steps.append("send")
        send(slot, part)

    def worked(weight: Tensor, weights: Weights, *, name: str = "") -> kernels.PackedWeight:
        steps.append(f"work on {weight.numel()}")
        return quantise(weight, weights, name=name)

    monkeypatch.setattr(module._Slot, "send", sent)
    monkeypatch.setattr(kernels, "quantise", worked)
    Card(CPU, part=1024).quantise(torch.randn(40, 64), "nf4")
    assert steps == ["send", "send", "work on 1024", "send", "work on 1024", "work on 512"]


def test_a_checkpoint_packed_through_a_card_is_the_same_file(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(str(tiny("llama")))
    pack(checkpoint, tmp_path / "plain", "nf4")
    monkeypatch.setattr(packing, "_quantiser", lambda device: Card(device, part=1024).quantise)
    pack(checkpoint, tmp_path / "card", "nf4")
    names = [f"{folder}/model.safetensors" for folder in ("plain", "card")]
    assert (tmp_path / names[0]).read_bytes() == (tmp_path / names[1]).read_bytes()
