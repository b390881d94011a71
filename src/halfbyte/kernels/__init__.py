"""Quantising and dequantising matrices, and products with them. An op has a folder; its implementations have one
signature and one test.

`choose` says which implementation runs and why: `cpu` (cpu.cpp, native), `gpu` (gpu.py, Triton; imported when it is
first needed) or `reference` (plain PyTorch, every device).
All quantise and dequantise to the same bits, those of bitsandbytes' CPU backend; products differ in rounding.
"""

from __future__ import annotations

from types import ModuleType
from typing import NoReturn, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from halfbyte.environment import has_bf16
from halfbyte.errors import CheckpointError
from halfbyte.formats import BLOCKSIZE, QUANTISED, Weights
from halfbyte.kernels import native, product_int8
from halfbyte.kernels.choice import Choice, choose
from halfbyte.kernels.dequantise import reference as _decode
from halfbyte.kernels.gate.reference import ACTS, Act
from halfbyte.kernels.packed import Int8Weight, NF4Weight, PackedWeight
from halfbyte.kernels.pool import pool as _blocks
from halfbyte.kernels.product import cpu as _product
from halfbyte.kernels.product import reference as _plain
from halfbyte.kernels.product.reference import FrozenWeight, Layer, Pair
from halfbyte.kernels.product_int8 import cpu as _product_int8
from halfbyte.kernels.quantise import reference as _encode

__all__ = [
    "Choice",
    "Int8Weight",
    "Layer",
    "NF4Weight",
    "PackedWeight",
    "adapted",
    "choose",
    "dequantise",
    "double_quantise",
    "gated_mlp",
    "linear",
    "linear_small",
    "linear_transposed",
    "matmul_small",
    "product_of",
    "quantise",
    "torch_is_slow_in_bf16",
]

# Whose kernels multiply any number of rows: in bf16 by 16-bit integers, in bf16, in fp32. Elsewhere torch's runs.
INTEGERS = ("avx2", "avxvnni", "avx512vnni")
BF16 = (*INTEGERS, "avx512bf16", "amx")
FP32 = (*BF16, "avx512")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@torch.no_grad()
def quantise(weight: Tensor, weights: Weights, *, name: str = "") -> PackedWeight:
    """`weight` [out, in], bf16, fp16 or fp32, in the format `weights`: "nf4", "nf4-single" or "int8".

    Beside the result it needs some MB, and with double quantisation the absmax values in fp32 (n / 16 bytes); a
    weight that is not contiguous is copied. The offset of double quantisation is torch's mean over all absmax values,
    on the CPU wherever the weight lies, and depends, in its last bits, on torch's number of threads. Methods: see
    `halfbyte.formats`.

    Raises CheckpointError, with `name`, for a tensor that is no matrix of these types, for NaN and infinity, for
    magnitudes over 65504 in int8 (it passes through fp16), and for an offset that overflows fp32.
    """
    if weights not in QUANTISED:
        raise ValueError(f"{weights!r} is no quantised format; there are {QUANTISED}")
    if weight.ndim != 2 or weight.numel() == 0 or weight.dtype not in DTYPES:
        raise CheckpointError("only a matrix of bf16, fp16 or fp32 can be quantised", where=name,
                              found=f"{weight.dtype} {list(weight.shape)}")  # fmt: skip
    weight = weight.detach().contiguous()
    shape, how = (weight.shape[0], weight.shape[1]), choose(weight.device)
    isa, plain = how.isa, _encoder(how)
    if weights == "int8":
        made = native.quantise_int8(weight, isa) if isa else plain.quantise_int8(weight)
        if made is None:
            _refuse(weight, weights, name)
        return Int8Weight(shape, *made)
    made = native.quantise_nf4(weight, isa) if isa else plain.quantise_nf4(weight)
    if made is None:
        _refuse(weight, weights, name)
    codes, absmax = made
    single = NF4Weight(shape, codes, absmax)
    return single if weights == "nf4-single" else double_quantise(single, name=name)


@torch.no_grad()
def double_quantise(single: NF4Weight, *, name: str = "") -> NF4Weight:
    """A matrix in "nf4-single" as "nf4": the same codes, its absmax values in 8 bits. Raises as `quantise` does."""
    absmax, how = single.absmax, choose(single.device)
    offset = absmax.cpu().mean().item()
    if offset == float("inf"):
        raise CheckpointError("the weights are too large for double quantisation: the mean absmax overflows fp32",
                              where=name, do="quantise with weights: nf4-single")  # fmt: skip
    absmax_codes, nested = (native if how.isa else _encoder(how)).quantise_absmax(absmax, offset)
    return NF4Weight(single.shape, single.codes, absmax_codes, nested, offset)


