"""Models of every family: what is built computes what transformers computes on the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import halfbyte
from halfbyte.checkpoint.pack import pack
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.config import AdapterConfig
from halfbyte.errors import CheckpointError, ConfigError
from halfbyte.kernels.choice import VARIABLE
from halfbyte.kernels.cross_entropy import PLAIN, Ending
from halfbyte.kernels.native import isas
from halfbyte.model.adapter import quant_linears, save_adapter
from halfbyte.model.build import Model, choose_device, load_model
from halfbyte.model.loss import LinearHead, next_token_loss
from tests.model.plain import IDS, plain
from tests.tiny import FAMILIES, tiny_checkpoint, tiny_tokenizer


def logits(model: Model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(ids))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("weights", ["nf4", "int8", "fp32"])
def test_logits_equal_transformers_on_the_dequantised_weights(family: str, weights: Any, folder: Path) -> None:
    source = tiny_checkpoint(family, folder / "model", dtype="float32")
    model = load_model(str(source), weights=weights)
    model.net.float()
    for layer in quant_linears(model.net).values():
        assert layer.bias is None or layer.bias.dtype == torch.float32
    reference = plain(model, source)
    for name, parameter in reference.named_parameters():  # what is not quantised was rounded to bf16 by packing
        if name.rpartition(".")[0] not in quant_linears(model.net):
            parameter.data = model.net.get_parameter(name).data.clone()
    with torch.no_grad():
        wanted = reference(IDS).logits
    torch.testing.assert_close(logits(model, IDS), wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_adapter_gradients_equal_a_plain_float32_model(family: str, folder: Path) -> None:
    source = tiny_checkpoint(family, folder / "model", dtype="float32")
    model = load_model(str(source), weights="nf4", adapter=AdapterConfig(rank=4))
    model.net.float()
    layers = quant_linears(model.net)
    for layer in layers.values():
        assert layer.lora_B is not None
        torch.nn.init.normal_(layer.lora_B, std=0.05)

    merged = {name: layer.fuse(torch.float32).weight.detach().requires_grad_() for name, layer in layers.items()}
    reference = plain(model, source)
    for name, weight in merged.items():
        reference.get_submodule(name).weight = torch.nn.Parameter(weight)
    for name, parameter in reference.named_parameters():
        if name.rpartition(".")[0] not in layers:
            parameter.data = model.net.get_parameter(name).data.clone()
    wanted = reference(IDS, labels=IDS).loss
    wanted.backward()

    for recompute in (0, len(model.layers())):
        model.recompute(recompute)
        model.net.train()
        model.net.zero_grad()
        loss = next_token_loss(model.hidden(IDS), IDS, model.logits) / (IDS[:, 1:].numel())
        loss.backward()
        torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
        for name, layer in layers.items():
            assert layer.lora_A is not None and layer.lora_B is not None
            grad = reference.get_submodule(name).weight.grad  # dL/dW; the chain rule gives those of A and B
            b_wanted = layer.scaling * grad @ layer.lora_A.detach().T
            a_wanted = layer.scaling * layer.lora_B.detach().T @ grad
            torch.testing.assert_close(layer.lora_B.grad, b_wanted, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(layer.lora_A.grad, a_wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt2"])
def test_families_that_are_not_all_linear_compute_the_same_and_can_be_trained(family: str, folder: Path) -> None:
    source = tiny_checkpoint(family, folder / "model", dtype="float32")
    model = load_model(str(source), weights="fp32")
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)(IDS).logits
    torch.testing.assert_close(logits(model, IDS), wanted, rtol=2e-4, atol=2e-4)
    if family == "gpt2":  # its layers are Conv1D: nothing to quantise, nothing to adapt
        with pytest.raises(ConfigError):
            model.add_adapter(AdapterConfig())
        return
    model.add_adapter(AdapterConfig(targets="attention"))
    next_token_loss(model.hidden(IDS), IDS, model.logits).backward()
    assert all(p.grad is not None for p in model.parameters_to_train().values())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "granite", "gpt2"])
def test_the_head_is_a_product_with_the_end_that_its_family_has(family: str, folder: Path) -> None:
    model = load_model(str(tiny_checkpoint(family, folder / "model")), weights="bf16")
    text, wanted = model.net.config, PLAIN
    if family == "gemma2":
        wanted = Ending(cap=text.final_logit_softcapping)
    if family == "granite":
        wanted = Ending(1 / text.logits_scaling)
    assert isinstance(model.head, LinearHead) is (wanted == PLAIN or bool(isas()))
    hidden = torch.randn(3, text.hidden_size).to(model.dtype)
    if isinstance(model.head, LinearHead) and wanted != PLAIN:
        assert model.head.ending == wanted
        torch.testing.assert_close(model.head(hidden), model.logits(hidden), rtol=2**-6, atol=0)
    else:
        assert torch.equal(model.head(hidden), model.logits(hidden))


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_an_end_that_no_native_code_computes_stays_the_models_own(
    family: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "reference")
    model = load_model(str(tiny_checkpoint(family, folder / "model")), weights="bf16")
    assert model.head == model.logits


def test_a_mapped_model_holds_no_copy_of_its_weights(folder: Path) -> None:
    source = tiny_checkpoint("llama", folder / "model")
    model = load_model(str(source), weights="bf16")
    stored = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    for name, layer in quant_linears(model.net).items():
        assert isinstance(layer.frozen, torch.Tensor)
        assert torch.equal(layer.frozen, stored.get_submodule(name).weight)


def test_targets_are_chosen_and_a_target_that_matches_nothing_lists_what_there_is(folder: Path) -> None:
    source = str(tiny_checkpoint("llama", folder / "model"))
    model = load_model(source, adapter=AdapterConfig(targets="attention"))
    adapted = {name.rpartition(".")[2] for name, layer in quant_linears(model.net).items() if layer.lora_A is not None}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj"}
    with pytest.raises(ConfigError, match="gate_proj"):
        load_model(source, adapter=AdapterConfig(targets=["w1"]))


def test_a_fresh_adapter_changes_nothing_and_is_seeded(folder: Path) -> None:
    source = str(tiny_checkpoint("llama", folder / "model"))
    base = logits(load_model(source), IDS)
    first, second = (load_model(source, adapter=AdapterConfig(), seed=1) for _ in range(2))
    assert torch.equal(logits(first, IDS), base)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.parameters_to_train().values(), second.parameters_to_train().values(), strict=True)
    )
    other = load_model(source, adapter=AdapterConfig(), seed=2)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(first.parameters_to_train().values(), other.parameters_to_train().values(), strict=True)
    )


def test_a_packed_copy_and_its_source_share_adapter_and_chat_template(folder: Path) -> None:
    source = tiny_checkpoint("llama", folder / "model")
    model = load_model(str(source), adapter=AdapterConfig(rank=2))
    save_adapter(model.net, folder / "adapter", AdapterConfig(rank=2), "base", model.fingerprint)
    pack(open_checkpoint(str(source)), folder / "packed", "nf4")
    load_model(str(folder / "packed"), adapter=folder / "adapter")
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert load_model(str(source)).tokenizer.chat_template  # the cached copy was made before


def test_a_token_that_was_added_without_an_embedding_does_not_refuse_the_model(folder: Path) -> None:
    source = tiny_checkpoint("llama", folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([f"<|more{n}|>" for n in range(400)])
    tokenizer.save_pretrained(source)
    assert len(load_model(str(source), weights="bf16").tokenizer) > 320


def test_a_family_without_a_key_value_cache_is_refused_by_name(folder: Path) -> None:
    config = AutoConfig.for_model("mamba", vocab_size=320, hidden_size=32, num_hidden_layers=1, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    with pytest.raises(CheckpointError, match="not supported"):
        load_model(str(folder / "model"), weights="fp32")


def test_the_device_is_chosen_with_its_reason() -> None:
    device, reason = choose_device("auto")
    assert device.type in ("cpu", "cuda") and "CUDA device" in reason
    assert choose_device("cpu") == (torch.device("cpu"), "asked for")
    with pytest.raises(ConfigError, match="unknown device"):
        choose_device("gpu7")
    with pytest.raises(ConfigError, match="not supported"):
        choose_device("mps")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="not there"):
            choose_device("cuda")


_ENCODED = """
import ctypes, os, random, sys
os.environ |= {"TOKENIZERS_PARALLELISM": "on", "RAYON_NUM_THREADS": "4"}
from pathlib import Path
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.model.build import AutoTokenizer, load_tokenizer
def anonymous():
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
folder = sys.argv[2]
own = sys.argv[1] == "own"
tokenizer = load_tokenizer(open_checkpoint(folder), 10**6) if own else AutoTokenizer.from_pretrained(folder)
made = random.Random(0)
words = ["".join(made.choices("abcdefghijklmnop", k=made.randint(3, 9))) for _ in range(30000)]
texts = [" ".join(made.choices(words, k=80)) for _ in range(2000)]
tokenizer(texts[:8])
before = anonymous()
digest = hash(tuple(token for start in range(0, 2000, 500) for ids in
              tokenizer(texts[start:start + 500])["input_ids"] for token in ids))
