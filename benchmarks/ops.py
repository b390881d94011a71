"""The ops between the products: halfbyte's native ones beside torch's (here the peer) on the same tensors, of the
type that is computed in (compute.py).

Attention (a prompt, and one query a row over a cache), RMSNorm, the gate of the MLP, and the loss from the last hidden
states, head included. `relative_error` is the norm of the difference to torch's in fp32, by the norm of that: over the
result, or over all gradients. The limit of norm and gate is one pass over the same tensors, that of the loss the
products with the head alone.

    python benchmarks/ops.py
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common, compute, shapes
from benchmarks.common import Row

Function = Callable[..., Tensor]
Work = Callable[[], Sequence[Tensor]]
EPS = 1e-5
SIZES = {"tiny": (16, 2, 64), "1b": (512, 16, 1024), "8b": (512, 16, 1024)}  # tokens; rows and keys of a cache
FORWARD, BOTH = "forward", "forward and backward"


@dataclass
class Case:
    """The same work by halfbyte and by torch, on `inputs`; `gradient` of the result (None: no backward pass)."""

    op: str
    name: str
    halfbyte: Function
    torch: Function
    inputs: Sequence[Tensor]
    gradient: Tensor | None
    limits: Mapping[str, Callable[[], object]]  # by FORWARD and BOTH


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(compute.dtype())


def attention(model: dict[str, Any], tokens: int, rows: int, keys: int) -> Iterator[Case]:
    from halfbyte.model.attention import attend, describe

    heads, groups, width = model["num_attention_heads"], model["num_key_value_heads"], model["head_dim"]

    module = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True)  # what transformers' own asks for

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = describe(len(q), q.shape[2], k.shape[2], k.shape[2] - q.shape[2])
        return attend(module, q, k, v, mask)[0].transpose(1, 2)

    def torchs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True)

    def tensors(batch: int, queries: int, length: int) -> list[Tensor]:  # laid out as projections leave them
        sizes = (heads, queries), (groups, length), (groups, length)
        return [noise(batch, t, count, width, seed=n).transpose(1, 2) for n, (count, t) in enumerate(sizes)]

    yield Case("attention", f"{tokens} tokens", ours, torchs, tensors(1, tokens, tokens),
               noise(1, tokens, heads, width, seed=3).transpose(1, 2), {})  # fmt: skip
    for batch in (1, rows):
        name = f"{batch} x 1 query, {keys} keys"
        yield Case("attention", name, ours, torchs, tensors(batch, 1, keys), None, {})


def norm(model: dict[str, Any], tokens: int) -> Iterator[Case]:
    from halfbyte.kernels.norm import rms_norm

    width = model["hidden_size"]
    x, g, out, weight = noise(tokens, width), noise(tokens, width, seed=1), noise(tokens, width), noise(width, seed=2)
    yield Case("norm", f"{tokens} tokens", lambda x: rms_norm(x, weight, EPS, "narrow"),
               lambda x: F.rms_norm(x, (width,), weight.to(x.dtype), EPS), (x,), g,
               {FORWARD: lambda: out.copy_(x), BOTH: lambda: (out.copy_(x), torch.add(x, g, out=out))})  # fmt: skip


def gate(model: dict[str, Any], tokens: int) -> Iterator[Case]:
    from halfbyte.kernels.gate import gated

    gate, up, g, out = (noise(tokens, model["intermediate_size"], seed=n) for n in range(4))

    def once() -> object:
        return torch.add(gate, up, out=out)

    yield Case("gate", f"{tokens} tokens", lambda gate, up: gated(gate, up, "silu"),
               lambda gate, up: F.silu(gate) * up, (gate, up), g,
               {FORWARD: once, BOTH: lambda: (once(), once(), out.copy_(g))})  # fmt: skip


def loss(model: dict[str, Any], tokens: int) -> Iterator[Case]:
    from halfbyte.model.loss import LinearHead, next_token_loss

    vocabulary, width = model["vocab_size"], model["hidden_size"]
    hidden = noise(1, tokens, width, seed=1)
    stored = (noise(vocabulary, width) * 0.02).bfloat16()  # as halfbyte keeps it, whatever it computes in
    head = stored.to(hidden.dtype)
    labels = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(2))
    kept = hidden[0, 1:]

    def ours(hidden: Tensor) -> Tensor:
        return next_token_loss(hidden, labels, LinearHead(stored))

    def torchs(hidden: Tensor) -> Tensor:
        logits = F.linear(hidden[0, :-1], head.to(hidden.dtype)).float()
        return F.cross_entropy(logits, labels[0, 1:], reduction="sum")

    def products() -> object:
        return F.linear(kept, head) @ head

    yield Case("loss", f"{tokens} tokens, {vocabulary} words", ours, torchs, (hidden,), torch.tensor(1.0),
               {FORWARD: lambda: F.linear(kept, head), BOTH: products})  # fmt: skip


def works(function: Function, inputs: Sequence[Tensor], gradient: Tensor | None) -> dict[str, Work]:
    """The passes of `function`, each of which returns what it made: the result, or the gradients of the inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]

    def forward() -> Sequence[Tensor]:
        with torch.no_grad():
            return [function(*leaves)]

    def both() -> Sequence[Tensor]:
        return torch.autograd.grad(function(*leaves), leaves, gradient)

    return {FORWARD: forward} if gradient is None else {FORWARD: forward, BOTH: both}


def relative_error(made: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    a, b = (torch.cat([tensor.detach().double().flatten() for tensor in part]) for part in (made, right))
    return float((a - b).norm() / b.norm())


def rows(case: Case, shape: str, rounds: int, seconds: float) -> Iterator[Row]:
    """Of each pass: seconds of everybody, and the errors."""
    contenders = {"halfbyte": case.halfbyte, "peer": case.torch}
    passes = {who: works(function, case.inputs, case.gradient) for who, function in contenders.items()}
    wide = None if case.gradient is None else case.gradient.float()
    exact = works(case.torch, [tensor.float() for tensor in case.inputs], wide)
    for what, run in exact.items():
        name = f"{case.name}, {what}"
        right = run()
        for who in contenders:
            error = relative_error(passes[who][what](), right)
            yield Row(case.op, shape, name, who, "relative_error", (error,))
        del right
        work: dict[str, Callable[[], object]] = {who: passes[who][what] for who in contenders}
        if what in case.limits:
            work["limit"] = case.limits[what]
        for who, values in common.in_turns(work, rounds, seconds).items():
            yield Row(case.op, shape, name, who, "seconds", tuple(values))


def main(given: Sequence[str] | None = None) -> None:
    common.quiet()
    wanted = {"nargs": "*", "choices": list(shapes.SHAPES), "default": ["1b", "8b"], "help": "of models (%(default)s)"}
    options = common.arguments(__doc__, given, rounds=9, seconds=4.0, shapes=wanted)
    table = common.Table(options.results / "ops.csv")
    for shape in options.shapes:
        model, (tokens, batch, keys) = shapes.SHAPES[shape], SIZES[shape]
        for cases in (
            attention(model, tokens, batch, keys),
            norm(model, tokens),
            gate(model, tokens),
            loss(model, tokens),
        ):
            for case in cases:
                table.add(rows(case, shape, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
