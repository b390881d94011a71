"""Items end to end in one row, instead of padded to the longest of them: whether a model can, and how.

Method: transformers' own. Positions begin anew with each item, and where no mask and no cache is given, its mask
functions make of them one by which an item sees itself alone. halfbyte's attention reads from it where the items begin
and computes each by itself (`attention.py`), natively or by torch's fused attention, so nothing grows with the square
of the row. On a card with flash-attn, transformers' "flash_attention_2" does the same in one call. Norms, products and
the loss do not know of items.

Families differ in what they hand to these functions, and some mix tokens elsewhere (convolutions, states). So it is
tried when a run begins: two short items in a row must give the hidden states that each gives alone. A sliding window is
longer than they are, and gradients are not looked at; tests do both for the families that they have.

Rejected: one mask for the row, as large as its tokens squared, which rules out the fused attention that takes none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from halfbyte.kernels.choice import choose
from halfbyte.memory import ran_out
from halfbyte.model.attention import NAME, register, uncovered

FLASH = "flash_attention_2"  # transformers' name of it
_LENGTHS = (7, 5)  # of the items that are tried
_NEAR = {torch.float32: 1e-3, torch.float16: 2**-4, torch.bfloat16: 2**-3}  # of the norm: many layers round


def find_way(model: Any) -> tuple[str, str]:
    """The attention (transformers' name of it) by which the items of a micro-batch can stand in one row, "" if there is
    none; and why there is none, or not a better one. Runs the model on two short items."""
    net = model.net
    if reason := uncovered(net):
        return "", reason
    if choose(model.device).isa is None and getattr(net.config, "attn_logit_softcapping", None):
        return "", "plain PyTorch has no fused attention with a soft cap"
    worse = reason = ""
    for way in _ways(model):
        try:
            with packed_attention(model, way):
                reason = _differs(model)
        except Exception as error:  # whatever a flash-attn that does not fit this card or this torch raises
            if ran_out(error):
                raise
            reason = f"{way} can't be used here: {' '.join(str(error).split())[:200]}"
        if not reason:
            return way, worse
        worse = reason
    return "", reason


@contextmanager
def packed_attention(model: Any, way: str = "") -> Iterator[None]:
    """Let `model` compute with an attention that knows of items in a row (by default the one that was found for it),
    and with its own again after it."""
    net = model.net
    before = str(net.config.get_text_config()._attn_implementation)
    wanted = way or model.packs_with or _ways(model)[0]
    if wanted == before:
        yield
        return
    register()
    net.set_attn_implementation(wanted)
    try:
        yield
    finally:
        net.set_attn_implementation(before)


def _ways(model: Any) -> list[str]:
    """The attentions to try, best first."""
    narrow = model.device.type == "cuda" and model.dtype in (torch.float16, torch.bfloat16)
    there = importlib.util.find_spec("flash_attn") is not None
    return [FLASH, NAME] if narrow and there and getattr(model.net, "_supports_flash_attn", False) else [NAME]


@torch.no_grad()
def _differs(model: Any) -> str:
    """Whether two items in a row give other hidden states than each alone."""
    net, make = model.net, torch.Generator().manual_seed(0)
    training, size = net.training, int(net.config.get_text_config().vocab_size)
    items = [torch.randint(size, (1, length), generator=make).to(model.device) for length in _LENGTHS]
    positions = torch.cat([torch.arange(length) for length in _LENGTHS])[None].to(model.device)
    net.eval()
    try:
        row = model.hidden(torch.cat(items, dim=1), None, positions).float()
        alone = torch.cat([model.hidden(item) for item in items], dim=1).float()
    finally:
        net.train(training)
    off = (row - alone).norm(dim=-1).max() / alone.norm(dim=-1).max()
    return "" if bool(off <= _NEAR[model.dtype]) else "items in a row do not give what each gives alone"
