"""What every test gets: no network, no user's cache, and on request (HALFBYTE_NO_SKIP) no skipping."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # they share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # beside other work; read when torch is imported
# Read when triton is imported, which other libraries do, too. With a card: TRITON_INTERPRET=0 pytest tests/kernels
os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's COLUMNS, in which what is printed would be wrapped: libraries set it, too, for all tests after."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True, scope="module")
def _short_collections() -> None:
    """A run collects garbage at every phase; what is left of earlier modules is not looked through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fast_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures don't depend on what this machine is fast at: `compute: auto` finds bf16 the faster one."""
    from halfbyte.kernels import compute
    from halfbyte.model import assemble
    from halfbyte.plan import compute as planned
    from halfbyte.plan import devices

    monkeypatch.setattr(compute, "measured", lambda: compute.Measured(bf16=0.001, fp32=0.002))
    monkeypatch.setattr(devices, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(planned, "has_bf16", lambda: True)
    monkeypatch.setattr(assemble, "torch_is_slow_in_bf16", lambda device: False)


@pytest.fixture
def int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """`compute: int8` on every machine: where the processor can't, by the reference."""
    from torch import Tensor

    from halfbyte.kernels import product_int8
    from halfbyte.kernels.product_int8 import cpu, reference

    def plain(x: Tensor, weight: Any, bias: Any, pair: Any, transposed: bool, out: Tensor | None = None) -> Tensor:
        y = reference.linear_transposed(x, weight, pair) if transposed else reference.linear(x, weight, bias, pair)
        return y if out is None else out.copy_(y)

    if product_int8.missing():
        monkeypatch.setattr(product_int8, "missing", lambda device="cpu": "")
        monkeypatch.setattr(cpu, "int8", plain)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("HALFBYTE_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and nothing may be skipped here: {report.longrepr}"
    return report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
