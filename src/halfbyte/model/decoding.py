"""A decoded token through all layers of a model in one native call (`kernels.decoder`), where that computes the same.

Method: no list of families. What looks like a decoder layer of the known build is described from its modules, and from
what a first step hands to them and to attention. Then each layer is tried: its own forward and ours get the same small
random hidden state, on which the residual sum hides nothing, and the same cache. Results, keys and values have to
agree in every layer, and embeddings and angles have to be those of the model's own modules; else the model decodes as
before, module by module. The trial costs the first decoded token of a model the time of two more.

What can change between two steps (the adapter, the batch, the cache) is looked at in each.
"""

from __future__ import annotations

import copy
import weakref
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.kernels.choice import choose
from halfbyte.kernels.decoder import FEW, Angles, Block, Decoder, Linears, Norm, Norms, uncovered
from halfbyte.model import attention
from halfbyte.model.attention import Visible
from halfbyte.model.blocks import GatedMLP, RMSNorm
from halfbyte.model.cache import ReservedLayer
from halfbyte.model.linear import QuantLinear

_CLOSE = {torch.bfloat16: 2**-5, torch.float32: 1e-4}  # of a number and of the median: sums in another order
_SMALL = 2**-5  # of the hidden state that layers are tried with
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_NORMS = {  # what a family calls the norms before and after attention, and before and after the MLP
    "pre": ("input_layernorm", None, "post_attention_layernorm", None),
    "post": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "both": ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
}


_Rest = tuple[tuple[RMSNorm | None, ...], dict[str, Any]]
_Call = tuple[int, list[int], Decoder]  # `QuantLinear.changes` before it was made, and the buffers' addresses


class _Other(Exception):
    """Something in a model is not what our layers compute; the text says what."""


