"""The native products (cpu.cpp, which has the others) behind ctypes. Arguments are contiguous and lie on the CPU."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from halfbyte.kernels import native, tables
from halfbyte.kernels.packed import Int8Weight, NF4Weight, PackedWeight
from halfbyte.kernels.pool import pool
from halfbyte.kernels.product.reference import Layer, Pair

FEW = 16  # rows that the kernels of every instruction set take
_CPU = torch.device("cpu")
_DENSE = {torch.bfloat16: 0, torch.float32: 3, torch.float16: 4}  # `Kind` of shared.h


class _Matrix(ctypes.Structure):
    """`MatrixArgument` of shared.h."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("absmax", ctypes.c_void_p),
        ("nested_absmax", ctypes.c_void_p),
        ("levels", ctypes.c_void_p),
        ("dynamic", ctypes.c_void_p),
        ("offset", ctypes.c_float),
        ("kind", ctypes.c_int32),
    )


class LayerArgument(ctypes.Structure):
    """`LayerArgument` of layer.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("matrix", "bias", "a", "b")),
        ("rank", ctypes.c_int64),
    )


_MATRICES: weakref.WeakKeyDictionary[PackedWeight, _Matrix] = weakref.WeakKeyDictionary()


def matrix(weight: PackedWeight | Tensor) -> _Matrix:
    """Described once for a packed weight, whose tensors never change; it points into them."""
    if isinstance(weight, Tensor):
        rows, columns = weight.shape
        return _Matrix(rows=rows, columns=columns, codes=weight.data_ptr(), kind=_DENSE[weight.dtype])
    made = _MATRICES.get(weight)
    if made is None:
        rows, columns = weight.shape
        if isinstance(weight, Int8Weight):
            made = _Matrix(
                rows=rows, columns=columns, codes=weight.codes.data_ptr(), absmax=weight.scale.data_ptr(), kind=2
            )
        else:
            made = _nf4(weight)
        _MATRICES[weight] = made
    return made


def _nf4(weight: NF4Weight) -> _Matrix:
    nested = weight.nested_absmax
    return _Matrix(
        rows=weight.shape[0],
        columns=weight.shape[1],
        codes=weight.codes.data_ptr(),
        absmax=weight.absmax.data_ptr(),
        nested_absmax=None if nested is None else nested.data_ptr(),
        levels=tables.nf4_levels(_CPU).data_ptr(),
        dynamic=tables.dynamic_levels(_CPU).data_ptr(),
        offset=weight.offset or 0.0,
        kind=1,
    )


def few(x: Tensor, weight: PackedWeight | Tensor, bias: Tensor | None, isa: str, out: Tensor | None) -> Tensor:
    """x [T, I] W^T + bias, T at most FEW, bf16 or fp32; a dense W is bf16."""
    out = x.new_empty(x.shape[0], weight.shape[0]) if out is None else out
    native.library().halfbyte_product_few(
        ctypes.byref(matrix(weight)), x.data_ptr(), x.shape[0], None if bias is None else bias.data_ptr(),
        out.data_ptr(), native.DTYPES[x.dtype], torch.get_num_threads(), native.ISAS.index(isa),
    )  # fmt: skip
    return out


def many(
    x: Tensor, weight: PackedWeight | Tensor, bias: Tensor | None, pair: Pair | None, transposed: bool, isa: str,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """x [T, I] W^T + bias + h B^T, or transposed x [T, O] W + h A; all bf16 or all fp32, but for fp32 a dense W
    may have 16 bits."""
    found = native.library()
    function = found.halfbyte_product_fp32 if x.dtype == torch.float32 else found.halfbyte_product_bf16
    return product(function, x, weight, bias, pair, transposed, out, native.ISAS.index(isa))


def adapted(x: Tensor, layer: Layer, isa: str) -> Tensor:
    """x [T, I] W^T + bias + (x A^T) B^T for a layer with a pair (A [R, I], B [O, R]); everything in bf16."""
    weight, bias, lora = layer
    assert lora is not None
    out = pool.empty((x.shape[0], weight.shape[0]), x.dtype)
    native.library().halfbyte_product_adapted(
        ctypes.byref(matrix(weight)), x.data_ptr(), x.shape[0], None if bias is None else bias.data_ptr(),
        lora[0].data_ptr(), lora[1].data_ptr(), lora[0].shape[0], out.data_ptr(), torch.get_num_threads(),
        native.ISAS.index(isa),
    )  # fmt: skip
    return out


def gated_mlp(x: Tensor, layers: tuple[Layer, Layer, Layer], act: int, isa: str) -> Tensor:
    """down(act(gate(x)) * up(x)) for layers = (gate, up, down), x [T, I], T at most FEW; all bf16 or all fp32."""
    out = pool.empty((x.shape[0], layers[2].weight.shape[0]), x.dtype)
    matrices = [matrix(layer.weight) for layer in layers]  # held until the call is over
    native.library().halfbyte_gated_mlp(
        (LayerArgument * 3)(*map(layer_argument, layers, matrices)), x.data_ptr(), x.shape[0], act, out.data_ptr(),
        native.DTYPES[x.dtype], torch.get_num_threads(), native.ISAS.index(isa),
    )  # fmt: skip
    return out


def layer_argument(of: Layer, weight: _Matrix) -> LayerArgument:
    """It points to `weight`, which has to be held."""
    bias, (a, b) = of.bias, of.lora or (None, None)
    return LayerArgument(
        ctypes.addressof(weight), None if bias is None else bias.data_ptr(), None if a is None else a.data_ptr(),
        None if b is None else b.data_ptr(), 0 if a is None else a.shape[0],
    )  # fmt: skip


def product(
    function: Callable[..., None], x: Tensor, weight: PackedWeight | Tensor, bias: Tensor | None, pair: Pair | None,
    transposed: bool, out: Tensor | None, *more: int,
) -> Tensor:  # fmt: skip
    """`function` of the library, called as the products of any number of rows are; `more` are its last arguments."""
    out = pool.empty((x.shape[0], weight.shape[1 if transposed else 0]), x.dtype) if out is None else out
    h, beside = (None, None) if pair is None else pair
    function(
        ctypes.byref(matrix(weight)), x.data_ptr(), x.shape[0], None if bias is None else bias.data_ptr(),
        None if h is None else h.data_ptr(), None if beside is None else beside.data_ptr(),
        0 if h is None else h.shape[1], out.data_ptr(), transposed, torch.get_num_threads(), *more,
    )  # fmt: skip
    return out
