"""The formulas of activations against what autograd really saves, with native parts and without."""

import json

import pytest
import torch
from torch import nn

from halfbyte.config import AdapterConfig
from halfbyte.kernels import pool
from halfbyte.kernels.choice import choose
from halfbyte.kernels.product.cpu import FEW
from halfbyte.kernels.product.reference import TILE
from halfbyte.model.attention import use_attention
from halfbyte.model.blocks import replace_parts
from halfbyte.model.linear import QuantLinear
from halfbyte.model.loss import CHUNK
from halfbyte.plan.activations import (
    LOSS_BYTES,
    LOSS_CHUNK,
    MAPPED,
    PLAIN,
    POOLED,
    SOFTCAP_BYTES,
    _holes_bytes,
    heap_bytes,
    layer_peak_bytes_per_token,
    loss_bytes,
    recomputed_bytes_per_token,
    saved_bytes_per_token,
    shape_info,
    training_bytes,
)
from halfbyte.plan.answering import Pieces, evaluation_bytes, pieces
from halfbyte.plan.catalogue import find
from halfbyte.plan.native import Native, foretold, of_model
from halfbyte.plan.scratch import library_bytes, narrow_bytes, scratch_bytes
from halfbyte.targets import select_targets
from tests.tiny import FAMILIES, tiny_checkpoint

ITEMS, TOKENS, RANK = 2, 48, 4
NATIVE = Native(True, True, True, True, "as told")
NATIVE_NORMS = Native(True, True, True, False, "as told")  # without products, as in fp32


@pytest.fixture(autouse=True)
def _to_the_byte(monkeypatch):
    """Formulas are held against each other without what is counted beside them all."""
    monkeypatch.setattr("halfbyte.plan.activations._SLACK", 1 << 60)


