"""Models and adapters that can't be used."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.bad_inputs.case import Case, Make, Place, config, model, nothing

_ASK = "generate {folder}/model hi"
_WITH = "generate {model} hi --adapter {folder}/adapter"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def _empty(place: Place) -> None:
    (place.folder / "model").mkdir()


def _pickled(place: Place) -> None:
    folder = place.copy("model")
    (folder / _WEIGHTS).rename(folder / "pytorch_model.bin")


def _truncated(place: Place) -> None:
    file = place.copy("model") / _WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def _index(place: Place, files: dict[str, str]) -> None:
    """The model in shards by an index of its own; `files` {tensor: file} of what it says otherwise."""
    folder = place.copy("model")
    tensors = load_file(folder / _WEIGHTS)
    (folder / _WEIGHTS).rename(folder / "part.safetensors")
    where = dict.fromkeys(tensors, "part.safetensors") | files
    (folder / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _outside(place: Place) -> None:
    """A shard that is there, and is sound, but lies beside the folder."""
    _index(place, {"model.norm.weight": "../secret.safetensors"})
    norm = load_file(place.folder / "model" / "part.safetensors")["model.norm.weight"]
    save_file({"model.norm.weight": norm}, place.folder / "secret.safetensors", metadata={"format": "pt"})


def _without_tokenizer(place: Place) -> None:
    folder = place.copy("model")
    for file in folder.glob("*token*"):
        file.unlink()


def _larger_tokenizer(place: Place) -> None:
    folder = place.copy("model")
    found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = found["model"]["vocab"]
    vocabulary |= {f"more{at}": len(vocabulary) + at for at in range(50)}
    (folder / "tokenizer.json").write_text(json.dumps(found), encoding="utf-8")


def _tensors(place: Place, change: Any) -> None:
    folder = place.copy("model")
    tensors = load_file(folder / _WEIGHTS)
    change(tensors)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})


def _odd_shape(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name] = tensors[name][:-1].contiguous()


def _adapter(place: Place) -> Path:
    return place.copy("out/adapter", "adapter")


def _adapter_config(**values: Any) -> Make:
    def make(place: Place) -> None:
        _adapter(place)
        place.change("adapter/adapter_config.json", **values)

    return make


def _adapter_tensors(rename: tuple[str, str] = ("", ""), base: str | None = None, rows: int | None = None) -> Make:
    """The adapter with names, base or rank of its tensors changed."""

    def make(place: Place) -> None:
        file = _adapter(place) / "adapter_model.safetensors"
        tensors = {name.replace(*rename): tensor for name, tensor in load_file(file).items()}
        if rows is not None:
            tensors = {name: t[:rows] if "lora_A" in name else t[:, :rows] for name, t in tensors.items()}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, file, metadata={"format": "pt"} | ({"halfbyte_base_fingerprint": base} if base else {}))

    return make


def _half_an_adapter(place: Place) -> None:
    file = _adapter(place) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _not_finite(place: Place) -> None:
    file = _adapter(place) / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


_LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234567\n"

CASES = [
    Case("a model folder that is not there", nothing, "generate {folder}/nowhere hi", 1, "there is no such folder",
         "says what a model's folder holds"),
    Case("an empty model folder", _empty, _ASK, 1, "this folder is empty", "refused before anything is read"),
    Case("a file where a model folder is expected", nothing, "generate {folder}/train.jsonl hi", 1, "this is a file",
         "asks for the folder"),
    Case("a model without config.json", model("config.json", None), _ASK, 1, "no config.json", "names the file"),
    Case("config.json that is no JSON", model("config.json", "{'a': 1}"), _ASK, 1, "no valid JSON",
         "names the file and the place in it"),
    Case("config.json that holds a list", model("config.json", "[]"), _ASK, 1, "holds no object", "names the file"),
    Case("config.json nested without end", model("config.json", "[" * 100_000), _ASK, 1, "no valid JSON",
         "refused without a deep call stack"),
    Case("config.json without a model type", config(model_type=None), _ASK, 1, "names no model_type", "names the key"),
    Case("an unknown architecture", config(model_type="zebra"), _ASK, 1, "does not know the architecture 'zebra'",
         "names the type; nothing is guessed"),
    Case("a model that brings its own code", config(model_type="zebra", auto_map={"AutoConfig": "evil.Config"}),
         _ASK, 1,
         "it brings code of its own, which is never run", "the code is never run"),
    Case("an architecture that generates no text", config(model_type="bert", architectures=["BertModel"]), _ASK, 1,
         "BertLMHeadModel", "names the architecture, and every tensor that does not fit"),
    Case("a quantisation that is not read", config(quantization_config={"quant_method": "gptq", "bits": 4}), _ASK, 1,
         "a format that is not read: gptq", "asks for the 16-bit checkpoint"),
    Case("pickled weights only (pytorch_model.bin)", _pickled, _ASK, 1, "pickled weights",
         "never unpickled; says how to convert"),
    Case("a Git LFS pointer in place of the weights", model(_WEIGHTS, _LFS), _ASK, 1, "a Git LFS pointer",
         "says how to fetch it"),
    Case("truncated weights", _truncated, _ASK, 1, "it is cut", "found from the header, before reading"),
    Case("a weight file of a few bytes", model(_WEIGHTS, b"\x01\x02"), _ASK, 1, "the header's length alone takes 8",
         "names the file"),
    Case("a header that claims 2^60 bytes", model(_WEIGHTS, struct.pack("<Q", 1 << 60) + b"{}"), _ASK, 1,
         "a header of 1152921504606846976 bytes", "refused without reserving memory"),
    Case("a header that is no JSON", model(_WEIGHTS, struct.pack("<Q", 8) + b"nonsense"), _ASK, 1,
         "begins with 'nonsense'",
         "names the file"),
    Case("an index that is no JSON", lambda place: (_index(place, {}), place.write(f"model/{_INDEX}", "{"))[0], _ASK, 1,
         "no valid JSON", "names the file"),
    Case("an index that names a missing shard", lambda place: _index(place, {"model.norm.weight": "gone.safetensors"}),
         _ASK, 1, "no gone.safetensors", "names every missing file"),
    Case("an index that names a file outside the folder", _outside, _ASK, 1, "do not lie beside it",
         "refused: only files of the folder are read"),
    Case("an index that names a tensor that is in no shard",
         lambda place: _index(place, {"model.more.weight": "part.safetensors"}), _ASK, 1, "model.more.weight: not in",
         "names the tensor"),
    Case("weights that lack a layer", config(num_hidden_layers=3), _ASK, 1, "missing: model.layers.2",
         "lists what is missing"),
    Case("weights with a tensor of another shape", lambda place: _tensors(place, _odd_shape), _ASK, 1,
         "q_proj.weight is [39, 36]",
         "lists what has which shape and should have which"),
    Case("a configuration of another width", config(hidden_size=72), _ASK, 1, "the model needs [320, 72]",
         "lists the tensors that don't fit"),
    Case("a model without a tokenizer", _without_tokenizer, _ASK, 1, "no tokenizer.json, tokenizer.model or vocab file",
         "names the files to add"),
    Case("tokenizer.json that is no JSON", model("tokenizer.json", "{"), _ASK, 1, "Expecting property name",
         "names the files"),
    Case("a tokenizer with more tokens than the model has embeddings", _larger_tokenizer, _ASK, 1,
         "more tokens than the model has embeddings", "both numbers are shown"),
    Case("a misspelt name of the catalogue", nothing, "plan lama-3.1-8b", 2, "did you mean llama-3.1-8b",
         "names the nearest one"),
    Case("a name of the catalogue where a model is to run", nothing, "generate llama-3.1-8b hi", 2,
         "write the hub id, meta-llama/Llama-3.1-8B", "gives the hub id"),
    Case("packing a model into its own folder", nothing, "pack {model} {model}", 1, "this folder is not empty",
         "the model's own folder is never written to"),
    Case("packing into a folder that holds something else", nothing, "pack {model} {folder}", 1,
         "this folder is not empty",
         "nothing in it is changed"),
    Case("an adapter folder that is not there", nothing, _WITH, 1, "no such folder",
         "names both files that are needed"),
    Case("an adapter without its weights", lambda place: (_adapter(place) / "adapter_model.safetensors").unlink(),
         _WITH,
         1, "lacks adapter_model.safetensors", "names the missing file"),
    Case("adapter_config.json that is no JSON", lambda place: (_adapter(place), place.write(
        "adapter/adapter_config.json", "{"))[0] and None, _WITH, 1, "no valid JSON", "names the file"),
    Case("an adapter of another base model", _adapter_tensors(base="f" * 64), _WITH, 1, "another base model",
         "both fingerprints are shown"),
    Case("an adapter whose keys match no layer", _adapter_tensors(("q_proj", "w_q")), _WITH, 1,
         "no such quantised layer",
         "each key with the nearest layer; nothing is left out silently"),
    Case("an adapter of another rank than it says", _adapter_tensors(rows=2), _WITH, 1, "the configuration says 16",
         "both ranks are shown"),
    Case("an adapter with half a pair", _adapter_tensors(("q_proj.lora_B", "q_proj.lora_C")), _WITH, 1,
         "lora_C.weight: no LoRA weight",
         "lists every fault"),
    Case("an adapter that uses DoRA", _adapter_config(use_dora=True), _WITH, 1, "use_dora: True is not computed",
         "refused, not left out"),
    Case("an adapter whose configuration has texts for numbers", _adapter_config(r="many"), _WITH, 1,
         "r: 'many' is none",
         "names the key"),
    Case("an adapter that was cut in half", _half_an_adapter, _WITH, 1, "no sound safetensors", "names the file"),
    Case("an adapter that holds NaN", _not_finite, _WITH, 1, "holds NaN or infinity", "names the layer"),
]  # fmt: skip
