"""Liger-Kernel's parts in whole models: tried, replaced one by one, and of no other effect than transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from halfbyte.config import AdapterConfig
from halfbyte.kernels import fused
from halfbyte.kernels.choice import VARIABLE
from halfbyte.model.adapter import quant_linears
from halfbyte.model.blocks import GatedMLP, RMSNorm, replace_parts
from halfbyte.model.build import Model, load_model
from halfbyte.model.linear import QuantLinear
from halfbyte.model.loss import next_token_loss
from halfbyte.model.rotary import replace_rotary
from tests.kernels.interpreted import INTERPRETED, WHY_NOT, mend
from tests.tiny import FAMILIES, tiny_checkpoint

IDS = torch.randint(4, 300, (2, 6), generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.skipif(not INTERPRETED, reason="these models are on the CPU, in Triton's interpreter"),
]


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "gpu")
    mend(monkeypatch)


def opened(source: Path, compute: str = "fp32") -> Model:
    model = load_model(str(source), weights="fp32", compute=compute, adapter=AdapterConfig(rank=2))
    make = torch.Generator().manual_seed(1)
    for layer in quant_linears(model.net).values():
        assert layer.lora_B is not None
        layer.lora_B.data.normal_(std=0.05, generator=make)
    model.net.train()
    return model


def loss_and_gradients(model: Model) -> dict[str, Tensor]:
    model.net.zero_grad()
    loss = next_token_loss(model.hidden(IDS), IDS, model.head) / IDS[:, 1:].numel()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.parameters_to_train().items() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_loss_and_gradients_are_those_of_the_parts_replaced(
    family: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint(family, folder / "model", dtype="float32")
    model = opened(source)
    assert [part.kind for part in model.replaced if part.reason] == []
    names = {type(module).__name__ for module in model.net.modules()}
    assert {"RMSNorm", "GatedMLP"} <= names and not {n for n in names if n.endswith(("RMSNorm", "MLP"))} - {
        "RMSNorm", "GatedMLP"}  # fmt: skip
    assert {part.kind.split()[0] for part in model.replaced} >= {"rotary", "cross-entropy"}
    ours = loss_and_gradients(model)
    monkeypatch.setenv(VARIABLE, "reference")
    theirs = loss_and_gradients(opened(source))
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        near = 2e-6 + 2e-5 * float(wanted.abs().max())  # they are sums, whose order the number of threads changes
        torch.testing.assert_close(ours[name], wanted, rtol=0.0, atol=near)


def test_in_16_bits_it_errs_at_most_twice_as_much(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_checkpoint("qwen3", folder / "model", dtype="float32")
    ours = loss_and_gradients(opened(source, "fp16"))
    monkeypatch.setenv(VARIABLE, "reference")
    theirs, exact = loss_and_gradients(opened(source, "fp16")), loss_and_gradients(opened(source))
    mine, yours = (
        sum(float((made[name] - exact[name]).norm() / exact[name].norm()) for name in exact) for made in (ours, theirs)
    )
    assert mine <= 2 * yours


def test_layers_that_are_computed_again_give_the_same_bits(folder: Path) -> None:
    """What Liger-Kernel writes over in its backward pass is nobody else's, the second time neither."""
    model = opened(tiny_checkpoint("gemma2", folder / "model"))
    first = loss_and_gradients(model)
    model.recompute(len(model.layers()))
    for again in (loss_and_gradients(model), loss_and_gradients(model)):
        assert all(torch.equal(again[name], value) for name, value in first.items())


def test_only_this_model_is_changed(folder: Path) -> None:
    from transformers.models.llama import modeling_llama

    before = modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaAttention.forward
    model = opened(tiny_checkpoint("llama", folder / "model"))
    assert (modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaAttention.forward) == before
    attention = model.net.model.layers[0].self_attn
    assert type(attention) is modeling_llama.LlamaAttention and "forward" in vars(attention)


def test_attention_of_another_arithmetic_stays_and_is_named(folder: Path) -> None:
    """Cohere turns neighbours, not halves; another model hides its forward behind a decorator."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("cohere", vocab_size=64, hidden_size=32, intermediate_size=40, num_hidden_layers=1,
                                  num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    net = AutoModelForCausalLM.from_config(config)
    (line,) = replace_rotary(net, CPU)
    assert "CohereAttention" in line.kind and line.reason and "forward" not in vars(net.model.layers[0].self_attn)
    assert replace_rotary(nn.Sequential(nn.Linear(2, 2)), CPU) == []


class Erf(nn.Module):
    """A gated MLP of GELU without tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (QuantLinear(torch.randn(shape), None) for shape in ((16, 8), (16, 8), (8, 16)))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Silu(Erf):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


def test_a_gate_without_a_kernel_stays_and_is_named() -> None:
    net = nn.ModuleDict({"erf": Erf(), "silu": Silu()})
    assert [str(line) for line in replace_parts(net, CPU)] == [
        "1 Erf: unchanged, Liger-Kernel has no kernel for gelu of two layers", "1 Silu: replaced"]  # fmt: skip
    assert isinstance(net["silu"], GatedMLP) and isinstance(net["erf"], Erf)


class PlainNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8), requires_grad=False), 1e-3

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        made = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return ((1 + self.weight.float()) * made).to(x.dtype)


class StoppedNorm(PlainNorm):
    """The same values, but no gradient through the mean."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        made = wide * torch.rsqrt(wide.detach().pow(2).mean(-1, keepdim=True) + self.eps)
        return ((1 + self.weight.float()) * made).to(x.dtype)


def test_the_style_is_found_by_what_a_norm_computes_and_its_gradients_count() -> None:
    net = nn.ModuleDict({"plain": PlainNorm(), "stopped": StoppedNorm()})
    assert [bool(line.reason) for line in replace_parts(net, CPU)] == [False, True]
    assert isinstance(net["plain"], RMSNorm) and (net["plain"].style, net["plain"].eps) == ("shifted", 1e-3)


def test_without_liger_all_parts_stay_and_the_reason_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "liger", lambda: ("", "liger-kernel is not installed: pip install it"))
    model = opened(tiny_checkpoint("llama", folder / "model"))
    assert len(model.replaced) == 4 and all("liger-kernel is not installed" in str(line) for line in model.replaced)
