"""The native library of this package, by ctypes: how it is found, and its functions behind typed ones.

Nothing here checks shapes: what arrives is contiguous, lies on the CPU and went through `PackedWeight` or the checks of
the op's public function. ctypes releases the interpreter's lock during a call.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from ctypes import c_char_p, c_float, c_int, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from halfbyte.environment import ISAS as ISAS
from halfbyte.environment import NATIVE_INTERFACE
from halfbyte.formats import BLOCKSIZE, NESTED_BLOCKSIZE
from halfbyte.kernels import tables
from halfbyte.kernels.packed import Int8Weight, NF4Weight

ISA_NAMES = {"portable": "portable code", "avx2": "AVX2", "avxvnni": "AVX2 with VNNI", "avx512": "AVX-512",
             "avx512vnni": "AVX-512 with VNNI", "avx512bf16": "AVX-512 with BF16",
             "amx": "AMX, and AVX-512 with BF16 and FP16"}  # fmt: skip
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # `enum Dtype` in common.h
_CPU = torch.device("cpu")
_BUILD = "install a C++ compiler (g++, clang or MSVC) and install halfbyte again"

_P, _N, _I, _S = c_void_p, c_int64, c_int, c_char_p
_ARGUMENTS = {
    "halfbyte_quantise_nf4": [_P, _I, _N, _P, _P, _P, _I, _I],
    "halfbyte_quantise_absmax": [_P, _N, c_float, _P, _P, _P, _I],
    "halfbyte_quantise_int8": [_P, _I, _N, _N, _P, _P, _I, _I],
    "halfbyte_wish_huge_pages": [_P, _N],
    "halfbyte_dequantise_nf4": [_P, _P, _P, c_float, _P, _P, _N, _N, _P, _I, _I, _I],
    "halfbyte_dequantise_int8": [_P, _P, _N, _N, _P, _I, _I, _I],
    "halfbyte_product_few": [_P, _P, _N, _P, _P, _I, _I, _I],
    "halfbyte_product_fp32": [_P, _P, _N, _P, _P, _P, _N, _P, _I, _I, _I],
    "halfbyte_product_bf16": [_P, _P, _N, _P, _P, _P, _N, _P, _I, _I, _I],
    "halfbyte_product_adapted": [_P, _P, _N, _P, _P, _P, _N, _P, _I, _I],
    "halfbyte_gated_mlp": [_P, _P, _N, _I, _P, _I, _I, _I],
    "halfbyte_decode": [_P, _P, _N, _I, _I, _I],
    "halfbyte_product_int8": [_P, _P, _N, _P, _P, _P, _N, _P, _I, _I],
    "halfbyte_attention_forward": [_P, _I, _I, _I],
    "halfbyte_attention_backward": [_P, _I, _I, _I],
    "halfbyte_rms_norm": [_P, _P, _N, _N, c_float, c_float, _I, _P, _P, _I, _I, _I],
    "halfbyte_rms_norm_backward": [_P, _P, _P, _P, _N, _N, c_float, _P, _I, _I, _I],
    "halfbyte_rotary": [_P, _I, _I, _I, _I],
    "halfbyte_gate": [_P, _P, _N, _N, _N, _P, _I, _I, _I, _I],
    "halfbyte_gate_backward": [_P, _P, _P, _N, _N, _N, _P, _P, _I, _I, _I, _I],
    "halfbyte_explain_lost_pages": [_S, _S, _S],
    "halfbyte_release_buffers": [],
    "halfbyte_watch_begin": [_N],
    "halfbyte_watch_take": [_P],
    "halfbyte_watch_end": [_P],
    "halfbyte_cross_entropy": [_P, _P, _N, _N, _I, c_float, c_float, _P, _I, _I, _I],
}


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why there is none."""
    folder = Path(__file__).parent
    found = [file for suffix in EXTENSION_SUFFIXES if (file := folder / f"_native{suffix}").exists()]
    if not found:
        return None, f"the native library was not built (no C++ compiler at installation): {_BUILD}"
    try:
        made = ctypes.CDLL(str(found[0]))
        interface = made.halfbyte_interface()
        for name, arguments in _ARGUMENTS.items():
            getattr(made, name).argtypes = arguments
        made.halfbyte_watch_begin.restype, made.halfbyte_watch_take.restype = c_void_p, c_int64
    except (OSError, AttributeError) as error:
        return None, f"the native library can't be loaded ({error}): {_BUILD}"
    if interface != NATIVE_INTERFACE:
        return None, f"the native library was built from other sources than these: {_BUILD}"
    return made, ""


@functools.cache
def isas() -> tuple[str, ...]:
    """The instruction sets that this processor and this build have; () if there is no library."""
    found, _ = load()
    bits = found.halfbyte_isas() if found is not None else 0
    return tuple(isa for place, isa in enumerate(ISAS) if bits >> place & 1)


