"""Items in a row give the loss and the gradients of padded items, in every family that can; the others say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte.config import AdapterConfig
from halfbyte.data.batches import collate, pack
from halfbyte.data.encode import Item
from halfbyte.kernels import native
from halfbyte.kernels.choice import VARIABLE
from halfbyte.model import attention, packing
from halfbyte.model.adapter import quant_linears
from halfbyte.model.attention import NAME, describe
from halfbyte.model.build import Model, load_model
from halfbyte.model.packing import FLASH, find_way, packed_attention
from halfbyte.tune.loop import batch_loss
from tests.tiny import FAMILIES, tiny_checkpoint

LENGTHS = (23, 1, 17, 9, 17)  # windows of some families are 8 and 16
KERNELS = ["reference", *(["cpu"] if native.isas() else [])]


def items(lengths: tuple[int, ...] = LENGTHS) -> list[Item]:
    make = torch.Generator().manual_seed(2)
    ids = [torch.randint(4, 300, (length,), generator=make).tolist() for length in lengths]
    return [Item.of(some, [at % 3 != 1 for at in range(len(some))], 1, 0, f"a:{n}") for n, some in enumerate(ids)]


def opened(family: str, folder: Path, weights: str = "fp32", **overrides: Any) -> Model:
    source = tiny_checkpoint(family, folder / "model", dtype="float32", **overrides)
    model = load_model(str(source), weights=weights, adapter=AdapterConfig(rank=4))  # type: ignore[arg-type]
    make = torch.Generator().manual_seed(1)
    for layer in quant_linears(model.net).values():
        assert layer.lora_B is not None
        layer.lora_B.data.normal_(std=0.05, generator=make)
    model.net.train()
    return model


def loss_and_gradients(model: Model, packed: bool) -> dict[str, Tensor]:
    model.net.zero_grad()
    batch = (pack if packed else collate)(items(), 0)
    loss = batch_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.clone() for name, p in model.parameters_to_train().items() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def close(made: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert made.keys() == wanted.keys()
    for name, value in wanted.items():
        near = 1e-5 * float(value.abs().max()) + 1e-7
        torch.testing.assert_close(made[name], value, rtol=1e-4, atol=near, msg=name)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", [*sorted(FAMILIES), "mixtral", "qwen3_moe"])
def test_loss_and_gradients_are_those_of_padded_items(
    family: str, kernels: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, kernels)
    model = opened(family, folder)
    if family == "gemma2" and kernels == "reference":
        assert "soft cap" in find_way(model)[1]
        return
    assert find_way(model) == (NAME, "")
    before, seen = model.net.config._attn_implementation, []
    with packed_attention(model):
        monkeypatch.setattr(attention.cpu, "forward_by_item", noted(attention.cpu.forward_by_item, seen))
        monkeypatch.setattr(attention, "_sdpa_by_item", noted(attention._sdpa_by_item, seen))
        packed = loss_and_gradients(model, packed=True)
        assert len(seen) == len(model.layers())  # and not one mask for the row
        close(packed, loss_and_gradients(model, packed=False))
        assert len(seen) == len(model.layers())
    assert model.net.config._attn_implementation == before
    close(packed, loss_and_gradients(model, packed=False))


def noted(function: Any, calls: list[str]) -> Any:
    def called(*arguments: Any, **named: Any) -> Any:
        calls.append(function.__name__)
        return function(*arguments, **named)

    return called


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_layers_that_are_computed_again_give_the_same_bits(family: str, folder: Path) -> None:
    model = opened(family, folder, "bf16")
    with packed_attention(model):
        first = loss_and_gradients(model, packed=True)
        model.recompute(len(model.layers()))
        again = loss_and_gradients(model, packed=True)
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_in_16_bits_it_errs_at_most_twice_as_much_as_padded(folder: Path) -> None:
    exact = loss_and_gradients(opened("qwen3", folder / "a"), packed=False)
    model = opened("qwen3", folder / "b", "bf16")
    with packed_attention(model):
        made = [loss_and_gradients(model, packed) for packed in (True, False)]
    ours, theirs = (sum(float((m[n] - exact[n]).norm() / exact[n].norm()) for n in exact) for m in made)
    assert ours <= 2 * theirs


def test_a_model_that_mixes_items_is_found_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama", folder)

    def mixing(*arguments: Any, **named: Any) -> Any:
        return describe(*arguments, **named | {"mask_function": None})

    monkeypatch.setattr(attention, "describe", mixing)
    attention.register()
    try:
        with packed_attention(model):
            assert "what each gives alone" in find_way(model)[1]
    finally:
        monkeypatch.undo()
        attention.register()
    assert find_way(model) == (NAME, "")


def test_what_can_not_be_packed_says_why(folder: Path) -> None:
    assert "drops out" in find_way(load_model(str(tiny_checkpoint("gpt2", folder / "gpt2")), weights="fp32"))[1]
    assert find_way(opened("llama", folder, attention_dropout=0.1))[0] == ""


def test_flash_attention_is_used_where_it_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its choice alone: no card is here to run it."""
    model, asked = opened("llama", folder, "bf16"), []
    monkeypatch.setattr(type(model.net), "set_attn_implementation", lambda net, name: asked.append(name))
    monkeypatch.setattr(packing.importlib.util, "find_spec", lambda name: name == "flash_attn")
    with packed_attention(model):
        assert asked == []  # on the CPU it is not
    before, model.device = model.net.config._attn_implementation, torch.device("cuda")
    with packed_attention(model):
        assert asked == [FLASH]
    assert asked == [FLASH, before] and before == (NAME if native.isas() else "sdpa")


def test_a_flash_attention_that_fails_or_is_wrong_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama", folder)
    monkeypatch.setattr(packing, "_ways", lambda _: [FLASH, NAME])
    way, why = find_way(model)
    assert (
        way == NAME and "flash_attention_2 can't be used here" in why
    )  # it is not installed, and raises when it is asked for
    before, model.packs_with = model.net.config._attn_implementation, way
    with packed_attention(model):
        assert model.net.config._attn_implementation == NAME
    assert model.net.config._attn_implementation == before
    monkeypatch.setattr(packing, "_ways", lambda _: [FLASH])
    assert find_way(model)[0] == "" and "can't be used here" in find_way(model)[1]


def test_memory_that_runs_out_in_the_trial_is_no_reason_to_pad(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama", folder)

    def full(_: Model) -> str:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(packing, "_differs", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        find_way(model)
