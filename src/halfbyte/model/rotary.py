"""The rotary embedding of a model's attention by our kernel.

transformers' attention calls a function of its module, `apply_rotary_pos_emb`, which no class holds, so there is no
module to swap. Nor is the function exchanged in its module, which would change models that are not ours. Instead each
attention module of this model gets the forward of its class with another function under that name: the same code, its
globals copied. That takes a forward without decorators.

Families share the name, not the arithmetic. So both functions are tried with angles that the model's own embedding
makes: values and gradients must agree, and the halves of the angles, of which the kernel reads the first.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.kernels.choice import choose
from halfbyte.kernels.fused import choose_parts, dtypes_of
from halfbyte.kernels.rotary import rotary
from halfbyte.model.blocks import Replacement

NAME = "apply_rotary_pos_emb"
_CLOSE = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2e-6}  # of the largest value
_TOKENS = 7
Function = Callable[..., tuple[Tensor, Tensor]]


def replace_rotary(net: nn.Module, device: torch.device) -> list[Replacement]:
    """Let the attention of `net` use our rotary embedding where one runs on `device`; a line a class."""
    if choose(device).name == "reference":
        return []
    found: dict[str, list[nn.Module]] = {}
    for module in net.modules():
        if _function(module) is not None:
            found.setdefault(type(module).__name__, []).append(module)
    choice = choose_parts(device)
    if choice.name == "reference":
        return [Replacement(f"rotary embedding of {kind}", len(of), choice.reason) for kind, of in found.items()]
    return [_replace_class(net, kind, of, device, dtypes_of(choice)) for kind, of in found.items()]


def _function(module: nn.Module) -> Function | None:
    """The function of that name that the forward of `module` calls."""
    forward = type(module).forward
    while (inner := getattr(forward, "__wrapped__", None)) is not None:
        forward = inner
    code = getattr(forward, "__code__", None)
    return forward.__globals__.get(NAME) if code is not None and NAME in code.co_names else None


def _replace_class(
    net: nn.Module, kind: str, modules: list[nn.Module], device: torch.device, dtypes: tuple[torch.dtype, ...]
) -> Replacement:
    """Replace in all modules of one class, or in none."""
    what, theirs = f"rotary embedding of {kind}", _function(modules[0])
    assert theirs is not None
    forward = type(modules[0]).forward
    if not isinstance(forward, types.FunctionType) or hasattr(forward, "__wrapped__"):
        return Replacement(what, len(modules), "its forward is wrapped")
    tried: set[tuple[torch.dtype, ...]] = set()
    for dtype in dtypes:
        if reason := _differs(net, theirs, device, dtype, tried):
            return Replacement(what, len(modules), reason)
    ours = _with_fallback(theirs, frozenset(tried))
    rebound = types.FunctionType(
        forward.__code__, {**forward.__globals__, NAME: ours}, forward.__name__, forward.__defaults__,
        forward.__closure__,
    )  # fmt: skip
    rebound.__kwdefaults__ = forward.__kwdefaults__
    for module in modules:
        module.forward = types.MethodType(rebound, module)
    return Replacement(what, len(modules))


def _with_fallback(theirs: Function, tried: frozenset[tuple[torch.dtype, ...]]) -> Function:
    """Ours as transformers calls it; what is called otherwise than it was tried goes to `theirs`."""

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if others or named or (q.dtype, k.dtype, cos.dtype, sin.dtype) not in tried:
            return theirs(q, k, cos, sin, *others, **named)
        return rotary(q, k, cos, sin)

    return rotate


def _differs(
    net: nn.Module, theirs: Function, device: torch.device, dtype: torch.dtype, tried: set[tuple[torch.dtype, ...]]
) -> str:
    """Why ours is not what `theirs` is; empty if it is. The types of q, k, cos and sin join `tried`."""
    angles = list(_angles(net, device, dtype))
    if not angles:
        return "the model's angles can't be had alone"
    for cos, sin in angles:
        if any(half.ndim != 3 or not torch.equal(*half.chunk(2, dim=-1)) for half in (cos, sin)):
            return "its angles do not stand there twice, a half each"
        make = torch.Generator().manual_seed(0)
        try:
            width = _head_width(net, cos.shape[-1])
            q, k = (torch.randn(2, heads, _TOKENS, width, generator=make).to(device, dtype) for heads in (3, 2))
            weights = [torch.randn(x.shape, generator=make).to(device, dtype) for x in (q, k)]
            wanted = _values_and_gradients(theirs, q, k, cos, sin, weights)
            made = _values_and_gradients(rotary, q, k, cos, sin, weights)
        except Exception as error:  # of theirs: its heads differ by layer (Gemma 4), it takes something else; of ours:
            # whatever a card's compiler says
            return f"it can't be tried ({type(error).__name__})"
        for got, other in zip(made, wanted, strict=True):
            near = _CLOSE[dtype] * float(other.float().abs().max())
            if got.dtype != other.dtype or not torch.allclose(got.float(), other.float(), rtol=0.0, atol=near):
                return "it computes something else"
        tried.add((q.dtype, k.dtype, cos.dtype, sin.dtype))
    return ""


def _values_and_gradients(
    op: Function, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, weights: list[Tensor]
) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k)]
        made = op(*leaves, cos, sin)
        return [*(x.detach() for x in made), *torch.autograd.grad(made, leaves, weights)]


@torch.no_grad()
def _angles(net: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosines and sines of positions by each rotary embedding of the model, and each kind of layer that it knows."""
    x = torch.zeros(2, _TOKENS, 1, dtype=dtype, device=device)
    positions = torch.arange(_TOKENS, device=device).expand(2, -1) * 3
    for module in net.modules():
        if "Rotary" not in type(module).__name__:
            continue
        kinds = sorted(set(getattr(module, "layer_types", None) or ()))
        for named in [{"layer_type": kind} for kind in kinds] or [{}]:
            try:
                cos, sin = module(x, positions, **named)
            except Exception:  # it is called otherwise, so these are not the model's angles
                return
            yield cos, sin


def _head_width(net: Any, least: int) -> int:
    config = net.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(max(width, least))
