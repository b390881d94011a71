"""What a run needs beside its weights, from the configuration: activations, the loss, the KV cache, the runtime.

Modelled on what the code really keeps: transformers' blocks, `QuantLinear` (saves its input and the small LoRA
product, never a dequantised weight) and the chunked loss. b is the bytes of an activation (2, in fp32 4), H hidden,
I MLP, Q and K the width of all queries and of all keys of a token, R the rank, T the tokens of a sequence.

Kept for the backward pass, per token and layer:

    each norm              4 H + 4                 its input in fp32 and the reciprocal root
    input of q, k, v       b H                     where one of them has an adapter; once, they share it
    queries, keys, values  b (Q + 2 K)             after the rotation; 3 b Q where a mask makes keys and values repeat
    attention's output     b Q + 4 per head        it is also the input of o; the logarithms of the softmax's sums
    mask                   b T                     where there is one: of each layer, a row of T per token
    input of gate and up   b H                     where one of them has an adapter
    MLP                    3 b I (+ b I)           gate, its activation, up (and down's input, where it has an adapter)
    LoRA products          b R                     of each layer with an adapter
    norms of q and k       4 (Q + K) + ...         as the other norms, in the families that have them

Gemma 2 caps its attention scores, which transformers computes without a fused kernel: T scores per head and token in
b, 4 and b bytes. Fused projections (Phi-3) keep the fused output whole where a part of it is kept. In both, the input
of o is a copy of the attention's output.

A mask stands wherever a batch holds padding, or a sequence is longer than the sliding window; one item alone has no
padding. With recomputation a layer keeps its input only (b H per token), and one layer at a time is there in full; the
first layers are the ones that are recomputed, since the last ones have left when the first are at work.

Each formula was derived from the code and checked on small models of ten families against what autograd really saves
(`tests/plan/test_activations.py` repeats that). What torch held at its peak in a training step of four shapes was 1 %
more to 1 % less than planned without full recomputation, and 5 to 11 % less with every layer recomputed.

Assumed: what is freed goes back to the system. glibc keeps freed blocks of up to 32 MB by default, and then the
resident peak of small shapes was 1.1 to 3.5 times the activations and logits planned; with a fixed threshold
(M_MMAP_THRESHOLD, 64 kB) 1.03 to 1.08 times. Times are not modelled here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.config import AdapterConfig
from halfbyte.errors import ConfigError
from halfbyte.plan.shapes import Dimensions, dimensions, is_known, tensors_from, text_config
from halfbyte.targets import select_targets

# Measured once on x86-64 Linux with torch 2.13 (CPU) and transformers 5.23, as RssAnon of a subprocess: importing both
# 258 MB, the Llama classes and one training step of a model of 0.1 M parameters 39 MB, scipy.stats 25 MB, a tokenizer
# of 49k entries 29 MB (one of 128k: 76 MB), and slack of the allocator and of oneDNN's buffers.
RUNTIME_BYTES = 450_000_000

LOSS_CHUNK = 128  # tokens whose logits are there at once (halfbyte.model.loss.CHUNK)
# Of each of these logits: in 16 bits, as fp32, the softmax's logarithm, and a gradient in 16 bits.
LOSS_BYTES = 2 + 4 + 4 + 2
SOFTCAP_BYTES = 3 * 2  # divided, through tanh, multiplied

MOST_ITEMS = 16  # items at once; more gain nothing
MOST_TOKENS = 4096  # tokens at once: from there on the products run at full speed, more gain nothing on a CPU


@dataclass(frozen=True)
class ShapeInfo:
    """What the formulas need of a model and its adapter. `dims` is None for a family that is not modelled."""

    dims: Dimensions | None
    layers: int
    model_type: str
    rank: int
    adapted: frozenset[str]  # last parts of the names of the layers with an adapter
    window: int | None  # sliding window, in tokens
    scores: bool  # attention scores are materialised
    softcap: bool  # the head caps its logits

    @property
    def unknown(self) -> str:
        return f"unknown, because the activations of model_type '{self.model_type}' are not modelled"


@dataclass(frozen=True)
class Choice:
    """An automatic choice and the reason for it. `fits` is None where the need is unknown."""

    micro_batch: int  # items at once
    recompute: int  # the first so many layers compute their activations again in the backward pass
    reason: str
    fits: bool | None = True


def shape_info(
    config: Mapping[str, Any], *, rank: int = AdapterConfig.rank, targets: str | Sequence[str] = "all"
) -> ShapeInfo:
    """Read a config.json's mapping. Never raises for a family that is not modelled: `dims` is None then."""
    text = text_config(config)
    dims = dimensions(text) if is_known(text) else None
    window = text.get("sliding_window")
    model_type = str(text.get("model_type"))
    if text.get("use_sliding_window") is False:
        window = None
    layers = next((text[key] for key in ("num_hidden_layers", "n_layer", "n_layers") if text.get(key)), 0)
    return ShapeInfo(
        dims=dims,
        layers=int(layers),
        model_type=model_type,
        rank=rank,
        adapted=_adapted(dims, targets) if dims else frozenset(),
        window=int(window) if window else None,
        scores=model_type == "gemma2",
        softcap=bool(text.get("final_logit_softcapping")),
    )


