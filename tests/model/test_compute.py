"""Computing in another type than the weights are stored in: the same values, and no copy of a matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from halfbyte.config import AdapterConfig
from halfbyte.kernels import compute
from halfbyte.kernels.compute import Measured
from halfbyte.kernels.packed import Int8Weight, NF4Weight
from halfbyte.model import assemble
from halfbyte.model.adapter import quant_linears
from halfbyte.model.build import load_model
from halfbyte.model.loss import next_token_loss
from tests.model.plain import IDS, plain
from tests.tiny import FAMILIES, tiny_checkpoint


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(("weights", "dtype"), [("nf4", "bfloat16"), ("bf16", "bfloat16"), ("nf4", "float16")])
def test_fp32_equals_transformers_in_fp32(family: str, weights: Any, dtype: str, folder: Path) -> None:
    source = tiny_checkpoint(family, folder / "model", dtype=dtype)
    model = load_model(str(source), weights=weights, compute="fp32")
    with torch.no_grad():
        hidden = model.hidden(IDS)
        assert model.dtype == hidden.dtype == torch.float32
        torch.testing.assert_close(model.logits(hidden), plain(model, source)(IDS).logits, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_no_matrix_is_copied(family: str, folder: Path) -> None:
    model = load_model(str(tiny_checkpoint(family, folder / "model")), weights="bf16", compute="fp32")
    embedding, head = model.net.get_input_embeddings(), model.net.get_output_embeddings()
    assert embedding.weight.dtype == head.weight.dtype == torch.bfloat16
    assert embedding(IDS).dtype == torch.float32
    for layer in quant_linears(model.net).values():
        assert isinstance(layer.frozen, torch.Tensor) and layer.frozen.dtype == torch.bfloat16
    assert {p.dtype for p in model.net.parameters() if p.ndim == 1} == {torch.float32}


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
def test_gradients_in_fp32_are_the_reference(family: str, folder: Path) -> None:
    source = tiny_checkpoint(family, folder / "model")
    model = load_model(str(source), weights="nf4", adapter=AdapterConfig(rank=4), compute="fp32")
    layers = quant_linears(model.net)
    for layer in layers.values():
        assert isinstance(layer.frozen, (NF4Weight, Int8Weight)) and layer.lora_B is not None
        torch.nn.init.normal_(layer.lora_B, std=0.05)
    theirs = plain(model, source)
    theirs.requires_grad_(True)
    wanted = theirs(IDS, labels=IDS).loss
    wanted.backward()
    loss = next_token_loss(model.hidden(IDS), IDS, model.head) / IDS[:, 1:].numel()
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    for name, layer in layers.items():
        assert layer.lora_A is not None and layer.lora_B is not None
        grad = theirs.get_submodule(name).weight.grad
        torch.testing.assert_close(layer.lora_B.grad, layer.scaling * grad @ layer.lora_A.T, rtol=1e-3, atol=1e-5)


def test_auto_goes_by_the_measurement_and_an_fp16_checkpoint_leaves_fp16(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(tiny_checkpoint("llama", folder / "model", dtype="float16"))
    for took, packed in ((Measured(1, 2), torch.bfloat16), (Measured(2, 1), torch.float32)):
        monkeypatch.setattr(compute, "measured", lambda took=took: took)
        model = load_model(source, weights="nf4")
        assert model.dtype == packed and "in fp32" in model.dtype_reason
        assert model.net.get_input_embeddings().weight.dtype == torch.float16
        assert torch.isfinite(model.logits(model.hidden(IDS))).all()
        assert load_model(source, weights="bf16").dtype == torch.float32


def test_weights_that_would_have_to_be_copied_keep_their_type(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(tiny_checkpoint("mixtral", folder / "model"))
    monkeypatch.setattr(compute, "measured", lambda: Measured(bf16=2, fp32=1))
    assert load_model(source, weights="nf4").compute == "fp32"
    monkeypatch.setattr(assemble, "COPIED_BYTES", 1000)
    model = load_model(source, weights="nf4")
    assert model.compute == "bf16" and "copied" in model.dtype_reason
    assert load_model(source, weights="nf4", compute="fp32").compute == "fp32"


def test_experts_compute_in_fp32_where_torch_is_slow_in_bf16(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {family: str(tiny_checkpoint(family, folder / family)) for family in ("mixtral", "llama")}
    monkeypatch.setattr(assemble, "torch_is_slow_in_bf16", lambda device: True)
    assert load_model(sources["llama"], weights="nf4").compute == "bf16"
    model = load_model(sources["mixtral"], weights="nf4")
    assert model.compute == "fp32" and "is slow in bf16" in model.dtype_reason
    monkeypatch.setattr(assemble, "COPIED_BYTES", 1000)
    model = load_model(sources["mixtral"], weights="nf4")
    assert model.compute == "bf16" and "slowly in this type" in model.dtype_reason
