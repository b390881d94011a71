"""What a run needs beside its weights, from the configuration: activations, loss, KV cache, scratch, the runtime.

Modelled on what the code really keeps: `QuantLinear` (its input and the small LoRA product, never a dequantised
weight), the chunked loss, and of norms, gated MLPs and attention either halfbyte's own ("native") or transformers' as
they are ("plain"), each by itself; `native.py` says which. b is the bytes of an activation (2, in fp32 4), H hidden,
I MLP, Q and K the width of all queries and of all keys of a token, R the rank, T the tokens of a sequence.

Kept for the backward pass, per token and layer:

                            native                  plain
    each norm               b H + 4                 4 H + 4               its input and the reciprocal root
    norms of q and k        b (Q + K) + 4 each      4 (Q + K) + 4 each    in the families that have them
    input of q, k, v        b H                     b H                   where one has an adapter; they share it
    queries, keys, values   b (Q + 2 K)             b (Q + 2 K)           3 b Q where a plain mask repeats keys, values
    attention's output      b Q + 4 per head        b Q + 4 per head      also the input of o; logarithms of the sums
    mask                    -                       b T                   where there is one
    input of gate and up    b H                     b H                   where one of them has an adapter
    MLP                     2 b I (+ b I)           3 b I (+ b I)         gate, (its activation,) up; down's input
    LoRA products           b R                     b R                   of each layer with an adapter

Plain only: Gemma 2 caps its attention scores, which transformers computes without a fused kernel: T scores per head and
token in b, 4 and b bytes; there and with fused projections (Phi-3) the input of o is a copy of the attention's output.
A mask stands wherever a batch holds padding, or a sequence is longer than the sliding window; one item alone has no
padding. Items that stand in one row (`tune.packing`) have none either, and no more tokens than padded: the plan for
padded ones is their bound. Fused projections keep the fused output whole where a part of it is kept.

With recomputation a layer keeps its input only (b H per token) and, where attention is native, its result with the
logarithms (b Q + 4 per head) and o's product with it (b H), which are not computed again; one layer at a time is
there in full. The first layers are the ones that are recomputed, since the last ones have left when they are at work.

The formulas of a layer were derived from the code and are checked on small models of ten families against what autograd
really saves (`tests/plan/test_activations.py`).

Where there is no native product (16 bits with AVX-512 that lacks VNNI, anything without AVX2), a dense matrix of
another type than the activations, as the head in 16 bits is, is converted 4096 rows at a time, and MKL or oneDNN keep
some MB for each thread.

Assumed: what is freed goes back to the system (`memory.hold_little`). Times are not modelled here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.config import AdapterConfig
from halfbyte.errors import ConfigError
from halfbyte.formats import QUANTISED
from halfbyte.plan.native import Native, plain
from halfbyte.plan.shapes import Dimensions, dimensions, is_known, tensors_from, text_config
from halfbyte.targets import select_targets

# Measured on x86-64 Linux with torch 2.13 (CPU) and transformers 5.23, as RssAnon: a process of `tune` holds 311 to 316
# MB once its libraries are imported and some data read, and 322 at most while a model of toy vocabulary is opened; a
# tokenizer of 49k or 128k entries takes 29 or 76 MB. The first passes through a model leave up to 10 MB more behind (a
# thread for the backward pass, what the libraries set up when they are first used, code and caches of Python's).
RUNTIME_BYTES, WORKING_BYTES = 322_000_000, 10_000_000
TOKENIZER_FACTOR = 8.4  # bytes in memory for each byte of tokenizer.json
TOKENIZER_ENTRY = 72  # bytes of the file for each entry of the vocabulary

LOSS_CHUNK = 256  # tokens whose logits are there at once (halfbyte.model.loss.CHUNK)
# Plain, of each of these logits: in 16 bits, as fp32, the softmax's logarithm, and a gradient in 16 bits.
LOSS_BYTES = 2 + 4 + 4 + 2
SOFTCAP_BYTES = 3 * 2  # divided, through tanh, multiplied
_SCALES = ("final_logit_softcapping", "logits_scaling", "logit_scale")  # of a head that is more than a product

_TILE = 4096  # rows of a dense matrix that are converted at once (kernels/product/reference.py)

_ACCUMULATORS = 8  # of dK and dV, in kernels/attention/cpu.cpp
MAPPED = 1 << 20  # bytes from which on glibc maps a block by itself (memory.hold_little)
_AFTER_MLP = "post_feedforward_layernorm"  # the norm of the MLP's result, in the families that have one
_SLACK = 50  # one part in so many of what comes and goes
POOLED = 1 << 18  # and from which on what native code returns lies in a block of the pool (LARGE there)
# Of a layer's queries, or its keys and one of the queries: plain, in transformers' rotary embedding the new ones, two
# products, the turned half, a sum; native, what a projection returns and the new ones.
_AT_ONCE, _NATIVE_AT_ONCE = 6, 2

PLAIN = plain("nothing is known of the kernels")


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
    scaled: bool  # the head is more than a product: it caps or scales
    native: Native
    learned: int | None = None  # tokens of an item whose loss counts, at most; None: all of them
    weights: str = "nf4"  # the format that runs
    dense: str = "bfloat16"  # torch's name of the type of what is not packed, the head's, too
    offload: bool = False  # on a card: what layers keep lies on the host (halfbyte.model.offload)

    def multiplies_dense(self, dtype_bytes: int) -> bool:
        """Whether native kernels multiply activations of `dtype_bytes` with matrices that are not packed: those in bf16
        take bf16 alone, those in fp32 every type."""
        return self.native.products and (dtype_bytes == 4 or self.dense == "bfloat16")

    @property
    def ends_in_torch(self) -> bool:
        """Whether PyTorch computes what the loss does to logits after the product; native code does so on the way."""
        return self.scaled and not self.native.norms

    @property
    def unknown(self) -> str:
        return f"unknown, because the activations of model_type '{self.model_type}' are not modelled"


def shape_info(
    config: Mapping[str, Any],
    *,
    rank: int = AdapterConfig.rank,
    targets: str | Sequence[str] = "all",
    native: Native = PLAIN,
    learned: int | None = None,
    weights: str = "nf4",
    stored: str = "bfloat16",
    offload: bool = False,
) -> ShapeInfo:
    """Read a config.json's mapping. Never raises for a family that is not modelled: `dims` is None then. `weights`: the
    format that runs; `stored`: the type of the checkpoint."""
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
        scores=model_type == "gemma2" and not native.attention,
        softcap=bool(text.get("final_logit_softcapping")),
        scaled=any(text.get(name) not in (None, 0, 1) for name in _SCALES),
        native=native,
        learned=learned,
        weights=weights,
        dense="float32" if weights == "fp32" else "float16" if stored == "float16" else "bfloat16",
        offload=offload,
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
    dims, b = known_dims(info), dtype_bytes
    total = _norm_bytes(info, b) + _attention_bytes(info, tokens, padded, b) + _mlp_bytes(info, b)
    total += b * dims.hidden * bool(info.adapted & {"q_proj", "k_proj", "v_proj", "qkv_proj"})
    total += b * dims.hidden * bool(info.adapted & {"gate_proj", "up_proj", "gate_up_proj"})
    return total + b * info.rank * len(info.adapted)


def recomputed_bytes_per_token(info: ShapeInfo, dtype_bytes: int = 2) -> int:
    """Bytes that a layer which is computed again keeps from its first run to its second, per token."""
    dims, b = known_dims(info), dtype_bytes
    return b * dims.hidden + info.native.attention * (b * (dims.query + dims.hidden) + 4 * dims.heads)


def _norm_bytes(info: ShapeInfo, b: int) -> int:
    dims, wide = known_dims(info), b if info.native.norms else 4
    total = len(dims.family.norms) * (wide * dims.hidden + 4)
    if dims.family.qk_norm:
        total += wide * (dims.query + dims.key)
        total += 4 * (dims.heads + dims.kv_heads) if dims.family.qk_norm == "head" else 8
    return total


def _attention_bytes(info: ShapeInfo, tokens: int, padded: bool, b: int) -> int:
    """Queries, keys, values, the output, the mask; and the input of o where that is not the output itself."""
    dims = known_dims(info)
    query, key, fused = dims.query, dims.key, dims.family.fused
    values = query + 2 * key if fused else key
    if info.native.attention:
        return b * (query + key + values + query) + 4 * dims.heads
    apart = b * query * ("o_proj" in info.adapted) * (info.scores or fused)
    if info.scores:
        return apart + b * 3 * query + dims.heads * tokens * (b + 4 + b)
    masked = padded or (info.window is not None and tokens > info.window)
    if masked and 1 < dims.kv_heads < dims.heads:  # repeated; a single head repeats as a view, without a copy
        key = values = query
    return apart + b * (query + key + values + query) + 4 * dims.heads + b * tokens * masked


def _mlp_bytes(info: ShapeInfo, b: int) -> int:
    return b * known_dims(info).mlp * ((2 if info.native.mlp else 3) + ("down_proj" in info.adapted))


def layer_peak_bytes_per_token(info: ShapeInfo, tokens: int, dtype_bytes: int = 2) -> int:
    """Bytes that the backward pass of one layer has at most beside what was saved, per token.

    In the MLP: the gradients of gate (plain: of its activation) and of up stand beside that of their product, whose
    saved input has left by then, and the gradient of the layer's result, which goes past the MLP; before a norm of the
    MLP's result is asked for, the input of that norm has left, too. Plain parts hold three hidden states more. In the
    attention, less what the MLP kept: the gradients of everything that it saved, in fp32 those of keys and values, too;
    where the scores are materialised, theirs.
    """
    dims, b = known_dims(info), dtype_bytes
    mlp = b * dims.mlp * (3 if info.native.mlp and "down_proj" not in info.adapted else 2)
    if info.native.mlp and info.native.norms:
        hidden = b * dims.hidden
        mlp -= hidden * (_AFTER_MLP in dims.family.norms)
    else:
        hidden = 4 * b * dims.hidden
    if info.scores:
        attention = dims.heads * tokens * (b + 4 + 4)
    elif info.native.attention:
        parts = max(1, -(-_ACCUMULATORS // dims.kv_heads))
        attention = b * (3 * dims.query + 4 * dims.key) + parts * 8 * dims.key
    else:
        attention = 0
    return hidden + max(mlp, attention - _mlp_bytes(info, b))


def loss_bytes(info: ShapeInfo, tokens: int, dtype_bytes: int = 2) -> int:
    """Bytes of the logits of one chunk of the loss, with all that is made of them. Native: their gradient, which
    overwrites them."""
    native = info.native.norms  # the kernels of the loss run where those of the norms do
    each = dtype_bytes if native else LOSS_BYTES + SOFTCAP_BYTES * info.softcap
    return min(LOSS_CHUNK, tokens) * (known_dims(info).vocabulary or 0) * each


def _first_logits_bytes(info: ShapeInfo, tokens: int, dtype_bytes: int) -> int:
    """Of `loss_bytes` the head's own product."""
    return min(LOSS_CHUNK, tokens) * (known_dims(info).vocabulary or 0) * dtype_bytes


