"""What Triton's interpreter lacks to run Liger-Kernel's kernels: Python's floats as numbers of fp32, and libdevice.

It multiplies numbers in bf16 as if their bits were integers, which nothing here mends: bf16 is left out.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

WHY_NOT = (
    "there is no triton for this system"
    if importlib.util.find_spec("triton") is None
    else "liger-kernel is not installed"
    if importlib.util.find_spec("liger_kernel") is None
    else ""
)
INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"


def mend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter run Liger-Kernel's kernels; nothing where they are compiled for a card."""
    if not INTERPRETED:
        return
    import triton.language as tl
    from liger_kernel.ops import cross_entropy, geglu, rms_norm
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def with_floats(argument: Any) -> Any:
        if type(argument) is not float:
            return convert(argument)
        return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)

    def device(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def computed(x: Any) -> Any:
            return tl.tensor(interpreter.TensorHandle(function(x.handle.data), x.handle.dtype), x.type)

        return computed

    monkeypatch.setattr(interpreter, "_implicit_cvt", with_floats)
    monkeypatch.setattr(rms_norm, "rsqrt", device(lambda x: 1 / np.sqrt(x)))
    for module in (geglu, cross_entropy):
        monkeypatch.setattr(module, "tanh", device(np.tanh))
