import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import QuantState
from safetensors.torch import load_file, save_file
from torch import Tensor

from halfbyte import kernels
from halfbyte.checkpoint import bnb
from halfbyte.checkpoint.headers import DTYPES
from halfbyte.checkpoint.load import load_state
from halfbyte.checkpoint.pack import pack
from halfbyte.checkpoint.skeleton import skeleton
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.errors import CheckpointError
from halfbyte.formats import QUANTISED, Weights
from tests.checkpoint.conftest import Make

NAME = "model.layers.0.mlp.up_proj.weight"  # [52, 36]
STATE = NAME + ".quant_state.bitsandbytes__nf4"
Edit = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("shape", [(64, 64), (52, 36), (3, 5), (300, 64)])
def test_the_layout_announces_what_is_written(weights: Weights, shape: tuple[int, int]) -> None:
    packed = kernels.quantise(torch.randn(shape), weights)
    announced, made = bnb.layout("a.weight", weights, shape), bnb.tensors("a.weight", packed, "bfloat16")
    assert list(announced) == list(made)
    for name, (dtype, stored) in announced.items():
        assert DTYPES[dtype][0] == str(made[name].dtype).removeprefix("torch.")
        if bnb.STATE in name:
            assert made[name].numel() <= bnb.STATE_ROOM
        else:
            assert tuple(made[name].shape) == stored


def test_the_longest_quant_state_has_room() -> None:
    packed = kernels.quantise(torch.randn(64, 64), "nf4")
    object.__setattr__(packed, "shape", (2**40, 2**40))
    object.__setattr__(packed, "offset", -1.2345678901234567e-38)
    assert len(bnb.quant_state(packed, "bfloat16")) < bnb.STATE_ROOM


@pytest.mark.parametrize("weights", ["nf4", "nf4-single"])
def test_bitsandbytes_reads_the_quant_state(weights: Weights) -> None:
    packed = kernels.quantise(torch.randn(40, 36), weights)
    made = bnb.tensors("a.weight", packed, "float16")
    parts = {name.removeprefix("a.weight."): tensor for name, tensor in made.items() if name != "a.weight"}
    state = QuantState.from_dict(dict(parts), torch.device("cpu"))
    assert (state.blocksize, state.quant_type, tuple(state.shape), state.dtype) == (64, "nf4", (40, 36), torch.float16)
    for name, tensor in state.as_dict(packed=True).items():  # and writes it back, byte for byte
        assert torch.equal(tensor, parts[name])


def packed_folder(tiny: Make, out: Path, weights: Weights) -> Path:
    pack(open_checkpoint(str(tiny("llama"))), out, weights)
    return out