def tile_bytes(info: ShapeInfo, matrices: Iterable[tuple[int, int]], dtype_bytes: int) -> int:
    """Bytes of the rows of a dense matrix [out, in] that are converted at once for activations of another type."""
    same = not info.native.products and dtype_bytes == (4 if info.dense == "float32" else 2)
    if same or info.multiplies_dense(dtype_bytes):
        return 0
    return dtype_bytes * max((min(rows, _TILE) * columns for rows, columns in matrices), default=0)


def head_tile_bytes(info: ShapeInfo, dtype_bytes: int) -> int:
    """The same of the head, where it stands beside the buffer of packed weights (else it is part of the scratch)."""
    return tile_bytes(info, [head_shape(info)], dtype_bytes) if info.weights in QUANTISED else 0


def head_shape(info: ShapeInfo) -> tuple[int, int]:
    return (info.dims.vocabulary or 0, info.dims.hidden) if info.dims is not None else (0, 0)


def training_bytes(
    info: ShapeInfo, micro_batch: int, tokens: int, recompute: int, dtype_bytes: int = 2
) -> tuple[int, int]:
    """(activations, logits) in bytes whose sum is the peak of one micro-batch of `micro_batch` x `tokens` tokens.

    The peak stands either in the loss, with all that was saved, or in the backward pass of a layer. The buffer of the
    logits outlives the loss, unless PyTorch makes more of them than a product.
    """
    dims, b = known_dims(info), dtype_bytes
    count = micro_batch * tokens
    saved = saved_bytes_per_token(info, tokens, padded=micro_batch > 1, dtype_bytes=b)
    kept_layers = dims.layers - recompute
    inputs = recompute * recomputed_bytes_per_token(info, b)
    learned = learned_tokens(info, micro_batch, tokens)
    # The last norm's input and result; the hidden states that are learned and their gradient, which on a card is scaled
    # in fp32 (counted wherever no native code runs).
    ends = count * (2 * b * dims.hidden + 4) + learned * (2 * b + 8 * (not info.native.norms)) * dims.hidden
    logits = loss_bytes(info, learned, b)
    apart = logits - (_first_logits_bytes(info, learned, b) if info.ends_in_torch else 0)
    outlives = 0 if info.ends_in_torch else logits
    in_loss = count * (kept_layers * saved + inputs) + ends + head_tile_bytes(info, b) + logits - apart
    heap = _holes_bytes(info, b * count, kept_layers, count * (kept_layers * saved + inputs))
    if info.offload:
        inside = _beside_the_host(info, saved, recompute, b)
        in_loss += count * (inside[0] - kept_layers * saved - inputs)
        in_layer = count * (inside[1] + layer_peak_bytes_per_token(info, tokens, b))
        return max(in_loss + apart, in_layer + outlives) - logits, logits
    if not kept_layers:  # what the layer at work had kept is part of what it saves now
        inputs -= recomputed_bytes_per_token(info, b)
    in_layer = count * (max(kept_layers, 1) * saved + inputs + layer_peak_bytes_per_token(info, tokens, b))
    in_layer += _new_gradient_bytes(info)
    # Of the sums along the residual, and of their gradients, which are torch's, some stand beside the pool, which keeps
    # what native kernels had in use at most, at another moment.
    beside = 2 * b * count * dims.hidden * info.native.norms
    peak = max(in_loss + apart, in_layer + outlives) + heap + beside
    return peak - logits + slack_bytes(info, peak), logits