class Decoding:
    """Steps of one token a row for a model in eval mode. `reason` says why there are none, once that is known."""

    def __init__(self, body: Any, dtype: torch.dtype, native: bool) -> None:
        """`body`: transformers' decoder. `native`: whether it computes attention with our kernels."""
        self._body, self._dtype = body, dtype
        self.reason = "" if native else "attention is not computed natively"
        self._plan: _Plan | None = None
        self._calls: weakref.WeakKeyDictionary[Any, _Call] = weakref.WeakKeyDictionary()  # by cache

    @property
    def proved(self) -> bool:
        """Whether the layers were tried, and compute the same."""
        return self._plan is not None

    def step(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor | None:
        """As `Model.hidden` of `ids` [B, 1]: hidden states [B, 1, H]; None where this is not for us."""
        if self.reason or torch.is_grad_enabled() or self._body.training or choose("cpu").isa is None:
            return None
        layers, rows = cache.layers, len(ids)
        if not layers or not all(isinstance(layer, ReservedLayer) and layer.buffers for layer in layers):
            return None
        place = layers[0].length
        same = all(layer.length == place and len(layer.buffers[0]) == rows for layer in layers)
        if not same or rows > FEW or place >= layers[0].capacity:
            return None
        if mask is not None and (mask.ndim != 2 or mask.shape[0] != rows or mask.shape[1] <= place):
            return None
        if self._plan is None:
            return self._first(ids, mask, positions, cache)
        if any(self._plan.hooks):
            return None
        visible = None if mask is None else mask[:, : place + 1].bool()
        visible = None if visible is None or bool(visible.all()) else visible
        try:
            call = self._call(cache)
        except ValueError as error:  # the model is no more what it was when it was tried
            self.reason = str(error)
            return None
        hidden = self._plan.embedded(ids)
        made = call.step(hidden[:, 0], place, self._plan.angles(hidden, positions), visible)
        for layer in layers:
            layer.advance(1)
        return self._body.norm(made[:, None])  # type: ignore[no-any-return]

    def _call(self, cache: Any) -> Decoder:
        """The call for `cache`, made anew when its buffers or the adapter are others than before."""
        assert self._plan is not None
        changes, places = QuantLinear.changes, [layer.buffers[0].data_ptr() for layer in cache.layers]
        known = self._calls.get(cache)
        if known is not None and (changes, places) == known[:2]:
            return known[2]
        decoder = Decoder(self._plan.blocks(self._dtype), [layer.buffers for layer in cache.layers])
        self._calls[cache] = changes, places, decoder
        return decoder

    def _first(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
        """A step by the modules, which shows what they are called with; then the layers are tried."""
        with _Seen(self._body) as seen:
            made: Tensor = self._body(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )[0]  # fmt: skip
        try:
            plan = _Plan(self._body, seen)
            if reason := uncovered(plan.blocks(self._dtype), self._dtype):
                raise _Other(reason)
            plan.prove(seen, ids, positions, cache, self._dtype, made)
            self._plan = plan
        except _Other as other:
            self.reason = str(other)
        except Exception as error:  # of a model that is built otherwise, whatever it says: it decodes as before
            self.reason = f"its layers can't be tried ({type(error).__name__}: {error})"
        return made


class _Seen:
    """What the layers of a decoder are called with, and the forms of attention that they ask for."""

    def __init__(self, body: Any) -> None:
        self.body = body
        self.inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []  # of each layer
        self.outputs: list[Any] = []
        self.forms: dict[int, tuple[float, float, Any]] = {}  # by id of the attention module: scale, cap, mask

    def __enter__(self) -> _Seen:
        self._stack = ExitStack()
        for layer in getattr(self.body, "layers", ()):
            for handle in (layer.register_forward_pre_hook(self._before, with_kwargs=True),
                           layer.register_forward_hook(self._after)):  # fmt: skip
                self._stack.callback(handle.remove)
        self._stack.enter_context(attention.watched(self._form))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _before(self, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.inputs.append((args, dict(named)))

    def _after(self, _: nn.Module, __: Any, made: Any) -> None:
        self.outputs.append(made)

    def _form(self, module: Any, query: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        self.forms[id(module)] = (scale, softcap or 0.0, mask)


class _Plan:
    """The layers of a decoder as blocks. Raises _Other where something is not of the known build."""

    def __init__(self, body: Any, seen: _Seen) -> None:
        self._body = body
        self._multiplier: float | None = getattr(body, "embedding_multiplier", None)  # of Granite
        self._kinds: list[str | None] = []  # of angles, as the model's rotary embedding is asked for them
        if len(seen.inputs) != len(getattr(body, "layers", ())) or not seen.inputs:
            raise _Other("its layers do not come one after the other")
        self._layers = [self._read(layer, index, seen) for index, layer in enumerate(body.layers)]
        modules = [module for layer in body.layers for module in layer.modules()]
        self.hooks = [of for module in modules for of in (module._forward_hooks, module._forward_pre_hooks)]

    def blocks(self, dtype: torch.dtype) -> list[Block]:
        """With the adapters as they are now."""
        return [
            Block(Linears(*(linear.parts(dtype) for linear in linears)), Norms(*map(_described, norms)), **rest)
            for linears, (norms, rest) in self._layers
        ]

    def embedded(self, ids: Tensor) -> Tensor:
        """The hidden states [B, 1, H] that the first layer gets."""
        hidden: Tensor = self._body.get_input_embeddings()(ids)
        return hidden if self._multiplier is None else hidden * self._multiplier

    def angles(self, hidden: Tensor, positions: Tensor, rotary: Any = None) -> list[Angles]:
        """Cosines and sines [B, R] of each kind at `positions` [B, 1], by the model's embedding or by `rotary`."""
        made = []
        for kind in self._kinds:
            cos, sin = (rotary or self._body.rotary_emb)(
                hidden, positions, **({} if kind is None else {"layer_type": kind})
            )
            made.append((cos[:, 0].expand(len(hidden), -1), sin[:, 0].expand(len(hidden), -1)))
        return made

    def prove(self, seen: _Seen, ids: Tensor, positions: Tensor, cache: Any, dtype: torch.dtype, made: Tensor) -> None:
        """Raise _Other unless our layers compute what the model's do. `seen` is of a step with the same arguments,
        whose result was `made`; the cache ends as it was."""
        first, last = seen.inputs[0][0][0], seen.outputs[-1]
        if not torch.equal(self.embedded(ids), first):
            raise _Other("its layers do not begin with the embeddings alone")
        if not torch.equal(self._body.norm(last), made):
            raise _Other("its last layer is not followed by the norm alone")
        near = self.angles(first, positions)
        for (_, named), (_, (_, rest)) in zip(seen.inputs, self._layers, strict=True):
            theirs = named.get("position_embeddings")
            if rest["angles"] is not None and not all(
                torch.equal(mine, other[:, 0].expand_as(mine))
                for mine, other in zip(near[rest["angles"]], theirs or (), strict=True)
            ):
                raise _Other("its angles are not those of its rotary embedding")
        # As if the token stood where the model's positions end, too: some families compute otherwise far from the
        # beginning, and at position 0 nothing is turned. A copy makes the angles, since some embeddings have a memory.
        end = torch.full_like(positions, max(1, getattr(self._body.config, "max_position_embeddings", 1 << 15) - 1))
        far = self.angles(first, end, copy.deepcopy(self._body.rotary_emb)) if near else []
        blocks = self.blocks(dtype)
        Decoder(blocks, [layer.buffers for layer in cache.layers])  # they fit together
        x = _SMALL * torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        for index, (layer, block) in enumerate(zip(self._body.layers, blocks, strict=True)):
            args, named = seen.inputs[index]
            self._try(layer, block, x, (args[1:], named), cache.layers[index], near)
            others: dict[str, Any] = {"position_ids": end} if "position_ids" in named else {}
            if named.get("position_embeddings") and far:
                cos, sin = far[block.angles or 0]
                others["position_embeddings"] = cos[:, None], sin[:, None]
            self._try(layer, block, x, (args[1:], named | others), cache.layers[index], far)

    def _try(self, layer: Any, block: Block, x: Tensor, call: Any, cached: ReservedLayer, angles: list[Angles]) -> None:
        place, buffers = cached.length - 1, cached.buffers
        assert buffers is not None

        def written() -> list[Tensor]:
            return [states[:, :, place].clone() for states in buffers]

        kept = written()
        cached.crop(-1)
        try:
            theirs = [layer(x, *call[0], **call[1]), *written()]
            mask = call[1].get("attention_mask")
            hidden = Decoder([block], [buffers]).step(
                x[:, 0], place, angles, mask.padding if isinstance(mask, Visible) else None
            )
            ours = [hidden[:, None], *written()]
        finally:
            cached.advance(place + 1 - cached.length)
            for states, before in zip(buffers, kept, strict=True):
                states[:, :, place] = before
        for mine, other in zip(ours, theirs, strict=True):
            if not isinstance(other, Tensor) or other.shape != mine.shape or not _alike(mine, other):
                raise _Other(f"{type(layer).__name__} computes something else")

    def _read(self, layer: Any, index: int, seen: _Seen) -> tuple[list[QuantLinear], _Rest]:
        """The linear layers of a block, in its order, its norms, and the rest of its description."""
        attn, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
        if not isinstance(mlp, GatedMLP) or mlp.layout.gate == mlp.layout.up:
            raise _Other("its MLP is no gated one of three layers")
        found = [getattr(attn, name, None) for name in _PROJECTIONS]
        found += [getattr(mlp, name) for name in (mlp.layout.gate, mlp.layout.up, mlp.layout.down)]
        linears = [linear for linear in found if isinstance(linear, QuantLinear)]
        if len(linears) < len(found):
            raise _Other("its attention has no four projections")
        scale, cap, mask = seen.forms.get(id(attn), (0.0, 0.0, None))
        if not isinstance(mask, Visible) or mask.starts:
            raise _Other("its attention is not computed natively")
        named = seen.inputs[index][1]
        style = "both" if hasattr(layer, "pre_feedforward_layernorm") else "pre"
        style = "post" if style == "pre" and hasattr(layer, "post_feedforward_layernorm") else style
        before_attention, after_attention, before_mlp, after_mlp = (_norm(layer, name) for name in _NORMS[style])
        rotates = getattr(attn, "use_rope", True) and named.get("position_embeddings")
        norms = (before_attention, _norm(attn, "q_norm"), _norm(attn, "k_norm"), after_attention, before_mlp, after_mlp)
        return linears, (norms, {
            "act": mlp.layout.act, "scale": scale, "window": mask.window, "cap": cap,
            "residual": float(getattr(layer, "residual_multiplier", 1.0)),
            "angles": self._kind(attn, index) if rotates else None,
        })  # fmt: skip

    def _kind(self, attn: Any, index: int) -> int:
        """The place of this layer's angles among `_kinds`, which they join."""
        kinds = getattr(self._body.rotary_emb, "layer_types", None)
        kind = None if not kinds else getattr(attn, "layer_type", None) or self._body.config.layer_types[index]
        if kind not in self._kinds:
            self._kinds.append(kind)
        return self._kinds.index(kind)


def _norm(module: Any, name: str | None) -> RMSNorm | None:
    norm = None if name is None else getattr(module, name, None)
    if norm is None and (name is None or name in ("q_norm", "k_norm")):
        return None
    if not isinstance(norm, RMSNorm):
        raise _Other(f"{name} is not computed natively")
    return norm


def _described(norm: RMSNorm | None) -> Norm | None:
    return None if norm is None else Norm(norm.weight.detach(), norm.eps, norm.style)


def _alike(mine: Tensor, other: Tensor) -> bool:
    """Whether they differ by rounding alone, in the small numbers, too: one that is large hides no other."""
    size, close = other.float().abs(), _CLOSE[other.dtype]
    return bool(((mine.float() - other.float()).abs() <= close * (size + size.median())).all())
