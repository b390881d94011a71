"""`compute: int8`: a model whose packed layers multiply bytes stays near the one in bf16, and is refused elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte.config import AdapterConfig
from halfbyte.errors import ConfigError
from halfbyte.kernels.product_int8 import cpu
from halfbyte.model.adapter import quant_linears
from halfbyte.model.build import Model, load_model
from halfbyte.model.loss import next_token_loss
from tests.tiny import FAMILIES, VOCABULARY, tiny_checkpoint

WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2,
                        "num_key_value_heads": 1, "head_dim": 64}  # fmt: skip
IDS = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))


def opened(source: Path, compute: str, weights: Any = "nf4") -> Model:
    model = load_model(str(source), weights=weights, adapter=AdapterConfig(rank=4), compute=compute)
    draw = torch.Generator().manual_seed(3)
    for layer in quant_linears(model.net).values():
        assert layer.lora_B is not None
        torch.nn.init.normal_(layer.lora_B, std=0.05, generator=draw)
    return model


def loss_and_gradient(model: Model) -> tuple[Tensor, Tensor]:
    loss = next_token_loss(model.hidden(IDS), IDS, model.head) / IDS[:, 1:].numel()
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters_to_train().values() if p.grad is not None]
    return loss.detach(), torch.cat(gradients)


@pytest.mark.parametrize("weights", ["nf4", "int8"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_loss_and_gradients_are_near_those_in_fp32(family: str, weights: Any, folder: Path, int8: None) -> None:
    options = {key: value for key, value in WIDE.items() if key != "head_dim" or "head_dim" in FAMILIES[family]}
    source = tiny_checkpoint(family, folder / "model", **options)
    exact_loss, exact = loss_and_gradient(opened(source, "fp32", weights))
    model = opened(source, "int8", weights)
    assert model.compute == "int8" and model.dtype == torch.bfloat16 and "as asked" in model.dtype_reason
    assert all(layer.int8 for layer in quant_linears(model.net).values())
    loss, gradient = loss_and_gradient(model)
    _, usual = loss_and_gradient(opened(source, "bf16", weights))
    assert (gradient - exact).norm() < 4 * (usual - exact).norm()  # measured: 1.5 to 2.7 times
    assert not torch.equal(gradient, usual)
    torch.testing.assert_close(loss, exact_loss, rtol=0.01, atol=0)  # measured: at most 0.003


def test_recomputed_layers_give_the_same_bits(folder: Path, int8: None) -> None:
    source = tiny_checkpoint("llama", folder / "model", **WIDE)
    loss, gradient = loss_and_gradient(opened(source, "int8"))
    model = opened(source, "int8")
    model.recompute(2)
    model.net.train()
    again, recomputed = loss_and_gradient(model)
    assert torch.equal(loss, again) and torch.equal(gradient, recomputed)


def test_layers_that_do_not_fit_are_counted_and_none_at_all_is_an_error(folder: Path, int8: None) -> None:
    source = tiny_checkpoint("llama", folder / "model", **{**WIDE, "intermediate_size": 100})
    model = opened(source, "int8")
    assert "12 linear layers multiply more than 16 rows as bytes" in model.dtype_reason
    assert "2 in bf16" in model.dtype_reason
    with pytest.raises(ConfigError, match="no layer of this model"):
        opened(tiny_checkpoint("llama", folder / "narrow"), "int8")


def test_it_is_refused_where_it_can_not_be_had(folder: Path, int8: None, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_checkpoint("llama", folder / "model", **WIDE)
    with pytest.raises(ConfigError, match="packed weights"):
        load_model(str(source), weights="bf16", compute="int8")
    monkeypatch.undo()
    monkeypatch.setattr(cpu, "has_vnni", lambda: False)
    with pytest.raises(ConfigError, match="AVX512-VNNI"):
        load_model(str(source), weights="nf4", compute="int8")
    assert load_model(str(source), weights="nf4", compute="bf16").compute == "bf16"
