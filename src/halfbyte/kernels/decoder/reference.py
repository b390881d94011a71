"""The layers of a decoder for one new token of each of some texts, in plain PyTorch: the specification.

    h += residual * norm(o(attention(rotate(norm(q(n))), rotate(norm(k(n))), v(n))))     n = norm(h)
    h += residual * norm(down(act(gate(n)) * up(n)))                                     n = norm(h)

Every norm may be missing (Llama has the two of n, Qwen 3 those of q and k, too, Gemma all but those of a whole width,
OLMo 2 no n), rotary embeddings may be missing in a layer (SmolLM3), and layers may have angles of their own (Gemma 3).

Legend: B texts, H width of the hidden state, A heads, G key/value heads, D width of a head, K tokens of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from halfbyte.kernels.attention import reference as attention
from halfbyte.kernels.attention.reference import Form
from halfbyte.kernels.gate import reference as gate
from halfbyte.kernels.gate.reference import Act
from halfbyte.kernels.norm.reference import Style, rms_norm
from halfbyte.kernels.product.reference import Layer, linear
from halfbyte.kernels.rotary.reference import rotate


class Norm(NamedTuple):
    """An RMSNorm. Its `weight` is as wide as the rows, or [D]: then each head is normed by itself."""

    weight: Tensor
    eps: float
    style: Style


class Linears(NamedTuple):
    """The linear layers of a decoder layer."""

    q: Layer
    k: Layer
    v: Layer
    o: Layer
    gate: Layer
    up: Layer
    down: Layer


class Norms(NamedTuple):
    """Its norms, those of n before attention and before the MLP, those of what is added to h after them."""

    before_attention: Norm | None = None
    of_q: Norm | None = None
    of_k: Norm | None = None
    after_attention: Norm | None = None
    before_mlp: Norm | None = None
    after_mlp: Norm | None = None


class Block(NamedTuple):
    """A decoder layer. `angles`: which of a step's (None: no rotary embedding); `window` and `cap` as in `Form`."""

    linears: Linears
    norms: Norms
    act: Act
    scale: float
    window: int = 0
    cap: float = 0.0
    residual: float = 1.0
    angles: int | None = 0


Cache = tuple[Tensor, Tensor]  # keys and values [B, G, room, D]
Angles = tuple[Tensor, Tensor]  # cosines and sines [B, R], each there twice, a half each


def decode(
    hidden_BH: Tensor, blocks: Sequence[Block], caches: Sequence[Cache], position: int, angles: Sequence[Angles],
    visible_BK: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The hidden state after `blocks` of tokens with the state `hidden_BH` before them, each at `position` of its row.

    Keys and values of the tokens are written to `caches` there. `visible_BK` (bool, K = position + 1) is False where
    padding is. Types: all bf16, or all fp32; the weights of `blocks` may be packed.
    """
    hidden = hidden_BH
    for block, (keys, values) in zip(blocks, caches, strict=True):
        head, batch, to, norms = keys.shape[-1], len(hidden), block.linears, block.norms
        n = _normed(hidden, norms.before_attention)
        q, k = _normed(_through(n, to.q), norms.of_q), _normed(_through(n, to.k), norms.of_k)
        q, k, v = (x.view(batch, -1, 1, head) for x in (q, k, _through(n, to.v)))
        if block.angles is not None:
            cos, sin = (x[:, None] for x in angles[block.angles])
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        keys[:batch, :, position], values[:batch, :, position] = k[:, :, 0], v[:, :, 0]
        form = Form(block.scale, position, block.window, block.cap)
        seen_keys, seen_values = keys[:batch, :, : position + 1], values[:batch, :, : position + 1]
        attended, _ = attention.forward(q, seen_keys, seen_values, form, visible_BK)
        made = _normed(_through(attended.reshape(batch, -1), to.o), norms.after_attention)
        hidden = hidden + made * block.residual
        n = _normed(hidden, norms.before_mlp)
        both = gate.gated(_through(n, to.gate), _through(n, to.up), block.act)
        hidden = hidden + _normed(_through(both, to.down), norms.after_mlp) * block.residual
    return hidden


def _through(x: Tensor, layer: Layer) -> Tensor:
    return linear(x, layer.weight, layer.bias, None if layer.lora is None else (x @ layer.lora[0].T, layer.lora[1]))


def _normed(x: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return x
    return rms_norm(x.view(len(x), -1, len(norm.weight)), *norm).view(x.shape)
