"""The operations of a run, counted from shapes: units of work whose price `doctor --calibrate` measures.

A unit is something whose time grows with its count alone: a call, a weight that is decoded, a multiplication, a byte
moved. One list of units an operation serves both the fit of the measured times and the prediction, so that neither can
count what the other does not.

Legend: T tokens at once, O and I a matrix' outputs and inputs, R rank, H hidden, V vocabulary, b bytes of a
number in an activation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.plan.shapes import Dimensions
from halfbyte.targets import select_targets

FEW = 16  # rows up to which the kernels read a matrix row by row (halfbyte.kernels.product.cpu.FEW)
CHUNK = 256  # tokens whose logits are there at once (halfbyte.model.loss.CHUNK)
_READS_EMBEDDING = re.compile(r"(^|\.)layers\.0\.self_attn\.(q|k|v|qkv)_proj$")


@dataclass(frozen=True)
class Work:
    """What the operations of a model are counted from. `matrices` counts (O, I, adapted) over all layers."""

    dims: Dimensions
    matrices: Mapping[tuple[int, int, bool], int]
    last: tuple[int, int]  # a layer's last matrix (down), which is not multiplied again where it is recomputed
    first: Mapping[tuple[int, int, bool], int]  # of the first layer q, k and v, whose inputs want no gradient
    rank: int
    windows: Mapping[int | None, int]  # layers by the width of their window; None: they see everything
    capped: bool  # attention's scores go through a soft cap
    capped_head: bool  # logits go through a soft cap
    adapted: int  # matrices with an adapter
    parameters: int  # of the adapter


def work(
    linears: Mapping[str, tuple[int, int]], dims: Dimensions, rank: int, targets: str | Sequence[str],
    config: Mapping[str, Any],
) -> Work:  # fmt: skip
    """Of the linear layers by name, in whatever order the files hold them."""
    chosen = set(select_targets(targets, list(linears), where="adapter.targets"))
    shapes = {name: (*shape, name in chosen) for name, shape in linears.items()}
    return Work(
        dims=dims,
        matrices=Counter(shapes.values()),
        last=(dims.hidden, dims.mlp),
        first=Counter(shape for name, shape in shapes.items() if _READS_EMBEDDING.search(name)),
        rank=rank,
        windows=windows(config, dims.layers),
        capped=bool(config.get("attn_logit_softcapping")),
        capped_head=bool(config.get("final_logit_softcapping")),
        adapted=len(chosen),
        parameters=sum(rank * (shapes[name][0] + shapes[name][1]) for name in chosen),
    )


def windows(config: Mapping[str, Any], layers: int) -> dict[int | None, int]:
    """How many layers see how many positions back, as config.json says, or as its family has it by default."""
    width, kinds = config.get("sliding_window"), config.get("layer_types")
    if not width or config.get("use_sliding_window") is False:
        return {None: layers}
    if isinstance(kinds, list):
        sliding = sum(kind == "sliding_attention" for kind in kinds)
    else:
        every = {"gemma2": 2, "gemma3_text": int(config.get("sliding_window_pattern") or 6), "olmo3": 4}
        whole = every.get(str(config.get("model_type")))  # one layer in so many sees everything
        sliding = layers - layers // whole if whole else layers
    return {None: layers - sliding, int(width): sliding}


def product(tokens: int, outputs: int, inputs: int, rank: int = 0) -> dict[str, float]:
    """A linear layer over `tokens` rows, with a LoRA pair of `rank` (0: without)."""
    ends = outputs + inputs
    return {
        "call": 1,
        "weight": outputs * inputs,
        "multiplication": tokens * outputs * inputs,
        "pair": rank > 0,
        "pair_element": tokens * ends * (rank > 0),
        "pair_multiplication": tokens * rank * ends,
    }


def attention(
    batch: int, heads: int, kv_heads: int, head_dim: int, queries: int, keys: int, window: int | None = None,
    capped: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Causal attention of the last `queries` of `keys` positions; `capped`: scores go through tanh."""
    first = keys - queries + 1
    if window is None or window >= keys:
        seen = (first + keys) * queries / 2
    else:
        short = max(0, min(queries, window - first + 1))
        seen = (first + first + short - 1) * short / 2 + (queries - short) * window
    return {
        "call": 1,
        "element": batch * head_dim * (2 * heads * queries + 2 * kv_heads * keys),
        "score": batch * heads * seen,
        "multiplication": batch * heads * seen * head_dim,
        "cap": batch * heads * seen * capped,
    }


def rest(dims: Dimensions, tokens: int, b: int) -> dict[str, float]:
    """Of a layer what is neither a linear layer nor attention: norms, gate, residual sums, rotary positions, Python."""
    norms = 2 * len(dims.family.norms) * dims.hidden + 2 * bool(dims.family.qk_norm) * (dims.query + dims.key)
    moved = norms + 6 * dims.hidden + 3 * dims.mlp + 8 * (dims.query + dims.key)
    return {"call": 1, "byte": b * tokens * moved}


def loss(tokens: int, vocabulary: int, hidden: int, capped: bool = False) -> dict[str, float]:
    """Head and cross-entropy of `tokens` learned tokens, forward and backward; `capped`: the logits are."""
    chunks = -(-tokens // CHUNK)
    return {
        "call": chunks,
        "weight": chunks * vocabulary * hidden,
        "multiplication": 2 * tokens * vocabulary * hidden,
        "logit": tokens * vocabulary,
        "cap": tokens * vocabulary * capped,
    }


def optimiser(tensors: int, parameters: int) -> dict[str, float]:
    """AdamW, the gradient's norm, and setting gradients to zero."""
    return {"tensor": tensors, "parameter": parameters}


def packing(source_bytes: int, tensors: int) -> dict[str, float]:
    """Reading a checkpoint, quantising it and writing the packed one."""
    return {"call": 1, "tensor": tensors, "byte": source_bytes}


def multiplications(work: Work, tokens: int, recomputed: int) -> float:
    """Multiplications with the layers' matrices in a pass forward and backward over `tokens`: what time follows from
    where nothing was measured, as a ratio of two settings of one model."""
    layers = work.dims.layers
    once = sum(count * outputs * inputs for (outputs, inputs, _), count in work.matrices.items())
    again = recomputed * (once / layers - work.last[0] * work.last[1])
    head = 2 * (work.dims.vocabulary or 0) * work.dims.hidden
    return tokens * (2 * once + again + head)
