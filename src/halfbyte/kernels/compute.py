"""The type that activations have and products are computed in, and why.

Many processors have no instructions for bf16. Where there are native products for it nevertheless (AVX2, VNNI: by
16-bit integers) they are the faster ones; elsewhere bf16 is emulated, several times slower than fp32. Names of
processors tell little about that, so it is measured: two products of a fixed size as layers make them, a few times each
by turns, the best time of each.

Weights stay as they are stored, in every type: a vocabulary matrix is looked up or multiplied by tiles and never
copied. Every bf16 and fp16 number is an fp32 number, so fp32 loses nothing. bf16 has three bits less than fp16: what an
fp16 checkpoint keeps in 16 bits is rounded when it is used, as every activation is. Where the linear layers are
quantised, that is far below what quantising does to them; where they are not, an fp16 checkpoint computes in fp32
unless asked otherwise, since the 16-bit model is what others are compared with.

int8 is never chosen, only asked for: activations are bf16, and rows and packed weights become bytes for their product
(kernels/product_int8), at the price of about 1 % of error in each where bf16 makes 0.2 %.
"""

from __future__ import annotations

import functools
import itertools
import time
from dataclasses import dataclass

import torch

from halfbyte import kernels
from halfbyte.errors import ConfigError, nearest
from halfbyte.formats import COMPUTE, QUANTISED, check_int8, without_bf16
from halfbyte.kernels import product_int8

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "int8": torch.bfloat16}
MARGIN = 1.25  # fp32 takes twice the memory, so it must be that much faster
SLOWER = "as asked, though bf16 is faster here: this processor multiplies it in AMX tiles"
_SHAPE = (512, 1024, 512)  # rows, in, out: 0.54 GFLOP, some 30 ms where bf16 is emulated
_ROUNDS, _SECONDS = 20, 0.1  # of the measurement, at most
_SURE = 0.5  # seconds before bf16 is called slow: on a busy machine a product now and then has to wait


@dataclass(frozen=True)
class Compute:
    """The compute type by its name in `config.py`, and the reason for it."""

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]


@dataclass(frozen=True)
class Measured:
    """Seconds that one product of a fixed size takes on the CPU."""

    bf16: float
    fp32: float

    @property
    def bf16_is_slow(self) -> bool:
        return self.fp32 * MARGIN < self.bf16

    def __str__(self) -> str:
        return f"a product took {1e3 * self.bf16:.2f} ms in bf16 and {1e3 * self.fp32:.2f} ms in fp32"


def compute_name(dtype: torch.dtype) -> str:
    """The name of a compute type in `config.py`."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def choose_compute(
    asked: str, device: torch.device, stored: torch.dtype, weights: str, family: str = ""
) -> Compute:  # fmt: skip
    """The compute type on `device` for a model that keeps what is not quantised as `stored`, its layers as `weights`.

    `family` is the model_type of its config.json, for cards without bf16 (`formats.without_bf16`).

    Raises ConfigError for an `asked` that is none, or that the device does not have.
    """
    if asked not in COMPUTE:
        raise ConfigError("unknown compute type", where="compute", found=repr(asked), do=nearest(asked, COMPUTE))
    cuda = device.type == "cuda"
    if asked == "int8":
        check_int8(product_int8.missing(device), weights)
    if asked != "auto":
        if cuda and asked == "bf16" and not _card_has_bf16(device):
            name = torch.cuda.get_device_name(device)
            raise ConfigError(
                "this card has no bf16", where="compute", found=name, do="use compute: auto, fp16 or fp32"
            )
        return Compute(asked, SLOWER if asked == "int8" and product_int8.is_slower(device) else "as asked")
    if stored == torch.float32:
        return Compute("fp32", "the checkpoint is in fp32")
    if cuda:
        return _on_card(device, stored, weights, family)
    if stored == torch.float16 and weights not in QUANTISED:
        return Compute("fp32", "the checkpoint is in fp16, which fp32 holds exactly and bf16 does not")
    return fastest()


def fastest() -> Compute:
    """bf16 unless fp32 is clearly faster on this CPU: measured once in a process."""
    took = measured()
    if took.bf16_is_slow:
        return Compute("fp32", f"bf16 is slow here: {took}")
    faster = (
        "faster than fp32 here" if took.bf16 < took.fp32 else f"half the memory, and fp32 is not {MARGIN} times as fast"
    )
    return Compute("bf16", f"{faster}: {took}")


@functools.cache
@torch.inference_mode()
def measured() -> Measured:
    """Time both products, by turns, so that whatever else the machine does meets both."""
    rows, inner, columns = _SHAPE
    best: dict[torch.dtype, float] = {}
    work = {}
    for dtype in (torch.float32, torch.bfloat16):
        work[dtype] = (torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=torch.bfloat16),
                       torch.empty(rows, columns, dtype=dtype))  # fmt: skip
        _time(*work[dtype])  # the first one prepares code and threads
    started = time.perf_counter()
    for done in itertools.count(1):
        for dtype, tensors in work.items():
            best[dtype] = min(best.get(dtype, float("inf")), _time(*tensors))
        found, took = Measured(bf16=best[torch.bfloat16], fp32=best[torch.float32]), time.perf_counter() - started
        if took > _SURE or (not found.bf16_is_slow and (done >= _ROUNDS or took > _SECONDS)):
            break
    return found


def _time(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> float:
    started = time.perf_counter()
    kernels.linear(x, weight, out=out)
    return time.perf_counter() - started


def _on_card(device: torch.device, stored: torch.dtype, weights: str, family: str) -> Compute:
    name = torch.cuda.get_device_name(device)
    if stored == torch.float16:
        return Compute("fp16", f"the checkpoint is in fp16, which {name} has")
    if _card_has_bf16(device):
        return Compute("bf16", f"{name} has it")
    chosen, reason = without_bf16(str(stored).removeprefix("torch."), family, weights)
    return Compute(chosen, f"{name} has no bf16, so {chosen}: {reason}")


def _card_has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