def _new_gradient_bytes(info: ShapeInfo) -> int:
    """Bytes of the gradients of one linear layer's pair, which are added to those that stay, and of what the larger one
    is turned and widened from."""
    dims = known_dims(info)
    widths = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), dims.mlp)
    widths |= {"gate_up_proj": 2 * dims.mlp, "qkv_proj": dims.query + 2 * dims.key}
    width = max((widths.get(name, dims.query) for name in info.adapted), default=0)
    return 4 * info.rank * (dims.hidden + width + max(dims.hidden, width)) * bool(info.adapted)


def learned_tokens(info: ShapeInfo, micro_batch: int, tokens: int) -> int:
    """Tokens of a micro-batch whose loss counts, at most."""
    return micro_batch * min(tokens, tokens if info.learned is None else info.learned)


def _beside_the_host(info: ShapeInfo, saved: int, recompute: int, b: int) -> tuple[int, int]:
    """Bytes a token of what layers keep that is on the card when the host holds the rest: in the loss that of the last
    layer, and in the backward pass one layer in full with what the one before keeps."""
    layers = known_dims(info).layers
    kept = [recomputed_bytes_per_token(info, b)] * recompute + [saved] * (layers - recompute)
    return kept[-1], saved + (max(kept[:-1]) if layers > 1 else 0)


