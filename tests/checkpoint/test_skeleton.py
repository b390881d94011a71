import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config

from halfbyte.checkpoint.skeleton import kept_in_fp32, linear_layers, linear_names, skeleton
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.errors import CheckpointError
from tests.checkpoint.conftest import Make
from tests.checkpoint.plain import logits, plain_model
from tests.tiny import FAMILIES, OTHERS


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_weights_are_meta_and_buffers_are_what_transformers_computes(family: str, tiny: Make) -> None:
    folder = tiny(family)
    model, theirs = skeleton(open_checkpoint(str(folder))), AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is type(theirs) and not model.training
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    assert {n: (p.shape, p.dtype) for n, p in model.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in theirs.named_parameters()
    }
    expected, saved = dict(theirs.named_buffers()), theirs.state_dict()
    assert {name for name, _ in model.named_buffers()} == set(expected)
    for name, buffer in model.named_buffers():
        assert name in saved or (torch.equal(buffer, expected[name]) and buffer.dtype == expected[name].dtype)


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_logits_equal_those_of_transformers(family: str, dtype: str, tiny: Make) -> None:
    folder = tiny(family, dtype=dtype)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    assert torch.equal(logits(plain_model(folder)), logits(theirs))


def test_what_is_quantised(tiny: Make) -> None:
    names = linear_names(skeleton(open_checkpoint(str(tiny("llama")))))
    assert len(names) == 2 * 7 and "model.layers.1.mlp.down_proj" in names and "lm_head" not in names
    assert "lm_head" not in linear_names(skeleton(open_checkpoint(str(tiny("qwen3")))))
    mixture = skeleton(open_checkpoint(str(tiny("mixtral"))))
    assert linear_names(mixture) == [
        f"model.layers.{i}.self_attn.{n}_proj" for i in range(2) for n in ("q", "k", "v", "o")
    ]
    gpt2 = skeleton(open_checkpoint(str(tiny("gpt2"))))
    assert linear_names(gpt2) == []
    assert linear_layers(gpt2)["transformer.h.0.mlp.c_fc"] == "Conv1D is not nn.Linear"


def test_layers_that_transformers_keeps_in_fp32(tiny: Make) -> None:
    model = skeleton(open_checkpoint(str(tiny("llama"))))
    model._keep_in_fp32_modules_strict = {"down_proj"}
    assert linear_layers(model)["model.layers.0.mlp.down_proj"] == "transformers keeps it in fp32"
    assert kept_in_fp32(model, torch.bfloat16) == {f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)}
    assert kept_in_fp32(model, torch.float32) == set()


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_type": "brand_new"}, ("does not know the architecture 'brand_new'", "update transformers")),
        ({"model_type": "brand_new", "auto_map": {"AutoConfig": "evil.Config"}}, ("'brand_new'", "never run")),
        ({"model_type": "t5"}, ("'t5' is no causal language model",)),
        ({"hidden_size": "large"}, ("config.json",)),
        ({"num_attention_heads": 0}, ("config.json",)),
    ],
)
def test_architectures_that_are_refused(values: dict[str, Any], says: tuple[str, ...], copied: Make) -> None:
    folder = copied("llama")
    (folder / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    change_config(folder, **values)
    with pytest.raises(CheckpointError) as caught:
        skeleton(open_checkpoint(str(folder)))
    assert all(part in str(caught.value) for part in says), caught.value


def test_code_that_comes_with_a_known_architecture_is_not_run(copied: Make) -> None:
    folder = copied("llama")
    (folder / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    change_config(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    assert type(skeleton(open_checkpoint(str(folder)))).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_is_stored_though_the_config_ties_it(same: bool, copied: Make) -> None:
    folder = copied("qwen3")
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.clone() if same else embedding.flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = plain_model(folder)
    assert torch.equal(logits(ours), logits(theirs))
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) is False  # `plain_model` makes two parameters
    assert (skeleton(open_checkpoint(str(folder))).all_tied_weights_keys != {}) is same


def test_a_multimodal_model_that_is_a_causal_model_too(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "intermediate_size": 36, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours, ids = plain_model(tmp_path), torch.arange(12).reshape(1, 12)
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_a_number_in_a_config_can_not_make_it_build_for_hours(copied: Make) -> None:
    folder = copied("llama")
    for values, said in (({"num_hidden_layers": 10**9}, "1,000,000,000 layers"), ({"head_dim": 2**40}, "config.json")):
        change_config(folder, **values)
        with pytest.raises(CheckpointError, match=said):
            skeleton(open_checkpoint(str(folder)))
