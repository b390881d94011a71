"""Decoding by one native call a token, beside the same model module by module."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from halfbyte.config import AdapterConfig
from halfbyte.evaluate.generate import pad_left, prefill
from halfbyte.kernels.choice import VARIABLE, choose
from halfbyte.model.adapter import quant_linears
from halfbyte.model.build import Model, load_model
from halfbyte.model.cache import chosen_rows, keep_rows
from tests.tiny import FAMILIES, tiny_checkpoint

PROMPTS = [list(range(10, 31)), [5, 9, 7], [44, 41, 40, 90, 91]]
STEPS = 5
FUSED = "phi3"  # its projections are one layer
CLOSE = {"fp32": 1e-5, "bf16": 0.05}


def opened(family: str, folder: Path, compute: Any = "fp32", **options: Any) -> Model:
    source = tiny_checkpoint(family, folder / family, **options)
    model = load_model(str(source), adapter=AdapterConfig(rank=3), compute=compute)
    stir(model, seed=1)
    return model


def stir(model: Model, seed: int) -> None:
    """Another adapter, as after some training."""
    make = torch.Generator().manual_seed(seed)
    model.net.train()
    for layer in quant_linears(model.net).values():
        if layer.lora_B is not None:
            layer.lora_B.data.normal_(std=0.3, generator=make)
    model.net.eval()


class Course:
    """A few decoded tokens of prompts of several lengths, the same whatever the model says."""

    def __init__(self, model: Model, prompts: list[list[int]] = PROMPTS, *, native: bool = True) -> None:
        self.model, self.native = model, native
        ids, mask, positions = pad_left(prompts, model.device)
        self.cache = model.new_cache(ids.shape[1] + STEPS + 3)
        self.mask = mask if len(prompts) > 1 else None
        self.positions, self.tokens = positions[:, -1:], torch.arange(len(prompts))[:, None] + 20
        with torch.no_grad():
            prefill(model, ids, self.mask, positions, self.cache)

    @torch.no_grad()
    def step(self) -> Tensor:
        if self.mask is not None:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(self.mask), 1)), 1)
        self.positions, self.tokens = self.positions + 1, self.tokens + 1
        decoding, before = self.model.decoding, self.model.decoding.reason
        decoding.reason = before if self.native else "off"
        made: Tensor = self.model.hidden(self.tokens, self.mask, self.positions, self.cache)
        decoding.reason = decoding.reason if self.native else before
        return made


def apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype
    return float((a - b).float().abs().max() / b.float().abs().max())


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {FUSED}))
def test_every_family_decodes_as_module_by_module(tmp_path: Path, family: str, compute: Any) -> None:
    wide = {"sliding_window": 64} if "sliding_window" in FAMILIES[family] else {}  # one that no layer reaches
    model = opened(family, tmp_path, compute, **wide)
    ours, theirs = Course(model), Course(model, native=False)
    for _ in range(STEPS):
        assert apart(ours.step(), theirs.step()) <= CLOSE[compute]
    assert model.decoding.reason == "" and model.decoding.proved
    for mine, other in zip(ours.cache.layers, theirs.cache.layers, strict=True):
        assert apart(mine.keys, other.keys) <= CLOSE[compute] and apart(mine.values, other.values) <= CLOSE[compute]


def test_the_first_step_is_that_of_the_modules_to_the_bit(tmp_path: Path) -> None:
    model = opened("qwen3", tmp_path)
    ours, theirs = Course(model), Course(model, native=False)
    assert torch.equal(ours.step(), theirs.step())
    for mine, other in zip(ours.cache.layers, theirs.cache.layers, strict=True):
        assert torch.equal(mine.keys, other.keys) and torch.equal(mine.values, other.values)


def test_where_projections_are_one_layer_the_modules_decode(tmp_path: Path) -> None:
    model = opened(FUSED, tmp_path)
    ours, theirs = Course(model), Course(model, native=False)
    for _ in range(STEPS):
        assert torch.equal(ours.step(), theirs.step())
    assert model.decoding.reason == "its MLP is no gated one of three layers"


def test_a_layer_that_computes_something_else_is_found_out(tmp_path: Path) -> None:
    model = opened("llama", tmp_path)
    layer = model.layers()[1]
    forward = layer.forward
    layer.forward = lambda *args, **named: forward(*args, **named) * 1.01
    ours, theirs = Course(model), Course(model, native=False)
    for _ in range(STEPS):
        assert torch.equal(ours.step(), theirs.step())
    assert model.decoding.reason == "LlamaDecoderLayer computes something else"


@pytest.mark.parametrize("name", ["embed_tokens", "norm", "rotary_emb"])
def test_what_is_around_the_layers_has_to_be_the_models_own(tmp_path: Path, name: str) -> None:
    model = opened("llama", tmp_path)
    body = model.net.model
    inner = body.forward
    module = getattr(body, name)
    kept = module.forward

    def other(*args: Any, **named: Any) -> Any:  # as if the body did more than call the module
        module.forward = lambda *a, **n: _shifted(kept(*a, **n))
        try:
            return inner(*args, **named)
        finally:
            module.forward = kept

    body.forward = other
    ours, theirs = Course(model), Course(model, native=False)
    for _ in range(STEPS):
        assert torch.equal(ours.step(), theirs.step())
    assert model.decoding.reason and not model.decoding.proved


def _shifted(made: Any) -> Any:
    return tuple(map(_shifted, made)) if isinstance(made, tuple) else made * 1.01


def test_another_adapter_is_computed_with_at_once(tmp_path: Path) -> None:
    model = opened("llama", tmp_path)
    ours, theirs = Course(model), Course(model, native=False)
    for _ in range(2):
        before = ours.step(), theirs.step()
    stir(model, seed=2)
    after = ours.step(), theirs.step()
    assert apart(*before) <= 1e-5 and apart(*after) <= 1e-5
    assert apart(after[0], before[0]) > 0.01


def test_a_step_of_training_in_eval_mode_is_computed_with_at_once(tmp_path: Path) -> None:
    model = opened("llama", tmp_path)
    ours, theirs = Course(model), Course(model, native=False)
    for _ in range(2):
        before = ours.step(), theirs.step()
    with torch.enable_grad():
        model.hidden(torch.tensor([[1, 2, 3]])).float().square().sum().backward()
    with torch.no_grad():
        for parameter in (parameter for parameter in model.net.parameters() if parameter.grad is not None):
            parameter -= 0.5 * parameter.grad.sign()
    after = ours.step(), theirs.step()
    assert apart(*before) <= 1e-5 and apart(*after) <= 1e-5
    assert apart(after[0], before[0]) > 0.01


def test_rows_that_end_and_rows_that_multiply(tmp_path: Path) -> None:
    model = opened("qwen2", tmp_path)
    ours, theirs = Course(model), Course(model, native=False)
    for course in (ours, theirs):
        course.step(), course.step()
        keep_rows(course.cache, [0, 2])
        assert course.mask is not None
        course.mask, course.positions, course.tokens = (
            of[[0, 2]] for of in (course.mask, course.positions, course.tokens)
        )
    assert apart(ours.step(), theirs.step()) <= 1e-5
    for course in (ours, theirs):
        course.cache = chosen_rows(course.cache, torch.tensor([1, 0, 1]))
        course.mask, course.positions, course.tokens = (
            of[[1, 0, 1]] for of in (course.mask, course.positions, course.tokens)
        )
    for _ in range(2):
        assert apart(ours.step(), theirs.step()) <= 1e-5


def test_one_prompt_alone_and_a_window_that_is_wide_enough(tmp_path: Path) -> None:
    model = opened("mistral", tmp_path, sliding_window=30)
    ours, theirs = (Course(model, PROMPTS[:1], native=native) for native in (True, False))
    for _ in range(STEPS):
        assert apart(ours.step(), theirs.step()) <= 1e-5
    assert model.decoding.proved


def test_a_window_that_is_reached_is_left_to_transformers(tmp_path: Path) -> None:
    model = opened("mistral", tmp_path, sliding_window=8)
    ours, theirs = Course(model), Course(model, native=False)
    for _ in range(STEPS):
        assert torch.equal(ours.step(), theirs.step())
    assert not model.decoding.proved and not model.decoding.reason  # a shorter batch may still be for us


def test_a_cache_that_is_done_with_is_freed(tmp_path: Path) -> None:
    model = opened("llama", tmp_path)
    course = Course(model)
    course.step(), course.step()
    buffer = weakref.ref(course.cache.layers[0].buffers[0])
    del course
    gc.collect()
    assert model.decoding.proved and buffer() is None


def test_gradients_many_rows_and_many_tokens_go_by_the_modules(tmp_path: Path) -> None:
    model = opened("llama", tmp_path)
    cache = model.new_cache(8)
    ids = torch.zeros(17, 1, dtype=torch.long)
    with torch.no_grad():
        model.hidden(ids, None, ids, cache)
        model.hidden(ids, None, ids + 1, cache)
    assert not model.decoding.proved and not model.decoding.reason
    made = model.hidden(ids[:2], None, ids[:2], model.new_cache(8))
    assert made.requires_grad and not model.decoding.proved


def test_without_native_code_the_modules_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "reference")
    model = opened("llama", tmp_path)
    assert choose().name == "reference"
    Course(model).step()
    assert model.decoding.reason == "attention is not computed natively"


def test_an_adapter_that_comes_later_is_computed_with(tmp_path: Path) -> None:
    source = tiny_checkpoint("llama", tmp_path / "llama")
    model = load_model(str(source), compute="fp32")
    ours, theirs = Course(model), Course(model, native=False)
    before = ours.step(), theirs.step()
    ours.step(), theirs.step()
    model.add_adapter(AdapterConfig(rank=3))
    stir(model, seed=3)
    after = ours.step(), theirs.step()
    assert model.decoding.proved and apart(*before) <= 1e-5 and apart(*after) <= 1e-5


def test_what_depends_on_the_position_is_found_out_at_the_end_of_the_models_positions(tmp_path: Path) -> None:
    model = opened("llama", tmp_path)
    layer = model.layers()[1].self_attn.q_proj
    forward, inner = layer.forward, model.layers()[1].forward

    def far(*args: Any, **named: Any) -> Any:  # as Ministral 3 scales its queries
        layer.forward = lambda x: forward(x) * (2 if int(named["position_ids"].max()) > 100 else 1)
        return inner(*args, **named)

    model.layers()[1].forward = far
    Course(model).step()
    assert model.decoding.reason == "LlamaDecoderLayer computes something else"


def test_a_large_number_hides_no_other(tmp_path: Path) -> None:
    model = opened("gemma3", tmp_path, "bf16", sliding_window=64)
    layer = model.layers()[1]
    layer.post_feedforward_layernorm.weight.data[0] = 300.0
    forward = layer.forward

    def less(x: Tensor, *args: Any, **named: Any) -> Tensor:
        made: Tensor = forward(x, *args, **named).clone()
        made[..., 1:] = x[..., 1:] + 0.2 * (made[..., 1:] - x[..., 1:])
        return made

    layer.forward = less
    Course(model).step()
    assert model.decoding.reason == "Gemma3DecoderLayer computes something else"


def test_hooks_are_called_as_before(tmp_path: Path) -> None:
    model = opened("llama", tmp_path)
    ours, theirs = Course(model), Course(model, native=False)
    for course in (ours, theirs):
        course.step(), course.step()
    calls: list[Any] = []
    hook = model.layers()[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    assert apart(ours.step(), theirs.step()) <= 1e-5 and len(calls) == 2
    hook.remove()
    assert apart(ours.step(), theirs.step()) <= 1e-5 and len(calls) == 2


def test_kernels_that_are_chosen_anew_between_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama", tmp_path)
    ours, theirs = Course(model), Course(model, native=False)
    ours.step(), theirs.step(), ours.step(), theirs.step()
    for name in ("reference", "cpu"):
        monkeypatch.setenv(VARIABLE, name)
        assert apart(ours.step(), theirs.step()) <= 1e-5


def test_caches_masks_and_rows_that_are_not_ours_go_by_the_modules(tmp_path: Path) -> None:
    model = opened("llama", tmp_path)
    Course(model).step()
    one = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        assert model.hidden(one, None, one, DynamicCache()).shape == (1, 1, model.net.config.hidden_size)
        course = Course(model)
        with pytest.raises((RuntimeError, ValueError)):
            model.hidden(one, None, one, course.cache)  # one row for a cache of three
        full = model.new_cache(1)
        model.hidden(one, None, one, full)
        with pytest.raises(ValueError, match="do not fit into a cache that was reserved for 1"):
            model.hidden(one, None, one + 1, full)


def test_models_that_are_built_otherwise_decode_as_before(tmp_path: Path) -> None:
    model = opened("llama", tmp_path)
    narrower = tiny_checkpoint("llama", tmp_path / "narrower", intermediate_size=24)
    other = load_model(str(narrower), compute="fp32")
    model.net.model.layers[1].mlp = other.net.model.layers[1].mlp  # layers of two shapes
    ours, theirs = Course(model), Course(model, native=False)
    for _ in range(3):
        assert torch.equal(ours.step(), theirs.step())
    assert "gate" in model.decoding.reason
    without = load_model(str(narrower), compute="fp32")
    without.decoding._body = _Bare(without.net.model)
    Course(without).step()
    assert without.decoding.reason == "its layers do not come one after the other"


class _Bare:
    """A decoder whose layers are elsewhere, as OPT's."""

    def __init__(self, body: Any) -> None:
        self._body, self.training = body, False

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._body(*args, **named)