def offloaded_bytes(info: ShapeInfo, micro_batch: int, tokens: int, recompute: int, dtype_bytes: int = 2) -> int:
    """Bytes of what the layers of one micro-batch keep, which then lie on the host."""
    layers = known_dims(info).layers
    saved = saved_bytes_per_token(info, tokens, padded=micro_batch > 1, dtype_bytes=dtype_bytes)
    inputs = recomputed_bytes_per_token(info, dtype_bytes)
    return micro_batch * tokens * ((layers - recompute) * saved + recompute * inputs)


def slack_bytes(info: ShapeInfo, size: int) -> int:
    """What is counted beside `size` bytes that come and go where native kernels run: blocks of the pool that stand free
    at the peak, since others are of another size. No shape says how many; runs that were planned without this were up
    to 14 MB of 410 low, and a plan that is low is worse than one that is high."""
    return size // _SLACK if info.native.norms else 0


def _holes_bytes(info: ShapeInfo, number: int, kept_layers: int, kept: int) -> int:
    """Bytes of the holes in glibc's heap at the end of a forward pass, for `number` bytes of one number of all tokens
    and `kept` bytes.

    Blocks from 1 MB on are mapped by themselves, and native results lie in the pool from a quarter of that on. Smaller
    ones that soon go (as many as `_AT_ONCE` while positions are put into queries and keys) lie in the heap, and what a
    layer keeps of small tensors (the LoRA products, logarithms, the adapter's narrow copy; one that is computed again
    its random state) is put into the gaps that they leave, so that those of the next layer need new room. Where queries
    are too large for the heap and keys, which are narrower, are not, theirs do. Of items that are so long that their
    blocks are not there, shorter ones can still need more, in the layers that are not computed again. The sums of the
    hidden state are torch's in either case: where they are all that is left in the heap, one of a layer's two leaves a
    gap.
    """
    dims = known_dims(info)
    least, at_once = (POOLED, _NATIVE_AT_ONCE) if info.native.norms else (MAPPED, _AT_ONCE)
    block, keys = number * dims.query, number * dims.key
    if block < least:
        return dims.layers * at_once * block
    shorter = kept * (block - least) // block  # less is kept of items whose blocks are just small enough
    of_shorter = max(0, min(dims.layers, kept_layers + 1) * at_once * least - shorter)
    of_keys = dims.layers * (at_once - 1) * keys if keys < least else 0
    of_sums = dims.layers * number * dims.hidden if least <= number * dims.hidden < MAPPED else 0
    return max(of_shorter, of_keys, of_sums)


