"""What is counted: products, attention's pairs of positions, windows; and that no constant differs from the code's."""

import pytest

from halfbyte.kernels.product import cpu
from halfbyte.model import loss as loss_module
from halfbyte.plan import operations as count
from halfbyte.plan.inventory import take_inventory
from halfbyte.plan.shapes import dimensions


def _work(name="llama-3.2-1b", targets="all", rank=16):
    inventory = take_inventory(name)
    return count.work(inventory.linears, inventory.dims, rank, targets, inventory.config)


def test_the_constants_are_those_of_the_kernels():
    assert cpu.FEW == count.FEW and loss_module.CHUNK == count.CHUNK


def test_a_model_is_counted_by_its_shapes():
    work = _work()
    assert sum(work.matrices.values()) == 16 * 7 and work.adapted == 112
    assert sum(many * out * columns for (out, columns, _), many in work.matrices.items()) == 973_078_528
    assert work.last == (2048, 8192) and sum(work.first.values()) == 3
    assert work.parameters == 16 * 16 * (4096 + 2 * 2560 + 4096 + 3 * 10240)
    attention = _work(targets="attention")
    assert attention.adapted == 64 and attention.last == (2048, 8192)


def test_the_order_in_which_the_files_hold_the_layers_changes_nothing():
    inventory = take_inventory("llama-3.2-1b")
    linears = dict(sorted(inventory.linears.items()))  # as safetensors writes them: down before gate, 10 before 2
    assert list(linears) != list(inventory.linears)
    assert count.work(linears, inventory.dims, 16, "all", inventory.config) == _work()


@pytest.mark.parametrize("window", [None, 1, 3, 4, 100])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 9), (3, 7), (9, 9)])
def test_scores_are_the_pairs_that_a_query_sees(queries, keys, window):
    pairs = sum(
        min(window or keys, position) for position in range(keys - queries + 1, keys + 1)
    )  # position counts itself and all before it
    assert count.attention(2, 3, 1, 8, queries, keys, window)["score"] == 2 * 3 * pairs


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llama"}, {None: 12}),
        ({"model_type": "mistral", "sliding_window": 64}, {None: 0, 64: 12}),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False}, {None: 12}),
        ({"model_type": "gemma2", "sliding_window": 64}, {None: 6, 64: 6}),
        ({"model_type": "gemma3_text", "sliding_window": 64}, {None: 2, 64: 10}),
        ({"sliding_window": 8, "layer_types": ["sliding_attention"] * 3 + ["full_attention"] * 9}, {None: 9, 8: 3}),
    ],
)
def test_windows_are_those_of_the_layers(config, expected):
    assert count.windows(config, 12) == expected


def test_recomputing_leaves_the_last_product_of_a_layer_out():
    work = _work()
    once = sum(many * out * columns for (out, columns, _), many in work.matrices.items())
    more = count.multiplications(work, 1, 16) - count.multiplications(work, 1, 0)
    assert more == pytest.approx(once - 16 * 2048 * 8192)


def test_a_fused_projection_is_the_first_product_of_its_layer():
    config = {"model_type": "phi3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 4, "vocab_size": 320}  # fmt: skip
    dims = dimensions(config)
    linears = {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in
               {"self_attn.qkv_proj": (192, 64), "self_attn.o_proj": (64, 64), "mlp.gate_up_proj": (192, 64),
                "mlp.down_proj": (64, 96)}.items()}  # fmt: skip
    work = count.work(linears, dims, 8, "all", config)
    assert dict(work.first) == {(192, 64, True): 1} and work.last == (64, 96)


def test_the_soft_cap_of_a_head_is_counted():
    for name, capped in {"llama-3.2-1b": False, "granite-3.1-2b-base": False, "gemma-2-2b": True}.items():
        assert _work(name).capped_head is capped
        assert count.loss(10, 1000, 64, capped)["cap"] == 10_000 * capped