@functools.cache
def preferred() -> str:
    """The one of `isas` that is taken unless another one is forced: the fastest."""
    return ISAS[library().halfbyte_preferred_isa()]


def reaches(isa: str | None, least: str) -> bool:
    """Whether the instruction set `isa` has what `least` has."""
    return isa is not None and ISAS.index(isa) >= ISAS.index(least)


def release_buffers() -> None:
    """Free what products of this thread keep from call to call: up to 25 MB, by the largest that there was."""
    if load.cache_info().currsize and (made := load()[0]) is not None:
        made.halfbyte_release_buffers()


class Watch:
    """The largest anonymous memory of this process, looked at every `interval` seconds by a native thread until `end`;
    `take()` gives its bytes since the last time. Raises OSError where there is none to be had."""

    def __init__(self, interval: float) -> None:
        made, _ = load()
        self._at = made.halfbyte_watch_begin(round(1e6 * interval)) if made is not None else None
        if not self._at:
            raise OSError("no native code watches the memory here")

    def take(self) -> int:
        return mmap.PAGESIZE * int(library().halfbyte_watch_take(self._at))

    def end(self) -> None:
        at, self._at = self._at, None
        if at:
            library().halfbyte_watch_end(at)


def library() -> ctypes.CDLL:
    found, reason = load()
    assert found is not None, reason
    return found


def quantise_nf4(weight: Tensor, isa: str) -> tuple[Tensor, Tensor] | None:
    """As `quantise.reference.quantise_nf4`."""
    n = weight.numel()
    codes = torch.empty(-(-n // 2), dtype=torch.uint8, device=_CPU)
    absmax = torch.empty(-(-n // BLOCKSIZE), dtype=torch.float32, device=_CPU)
    bounds = tables.nf4_bounds(_CPU)
    fault = library().halfbyte_quantise_nf4(
        weight.data_ptr(), DTYPES[weight.dtype], n, bounds.data_ptr(), codes.data_ptr(), absmax.data_ptr(),
        torch.get_num_threads(), ISAS.index(isa),
    )  # fmt: skip
    return None if fault else (codes, absmax)


def quantise_absmax(absmax: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """As `quantise.reference.quantise_absmax`."""
    codes = torch.empty(absmax.shape, dtype=torch.uint8, device=_CPU)
    nested = torch.empty(-(-len(absmax) // NESTED_BLOCKSIZE), dtype=torch.float32, device=_CPU)
    lookup = tables.dynamic_lookup(_CPU)
    library().halfbyte_quantise_absmax(
        absmax.data_ptr(), len(absmax), offset, lookup.data_ptr(), codes.data_ptr(), nested.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return codes, nested


def quantise_int8(weight: Tensor, isa: str) -> tuple[Tensor, Tensor] | None:
    """As `quantise.reference.quantise_int8`."""
    rows, columns = weight.shape
    codes = torch.empty((rows, columns), dtype=torch.int8, device=_CPU)
    scale = torch.empty(rows, dtype=torch.float32, device=_CPU)
    fault = library().halfbyte_quantise_int8(
        weight.data_ptr(), DTYPES[weight.dtype], rows, columns, codes.data_ptr(), scale.data_ptr(),
        torch.get_num_threads(), ISAS.index(isa),
    )  # fmt: skip
    return None if fault else (codes, scale)


def empty(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A new matrix; a large one in huge pages, where the system has them."""
    made = torch.empty(shape, dtype=dtype, device=_CPU)
    if made.nbytes >= 8 << 20:
        library().halfbyte_wish_huge_pages(made.data_ptr(), made.nbytes)
    return made


def dequantise_nf4(packed: NF4Weight, first: int, last: int, out: Tensor, isa: str) -> None:
    """As `dequantise.reference.dequantise_nf4`; `out` is contiguous."""
    nested = packed.nested_absmax
    library().halfbyte_dequantise_nf4(
        packed.codes.data_ptr(), packed.absmax.data_ptr(), None if nested is None else nested.data_ptr(),
        packed.offset or 0.0, tables.nf4_levels(_CPU).data_ptr(), tables.dynamic_levels(_CPU).data_ptr(), first, last,
        out.data_ptr(), DTYPES[out.dtype], torch.get_num_threads(), ISAS.index(isa),
    )  # fmt: skip


def dequantise_int8(packed: Int8Weight, first: int, last: int, out: Tensor, isa: str) -> None:
    """As `dequantise.reference.dequantise_int8`; `out` is contiguous."""
    columns = packed.shape[1]
    library().halfbyte_dequantise_int8(
        packed.codes.data_ptr() + first * columns, packed.scale.data_ptr() + 4 * first, last - first, columns,
        out.data_ptr(), DTYPES[out.dtype], torch.get_num_threads(), ISAS.index(isa),
    )  # fmt: skip