def _adapted(dims: Dimensions, targets: str | Sequence[str]) -> frozenset[str]:
    names = [spec.module for spec in tensors_from(dims) if spec.kind == "linear"]
    with contextlib.suppress(ConfigError):  # patterns on other names than these: as if every layer had an adapter
        names = select_targets(targets, names)
    return frozenset(name.rpartition(".")[2] for name in names)


def saved_bytes_per_token(info: ShapeInfo, tokens: int, *, padded: bool, dtype_bytes: int = 2) -> int:
    """Bytes that one layer keeps for the backward pass, per token of a sequence of `tokens` tokens.

    `padded` says whether the batch holds padding. Raises ValueError for a family that is not modelled.
    """
    dims, b = _dims(info), dtype_bytes
    family, query, key = dims.family, dims.query, dims.key
    masked = padded or (info.window is not None and tokens > info.window)
    total = len(family.norms) * (4 * dims.hidden + 4)
    if family.qk_norm == "head":
        total += 4 * (query + key) + 4 * (dims.heads + dims.kv_heads)
    elif family.qk_norm == "width":
        total += 4 * (query + key) + 8
    total += b * dims.hidden * bool(info.adapted & {"q_proj", "k_proj", "v_proj", "qkv_proj"})
    if info.scores:
        total += b * 3 * query + dims.heads * tokens * (b + 4 + b)
    else:
        repeated = masked and 1 < dims.kv_heads < dims.heads  # a single head repeats as a view, without a copy
        values = query if repeated else query + 2 * key if family.fused else key
        total += b * (query + (query if repeated else key) + values + query) + 4 * dims.heads
        total += b * tokens * masked
    if info.scores or family.fused:
        total += b * query * ("o_proj" in info.adapted)
    total += b * dims.hidden * bool(info.adapted & {"gate_proj", "up_proj", "gate_up_proj"})
    total += b * dims.mlp * (3 + ("down_proj" in info.adapted))
    return total + b * info.rank * len(info.adapted)


def layer_peak_bytes_per_token(info: ShapeInfo, tokens: int, dtype_bytes: int = 2) -> int:
    """Bytes that the backward pass of one layer has at most beside what was saved, per token.

    In the MLP: the gradients of gate's activation and of up stand beside that of their product, whose saved input has
    left by then, and three hidden states. Where the scores are materialised: their gradients, less the MLP's part.
    """
    dims, b = _dims(info), dtype_bytes
    mlp = b * (2 * dims.mlp + 3 * dims.hidden)
    if not info.scores:
        return mlp
    return max(mlp, dims.heads * tokens * (b + 4 + 4) + b * (3 * dims.hidden - 4 * dims.mlp))


def loss_bytes(info: ShapeInfo, tokens: int) -> int:
    """Bytes of the logits of one chunk of the loss, with all that is made of them."""
    vocabulary = _dims(info).vocabulary or 0
    return min(LOSS_CHUNK, tokens) * vocabulary * (LOSS_BYTES + SOFTCAP_BYTES * info.softcap)


