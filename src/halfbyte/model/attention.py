"""Which attention a model computes with, and the native one behind transformers' own interfaces for attention.

Under the name "halfbyte" two functions are registered: one makes no mask of [batch, 1, queries, keys] but notes what
defines it (`Visible`); the other calls the kernels with that note. What a call asks for beyond them (a mask of another
kind, dropout, keys and values of different widths) goes to transformers' function for "sdpa", with the mask that it
would have had; what that could not compute either is an error.

A row of items laid end to end (`model/packing.py`) is told by its mask, too: transformers makes one of their positions,
of which the places where they begin are read. Each item is then computed by itself, by whichever function it is.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfbyte.errors import CheckpointError
from halfbyte.kernels.attention import cpu
from halfbyte.kernels.attention.reference import Form, seen
from halfbyte.kernels.choice import Choice, choose
from halfbyte.kernels.pool import pool
from halfbyte.model import recompute

NAME = "halfbyte"
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
_LAYERS = {"full_attention", "sliding_attention"}
Watcher = Callable[[Any, Tensor, Any, float | None, float | None], None]  # module, query, mask, scaling, soft cap
_WATCHERS: list[Watcher] = []
_BEYOND = ("s_aux", "position_bias", "head_mask")  # they change the result, and no function here knows them


@dataclass(frozen=True)
class Visible:
    """Which keys a query sees: those up to its own, `window` of them (0: all), without the padding."""

    offset: int  # of the first query's key
    window: int
    padding: Tensor | None  # bool [batch, keys], False where padding is
    dense: Callable[[], Tensor | None]  # the mask that "sdpa" takes
    starts: tuple[int, ...] = ()  # of the items in a row, and its end; none where a row is one item


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, form: Form, padding: Tensor | None, isa: str) -> Tensor:
        out, lse = recompute.once(lambda: cpu.forward(q, k, v, form, padding, isa=isa), leads=True)
        ctx.save_for_backward(pool.keep(q), pool.keep(k), v, out, lse, padding)  # v is a product's result
        ctx.form, ctx.isa = form, isa
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:
        q, k, v, out, lse, padding = ctx.saved_tensors
        return *cpu.backward(d_out, q, k, v, out, lse, ctx.form, padding, isa=ctx.isa), None, None, None


class _AttentionByItem(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, form: Form, starts: tuple[int, ...], isa: str) -> Tensor:
        out, lse = recompute.once(lambda: cpu.forward_by_item(q, k, v, form, starts, isa=isa), leads=True)
        ctx.save_for_backward(pool.keep(q), pool.keep(k), v, out, lse)
        ctx.form, ctx.starts, ctx.isa = form, starts, isa
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        return *cpu.backward_by_item(d_out, q, k, v, out, lse, ctx.form, ctx.starts, isa=ctx.isa), None, None, None


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Visible | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [B, H, Q, D], key and value [B, G, K, D] -> [B, Q, H, D].

    Raises CheckpointError for a kind of attention that neither the kernels nor "sdpa" compute.
    """
    for watcher in _WATCHERS:
        watcher(module, query, attention_mask, scaling, softcap)
    beyond = [name for name in _BEYOND if others.get(name) is not None]
    if beyond:
        raise CheckpointError("this model's attention is not covered", found=", ".join(beyond),
                              do='call net.set_attn_implementation("eager")')  # fmt: skip
    isa = choose(query.device).isa
    same = query.dtype == key.dtype == value.dtype and key.shape == value.shape
    if isa is None or dropout or not same or not isinstance(attention_mask, Visible):
        if softcap:
            raise CheckpointError(
                "this model's soft cap is computed for causal masks and for q, k and v of one type only",
                found=f"mask {type(attention_mask).__name__}, types {query.dtype}, {key.dtype}, {value.dtype}",
                do='leave out what asks for another mask, or call net.set_attn_implementation("eager")',
            )
        from transformers import AttentionInterface

        if isinstance(attention_mask, Visible) and attention_mask.starts and not dropout:
            return _sdpa_by_item(module, query, key, value, attention_mask, scaling=scaling, **others)
        dense = attention_mask.dense() if isinstance(attention_mask, Visible) else attention_mask
        made: tuple[Tensor, None] = AttentionInterface()["sdpa"](
            module, query, key, value, dense, scaling=scaling, dropout=dropout, softcap=softcap, **others
        )
        return made
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    form = Form(scale, attention_mask.offset, attention_mask.window, softcap or 0.0)
    padding, starts = attention_mask.padding, attention_mask.starts
    if starts and torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        made_of: Tensor = _AttentionByItem.apply(query, key, value, form, starts, isa)  # type: ignore[no-untyped-call]
        return made_of.transpose(1, 2), None
    if starts:
        return cpu.forward_by_item(query, key, value, form, starts, isa=isa)[0].transpose(1, 2), None
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        out: Tensor = _Attention.apply(query, key, value, form, padding, isa)  # type: ignore[no-untyped-call]
    else:
        out, _ = cpu.forward(query, key, value, form, padding, isa=isa)
    return out.transpose(1, 2), None


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of each call of `attend` within."""
    _WATCHERS.append(watcher)
    try:
        yield
    finally:
        _WATCHERS.remove(watcher)


def _sdpa_by_item(
    module: Any, query: Tensor, key: Tensor, value: Tensor, visible: Visible, **others: Any
) -> tuple[Tensor, None]:
    """transformers' function for "sdpa", an item at a time: a mask of all would be as large as its tokens squared."""
    from transformers import AttentionInterface

    sdpa = AttentionInterface()["sdpa"]

    def alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        count, window = q.shape[2], visible.window
        cut = window and count > window
        mask = seen(Form(1.0, 0, window), count, count, None, q.device) if cut else None
        made: Tensor = sdpa(module, q, k, v, mask, **others)[0]
        return made

    return _ByItem.apply(query, key, value, alone, visible.starts), None  # type: ignore[no-untyped-call]


