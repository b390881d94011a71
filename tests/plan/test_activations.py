"""The formulas of activations against what autograd really saves, and the choice of micro-batch and recomputation."""

import json

import pytest
import torch
from torch import nn

from halfbyte.config import AdapterConfig
from halfbyte.model.linear import QuantLinear
from halfbyte.model.loss import CHUNK
from halfbyte.plan.activations import (
    LOSS_CHUNK,
    choose,
    evaluation_bytes,
    loss_bytes,
    saved_bytes_per_token,
    shape_info,
    training_bytes,
)
from halfbyte.plan.catalogue import find
from halfbyte.targets import select_targets
from tests.tiny import FAMILIES, tiny_checkpoint

ITEMS, TOKENS, RANK = 2, 48, 4
GB = 10**9


def _decoder(folder, targets):
    """The decoder of a checkpoint with QuantLinear in the place of its linear layers."""
    from transformers import AutoModelForCausalLM

    body = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).model.train().requires_grad_(False)
    linears = {name: module for name, module in body.named_modules() if isinstance(module, nn.Linear)}
    chosen = set(select_targets(targets, list(linears)))
    for name, linear in linears.items():
        layer = QuantLinear(linear.weight.data, None if linear.bias is None else linear.bias.data)
        if name in chosen:
            layer.add_adapter(AdapterConfig(rank=RANK))
        parent, _, last = name.rpartition(".")
        setattr(body.get_submodule(parent), last, layer)
    return body


def _saved_bytes(body, padded):
    """Bytes that autograd keeps of a forward pass, each storage once, the model's own tensors left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*body.parameters(), *body.buffers())}
    own |= {module.frozen.untyped_storage().data_ptr() for module in body.modules() if isinstance(module, QuantLinear)}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(4, 300, (ITEMS, TOKENS))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = body(input_ids=ids, attention_mask=mask if padded else None, use_cache=False)
    assert output[0].requires_grad
    return sum(held.values())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["all", "attention"])
def test_what_a_layer_saves_is_what_the_formula_says(family, targets, padded, tmp_path):
    sizes = []
    for layers in (3, 4):  # the difference is one layer, whatever stands before and after
        options = {"num_hidden_layers": layers, "sliding_window": None if family == "mistral" else 64}
        if family in ("gemma2", "gemma3"):
            options["layer_types"] = ["full_attention"] * layers
        folder = tiny_checkpoint(family, tmp_path / str(layers), **options)
        sizes.append(_saved_bytes(_decoder(folder, targets), padded))
    config = json.loads((folder / "config.json").read_text())
    info = shape_info(config, rank=RANK, targets=targets)
    predicted = ITEMS * TOKENS * saved_bytes_per_token(info, TOKENS, padded=padded)
    # Gemma's norms also keep 1 + weight in fp32, whatever the number of tokens: not counted
    weights = 4 * (4 * config["hidden_size"] + 2 * config.get("head_dim", 0)) if family.startswith("gemma") else 0
    assert predicted <= sizes[1] - sizes[0] <= predicted + weights


def test_the_loss_works_in_chunks_of_the_same_size():
    assert LOSS_CHUNK == CHUNK
    info = shape_info(find("llama-3.1-8b").config)
    assert loss_bytes(info, 4096) == loss_bytes(info, 128) == 128 * 128256 * 12
    assert loss_bytes(info, 64) == 64 * 128256 * 12


def test_fewer_adapters_save_fewer_inputs():
    config = find("llama-3.1-8b").config
    every, few = (saved_bytes_per_token(shape_info(config, targets=t), 512, padded=False) for t in ("all", "attention"))
    # inputs of gate and up and of down, and three LoRA products
    assert every - few == 2 * 4096 + 2 * 14336 + 3 * 2 * 16


def test_recomputation_trades_a_layer_for_its_input():
    info = shape_info(find("llama-3.1-8b").config)
    totals = [sum(training_bytes(info, 1, 1024, layers)) for layers in range(33)]
    saved = saved_bytes_per_token(info, 1024, padded=False)
    steps = {totals[n] - totals[n + 1] for n in range(30)}
    assert steps == {1024 * (saved - 2 * 4096)}
    assert totals == sorted(totals, reverse=True) or totals[31] <= totals[32]


def test_evaluation_keeps_keys_and_values_of_every_layer():
    parts = evaluation_bytes(shape_info(find("llama-3.1-8b").config), 16, 512)
    assert parts["kv_cache"] == 16 * 512 * 32 * 2 * 8 * 128 * 2


def _choose(**options):
    return choose(shape_info(find("llama-3.1-8b").config), **{"batch": 16, "longest_tokens": 1024, **options})


def test_with_plenty_of_memory_nothing_is_recomputed_and_tokens_are_capped():
    choice = _choose(memory_bytes=200 * GB)
    assert (choice.micro_batch, choice.recompute, choice.fits) == (4, 0, True)
    assert _choose(memory_bytes=200 * GB, longest_tokens=128).micro_batch == 16
    assert _choose(memory_bytes=200 * GB, longest_tokens=128, batch=2).micro_batch == 2
    assert _choose(memory_bytes=200 * GB, longest_tokens=9000).micro_batch == 1


def test_the_micro_batch_is_even():
    choice = _choose(memory_bytes=200 * GB, longest_tokens=128, batch=20)
    assert choice.micro_batch == 10  # two passes, as with 16


def test_memory_is_spared_by_smaller_batches_first_then_by_recomputation():
    choices = [_choose(memory_bytes=size * GB) for size in (40, 16, 8, 4, 2, 1)]
    batches, layers = [c.micro_batch for c in choices], [c.recompute for c in choices]
    assert batches == sorted(batches, reverse=True) and layers == sorted(layers)
    assert all(c.recompute == 0 or c.micro_batch == 1 for c in choices) and layers[-2] > 0
    info = shape_info(find("llama-3.1-8b").config)
    for choice, size in zip(choices, (40, 16, 8, 4, 2, 1), strict=True):
        assert choice.reason and (not choice.fits or
               sum(training_bytes(info, choice.micro_batch, 1024, choice.recompute)) <= size * GB)  # fmt: skip


def test_what_does_not_fit_says_so():
    choice = _choose(memory_bytes=GB, fixed_bytes=GB - 10**7)
    assert (choice.micro_batch, choice.recompute, choice.fits) == (1, 32, False)
    assert choice.reason.startswith("does not fit")


def test_an_architecture_that_is_not_modelled_gets_the_careful_choice():
    info = shape_info({"model_type": "novel", "num_hidden_layers": 7})
    choice = choose(info, batch=16, longest_tokens=512, memory_bytes=100 * GB)
    assert (choice.micro_batch, choice.recompute, choice.fits) == (1, 7, None)
    assert "'novel' are not modelled" in choice.reason
    with pytest.raises(ValueError, match="novel"):
        training_bytes(info, 1, 512, 0)


def test_a_sliding_window_makes_a_mask_when_the_sequence_is_longer():
    config = find("mistral-7b-v0.3").config | {"sliding_window": 512}
    info = shape_info(config)
    short, long = (saved_bytes_per_token(info, tokens, padded=False) for tokens in (512, 513))
    assert long - short == 2 * 513 + 2 * 2 * (4096 - 1024)
    assert shape_info(config | {"use_sliding_window": False}).window is None