print(anonymous() - before, digest)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_tokenizer_keeps_few_words_for_each_thread() -> None:
    demo = Path(halfbyte.__file__).parent / "demo" / "base"
    made = [subprocess.run([sys.executable, "-c", _ENCODED, whose, str(demo)], capture_output=True, text=True,
                           check=True).stdout.split() for whose in ("own", "plain")]  # fmt: skip
    (own, tokens), (plain, same) = made
    assert tokens == same
    assert int(own) < int(plain) - 8_000_000


def test_a_missing_tokenizer_is_an_error(folder: Path) -> None:
    source = tiny_checkpoint("llama", folder / "model")
    for file in source.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_model(str(source), weights="bf16")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(folder: Path) -> None:
    source = tiny_checkpoint("llama", folder / "model")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    place = tokenizer["model"]["vocab"]
    place["far"] = 100_000
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="the tokenizer has more tokens than the model has embeddings"):
        load_model(str(source), weights="bf16")


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": "hot", "max_length": {}}', '{"num_beams": -1}'])
def test_a_broken_generation_config_is_one_error_or_none(text: str, folder: Path) -> None:
    source = tiny_checkpoint("llama", folder / "model")
    (source / "generation_config.json").write_text(text)
    try:
        load_model(str(source), weights="bf16")
    except CheckpointError as error:
        assert "generation_config.json" in str(error)


def test_a_tokenizers_own_code_is_not_run_and_not_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_checkpoint("llama", folder / "model")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")

    def ask(*_: object) -> str:
        raise AssertionError("a question")

    monkeypatch.setattr("builtins.input", ask)
    with pytest.raises(CheckpointError, match="the tokenizer can't be loaded"):
        load_model(str(source), weights="bf16")
