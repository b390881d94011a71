"""What MKL keeps, against what it writes to when it multiplies."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from halfbyte.plan.native import has_fp32_products
from halfbyte.plan.panels import Product, kept_bytes

_WRITTEN = """
import ctypes, json, sys, torch
from pathlib import Path
products, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
pairs = [(torch.ones(m, k), torch.ones(n, k).T, torch.ones(m, n)) for m, n, k in products]
def work():
    for x, matrix, out in pairs:
        torch.mm(x, matrix, out=out)
work()  # what stays whatever is multiplied
library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))))
library.mkl_serv_free_buffers()
ctypes.CDLL(None).malloc_trim(0)
before = anonymous()
work()
print(anonymous() - before)
"""
_QWEN2: list[Product] = [(512, 896, 896), (512, 4864, 896), (512, 896, 4864), (18, 32768, 896), (18, 896, 32768)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "products",
    [
        [(512, 16, 8192), (512, 8192, 16), (16, 8192, 512)],  # of a matrix with an adapter
        [(512, 64, 8192), (512, 8192, 64), (64, 8192, 512)],
        [(256, 64, 4096), (256, 4096, 64), (64, 4096, 256)],
        [(64, 16, 8192), (64, 8192, 16), (16, 8192, 64)],
        [(4, 4864, 896)],  # as in decoding
        _QWEN2,  # each is too large for what the ones before left
        _QWEN2[::-1],  # none is
    ],
)
def test_mkl_writes_to_as_much_memory_as_is_planned(products, threads):
    if not has_fp32_products() or not torch.backends.mkl.is_available():
        pytest.xfail("what MKL writes to is known for AVX2 alone")
    done = subprocess.run([sys.executable, "-c", _WRITTEN, json.dumps([products, threads])],
                          capture_output=True, text=True, check=True)  # fmt: skip
    planned = kept_bytes(products, threads)
    assert 0.85 * planned - 300_000 <= int(done.stdout) <= planned + 300_000


def test_what_is_kept_depends_on_the_order():
    small, large = (512, 896, 896), (512, 4864, 896)
    assert kept_bytes([large, small], 2) == kept_bytes([large], 2)
    assert kept_bytes([small, large], 2) == kept_bytes([small], 2) + kept_bytes([large], 2)


def test_more_threads_keep_no_less():
    product = (512, 14336, 4096)
    assert kept_bytes([product], 1) < kept_bytes([product], 2) < kept_bytes([product], 4) == kept_bytes([product], 64)