@torch.no_grad()
def dequantise(
    packed: PackedWeight,
    dtype: torch.dtype,
    out: Tensor | None = None,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """The matrix [out, in] as `dtype` (bf16, fp16 or fp32), or its rows first..last ([last - first, in]).

    `out`, if given, is written and returned; it has that shape and type, is contiguous and lies on the same device.
    """
    first, last = rows if rows is not None else (0, packed.shape[0])
    columns = packed.shape[1]
    if dtype not in DTYPES:
        raise ValueError(f"{dtype} is no type to dequantise to; there are {DTYPES}")
    if not 0 <= first <= last <= packed.shape[0]:
        raise ValueError(f"rows {first}..{last} are not within 0..{packed.shape[0]}")
    how = choose(packed.device)
    isa, plain = how.isa, _decoder(how, dtype)
    if out is None:
        size = (last - first, columns)
        out = native.empty(size, dtype) if isa else torch.empty(size, dtype=dtype, device=packed.device)
    elif out.shape != (last - first, columns) or out.dtype != dtype or out.device != packed.device:
        raise ValueError(f"out is {out.dtype} {list(out.shape)} on {out.device}, "
                         f"not {dtype} {[last - first, columns]} on {packed.device}")  # fmt: skip
    elif not out.is_contiguous():
        raise ValueError("out is not contiguous")
    if first == last:
        return out
    if isinstance(packed, Int8Weight):
        if isa:
            native.dequantise_int8(packed, first, last, out, isa)
        else:
            plain.dequantise_int8(packed, first, last, out)
    elif isa:
        native.dequantise_nf4(packed, first * columns, last * columns, out, isa)
    else:
        plain.dequantise_nf4(packed, first * columns, last * columns, out.view(-1))
    return out


def _encoder(how: Choice) -> ModuleType:
    """The functions of quantise/reference.py, on any device, in the implementation that was chosen."""
    if how.name != "gpu":
        return _encode
    from halfbyte.kernels.quantise import gpu

    return gpu


def _decoder(how: Choice, dtype: torch.dtype) -> ModuleType:
    """The functions of dequantise/reference.py, likewise, for results of type `dtype`."""
    if not how.triton(dtype):
        return _decode
    from halfbyte.kernels.dequantise import gpu

    return gpu


def linear(
    x: Tensor, weight: FrozenWeight, bias: Tensor | None = None, pair: Pair | None = None, out: Tensor | None = None,
    *, int8: bool = False,
) -> Tensor:  # fmt: skip
    """y [T, O] = x [T, I] W^T (+ bias [O]) (+ h [T, R] B^T, for pair = (h, B [O, R])), in x's dtype; no autograd.

    `out`, if given, is written and returned: contiguous [T, O] of x's dtype, and not in the reference's scratch buffer.

    `weight` is packed or a dense [O, I] tensor; the others have x's dtype. Sums are fp32 and rounded once where native
    kernels run; elsewhere it is torch's product of the dequantised weight. `int8` multiplies bytes (see product_int8)
    where x has more rows than decoding has and the weight fits; raises ConfigError where the processor can't.
    """
    _check(x, weight, (weight.shape[1], weight.shape[0]), bias, pair, out, (weight.shape[0], None))
    if not len(x):
        return x.new_empty(0, weight.shape[0]) if out is None else out
    bias = None if bias is None else bias.contiguous()
    if int8 and _in_int8(weight, x):
        return _product_int8.int8(x.contiguous(), weight, bias, _contiguous(pair), False, out)
    how = product_of(x, weight)
    if how.name == "reference":
        return _plain.linear(x, weight, bias, pair, _room(x, weight.shape[0]) if out is None else out)
    x = x.contiguous()
    if how.name == "gpu":
        assert not isinstance(weight, Tensor)
        from halfbyte.kernels.product import gpu

        return gpu.few(x, weight, bias, _contiguous(pair), out)
    if multiplies_many(how.isa, x.dtype):
        return _product.many(x, weight, bias, _contiguous(pair), False, how.isa or "", out)
    y = _product.few(x, weight, bias, how.isa or "", out)
    return y if pair is None else y.addmm_(pair[0].detach(), pair[1].detach().T)


def adapted(x: Tensor, weight: FrozenWeight, bias: Tensor | None, lora: Pair, *, int8: bool = False) -> Tensor:
    """y [T, O] = x [T, I] W^T (+ bias [O]) + (x A^T) B^T, for lora = (A [R, I], B [O, R]); otherwise as `linear`, but
    for few rows `int8` means nothing.

    Few rows take one call of native code instead of two, which saves a decoded token as much as the small product."""
    a, b = lora
    how = product_of(x, weight)
    if len(x) > _product.FEW or not _many_in_bf16(how.isa, x.dtype):
        small = linear(x, a) if len(x) <= _product.FEW else linear_small(x, a)
        return linear(x, weight, bias, (small, b), int8=int8)
    rows, columns = weight.shape
    layer = Layer(weight, bias, lora)
    _same("x", x, (len(x), columns), x.dtype, weight.device)
    layer.check("a layer", (rows, columns), x.dtype, x.device)
    if not len(x):
        return x.new_empty(0, rows)
    return _product.adapted(x.contiguous(), layer.contiguous(), how.isa or "")


def linear_small(x: Tensor, w: Tensor) -> Tensor:
    """y [T, N] = x [T, K] w^T, both dense and of one dtype, for LoRA's pair: native where products of any number of
    rows are, else torch's.

    In bf16 torch's is oneDNN's, which compiles a product for each number of rows and keeps many of them: 60 to 100 MB
    in a run whose batches have all lengths. In fp32 it is MKL's, which keeps up to 60 MB of buffers."""
    if not multiplies_many(choose(x.device).isa, x.dtype):
        return F.linear(x, w)
    x, w = x.contiguous(), w.contiguous()
    return linear(x, w) if len(x) <= len(w) else linear(w, x).T.contiguous()  # the smaller one goes over the larger one


def matmul_small(x: Tensor, w: Tensor) -> Tensor:
    """y [M, N] = x [M, K] w [K, N], likewise; x may be transposed."""
    if not multiplies_many(choose(x.device).isa, x.dtype):
        return x @ w
    if len(x) <= w.shape[1]:
        return linear_transposed(x, w.contiguous())
    if x.is_contiguous():
        return linear(w.T.contiguous(), x).T.contiguous()
    return linear_transposed(w.T, x.T.contiguous()).T.contiguous()


def torch_is_slow_in_bf16(device: torch.device) -> bool:
    """Whether there are native products in bf16 on a processor that has no fast instructions for it."""
    return choose(device).isa in BF16 and not has_bf16()


def gated_mlp(x: Tensor, gate: Layer, up: Layer, down: Layer, act: Act) -> Tensor | None:
    """y [T, H] = down(act(gate(x)) * up(x)), x [T, H], in one call; None where there is none: for many rows, and where
    one of the products is not native."""
    layers = (gate, up, down)
    if not 0 < len(x) <= _product.FEW or any(product_of(x, layer.weight).name != "cpu" for layer in layers):
        return None
    width, inner = x.shape[1], gate.weight.shape[0]
    shapes = ((inner, width), (inner, width), (down.weight.shape[0], inner))
    for name, layer, shape in zip(("gate", "up", "down"), layers, shapes, strict=True):
        layer.check(name, shape, x.dtype, x.device)
    made = (gate.contiguous(), up.contiguous(), down.contiguous())
    return _product.gated_mlp(x.contiguous(), made, ACTS.index(act), choose(x.device).isa or "")


def linear_transposed(g: Tensor, weight: FrozenWeight, pair: Pair | None = None, *, int8: bool = False) -> Tensor:
    """dx [T, I] = g [T, O] W (+ h [T, R] A, for pair = (h, A [R, I])), in g's dtype; otherwise as `linear`."""
    _check(g, weight, weight.shape, None, pair, None, (None, weight.shape[1]))
    if not len(g):
        return g.new_empty(0, weight.shape[1])
    if int8 and _in_int8(weight, g):
        return _product_int8.int8(g.contiguous(), weight, None, _contiguous(pair), True)
    how = product_of(g, weight)
    if multiplies_many(how.isa, g.dtype):
        return _product.many(g.contiguous(), weight, None, _contiguous(pair), True, how.isa or "")
    return _plain.linear_transposed(g, weight, pair, _room(g, weight.shape[1]))


def _room(x: Tensor, columns: int) -> Tensor:
    """Where torch's product of `x` [T, ...] is written: on the CPU in a block of the pool, as a native one would be."""
    if x.device.type != "cpu":
        return x.new_empty(len(x), columns)
    return _blocks.empty((len(x), columns), x.dtype)


def _check(
    x: Tensor, weight: FrozenWeight, widths: tuple[int, ...], bias: Tensor | None, pair: Pair | None,
    out: Tensor | None, beside: tuple[int | None, int | None],
) -> None:  # fmt: skip
    """Raise ValueError for what native code, which gets bare pointers, would read or write beyond. `widths` of an input
    and of an output row; `beside`: the fixed one of the second pair's sizes (the other is the rank)."""
    T, dtype, device = len(x), x.dtype, weight.device
    _same("x", x, (T, widths[0]), dtype, device)
    if bias is not None:
        _same("bias", bias, (widths[1],), dtype, device)
    if pair is not None:
        rank = pair[0].shape[-1]
        _same("h", pair[0], (T, rank), dtype, device)
        _same("the pair's matrix", pair[1], (beside[0] or rank, beside[1] or rank), dtype, device)
    if out is not None:
        _same("out", out, (T, widths[1]), dtype, device)
        if not out.is_contiguous():
            raise ValueError("out is not contiguous")


def _same(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, "
                         f"not {dtype} {list(shape)} on {device}")  # fmt: skip


def _in_int8(weight: FrozenWeight, x: Tensor) -> TypeGuard[PackedWeight]:
    """Whether to multiply bytes, where that was asked for."""
    product_int8.require(x.device)
    return x.dtype == torch.bfloat16 and len(x) > _product.FEW and product_int8.fits(weight)


def multiplies_many(isa: str | None, dtype: torch.dtype) -> bool:
    """Whether the kernels of an instruction set multiply any number of rows of this type with a frozen matrix."""
    return isa in FP32 if dtype == torch.float32 else _many_in_bf16(isa, dtype)


def _many_in_bf16(isa: str | None, dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and isa in BF16


def product_of(x: Tensor, weight: FrozenWeight) -> Choice:
    """The implementation that multiplies rows `x` [T, ...] with `weight`, and why."""
    choice = choose(x.device)
    if choice.name == "gpu":
        return _product_on_card(x, weight, choice)
    if choice.isa is None:
        return choice
    if 0 in weight.shape:
        return Choice("reference", "torch's product: the weight is empty")
    if isinstance(weight, Tensor) and not weight.is_contiguous():
        return Choice("reference", "torch's product: the weight is not contiguous")
    many = multiplies_many(choice.isa, x.dtype)
    takes = DTYPES if many and x.dtype == torch.float32 else (torch.bfloat16,)
    if isinstance(weight, Tensor) and weight.dtype not in takes:
        return Choice("reference", f"torch's product: the weight is dense {weight.dtype}")
    if many:
        return choice
    if len(x) <= _product.FEW and x.dtype in (torch.bfloat16, torch.float32):
        return choice
    return Choice(
        "reference", f"torch's product of the dequantised weight: no native one for {x.dtype} on this processor"
    )


def _product_on_card(x: Tensor, weight: FrozenWeight, choice: Choice) -> Choice:
    if isinstance(weight, Tensor):
        return Choice("reference", "torch's product: the weight is dense")
    if not choice.triton(x.dtype) or x.dtype not in DTYPES:
        return Choice("reference", f"torch's product of the dequantised weight: no {x.dtype} on this card")
    from halfbyte.kernels.product import gpu

    if len(x) > (gpu.FEW if choice.bf16 and x.dtype != torch.float32 else gpu.BY_SUMS):  # no tensor cores for these
        return Choice("reference", "torch's product of the weight, which Triton dequantises into a reused buffer")
    if isinstance(weight, NF4Weight) and weight.shape[1] % BLOCKSIZE:
        return Choice("reference", "torch's product of the dequantised weight: its rows are no whole blocks")
    return choice


def _contiguous(pair: Pair | None) -> Pair | None:
    return None if pair is None else (pair[0].contiguous(), pair[1].contiguous())


def _refuse(weight: Tensor, weights: Weights, name: str) -> NoReturn:
    """Say what it is in `weight` that an encoder gave up on."""
    flat, step = weight.view(-1), _encode.chunk(weight.device)
    counts, first = {"NaN": 0, "infinite": 0, "over 65504 in magnitude": 0}, -1
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        nan, infinite = part.isnan(), part.isinf()
        large = (part.abs() > _encode.F16_MAX) & ~infinite if weights == "int8" else torch.zeros_like(nan)
        for kind, faulty in zip(counts, (nan, infinite, large), strict=True):
            counts[kind] += int(faulty.sum())
        bad = nan | infinite | large
        if first < 0 and bad.any():
            first = start + int(bad.int().argmax())
    row, column = divmod(first, weight.shape[1])
    what, do = "not all weights are finite", "the checkpoint is damaged, or its training diverged: use another"
    if not counts["NaN"] and not counts["infinite"]:
        what, do = "these weights are too large for int8, which passes through fp16", "quantise with weights: nf4"
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    found = f"{listed} among {flat.numel()} weights; the first in row {row}, column {column}"
    raise CheckpointError(what, where=name, found=found, do=do)
