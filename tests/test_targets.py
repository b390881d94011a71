"""Which linear layers a preset, a name or a pattern means."""

import pytest

from halfbyte.errors import ConfigError
from halfbyte.targets import is_attention, select_targets

LAYERS = [
    f"model.layers.{n}.{name}"
    for n in range(12)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                 "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
]  # fmt: skip


def test_all_and_attention():
    assert select_targets("all", LAYERS) == LAYERS
    assert select_targets("attention", LAYERS) == [name for name in LAYERS if "self_attn" in name]


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("q_proj", 12),
        ("q_proj, v_proj", 24),
        (["q_proj", "mlp.up_proj"], 24),
        ("model.layers.3.mlp.up_proj", 1),
        ("*.layers.1?.mlp.*", 6),
        (["attention", "down_proj"], 60),
        ("*_proj", 84),
    ],
)
def test_names_and_patterns(spec, count):
    chosen = select_targets(spec, LAYERS)
    assert len(chosen) == count and chosen == [name for name in LAYERS if name in chosen]


@pytest.mark.parametrize("spec", ["q_pro", ["q_proj", "nothing"], "proj", "", [], "layers.1"])
def test_what_matches_nothing_is_an_error(spec):
    with pytest.raises(ConfigError):
        select_targets(spec, LAYERS)


def test_the_error_lists_what_there_is():
    with pytest.raises(
        ConfigError, match=r"targets 'a', 'b'(.|\n)*self_attn.q_proj \(12\), (.|\n)*write all, attention"
    ):
        select_targets(["a", "q_proj", "b"], LAYERS)
    with pytest.raises(ConfigError, match="no linear layer in its blocks"):
        select_targets("all", [])


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("model.layers.0.self_attn.qkv_proj", True),
        ("gpt_neox.layers.0.attention.query_key_value", True),
        ("gpt_neox.layers.0.attention.dense", True),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h", False),
        ("transformer.h.0.attn.c_proj", True),
        ("transformer.h.0.mlp.c_proj", False),
        ("transformer.blocks.0.attn.Wqkv", True),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa", True),
        ("model.layers.0.mlp.gate_up_proj", False),
    ],
)
def test_attention_projections_of_many_families(name, attention):
    assert is_attention(name) is attention
