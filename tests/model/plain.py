"""transformers' own model in fp32, beside which ours are put."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from halfbyte.model.adapter import quant_linears
from halfbyte.model.build import Model

IDS = torch.tensor([[3, 17, 40, 9, 77, 5, 102, 31, 8, 64], [7, 7, 81, 200, 12, 90, 3, 45, 6, 11]])


def plain(model: Model, source: Path) -> Any:
    """The model at `source` with the values as stored, its linear layers as `model` decodes them, adapter merged."""
    net = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for name, layer in quant_linears(model.net).items():
        net.set_submodule(name, layer.fuse(torch.float32))
    return net.eval()
