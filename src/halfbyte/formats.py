"""The number formats: code tables, block layout and byte arithmetic. Pure Python, so that `plan` needs no torch.

Both layouts are those of bitsandbytes, so that its checkpoints open here and ours open there.

NF4 (QLoRA, Dettmers et al. 2023, arXiv:2305.14314): the weights of a tensor in row-major order, in blocks of 64; each
block is divided by its largest magnitude (absmax), each quotient becomes the nearest of 16 levels, two 4-bit codes a
byte, the first weight in the high nibble. Double quantisation stores the absmax values in 8 bits: their mean
(`offset`) is subtracted, the rest is quantised in blocks of 256 to the dynamic code table (Dettmers 2015,
arXiv:1511.04561) with one fp32 absmax a block.

int8 (LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339, without the outlier columns): each row divided by its
absmax, times 127, rounded to the nearest integer.

The code tables stand here and nowhere else; kernels receive them.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from halfbyte.errors import CheckpointError, ConfigError

Weights = Literal["nf4", "nf4-single", "int8", "bf16", "fp32"]
WEIGHTS: tuple[Weights, ...] = ("nf4", "nf4-single", "int8", "bf16", "fp32")
COMPUTE = ("auto", "bf16", "fp16", "fp32", "int8")  # of activations and products; int8: products with packed weights
FP16_OVERFLOWS = "gemma"  # families of that name have activations over 65504, the largest fp16
QUANTISED: tuple[Weights, ...] = ("nf4", "nf4-single", "int8")

BLOCKSIZE = 64  # weights that share an absmax
NESTED_BLOCKSIZE = 256  # absmax values that share a nested absmax

# Quantiles of a normal distribution, scaled to [-1, 1], with an exact zero: appendix E of the QLoRA paper.
NF4_CODE: tuple[float, ...] = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def _f32(value: float) -> float:
    """`value` rounded to the nearest float32."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _dynamic_code() -> tuple[float, ...]:
    """The signed 8-bit dynamic table: 0, 1, and in decade i of 10^-6..10^0 the midpoints of 2^i steps of [0.1, 1].

    Every operation is rounded to float32 as torch does it, so that the table equals bitsandbytes' to the bit.
    """
    tenth, table = _f32(0.1), [0.0, 1.0]
    for decade in range(7):
        steps = 2**decade
        step = _f32(_f32(1.0 - tenth) / steps)
        # linspace counts its first half from the start and its second half from the end
        bounds = [_f32(tenth + step * k if 2 * k < steps else 1.0 - step * (steps - k)) for k in range(steps + 1)]
        for low, high in itertools.pairwise(bounds):
            level = _f32(_f32(_f32(low + high) / 2.0) * _f32(10.0 ** (decade - 6)))
            table += [level, -level]
    return tuple(sorted(table))


DYNAMIC_CODE: tuple[float, ...] = _dynamic_code()


@dataclass(frozen=True)
class PackedBytes:
    """What one quantised matrix takes on disk and in memory, in bytes."""

    codes: int
    absmax: int = 0
    nested_absmax: int = 0
    tables: int = 0  # code tables, stored once a tensor

    @property
    def constants(self) -> int:
        return self.absmax + self.nested_absmax


def packed_bytes(weights: Weights, rows: int, columns: int) -> PackedBytes:
    """Bytes of a `rows` x `columns` matrix in the format `weights` (one of `QUANTISED`)."""
    n = rows * columns
    blocks = -(-n // BLOCKSIZE)
    if weights == "int8":
        return PackedBytes(codes=n, absmax=4 * rows)
    if weights == "nf4-single":
        return PackedBytes(codes=-(-n // 2), absmax=4 * blocks, tables=4 * len(NF4_CODE))
    if weights == "nf4":
        nested = -(-blocks // NESTED_BLOCKSIZE)
        tables = 4 * (len(NF4_CODE) + len(DYNAMIC_CODE))
        return PackedBytes(codes=-(-n // 2), absmax=blocks, nested_absmax=4 * nested, tables=tables)
    raise ValueError(f"{weights!r} is no quantised format; there are {QUANTISED}")


MOMENT_BLOCKSIZE, LEAST_8BIT = 256, 4096  # numbers of a block of AdamW's 8-bit moments; of the least matrix with them


def moment_bytes(optimiser: str, sizes: Iterable[int]) -> int:
    """What AdamW's two moments weigh for matrices of so many numbers: "adamw", or "adamw8bit" (bitsandbytes')."""
    narrow = optimiser == "adamw8bit"
    return sum(2 * n + 8 * -(-n // MOMENT_BLOCKSIZE) if narrow and n >= LEAST_8BIT else 8 * n for n in sizes)


SLOT_ALIGNMENT = 256  # bytes: where a tensor begins among others that are copied to a card at once


def aligned(size: int) -> int:
    """The bytes that a tensor of `size` bytes takes there."""
    return -(-size // SLOT_ALIGNMENT) * SLOT_ALIGNMENT


COPIED_BYTES = 256_000_000  # that are converted, unasked, to another compute type than the stored one


def without_bf16(dtype: str, family: str, weights: str) -> tuple[str, str]:
    """What `compute: auto` is on a card without bf16, and why, for a checkpoint stored as `dtype` (torch's name) of a
    `family` (config.json's model_type) whose layers are in the format `weights`."""
    if dtype == "float16":
        return "fp16", "the checkpoint is in fp16"
    if weights not in QUANTISED:
        return "fp32", "which holds the checkpoint's bf16 exactly"
    if family.startswith(FP16_OVERFLOWS):
        return "fp32", f"activations of {family} pass 65,504, the largest fp16"
    return "fp16", ("its products sum in fp32, and training scales the loss against underflow; "
                    "should activations pass 65,504, use compute: fp32")  # fmt: skip


def packed_otherwise(packed: str, weights: str, where: object) -> CheckpointError:
    """What to raise for a checkpoint that is packed in another format than is asked for."""
    return CheckpointError(
        f"this checkpoint is packed as {packed} and can't become {weights}", where=where,
        do=f"use it as it is (weights {packed}), or start from the model's 16-bit checkpoint",
    )  # fmt: skip


def check_int8(missing: str, weights: str) -> None:
    """Raise ConfigError where `compute: int8` can't be had: for what is `missing` on this device, or with `weights`."""
    if missing:
        raise no_int8(missing)
    if weights not in QUANTISED:
        raise ConfigError("compute: int8 multiplies packed weights", where="compute", found=f"weights: {weights}",
                          do="use weights: nf4 or int8, or compute: auto")  # fmt: skip


def no_int8(found: str) -> ConfigError:
    """What to raise where there are no products in int8, for the reason `found`."""
    return ConfigError("int8 products need the native library and a processor with AVX512-VNNI", where="compute",
                       found=found, do="use compute: auto, which is as good or better in all but speed")  # fmt: skip
