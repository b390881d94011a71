"""Local folders: headers against what transformers builds, packed checkpoints, and every way to be wrong."""

import json

import pytest
from torch import nn

from halfbyte.errors import CheckpointError, ConfigError
from halfbyte.plan.inventory import from_folder, take_inventory
from halfbyte.plan.shapes import dimensions, tensors_from
from tests.plan.conftest import write_model
from tests.tiny import FAMILIES, tiny_checkpoint


@pytest.mark.parametrize("family", FAMILIES)
def test_headers_configuration_and_transformers_agree(family, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(family, tmp_path / family)
    model = AutoModelForCausalLM.from_pretrained(folder)
    taken = from_folder(folder)
    assert taken.source == "headers" and taken.packed is None and taken.name == family
    assert taken.parameters == sum(parameter.numel() for parameter in model.parameters())
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    layers.pop("lm_head")
    assert taken.linears == {name: (m.out_features, m.in_features) for name, m in layers.items()}
    config = json.loads((folder / "config.json").read_text())
    computed = {(spec.name, spec.shape, spec.kind) for spec in tensors_from(dimensions(config))}
    assert computed == {(spec.name, spec.shape, spec.kind) for spec in taken.tensors}


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_no_linear_layers(family, tmp_path):
    taken = from_folder(tiny_checkpoint(family, tmp_path))
    assert sum(spec.count for spec in taken.tensors if spec.kind == "expert") > 0
    assert {name.rpartition(".")[2] for name in taken.linears} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert taken.dims is None


def test_a_model_without_linear_layers(tmp_path):
    taken = from_folder(tiny_checkpoint("gpt2", tmp_path))
    assert taken.linears == {} and taken.parameters > 0


def packed_llama(config, folder, kind, *, skip="nothing", state=None):
    """A packed Llama of zeros; layers whose name ends with `skip` stay in 16 bits, `state` is every quant state."""
    tensors, settings = {}, {"quant_method": "bitsandbytes", f"load_in_{8 if kind == 'int8' else 4}bit": True}
    if kind != "int8":
        settings |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": kind == "nf4"}
    for spec in tensors_from(dimensions(config)):
        if spec.kind != "linear" or spec.module.endswith(skip):
            tensors[spec.name] = ("BF16", spec.shape)
        elif kind == "int8":
            tensors[spec.name] = ("I8", spec.shape)
            tensors[f"{spec.module}.SCB"] = ("F32", spec.shape[:1])
            tensors[f"{spec.module}.weight_format"] = b"\0"
        else:
            own = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(spec.shape)}
            tensors[spec.name] = ("U8", (-(-spec.count // 2), 1))
            tensors[f"{spec.name}.absmax"] = ("F32", (-(-spec.count // 64),))
            tensors[f"{spec.name}.quant_map"] = ("F32", (16,))
            tensors[f"{spec.name}.quant_state.bitsandbytes__nf4"] = (state or json.dumps(own)).encode()
    return write_model(folder, {**config, "quantization_config": settings}, tensors)


@pytest.mark.parametrize("kind", ["nf4", "nf4-single", "int8"])
def test_a_packed_checkpoint_counts_with_the_shapes_that_it_unpacks_to(kind, llama, tmp_path):
    taken = from_folder(packed_llama(llama, tmp_path, kind))
    plain = tensors_from(dimensions(llama))
    assert taken.packed == kind
    assert sorted((s.name, s.shape, s.kind) for s in taken.tensors) == sorted((s.name, s.shape, s.kind) for s in plain)


def test_a_broken_quant_state_is_one_clear_error(llama, tmp_path):
    folder = packed_llama(llama, tmp_path, "nf4")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data.replace(b'{"quant_type"', b'!"quant_type"', 1))
    with pytest.raises(CheckpointError, match="quant state"):
        from_folder(folder)


def test_a_tied_head_that_is_stored_counts_once(llama, tmp_path):
    config = llama | {"tie_word_embeddings": True}
    stored = {spec.name: ("BF16", spec.shape) for spec in tensors_from(dimensions(llama))}
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", (8,))
    taken = from_folder(write_model(tmp_path, config, stored))
    assert taken.parameters == sum(spec.count for spec in tensors_from(dimensions(config)))
    assert "counted once" in taken.notes[0]


def test_config_json_alone_will_do(llama, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(llama))
    taken = from_folder(tmp_path)
    assert taken.source == "config" and "config.json alone" in taken.notes[0]
    assert taken.parameters == sum(spec.count for spec in tensors_from(dimensions(llama)))


def test_a_folder_wins_over_a_name_of_the_catalogue(llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert take_inventory("llama-3.1-8b").source == "catalogue"
    (tmp_path / "llama-3.1-8b").mkdir()
    (tmp_path / "llama-3.1-8b" / "config.json").write_text(json.dumps(llama))
    assert take_inventory("llama-3.1-8b").source == "config"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nowhere", "no such folder"),
        ("/no/where/at/all", "no such folder"),
        ("someone/some-model", "unset HF_HUB_OFFLINE"),
        ("someone/llama-3.1-8b-tuned", "the catalogue has llama-3.1-8b"),
        ("llama-3.1-7b", "or llama-3.1-8b"),
        ("file.txt", "a file stands"),
        ("run.yaml", "plan the run"),
        ("empty", "neither config.json nor safetensors"),
        ("broken", "can't be read"),
        ("partial", "'hidden_size' is missing"),
        ("pickled", "pickled"),
        ("null", "'tie_word_embeddings' is null"),
    ],
)
def test_every_mistake_is_one_clear_error(name, words, tmp_path, monkeypatch, llama):
    monkeypatch.chdir(tmp_path)
    for file in ("file.txt", "run.yaml"):
        (tmp_path / file).write_text("x")
    partial = {key: value for key, value in llama.items() if key != "hidden_size"}
    contents = {"broken": "{", "partial": json.dumps(partial), "pickled": json.dumps(llama),
                "null": json.dumps(llama | {"tie_word_embeddings": None})}  # fmt: skip
    for folder in ("empty", *contents):
        (tmp_path / folder).mkdir()
    for folder, text in contents.items():
        (tmp_path / folder / "config.json").write_text(text)
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        take_inventory(name)
    assert words in str(caught.value)


def test_a_short_name_has_no_revisions():
    with pytest.raises(ConfigError, match=r"short name(.|\n)*meta-llama/Llama-3\.1-8B"):
        take_inventory("llama-3.1-8b", "main")