def load(folder: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(str(folder))
    return dict(load_state(checkpoint, skeleton(checkpoint)))


def edited(folder: Path, edit: Edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_state(**values: Any) -> Edit:
    """Change the quant state's JSON; None takes a key away."""

    def edit(tensors: dict[str, Tensor]) -> None:
        state = json.loads(bytes(tensors[STATE].numpy())) | values
        text = json.dumps({key: value for key, value in state.items() if value is not None})
        tensors[STATE] = torch.tensor(list(text.encode()), dtype=torch.uint8)

    return edit


def double(name: str) -> Edit:
    return lambda tensors: tensors.update({name: tensors[name].double()})


NF4_FAULTS: list[tuple[Edit, str]] = [
    (with_state(blocksize=128), "blocksize 128 is not read"),
    (with_state(nested_blocksize=512), "nested_blocksize 512 is not read"),
    (with_state(quant_type="fp4"), "quant_type 'fp4' is not read"),
    (with_state(nested_dtype="float16"), "nested_dtype 'float16'"),
    (with_state(dtype="int8"), "dtype 'int8'"),
    (with_state(shape=[36, 52]), "shape [36, 52]"),
    (with_state(surprise=1), "surprise"),
    (with_state(nested_offset=None), "not those of double quantisation"),
    (with_state(nested_offset="0.1"), "nested_offset is '0.1'"),
    (with_state(nested_offset=float("nan")), "nested_offset is nan"),
    (lambda t: t.update({STATE: torch.tensor([123], dtype=torch.uint8)}), "no valid JSON"),
    (lambda t: t.update({STATE: torch.tensor(list(b"[]"), dtype=torch.uint8)}), "no JSON object"),
    (lambda t: t.update({STATE[:-3] + "fp4": t.pop(STATE)}), "quant_state.bitsandbytes__fp4"),
    (lambda t: t.pop(STATE), "has none"),
    (lambda t: t.pop(NAME + ".absmax"), f"{NAME}.absmax: missing"),
    (
        lambda t: t.update({NAME + ".absmax": t[NAME + ".absmax"][:-1].clone()}),
        "absmax: stored as U8 [29], not U8 [30]",
    ),
    (double(NAME + ".nested_absmax"), "nested_absmax: stored as F64"),
    (lambda t: t.update({NAME: t[NAME][:-1].clone()}), "935 bytes of codes for 1872 weights"),
    (lambda t: t.update({NAME + ".quant_map": t[NAME + ".quant_map"].flip(0)}), "quant_map: not the code table"),
    (lambda t: t[NAME + ".nested_quant_map"].mul_(2), "nested_quant_map: not the code table"),
]


def test_nf4_that_differs_is_refused_by_name(tiny: Make, tmp_path: Path) -> None:
    folder = packed_folder(tiny, tmp_path / "packed", "nf4")
    file = folder / "model.safetensors"
    sound = file.read_bytes()
    assert load(folder)
    for edit, says in NF4_FAULTS:
        file.write_bytes(sound)
        edited(folder, edit)
        with pytest.raises(CheckpointError) as caught:
            load(folder)
        assert says in str(caught.value) and NAME in str(caught.value), says


INT8_FAULTS: list[tuple[Edit, str]] = [
    (lambda t: t.pop(NAME.replace(".weight", ".SCB")), "SCB: missing"),
    (lambda t: t.update({NAME.replace(".weight", ".SCB"): torch.ones(36)}), "stored as F32 [36], not F32 [52]"),
    (lambda t: t.update({NAME.replace(".weight", ".weight_format"): torch.tensor(1, dtype=torch.uint8)}), "format 1"),
    (lambda t: t.update({NAME: t[NAME].T.contiguous()}), "stored as I8 [36, 52], not I8 [52, 36]"),
]


def test_int8_that_differs_is_refused_by_name(tiny: Make, tmp_path: Path) -> None:
    folder = packed_folder(tiny, tmp_path / "packed", "int8")
    file = folder / "model.safetensors"
    sound = file.read_bytes()
    assert load(folder)
    for edit, says in INT8_FAULTS:
        file.write_bytes(sound)
        edited(folder, edit)
        with pytest.raises(CheckpointError) as caught:
            load(folder)
        assert says in str(caught.value), says


def test_several_faults_come_in_one_error(tiny: Make, tmp_path: Path) -> None:
    folder = packed_folder(tiny, tmp_path / "packed", "nf4")
    others = [NAME.replace("up", "gate"), NAME]
    edited(folder, lambda tensors: [tensors.pop(f"{name}.absmax") for name in others])
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert all(f"{name}.absmax: missing" in str(caught.value) for name in others)


def test_a_part_without_its_weight_is_refused(tiny: Make, tmp_path: Path) -> None:
    folder = packed_folder(tiny, tmp_path / "packed", "nf4")
    edited(folder, lambda tensors: tensors.pop(NAME))
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert f"unexpected: {NAME}.absmax, without its weight" in str(caught.value)
    assert f"missing: {NAME}" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_codes_stored_as_another_dtype_are_the_same_codes(dtype: torch.dtype, tiny: Make, tmp_path: Path) -> None:
    folder = packed_folder(tiny, tmp_path / "packed", "nf4")
    before = load(folder)
    quantised = [name for name, value in before.items() if not isinstance(value, Tensor)]
    flat = {name: before[name].codes.numel() for name in quantised}
    assert any(size % dtype.itemsize == 0 for size in flat.values())
    edited(
        folder,
        lambda t: [
            t.update({name: t[name].view(-1).view(dtype).view(-1, 1)})
            for name in quantised
            if flat[name] % dtype.itemsize == 0
        ],
    )
    after = load(folder)
    for name in quantised:
        assert torch.equal(after[name].codes, before[name].codes)


def test_a_packed_head_is_refused_by_name(tiny: Make, tmp_path: Path) -> None:
    folder = packed_folder(tiny, tmp_path / "packed", "nf4")

    def edit(tensors: dict[str, Tensor]) -> None:
        packed = kernels.quantise(tensors.pop("lm_head.weight"), "nf4")
        tensors.update(bnb.tensors("lm_head.weight", packed, "bfloat16"))

    edited(folder, edit)
    with pytest.raises(CheckpointError, match=r"lm_head.weight: packed, but left in 16 bits here: the output head"):
        load(folder)