def training_bytes(
    info: ShapeInfo, micro_batch: int, tokens: int, recompute: int, dtype_bytes: int = 2
) -> tuple[int, int]:
    """(activations, logits) in bytes whose sum is the peak of one micro-batch of `micro_batch` x `tokens` tokens.

    The peak stands either in the loss, with all that was saved, or in the backward pass of a layer.
    """
    dims = _dims(info)
    count = micro_batch * tokens
    saved = saved_bytes_per_token(info, tokens, padded=micro_batch > 1, dtype_bytes=dtype_bytes)
    kept_layers = dims.layers - recompute
    # The ends: final norm, last hidden states, those that are learned, and their gradient.
    ends = 4 * dims.hidden + 3 * dtype_bytes * dims.hidden
    inputs = recompute * dtype_bytes * dims.hidden
    logits = loss_bytes(info, count)
    in_loss = count * (kept_layers * saved + inputs + ends) + logits
    working = layer_peak_bytes_per_token(info, tokens, dtype_bytes)
    in_layer = count * (max(kept_layers, 1) * saved + inputs + ends + working)
    return max(in_loss, in_layer) - logits, logits


def evaluation_bytes(info: ShapeInfo, batch: int, tokens: int, dtype_bytes: int = 2) -> dict[str, int]:
    """Parts in bytes of generating for `batch` sequences that end with `tokens` tokens: cache, one layer, logits."""
    dims, b, count = _dims(info), dtype_bytes, batch * tokens
    mlp = 3 * dims.mlp + 3 * dims.hidden
    attention = 4 * dims.query + 2 * dims.key + 2 * dims.hidden
    working = b * max(mlp, attention)
    if info.scores:
        working = max(working, b * attention + dims.heads * tokens * (b + 4 + b))
    return {
        "kv_cache": count * dims.layers * 2 * dims.key * b,
        "activations": count * working,
        "logits": batch * (dims.vocabulary or 0) * (b + 4),
    }


def choose(
    shape_info: ShapeInfo,
    *,
    batch: int,
    longest_tokens: int,
    memory_bytes: int,
    fixed_bytes: int = 0,
    dtype_bytes: int = 2,
) -> Choice:
    """How many items to compute at once, and how many layers to recompute.

    `memory_bytes` is what the run may still take, `fixed_bytes` what of it is spoken for (adapter, gradients,
    optimiser, scratch). Recomputation costs up to a third more, so it comes last: first the largest micro-batch that
    does without, then, for one item at a time, as few layers as will fit. A family that is not modelled gets the most
    careful choice.
    """
    info, room = shape_info, memory_bytes - fixed_bytes
    if info.dims is None:
        return Choice(1, info.layers, f"one item at a time, every layer recomputed: the need is {info.unknown}", None)
    layers, tokens = info.dims.layers, longest_tokens

    def need(items: int, recompute: int) -> int:
        return sum(training_bytes(info, items, tokens, recompute, dtype_bytes))

    most = max(1, min(batch, MOST_ITEMS, MOST_TOKENS // max(1, tokens)))
    for items in range(most, 0, -1):
        items = _even(batch, items)
        if need(items, 0) <= room:
            limit = "more at once would gain nothing" if items == _even(batch, most) else "more would not fit"
            return Choice(items, 0, f"{_amount(need(items, 0))} of {_amount(room)} for activations and loss; {limit}")
    for recompute in range(1, layers + 1):
        if need(1, recompute) <= room:
            reason = (
                f"one item without recomputation needs {_amount(need(1, 0))} for activations and loss, "
                f"{_amount(room)} are there; recomputing {recompute} of {layers} layers fits"
            )
            return Choice(1, recompute, reason)
    reason = (
        f"does not fit: one item of {tokens} tokens with every layer recomputed needs {_amount(need(1, layers))} "
        f"for activations and loss, {_amount(room)} are there"
    )
    return Choice(1, layers, reason, False)


def _even(batch: int, items: int) -> int:
    """The smallest micro-batch that takes no more passes over `batch` items than `items` does."""
    return -(-batch // -(-batch // items))


def _dims(info: ShapeInfo) -> Dimensions:
    if info.dims is None:
        raise ValueError(info.unknown)
    return info.dims


def _amount(size: int) -> str:
    size = max(size, 0)
    return f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.2f} MB"
