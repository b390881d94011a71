"""Norms and gated MLPs of our own: the same loss and gradients as transformers', and nothing replaced on trust."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from halfbyte.config import AdapterConfig
from halfbyte.kernels.choice import VARIABLE
from halfbyte.model.adapter import quant_linears
from halfbyte.model.blocks import GatedMLP, RMSNorm, replace_parts
from halfbyte.model.build import Model, load_model
from halfbyte.model.linear import QuantLinear
from halfbyte.model.loss import next_token_loss
from tests.tiny import FAMILIES, tiny_checkpoint

IDS = torch.randint(4, 300, (2, 24), generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


def opened(source: Path, weights: str) -> Model:
    model = load_model(str(source), weights=weights, adapter=AdapterConfig(rank=4))  # type: ignore[arg-type]
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
    made = {}
    for weights in ("fp32", "bf16"):
        for kernels in ("reference", "cpu"):
            monkeypatch.setenv(VARIABLE, kernels)
            model = opened(source, weights)
            ours = [m for m in model.net.modules() if isinstance(m, (RMSNorm, GatedMLP))]
            theirs = [m for m in model.net.modules() if type(m).__name__.endswith(("RMSNorm", "MLP"))]
            assert bool(ours) == (kernels == "cpu")
            if kernels == "cpu":
                assert set(theirs) == set(ours) and not any(part.reason for part in model.replaced)
            else:
                assert all(part.reason for part in model.replaced)
            made[weights, kernels] = loss_and_gradients(model)
            names = {name for name, _ in model.net.named_parameters()}
            assert made.setdefault("names", names) == names  # type: ignore[arg-type]
    exact, native = made["fp32", "reference"], made["fp32", "cpu"]
    for name, wanted in exact.items():
        torch.testing.assert_close(native[name], wanted, rtol=2e-5, atol=2e-6)

    def error(kernels: str) -> float:
        found = made["bf16", kernels]
        return sum(float((found[name] - exact[name]).norm() / exact[name].norm()) for name in exact) / len(exact)

    assert error("cpu") <= 2 * error("reference")


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_recomputation_and_a_second_run_give_the_same_bits(family: str, folder: Path) -> None:
    model = opened(tiny_checkpoint(family, folder / "model"), "bf16")
    first = loss_and_gradients(model)
    model.recompute(len(model.layers()))
    for again in (loss_and_gradients(model), loss_and_gradients(model)):
        assert all(torch.equal(again[name], value) for name, value in first.items())


def test_without_gradients_the_loss_is_the_same(folder: Path) -> None:
    model = opened(tiny_checkpoint("qwen3", folder / "model"), "bf16")
    wanted = loss_and_gradients(model)["loss"]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(next_token_loss(model.hidden(IDS), IDS, model.head) / IDS[:, 1:].numel(), wanted)


# ---- what is not what it looks like ---------------------------------------------------------------------------------


class HalvedRMSNorm(nn.Module):
    """Looks like an RMSNorm, and is one but for a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8), requires_grad=False), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) / 2


class PlainRMSNorm(HalvedRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x.float()).to(x.dtype)


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), but under names that tell nothing, and with a factor that may be 1."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.w3, self.w1, self.w2 = (QuantLinear(torch.randn(shape)) for shape in ((9, 6), (9, 6), (6, 9)))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x)) * self.factor  # type: ignore[no-any-return]


class TwoInputs(MLP):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:  # type: ignore[override]
        return super().forward(x) * scale


def test_a_part_that_computes_something_else_stays_and_is_named() -> None:
    net = nn.ModuleDict({"norm": HalvedRMSNorm(), "mlp": MLP(0.5), "two": TwoInputs()})
    made = replace_parts(net, CPU)
    assert {part.kind for part in made if part.reason} == {"HalvedRMSNorm", "MLP", "TwoInputs"}
    assert isinstance(net["norm"], HalvedRMSNorm) and isinstance(net["mlp"], MLP) and isinstance(net["two"], TwoInputs)
    assert "1 HalvedRMSNorm: unchanged" in str(made[0])


def test_parts_of_unknown_families_are_found_by_what_they_compute() -> None:
    net = nn.ModuleDict({"norm": PlainRMSNorm(), "mlp": MLP()})
    x = torch.randn(3, 6)
    wanted = net["mlp"](x)
    assert [str(part) for part in replace_parts(net, CPU)] == ["1 PlainRMSNorm: replaced", "1 MLP: replaced"]
    assert isinstance(net["norm"], RMSNorm) and net["norm"].style == "wide"
    torch.testing.assert_close(net["mlp"](x), wanted)
    assert list(dict(net["mlp"].named_children())) == ["w3", "w1", "w2"]
    assert replace_parts(net, CPU) == []  # nothing is left to replace


def test_instances_that_differ_keep_the_class_as_it_is() -> None:
    net = nn.ModuleDict({"one": MLP(), "other": MLP(3.0)})
    assert [bool(part.reason) for part in replace_parts(net, CPU)] == [True]
    assert isinstance(net["one"], MLP)


def test_what_is_no_such_part_can_not_be_wrapped() -> None:
    with pytest.raises(ValueError, match="no weight or no epsilon"):
        RMSNorm.from_base(nn.Linear(2, 2), "narrow")


class GatedNorm(nn.Module):
    """As hybrid models have them: a plain norm if no gate is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width), requires_grad=False), 1e-6

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        x = x if gate is None else x * gate.sigmoid()
        wide = x.float()
        return self.weight * (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


def test_a_norm_that_takes_a_gate_stays() -> None:
    net = nn.Sequential(GatedNorm(32))
    replace_parts(net, CPU)
    assert isinstance(net[0], GatedNorm)


@pytest.mark.parametrize("weights", ["nf4", "int8", "bf16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "olmo2"])
def test_few_rows_through_the_mlp_in_one_call_are_those_layer_by_layer(
    family: str, weights: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(tiny_checkpoint(family, folder / "model"), weights)
    model.net.to(torch.bfloat16).eval()
    mlps = [m for m in model.net.modules() if isinstance(m, GatedMLP)]
    x = torch.randn(1, 3, model.net.config.hidden_size).bfloat16()
    with torch.no_grad():
        at_once = [mlp(x) for mlp in mlps]
        monkeypatch.setattr(GatedMLP, "_at_once", lambda *_: None)
        assert mlps and all(torch.equal(mlp(x), got) for mlp, got in zip(mlps, at_once, strict=True))
