from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from halfbyte.checkpoint.mapped import Mapped
from halfbyte.checkpoint.recipes import Recipe, plan_tensors
from halfbyte.checkpoint.skeleton import skeleton
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.errors import CheckpointError
from tests.checkpoint.conftest import Make
from tests.checkpoint.plain import logits, plain_model
from tests.tiny import FAMILIES


def planned(folder: Path) -> list[Recipe]:
    checkpoint = open_checkpoint(str(folder))
    return plan_tensors(checkpoint, skeleton(checkpoint))


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_models_are_stored_under_their_own_names(family: str, tiny: Make) -> None:
    for recipe in planned(tiny(family)):
        assert recipe.converter is None and set(recipe.targets) == {recipe.source}


def test_every_fault_in_one_error(copied: Make) -> None:
    folder = copied("llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"], tensors["lm_head.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(5, 5)
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.zeros(36, 52, dtype=torch.float8_e4m3fn)
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(5)  # of old checkpoints: no weight
    rewrite(folder, tensors)
    with pytest.raises(CheckpointError) as caught:
        planned(folder)
    for fault in (
        "missing: model.norm.weight [36]",
        "missing: lm_head.weight [320, 36]",
        "wrong shape: model.layers.0.mlp.up_proj.weight is [5, 5], the model needs [52, 36]",
        "model.layers.0.mlp.down_proj.weight: stored as F8_E4M3",
        "unexpected: model.layers.9.mlp.up_proj.weight [2]",
    ):
        assert fault in str(caught.value)
    assert "inv_freq" not in str(caught.value)


def test_names_without_the_models_prefix(copied: Make) -> None:
    folder = copied("qwen3")  # as AutoModel would save it; the head is tied
    before = logits(plain_model(folder))
    rewrite(folder, {n.removeprefix("model."): t for n, t in load_file(folder / "model.safetensors").items()})
    assert torch.equal(logits(plain_model(folder)), before)


def test_only_the_head_of_a_tied_pair(copied: Make) -> None:
    folder = copied("qwen3")
    before = logits(plain_model(folder))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    rewrite(folder, tensors)
    assert torch.equal(logits(plain_model(folder)), before)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_fused_one_by_one(family: str, tiny: Make) -> None:
    checkpoint = open_checkpoint(str(tiny(family)))
    model = skeleton(checkpoint)
    fused = [recipe for recipe in plan_tensors(checkpoint, model) if recipe.converter is not None]
    assert len(fused) == 4 and all(recipe.parts == 4 for recipe in fused)
    read = Mapped(checkpoint).read
    for recipe in fused:
        (whole,) = recipe.make(read, model).values()
        assert (tuple(whole.shape),) == tuple(recipe.targets.values())
        assert torch.equal(torch.cat(list(recipe.pieces(read, model))), whole)


def test_a_missing_expert_is_a_fault(copied: Make) -> None:
    folder = copied("mixtral")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
    rewrite(folder, tensors)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.experts\.gate_up_proj"):
        planned(folder)