class _ByItem(torch.autograd.Function):
    """[1, S, H, D] by `alone` of each item. It is computed again in the backward pass: what it keeps of each would
    stand beside the whole, and a plan for padded items would not hold it."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, alone: Callable[..., Tensor], starts: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.alone, ctx.starts = alone, starts
        out = q.new_empty(1, q.shape[2], q.shape[1], v.shape[3])
        for first, last in itertools.pairwise(starts):
            out[:, first:last] = alone(*(tensor[:, :, first:last] for tensor in (q, k, v)))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:
        tensors = ctx.saved_tensors
        made = [torch.empty_like(tensor) for tensor in tensors]
        for first, last in itertools.pairwise(ctx.starts):
            with torch.enable_grad():
                leaves = [tensor[:, :, first:last].detach().requires_grad_() for tensor in tensors]
                item = ctx.alone(*leaves)
            for whole, part in zip(made, torch.autograd.grad(item, leaves, d_out[:, first:last]), strict=True):
                whole[:, :, first:last] = part
        return *made, None, None


def describe(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **others: Any,
) -> Visible | Tensor | None:
    """What stands for a mask, as transformers' mask functions are called; another mask than ours as "sdpa" has it."""
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    function = mask_function or causal_mask_function

    def dense() -> Tensor | None:
        mask: Tensor | None = sdpa_mask(
            batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset,
            mask_function=function, attention_mask=attention_mask, **others,
        )  # fmt: skip
        return mask

    inner, starts = _unpacked(function)
    window = _window(inner)
    if window is None or (starts and (batch_size > 1 or attention_mask is not None)):
        return dense()
    if starts:
        return Visible(0, window, None, dense, starts)
    padding = None
    if attention_mask is not None:
        padding = attention_mask[:, kv_offset : kv_offset + kv_length].bool()
        missing = kv_length - padding.shape[1]
        padding = torch.nn.functional.pad(padding, (0, missing)) if missing else padding.contiguous()
        padding = None if bool(padding.all()) else padding
    return Visible(int(q_offset) - int(kv_offset), window, padding, dense)


def _window(function: Callable[..., Any]) -> int | None:
    """The window of transformers' causal mask `function` (0: it has none), or None if it is another mask.

    What it is made of can be read from its closures only; what does not look as expected is taken for another mask.
    """
    from transformers.masking_utils import causal_mask_function

    if function is causal_mask_function:
        return 0
    parts = _closure(function).get("mask_functions", ())
    if len(parts) != 2 or parts[1] is not causal_mask_function:
        return None
    if not getattr(parts[0], "__qualname__", "").startswith("sliding_window_overlay."):
        return None
    window = _closure(parts[0]).get("sliding_window")
    return window if isinstance(window, int) and window > 0 else None


def _unpacked(function: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[int, ...]]:
    """The mask function of each item, and where the items of the first row begin, if `function` is transformers' mask
    of items in a row; else `function` itself."""
    parts = _closure(function).get("mask_functions", ())
    names = [getattr(part, "__qualname__", "").partition(".")[0] for part in parts]
    if names != ["packed_sequence_mask_function", "remap_positions_for_packed_sequence"]:
        return function, ()
    numbers, inner = _closure(parts[0]).get("packed_sequence_mask"), _closure(parts[1]).get("mask_function")
    if not isinstance(numbers, Tensor) or inner is None:
        return function, ()
    changes = (numbers[0].diff() != 0).nonzero().squeeze(1) + 1
    return inner, (0, *changes.tolist(), numbers.shape[1])


def _closure(function: Callable[..., Any]) -> dict[str, Any]:
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    return {} if code is None else {n: c.cell_contents for n, c in zip(code.co_freevars, cells or (), strict=True)}


def use_attention(net: Any, device: torch.device) -> Choice:
    """Let `net` compute with the native attention where it can, and say why."""
    kernels = choose(device)
    kept = str(net.config.get_text_config()._attn_implementation)
    reason = kernels.beside if kernels.isa is None else uncovered(net)
    if reason:
        return Choice(kept, reason)
    register()
    net.set_attn_implementation(NAME)
    return Choice(NAME, kernels.reason, kernels.isa)


def register() -> None:
    """Make our attention known to transformers by its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, describe)


def uncovered(net: Any) -> str:
    """Why the attention of `net` is not covered; empty if it is."""
    config = net.config
    dropouts = [name for name in _DROPOUTS if getattr(config, name, None)]
    layers = set(getattr(config, "layer_types", None) or ()) - _LAYERS
    capped = getattr(config, "attn_logit_softcapping", None)
    if not getattr(net, "_supports_attention_backend", False):
        return "this family does not compute attention through transformers' interface"
    if config.sub_configs:
        return "a model of several parts (images, sound) may mask otherwise"
    if config.is_encoder_decoder or not getattr(config, "is_causal", True):
        return "this model's attention is not causal"
    if layers:
        return f"its layers are of kinds that are not covered: {', '.join(sorted(layers))}"
    if any(name.rpartition(".")[2] in ("sinks", "sink") for name, _ in net.named_parameters()):
        return "its attention has sinks"
    if getattr(config, "alibi", False):
        return "its attention has biases by distance"
    if getattr(config, "kv_lora_rank", None):
        return "its keys and values are of different widths"
    if dropouts:
        return f"its attention drops out in training ({dropouts[0]})"
    if not getattr(net, "_supports_sdpa", False) and not capped:
        return "this family's attention is its own"
    return ""
