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
    with pytest.raises(CheckpointError, match="no sound safetensors file"):
        load_adapter(model.net, adapter)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks adapter_config.json"):
        load_adapter(model.net, adapter)
    with pytest.raises(CheckpointError, match="no such folder"):
        load_adapter(model.net, folder / "nowhere")


def test_all_kinds_of_faults_are_one_error_and_nothing_is_put_in(folder: Path) -> None:
    model, adapter = saved(folder)
    for layer in quant_linears(model.net).values():
        layer.lora_A = layer.lora_B = None
    tensors = load_file(adapter / "adapter_model.safetensors")
    _, second, third, *_ = sorted(tensors)
    tensors[third] = tensors[third].to(torch.int32)
    tensors["base_model.model.elsewhere.lora_A.weight"] = tensors.pop(second)
    save_file(tensors, adapter / "adapter_model.safetensors", {"halfbyte_base_fingerprint": "1" * 64})
    config = json.loads((adapter / "adapter_config.json").read_text())
    changed = config | {"use_dora": True, "lora_dropout": 7, "rank_pattern": {"(a+)+$": 3, "(": 3, "up_proj": "x"}}
    (adapter / "adapter_config.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError) as caught:
        load_adapter(model.net, adapter, "0" * 64)
    said = str(caught.value)
    for part in ("use_dora", "another base model", "stored as I32", "no such quantised layer", "lora_dropout",
                 "(a+)+$ is no pattern", "( is no pattern", "up_proj: 'x'"):  # fmt: skip
        assert part in said, said
    assert not any(layer.lora_A is not None for layer in quant_linears(model.net).values())


@pytest.mark.parametrize("values", [{"r": "x"}, {"r": 0}, {"lora_alpha": float("inf")}, {"lora_alpha": None, "r": 7},
                                    {"rank_pattern": [1]}, {"alpha_pattern": {"q_proj": None}}])  # fmt: skip
def test_settings_that_are_no_numbers(folder: Path, values: dict[str, object]) -> None:
    model, adapter = saved(folder)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | values))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_adapter(model.net, adapter)


def test_a_pickled_adapter_is_refused_with_the_way_to_convert_it(folder: Path) -> None:
    model, adapter = saved(folder)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled adapter[\s\S]*save_pretrained"):
        load_adapter(model.net, adapter)
