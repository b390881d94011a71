"""A checkpoint as a plain transformers model: packed weights decoded, everything in one dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte import kernels
from halfbyte.checkpoint.load import load_state
from halfbyte.checkpoint.skeleton import skeleton
from halfbyte.checkpoint.source import open_checkpoint

IDS = torch.arange(40).reshape(2, 20) * 7 % 320


def plain_model(folder: Path, dtype: torch.dtype | None = None) -> Any:
    """The model with its values, as `dtype` (None: as stored)."""
    checkpoint = open_checkpoint(str(folder))
    model = skeleton(checkpoint)
    for name, value in load_state(checkpoint, model).items():
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        if not isinstance(value, Tensor):
            value = kernels.dequantise(value, dtype or torch.bfloat16)
        value = value.to(dtype) if dtype and value.is_floating_point() else value
        if last in module._parameters:
            module._parameters[last] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[last] = value
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if dtype and buffer is not None and "embed_scale" in name:
                module._buffers[name] = buffer.to(dtype)
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Logits [2, 20, V] of fixed tokens, in fp32."""
    return model(IDS).logits.float()  # type: ignore[no-any-return]
