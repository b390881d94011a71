"""The Triton kernels compile for cards of two generations, which takes no card: to the machine code of each."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

CODE = """
import re, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from halfbyte.kernels.dequantise import gpu as dequantise
from halfbyte.kernels.product import gpu as product
from halfbyte.kernels.quantise import gpu as quantise

capability = int(sys.argv[1])
bf16, numbers = (1, "*i16") if capability >= 80 else (2, "*i16")
TYPES = {"codes_ptr": "*u8", "absmax_ptr": "*u8", "offset": "fp32", "tiny": "fp32", "lookup_ptr": "*u8",
         **dict.fromkeys(("weight_ptr", "out_ptr", "x_ptr", "bias_ptr", "h_ptr", "b_ptr", "y_ptr"), numbers)}

def compile(kernel, constants, exact=True, **types):
    types = {name: TYPES.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in kernel.arg_names} | types
    signature = {name: "constexpr" if name in constants else kind for name, kind in types.items()}
    divisible = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(kernel.arg_names)
                 if name not in constants and signature[name] != "fp32"}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()}, divisible)
    options = {"enable_fp_fusion": False} if exact else {"num_stages": 1}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    code = made.asm["ptx"]
    assert "div.full" not in code and (not exact or "fma." not in code), made.name
    assert made.asm["cubin"], made.name
    return code

for nested in (True, False):
    code = compile(dequantise._nf4, {"NESTED": nested, "HOW": bf16, "BLOCKS": dequantise.BLOCKS},
                   absmax_ptr="*u8" if nested else "*fp32")
    assert "ld.global.v4" in code and "st.global.v4" in code  # 16 bytes at once, coalesced
    assert ("cvt.rn.bf16" in code) == (capability >= 80)
compile(dequantise._int8, {"HOW": bf16, "ROWS": dequantise.ROWS, "WIDTH": dequantise.WIDTH}, codes_ptr="*i8")
for ragged, blocks in ((False, quantise.BLOCKS), (True, 1)):
    code = compile(quantise._nf4, {"LARGEST": quantise._LARGEST, "RAGGED": ragged, "HOW": bf16, "BLOCKS": blocks},
                   absmax_ptr="*fp32")
    assert "div.rn.f32" in code
compile(quantise._absmax, {"BLOCKS": quantise.NESTED_BLOCKS}, absmax_ptr="*fp32")
compile(quantise._int8, {"F16_MAX": quantise.F16_MAX, "HOW": bf16, "ROWS": quantise.ROWS, "WIDTH": quantise.WIDTH},
        codes_ptr="*i8")
how, numbers = (1, "*i16") if capability >= 80 else (0, "*fp16")
types = dict.fromkeys(("x_ptr", "bias_ptr", "h_ptr", "b_ptr", "y_ptr"), numbers)
for dot in (False, True) if capability >= 80 else (False,):
    outs, step, _ = product.TILES["dot" if dot else "sums"]
    shared = {"BIAS": True, "HOW": how, "DOT": dot, "M": 16 if dot else 1, "OUTS": outs}
    code = compile(product._nf4, {"NESTED": True, "BLOCKS": step // 64, **shared}, exact=False, **types)
    assert ("mma" in code) == dot
    compile(product._int8, {"STEP": step, **shared}, exact=False, codes_ptr="*i8", **types)
print("compiled")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no triton for this system")
@pytest.mark.parametrize("capability", ["75", "90"], ids=["T4", "H100"])
def test_kernels_compile_and_round_as_the_format_demands(capability: str, tmp_path: object) -> None:
    """No fused multiply-add and no approximate division where bits count; loads of 16 bytes; tensor cores for many."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, "-c", CODE, capability], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "compiled", done.stderr[-3000:]