def heap_bytes(info: ShapeInfo, number: int) -> int:
    """Bytes of the top of glibc's heap that stay when one layer's blocks of less than 1 MB have gone (up to 8 MB are
    not returned: `memory.hold_little`), for `number` bytes of one number of all tokens, where nothing is kept."""
    dims = known_dims(info)
    query, key = number * dims.query, number * dims.key
    return _AT_ONCE * query if query < MAPPED else (_AT_ONCE - 1) * key if key < MAPPED else 0


def runtime_bytes(info: ShapeInfo, tokenizer_bytes: int | None = None) -> int:
    """Bytes of Python, its libraries and the tokenizer, whose file has `tokenizer_bytes` (None: not known)."""
    if tokenizer_bytes is None:
        tokenizer_bytes = TOKENIZER_ENTRY * (info.dims.vocabulary or 0 if info.dims is not None else 0)
    return RUNTIME_BYTES + round(TOKENIZER_FACTOR * tokenizer_bytes)


def running_bytes(info: ShapeInfo, tokenizer_bytes: int | None = None) -> int:
    """`runtime_bytes` of a process in which the model is at work."""
    return runtime_bytes(info, tokenizer_bytes) + WORKING_BYTES


def known_dims(info: ShapeInfo) -> Dimensions:
    """The dimensions. Raises ValueError for a family that is not modelled."""
    if info.dims is None:
        raise ValueError(info.unknown)
    return info.dims
