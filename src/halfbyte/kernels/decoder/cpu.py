"""The native decoder layers by ctypes; the specification is reference.py. What may be called was checked before."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from halfbyte.kernels import native
from halfbyte.kernels.decoder.reference import Angles, Block, Cache, Linears, Norm, Norms
from halfbyte.kernels.gate.reference import ACTS
from halfbyte.kernels.product import cpu as product

_SIZES = ("rows", "width", "inner", "heads", "kv_heads", "head", "rotary", "position", "wide")


class _Norm(ctypes.Structure):
    _fields_ = (("weight", c_void_p), ("columns", c_int64), ("eps", c_float), ("shift", c_float), ("narrow", c_int64))


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, product.LayerArgument) for name in Linears._fields),
        *((name, _Norm) for name in Norms._fields),
        *((name, c_void_p) for name in ("keys", "values")),
        *((f"{name}_by", c_int64 * 3) for name in ("keys", "values")),
        *((name, c_int64) for name in ("act", "angles", "window")),
        *((name, c_float) for name in ("scale", "cap", "residual")),
    )


class _Angles(ctypes.Structure):
    _fields_ = (("cos", c_void_p), ("sin", c_void_p))


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("hidden", "angles", "visible")),
        *((name, c_int64) for name in _SIZES),
    )


class Decoder:
    """`blocks` with `caches`, described once for many steps: it points into their tensors and holds them."""

    def __init__(self, blocks: Sequence[Block], caches: Sequence[Cache]) -> None:
        self._held = list(blocks), list(caches)
        self._matrices = [[product.matrix(layer.weight) for layer in block.linears] for block in blocks]
        self._blocks = (_Block * len(blocks))()
        for made, block, matrices, (keys, values) in zip(self._blocks, blocks, self._matrices, caches, strict=True):
            for name, layer, matrix in zip(Linears._fields, block.linears, matrices, strict=True):
                setattr(made, name, product.layer_argument(layer, matrix))
            for name, norm in zip(Norms._fields, block.norms, strict=True):
                setattr(made, name, _norm(norm))
            made.keys, made.values = keys.data_ptr(), values.data_ptr()
            made.keys_by, made.values_by = keys.stride()[:3], values.stride()[:3]
            made.act, made.window = ACTS.index(block.act), block.window
            made.angles = -1 if block.angles is None else block.angles
            made.scale, made.cap, made.residual = block.scale, block.cap, block.residual
        first, head = blocks[0].linears, caches[0][0].shape[-1]
        self._sizes = {
            "width": first.q.weight.shape[1], "inner": first.gate.weight.shape[0], "head": head,
            "heads": first.q.weight.shape[0] // head, "kv_heads": first.k.weight.shape[0] // head,
        }  # fmt: skip

    def step(
        self, hidden: Tensor, position: int, angles: Sequence[Angles], visible: Tensor | None, isa: str
    ) -> Tensor:  # fmt: skip
        """As `reference.decode`, of contiguous tensors; `hidden` is written and returned."""
        pointers = (_Angles * len(angles))(*(_Angles(cos.data_ptr(), sin.data_ptr()) for cos, sin in angles))
        step = _Step(
            hidden=hidden.data_ptr(), angles=ctypes.addressof(pointers), rows=hidden.shape[0], position=position,
            visible=None if visible is None else visible.data_ptr(), rotary=angles[0][0].shape[-1] if angles else 0,
            wide=bool(angles) and angles[0][0].dtype == torch.float32, **self._sizes,
        )  # fmt: skip
        native.library().halfbyte_decode(
            ctypes.byref(step), self._blocks, len(self._blocks), native.DTYPES[hidden.dtype], torch.get_num_threads(),
            native.ISAS.index(isa),
        )  # fmt: skip
        return hidden


def _norm(norm: Norm | None) -> _Norm:
    if norm is None:
        return _Norm()
    weight, eps, style = norm
    return _Norm(weight.data_ptr(), len(weight), eps, float(style == "shifted"), style == "narrow")
