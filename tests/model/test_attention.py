"""Models of every family compute with the native attention what they compute with transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from halfbyte.kernels import native
from halfbyte.kernels.choice import VARIABLE
from halfbyte.model import attention
from halfbyte.model.attention import NAME, Visible, use_attention
from tests.tiny import FAMILIES, tiny_checkpoint

pytestmark = pytest.mark.skipif(not native.isas(), reason="the native library is not built")
CPU = torch.device("cpu")
COVERED = [*sorted(FAMILIES), "mixtral", "qwen3_moe"]
IDS = torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(1))


def two(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The same model with the native attention and with transformers' own."""
    source = tiny_checkpoint(family, folder / "model", dtype="float32")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval() for _ in range(2))
    assert use_attention(ours, CPU).name == NAME
    assert ours.config._attn_implementation == NAME
    return ours, theirs


def padding(kind: str) -> Tensor | None:
    mask = torch.ones_like(IDS)
    if kind == "left":
        mask[0, :13], mask[2, :1] = 0, 0
    elif kind == "right":
        mask[0, -13:], mask[2, -1:] = 0, 0
    return None if kind == "none" else mask


def logits_and_gradients(net: Any, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    net.zero_grad()
    logits = net(input_ids=IDS, attention_mask=mask, use_cache=False).logits
    kept = torch.ones_like(IDS) if mask is None else mask
    weight = torch.linspace(-1, 1, logits.shape[-1], dtype=torch.float32)
    (logits.float() * kept[..., None] * weight).sum().backward()
    return logits.detach() * kept[..., None], {
        n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None
    }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes that the kernels computed."""
    made: list[str] = []
    for name in ("forward", "backward"):
        kernel = getattr(attention.cpu, name)
        monkeypatch.setattr(
            attention.cpu, name, lambda *a, _kernel=kernel, _name=name, **k: (made.append(_name), _kernel(*a, **k))[1]
        )
    return made


@pytest.mark.parametrize("family", COVERED)
@pytest.mark.parametrize("kind", ["none", "left", "right"])
def test_logits_and_gradients_are_those_of_transformers(family: str, kind: str, folder: Path, calls: list[str]) -> None:
    ours, theirs = two(family, folder)
    made, wanted = (logits_and_gradients(net, padding(kind)) for net in (ours, theirs))
    layers = ours.config.num_hidden_layers
    assert calls == ["forward"] * layers + ["backward"] * layers  # and not SDPA in their place
    torch.testing.assert_close(made[0], wanted[0], rtol=2e-5, atol=2e-5)
    assert made[1].keys() == wanted[1].keys()
    for name, grad in wanted[1].items():
        torch.testing.assert_close(made[1][name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()) + 1e-7, msg=name)


@pytest.mark.parametrize("family", COVERED)
def test_a_cache_gives_what_the_whole_gives(family: str, folder: Path) -> None:
    ours, theirs = two(family, folder)
    mask = padding("left")
    assert mask is not None
    with torch.no_grad():
        wanted = theirs(input_ids=IDS, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        cache, made, first = DynamicCache(config=ours.config), [], 0
        for last in (20, 23, *range(24, 41)):  # prefill, a few, one by one
            part = mask[:, :last]
            places = (part.cumsum(1) - 1).clamp(min=0)[:, first:]
            made.append(ours(input_ids=IDS[:, first:last], attention_mask=part, position_ids=places,
                             past_key_values=cache, use_cache=True).logits)  # fmt: skip
            first = last
    kept = mask.bool()
    torch.testing.assert_close(torch.cat(made, 1)[kept], wanted[kept], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3"])
def test_bf16_errs_at_most_twice_as_much(family: str, folder: Path) -> None:
    ours, theirs = two(family, folder, torch.bfloat16)
    right = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16).float().eval()
    wanted, grads = logits_and_gradients(right, padding("left"))
    for net in (ours, theirs):
        net.made = logits_and_gradients(net, padding("left"))
    assert (ours.made[0] - wanted).norm() <= 2 * (theirs.made[0] - wanted).norm()
    errors = [
        sum(float((net.made[1][n].float() - g).square().sum()) for n, g in grads.items()) for net in (ours, theirs)
    ]
    assert errors[0] <= 4 * errors[1]


def test_no_mask_of_queries_times_keys_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = two("gemma3", folder)
    seen: list[Any] = []
    kernel = attention.cpu.forward

    def noted(q: Tensor, k: Tensor, v: Tensor, form: Any, mask: Tensor | None, **named: Any) -> Any:
        seen.append((form.window, mask))
        return kernel(q, k, v, form, mask, **named)

    monkeypatch.setattr(attention.cpu, "forward", noted)
    with torch.no_grad():
        ours(input_ids=IDS, attention_mask=torch.ones_like(IDS))
        ours(input_ids=IDS, attention_mask=padding("left"))
    assert [window for window, _ in seen] == [8, 0, 8, 0]
    assert [None if mask is None else mask.shape for _, mask in seen] == [None, None, IDS.shape, IDS.shape]


def test_packed_sequences_go_to_sdpa_with_their_mask(folder: Path, calls: list[str]) -> None:
    ours, theirs = two("llama", folder)
    places = torch.cat([torch.arange(15), torch.arange(25)]).expand(3, -1)
    with torch.no_grad():
        made, wanted = (net(input_ids=IDS, position_ids=places, use_cache=False).logits for net in (ours, theirs))
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    assert not calls


def test_what_changes_the_result_and_is_not_known_is_an_error() -> None:
    q = torch.randn(1, 2, 4, 16)
    with pytest.raises(attention.CheckpointError, match="s_aux"):
        attention.attend(None, q, q, q, Visible(0, 0, None, lambda: None), s_aux=torch.zeros(2))
    with pytest.raises(attention.CheckpointError, match="soft cap"):
        attention.attend(None, q, q, q, torch.zeros(1, 1, 4, 4), softcap=5.0)


def small(kind: str, **options: Any) -> Any:
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **options}))


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (lambda: small("gpt_oss", num_local_experts=2), "sinks"),
        (lambda: small("llama", attention_dropout=0.1), "drops out"),
        (lambda: small("falcon", alibi=True), "interface"),
        (lambda: small("gpt2", n_embd=32, n_layer=1, n_head=2), "drops out"),
    ],
    ids=["sinks", "dropout", "alibi", "gpt2"],
)
def test_a_family_that_is_not_covered_keeps_its_own(net: Any, reason: str) -> None:
    made = net()
    before = made.config._attn_implementation
    choice = use_attention(made, CPU)
    assert choice.name == before == made.config._attn_implementation
    assert reason in choice.reason


def test_without_the_library_or_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small("llama")
    assert use_attention(net, torch.device("cuda")).name == "sdpa"
    monkeypatch.setenv(VARIABLE, "reference")
    choice = use_attention(net, CPU)
    assert (choice.name, net.config._attn_implementation) == ("sdpa", "sdpa")
    assert "forced" in choice.reason
