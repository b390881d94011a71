"""Adapters in PEFT's format, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from halfbyte.config import AdapterConfig
from halfbyte.errors import CheckpointError
from halfbyte.model.adapter import load_adapter, quant_linears, save_adapter
from halfbyte.model.build import Model, load_model
from tests.tiny import tiny_checkpoint

IDS = torch.tensor([[3, 17, 40, 9, 77, 5, 102, 31, 8, 64]])


def tuned(source: Path, config: AdapterConfig) -> Model:
    """A model whose adapter is not zero."""
    model = load_model(str(source), weights="fp32", adapter=config)
    for layer in quant_linears(model.net).values():
        if layer.lora_B is not None:
            torch.nn.init.normal_(layer.lora_B, std=0.05)
    return model


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(IDS))


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2"])
@pytest.mark.parametrize("targets", ["all", "attention", ["*layers.1.*o_proj"]])
def test_peft_loads_ours(family: str, targets: str | list[str], folder: Path) -> None:
    source = tiny_checkpoint(family, folder / "model", dtype="float32")
    config = AdapterConfig(rank=4, alpha=12, targets=targets, rslora=targets == "all")
    model = tuned(source, config)
    save_adapter(model.net, folder / "adapter", config, str(source), model.fingerprint)
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, folder / "adapter").eval()(IDS).logits
    torch.testing.assert_close(logits(model), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2"])
def test_ours_loads_pefts(family: str, folder: Path) -> None:
    source = tiny_checkpoint(family, folder / "model", dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        rank_pattern={"o_proj": 2},
        alpha_pattern={"o_proj": 3},
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(base, config).eval()
    theirs.save_pretrained(folder / "adapter")
    model = load_model(str(source), weights="fp32", adapter=folder / "adapter")
    with torch.no_grad():
        wanted = theirs(IDS).logits
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)


def test_what_is_saved_is_loaded_the_same(folder: Path) -> None:
    source = tiny_checkpoint("llama", folder / "model")
    config = AdapterConfig(rank=3)
    model = tuned(source, config)
    save_adapter(model.net, folder / "adapter", config, "base", model.fingerprint)
    again = load_model(str(source), weights="fp32", adapter=folder / "adapter")
    assert torch.equal(logits(model), logits(again))
    assert not list((folder / "adapter").glob("*.part"))


def saved(folder: Path) -> tuple[Model, Path]:
    source = tiny_checkpoint("llama", folder / "model")
    model = tuned(source, AdapterConfig(rank=3))
    save_adapter(model.net, folder / "adapter", AdapterConfig(rank=3), "base", model.fingerprint)
    return model, folder / "adapter"


def test_every_fault_of_the_tensors_is_listed(folder: Path) -> None:
    model, adapter = saved(folder)
    tensors = load_file(adapter / "adapter_model.safetensors")
    first, second, third, *_ = sorted(key for key in tensors if "lora_A" in key)
    tensors[first.replace("layers.0", "layers.9")] = tensors.pop(first)
    tensors[second] = tensors[second][:, :-1].contiguous()
    tensors[third] = tensors[third] * float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_adapter(model.net, adapter)
    said = str(caught.value)
    assert "no such quantised layer" in said and "NaN" in said and "lora_A is missing" in said and "for " in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("peft_type", "IA3"),
        ("fan_in_fan_out", True),
    ],
)
def test_what_is_not_computed_is_refused_by_name(folder: Path, key: str, value: object) -> None:
    model, adapter = saved(folder)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=key):
        load_adapter(model.net, adapter)


def test_missing_and_broken_files_and_another_base(folder: Path) -> None:
    model, adapter = saved(folder)
    with pytest.raises(CheckpointError, match="another base"):
        load_adapter(model.net, adapter, "0" * 64)
    (adapter / "adapter_model.safetensors").write_bytes(b"123")
    with pytest.raises(CheckpointError, match="can't be read"):
        load_adapter(model.net, adapter)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks adapter_config.json"):
        load_adapter(model.net, adapter)
    with pytest.raises(CheckpointError, match="no such folder"):
        load_adapter(model.net, folder / "nowhere")
