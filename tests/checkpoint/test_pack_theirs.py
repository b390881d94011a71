"""A packed checkpoint beside bitsandbytes and transformers: each opens the other, and the bytes are the same."""

from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from halfbyte import kernels
from halfbyte.checkpoint.skeleton import linear_names, skeleton
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.errors import CheckpointError
from halfbyte.formats import QUANTISED, Weights
from tests.checkpoint.conftest import Make
from tests.checkpoint.packing import packed, state_of
from tests.checkpoint.plain import logits, plain_model
from tests.tiny import FAMILIES


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_it_and_computes_the_same(family: str, weights: Weights, tiny: Make, tmp_path: Path) -> None:
    """In train mode, without dropout: in eval mode bitsandbytes repacks. Ours are plain torch over decoded weights."""
    packed(tiny(family), tmp_path / "packed", weights)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype="auto", device_map="cpu").train()
    kind = bitsandbytes.nn.Linear8bitLt if weights == "int8" else bitsandbytes.nn.Linear4bit
    assert sum(isinstance(module, kind) for module in theirs.modules()) == len(
        linear_names(skeleton(open_checkpoint(str(tmp_path / "packed"))))
    )
    exact = logits(plain_model(tmp_path / "packed", torch.float32))
    same_precision = (logits(plain_model(tmp_path / "packed", torch.bfloat16)) - exact).abs().max()
    assert (logits(theirs) - exact).abs().max() <= 2 * same_precision
    assert AutoTokenizer.from_pretrained(tmp_path / "packed")("a castle").input_ids


def save_theirs(folder: Path, out: Path, weights: Weights, **settings: Any) -> Any:
    config = BitsAndBytesConfig(load_in_8bit=True) if weights == "int8" else BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_use_double_quant=weights == "nf4",
        **{"bnb_4bit_quant_type": "nf4"} | settings,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map="cpu", dtype=torch.bfloat16
    )
    model.save_pretrained(out)
    return model


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "phi3", "qwen3_moe"])
def test_what_transformers_with_bitsandbytes_saved_opens_here(
    family: str, weights: Weights, tiny: Make, tmp_path: Path
) -> None:
    theirs = save_theirs(tiny(family), tmp_path / "theirs", weights)
    assert open_checkpoint(str(tmp_path / "theirs")).weights == weights
    state, modules = state_of(tmp_path / "theirs"), dict(theirs.named_modules())
    compared = 0
    for name, value in state.items():
        if isinstance(value, Tensor):
            continue
        weight = modules[name.removesuffix(".weight")].weight
        if weights == "int8":
            expected = bitsandbytes.functional.int8_vectorwise_dequant(weight.data, weight.SCB)
            assert torch.equal(kernels.dequantise(value, torch.float32), expected)
        else:
            expected = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            assert torch.equal(kernels.dequantise(value, torch.bfloat16), expected)
        compared += 1
    assert compared == len(linear_names(skeleton(open_checkpoint(str(tmp_path / "theirs")))))


@pytest.mark.parametrize("weights", QUANTISED)
def test_every_tensor_is_what_bitsandbytes_writes_byte_for_byte(weights: Weights, tiny: Make, tmp_path: Path) -> None:
    save_theirs(tiny("llama"), tmp_path / "theirs", weights)
    packed(tiny("llama"), tmp_path / "ours", weights)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def test_other_storage_types_and_fp4_of_transformers(tiny: Make, tmp_path: Path) -> None:
    save_theirs(tiny("mistral"), tmp_path / "bf16", "nf4", bnb_4bit_quant_storage=torch.bfloat16)
    save_theirs(tiny("mistral"), tmp_path / "uint8", "nf4")
    stored, usual = state_of(tmp_path / "bf16"), state_of(tmp_path / "uint8")
    assert open_checkpoint(str(tmp_path / "bf16")).tensors["model.layers.0.mlp.up_proj.weight"].dtype == "BF16"
    for name, value in usual.items():
        if not isinstance(value, Tensor):
            assert torch.equal(stored[name].codes, value.codes) and stored[name].offset == value.offset
    save_theirs(tiny("mistral"), tmp_path / "fp4", "nf4", bnb_4bit_quant_type="fp4")
    with pytest.raises(CheckpointError, match="bitsandbytes fp4"):
        open_checkpoint(str(tmp_path / "fp4"))


@pytest.mark.parametrize("weights", ["bf16", "fp32"])
@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_plain_copies_are_plain_models(family: str, weights: Weights, tiny: Make, tmp_path: Path) -> None:
    packed(tiny(family), tmp_path / "out", weights)
    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    expected = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=dtype).eval()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert theirs.dtype == dtype
    assert torch.equal(logits(theirs), logits(expected))
    assert torch.equal(logits(plain_model(tmp_path / "out")), logits(expected))
    assert "quantization_config" not in open_checkpoint(str(tmp_path / "out")).config