def test_a_fiftieth_of_what_comes_and_goes_is_counted_beside_it(monkeypatch):
    config = find("llama-3.2-1b").config
    infos = [shape_info(config, native=native) for native in (NATIVE, NATIVE_NORMS, PLAIN)]
    without = [[sum(training_bytes(info, 2, 512, 4)), sum(evaluation_bytes(info, 4, 64).values())] for info in infos]
    cache = evaluation_bytes(infos[0], 4, 64)["kv_cache"]
    monkeypatch.setattr("halfbyte.plan.activations._SLACK", 50)
    for info, (trained, asked) in zip(infos, without, strict=True):
        slack = int(info.native.norms)
        assert sum(training_bytes(info, 2, 512, 4)) == trained + slack * (trained // 50)
        assert sum(evaluation_bytes(info, 4, 64).values()) == asked + slack * ((asked - cache) // 50)


def _decoder(folder, targets):
    """The decoder of a checkpoint, with halfbyte's parts where the kernels have them, and which those are."""
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).train().requires_grad_(False)
    body = net.model
    linears = {name: module for name, module in body.named_modules() if isinstance(module, nn.Linear)}
    chosen = set(select_targets(targets, list(linears)))
    for name, linear in linears.items():
        layer = QuantLinear(linear.weight.data, None if linear.bias is None else linear.bias.data)
        if name in chosen:
            layer.add_adapter(AdapterConfig(rank=RANK))
        parent, _, last = name.rpartition(".")
        setattr(body.get_submodule(parent), last, layer)
    cpu = torch.device("cpu")
    replaced, attention = replace_parts(net, cpu), use_attention(net, cpu)
    return body, of_model(replaced, attention.name, products=False, reason=attention.reason)


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
@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_what_a_layer_saves_is_what_the_formula_says(kernels, family, targets, padded, tmp_path, monkeypatch):
    if kernels == "cpu" and choose().isa is None:
        pytest.skip("the native library was not built")
    monkeypatch.setenv("HALFBYTE_KERNELS", kernels)
    sizes = []
    for layers in (3, 4):  # the difference is one layer, whatever stands before and after
        options = {"num_hidden_layers": layers, "sliding_window": None if family == "mistral" else 64}
        if family in ("gemma2", "gemma3"):
            options["layer_types"] = ["full_attention"] * layers
        folder = tiny_checkpoint(family, tmp_path / str(layers), **options)
        body, native = _decoder(folder, targets)
        sizes.append(_saved_bytes(body, padded))
    config = json.loads((folder / "config.json").read_text())
    before = foretold(config)
    for parts in (native, before):
        assert (parts.norms, parts.mlp, parts.attention) == (kernels == "cpu",) * 3
    info = shape_info(config, rank=RANK, targets=targets, native=before)
    predicted = ITEMS * TOKENS * saved_bytes_per_token(info, TOKENS, padded=padded)
    # Gemma's norms also keep 1 + weight in fp32, whatever the number of tokens: not counted
    plain_gemma = family.startswith("gemma") and kernels == "reference"
    weights = 4 * (4 * config["hidden_size"] + 2 * config.get("head_dim", 0)) if plain_gemma else 0
    assert predicted <= sizes[1] - sizes[0] <= predicted + weights


def test_the_loss_works_in_chunks_of_the_same_size():
    assert LOSS_CHUNK == CHUNK
    info = shape_info(find("llama-3.1-8b").config)
    assert loss_bytes(info, 4096) == loss_bytes(info, 256) == 256 * 128256 * 12
    assert loss_bytes(info, 64) == 64 * 128256 * 12


def test_native_the_logits_lie_in_one_buffer_whatever_the_head_does_to_them():
    def logits(name, native, **more):
        info = shape_info(find(name).config | more, native=native)
        return loss_bytes(info, 512) / (256 * info.dims.vocabulary)

    assert logits("llama-3.1-8b", NATIVE) == 2 and logits("llama-3.1-8b", NATIVE_NORMS) == 2
    assert logits("llama-3.1-8b", NATIVE, logits_scaling=8.0) == 2 and logits("gemma-2-9b", NATIVE) == 2
    assert logits("gemma-2-9b", PLAIN) == LOSS_BYTES + SOFTCAP_BYTES


def test_native_products_need_no_buffer_of_the_size_of_a_weight(monkeypatch):
    monkeypatch.setattr("halfbyte.plan.scratch.cores", lambda: 2)
    config, shapes = find("llama-3.1-8b").config, [(14336, 4096), (4096, 14336), (4096, 4096)]
    plain, native = shape_info(config, rank=16), shape_info(config, rank=16, native=NATIVE)
    assert scratch_bytes(plain, shapes, 512, True) == 2 * 14336 * 4096
    assert scratch_bytes(plain, shapes, 512, False) == 0
    # 512 rows of 14336 steps and of the LoRA pair, and what two threads have
    threads = 2 * (1_400_000 + 4 * 64 * 512)
    assert scratch_bytes(native, shapes, 512, True) == 512 * (2 * 14336 + 2 * 16) + threads
    assert scratch_bytes(native, shapes, 4096, True) == scratch_bytes(native, shapes, 512, True)
    assert scratch_bytes(native, shapes, 16, True) < 10**7
    # of the head's gradient: a chunk of 16384 steps, and the sums of 4096 outputs; forward alone has neither
    small, of_head = [(4096, 4096)], 256 * (2 * 16384 + 2 * 16 + 4 * 4096)
    assert scratch_bytes(native, small, 512, True) == of_head + threads
    assert scratch_bytes(native, small, 512, True, trains=False) == 512 * (2 * 4096 + 2 * 16) + threads
    assert scratch_bytes(native, small, 512, True, positions=8) == 512 * (2 * 4096 + 2 * 16) + threads
    # in fp32: 512 rows of 2048 steps, and of two threads 256 steps of 64 columns
    assert scratch_bytes(native, shapes, 4096, True, 4) == 4 * 512 * 2048 + 2 * 4 * 256 * 64


def test_native_parts_keep_less_of_everything():
    config = find("llama-3.1-8b").config
    plain, native = shape_info(config), shape_info(config, native=NATIVE)
    for padded in (False, True):
        sizes = [saved_bytes_per_token(info, 512, padded=padded) for info in (native, plain)]
        assert sizes[0] < sizes[1]
    peaks = [layer_peak_bytes_per_token(info, 512) for info in (native, plain)]
    assert peaks == [2 * (2 * 14336 + 4096), 2 * (2 * 14336 + 4 * 4096)]


def test_the_input_of_a_norm_behind_the_mlp_has_left_when_its_gradients_stand():
    before, behind = (shape_info(find(name).config, native=NATIVE) for name in ("llama-3.2-1b", "olmo-2-0425-1b"))
    assert layer_peak_bytes_per_token(before, 512) == 2 * (2 * before.dims.mlp + before.dims.hidden)
    assert layer_peak_bytes_per_token(behind, 512) == 2 * 2 * behind.dims.mlp


@pytest.mark.parametrize(("native", "tokens", "least", "each"), [(PLAIN, 512, MAPPED, 5), (NATIVE, 128, POOLED, 1)])
def test_keys_leave_holes_in_the_heap_where_queries_are_too_large_for_it(native, tokens, least, each):
    info = shape_info(find("gemma-3-1b-it").config, native=native)  # 4 heads of queries, one of keys, of 256
    assert 4 * 4 * 256 * tokens >= least > 4 * 256 * tokens
    sums = 26 * 4 * 1152 * tokens if native is NATIVE else 0  # of hidden states, which torch adds up in the heap
    assert _holes_bytes(info, 4 * tokens, 0, 1 << 40) == max(26 * each * 4 * 256 * tokens, sums)  # of every layer
    assert _holes_bytes(info, 4 * 4 * tokens, 0, 1 << 40) == 0  # they are no more in the heap either


def test_native_results_lie_in_the_pool_from_a_size_on():
    assert POOLED == pool.LARGE


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


def test_recomputed_native_attention_keeps_its_result_and_the_product_with_it():
    config = find("llama-3.1-8b").config
    plain, native = (recomputed_bytes_per_token(shape_info(config, native=n)) for n in (PLAIN, NATIVE))
    assert plain == 2 * 4096 and native == 2 * (4096 + 4096 + 4096) + 4 * 32


def test_blocks_below_1_mb_stay_in_the_heap_while_a_task_is_answered():
    config = find("llama-3.1-8b").config  # 4096 numbers of queries a token, 1024 of keys
    info = shape_info(config, native=NATIVE)
    assert heap_bytes(info, 2 * 100) == 6 * 2 * 100 * 4096  # both are smaller than 1 MB
    assert heap_bytes(info, 2 * 200) == 5 * 2 * 200 * 1024  # keys alone
    assert heap_bytes(info, 2 * 600) == 0
    for rows in (1, 5, 6):
        parts = evaluation_bytes(info, rows, 100, 2)
        mlp = 2 * (3 * 14336 + 4 * 4096) + 4096  # a token, with what its position takes
        assert parts["activations"] + parts["logits"] == rows * 100 * mlp + heap_bytes(info, 2 * 100 * rows)


def test_evaluation_keeps_keys_and_values_of_every_layer():
    parts = evaluation_bytes(shape_info(find("llama-3.1-8b").config), 16, 512)
    assert parts["kv_cache"] == 16 * 512 * 32 * 2 * 8 * 128 * 2


def test_prompts_go_through_alone_and_answers_a_token_a_row():
    info = shape_info(find("llama-3.1-8b").config, native=NATIVE)
    every, prompts = (evaluation_bytes(info, 4, 512, 4, new=new) for new in (0, 64))
    assert pieces(4, 512, "cpu", 16384, 128256, None, 64) == Pieces(cached=4 * 512, tokens=4 * 448, positions=4)
    assert every["kv_cache"] == prompts["kv_cache"]
    late = 2 * 32 * 4 * 8 * (64 * 128 * 4 - 4096)  # whole pages of a row and head that nothing was written to yet
    each = 4 * (3 * 14336 + 4 * 4096) + 4096  # bytes a token
    assert every["activations"] - prompts["activations"] == 4 * 64 * each + late
    last = evaluation_bytes(info, 4, 512, 4, new=511)  # prompts of a token: what is there at the end
    assert last["activations"] + last["logits"] >= 4 * 4 * (3 * 14336 + 4096)


def test_a_sliding_window_makes_a_mask_when_the_sequence_is_longer():
    config = find("mistral-7b-v0.3").config | {"sliding_window": 512}
    info = shape_info(config)
    short, long = (saved_bytes_per_token(info, tokens, padded=False) for tokens in (512, 513))
    assert long - short == 2 * 513 + 2 * 2 * (4096 - 1024)
    assert shape_info(config | {"use_sliding_window": False}).window is None


def test_a_dense_weight_of_another_type_is_converted_by_rows(monkeypatch):
    monkeypatch.setattr("halfbyte.plan.scratch.cores", lambda: 2)
    config, shapes = find("llama-3.1-8b").config, [(14336, 4096), (4096, 14336)]
    wide, same, packed = (
        shape_info(config, native=NATIVE_NORMS, weights=weights) for weights in ("bf16", "fp32", "nf4")
    )
    assert scratch_bytes(wide, shapes, 1, False, 4) == 4 * TILE * 14336 - 2 * 4 * 14336
    assert scratch_bytes(wide, shapes, 4096, False, 4, trains=False) == 4 * TILE * 4096  # of another matrix than down
    assert scratch_bytes(same, shapes, 512, False, 4) == 0 == scratch_bytes(wide, shapes, 512, False, 2)
    tile, more = 4 * TILE * 4096, [sum(training_bytes(info, 1, 64, 32, 4)) for info in (packed, same)]
    assert 0 < more[0] - more[1] <= tile  # of the head, in the loss
    few, many = (sum(evaluation_bytes(packed, rows, 2, 4).values()) for rows in (FEW, FEW + 1))
    assert many - few > tile
    assert library_bytes(wide, shapes, 4) == 2 * 7_700_000
    assert library_bytes(wide, [(64, 64)], 4) == 2 * 4 * 64 * 64
    assert library_bytes(shape_info(config, native=NATIVE, weights="fp32"), shapes, 4) == 0


def test_the_narrow_copy_in_fp32_is_of_b_alone():
    assert (
        narrow_bytes([16 * 100, 16 * 300], 2) == 2 * 16 * 400 and narrow_bytes([16 * 100, 16 * 300], 4) == 4 * 16 * 300
    )
