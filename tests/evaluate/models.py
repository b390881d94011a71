"""Tiny models for the tests of this folder: transformers' own in fp32, behind the interface that stages see."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from halfbyte.model.build import Model
from tests.tiny import tiny_checkpoint


@cache
def plain_model(family: str = "llama", **options: Any) -> Model:
    """A random model of `family`; shared by all tests, so don't change it."""
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_checkpoint(family, Path(folder), "float32", **options)
        net = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(path)
    return Model(net=net, tokenizer=tokenizer, name=f"tiny-{family}", path=path, weights="fp32", dtype=torch.float32,
                 device=torch.device("cpu"), device_reason="a test", fingerprint="none")  # fmt: skip
