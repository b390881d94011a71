import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from halfbyte.checkpoint.load import load_state
from halfbyte.checkpoint.skeleton import skeleton
from halfbyte.checkpoint.source import open_checkpoint
from tests.checkpoint.conftest import Make
from tests.checkpoint.plain import logits, plain_model
from tests.tiny import FAMILIES, OTHERS


def state_of(folder: Path) -> dict[str, object]:
    checkpoint = open_checkpoint(str(folder))
    return dict(load_state(checkpoint, skeleton(checkpoint)))


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_every_parameter_and_persistent_buffer_has_a_value(family: str, tiny: Make) -> None:
    checkpoint = open_checkpoint(str(tiny(family)))
    model = skeleton(checkpoint)
    state, expected = load_state(checkpoint, model), model.state_dict()
    assert set(state) == set(expected)
    for name, value in state.items():
        assert isinstance(value, Tensor)
        assert value.shape == expected[name].shape and value.dtype == expected[name].dtype


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process' mappings in /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_nothing_is_copied(dtype: str, tiny: Make) -> None:
    folder = tiny("llama", dtype=dtype)
    held = load_file(folder / "model.safetensors")
    state = state_of(folder)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    for name, value in state.items():
        assert isinstance(value, Tensor) and torch.equal(value, held[name])
        assert any(low <= value.data_ptr() < high for low, high in ranges)


def test_tied_tensors_are_one_tensor(tiny: Make) -> None:
    state = state_of(tiny("qwen3"))
    assert state["lm_head.weight"] is state["model.embed_tokens.weight"]


def test_shards_hold_the_same_model(tiny: Make) -> None:
    whole, sharded = tiny("mixtral"), tiny("mixtral", max_shard_size="60KB")
    assert len(open_checkpoint(str(sharded)).files) > 3
    assert torch.equal(logits(plain_model(whole)), logits(plain_model(sharded)))


def test_what_is_stored_in_another_dtype_is_converted(copied: Make) -> None:
    folder = copied("llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, folder / "model.safetensors")
    value = state_of(folder)["model.norm.weight"]
    assert isinstance(value, Tensor) and value.dtype == torch.bfloat16
