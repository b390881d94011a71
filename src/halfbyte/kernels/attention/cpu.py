"""The native attention by ctypes; the signatures are those of reference.py."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from halfbyte.kernels import native
from halfbyte.kernels.attention.reference import Form
from halfbyte.kernels.pool import pool

_FAR = 2**30  # native code counts positions in 32 bits; a config.json may name any window, and one so wide is none
_TENSORS = ("q", "k", "v", "out", "d_out", "d_q", "d_k", "d_v")


class _Attention(ctypes.Structure):
    """`struct Attention` of strip.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v", "out", "d_out", "write", "d_q", "d_k", "d_v", "lse", "visible")),
        *((f"{name}_by", c_int64 * 3) for name in _TENSORS),
        ("visible_by", c_int64),
        *((name, c_int64) for name in ("batch", "q_heads", "heads", "queries", "keys", "width", "offset", "window")),
        ("scale", c_float),
        ("cap", c_float),
    )


def forward(
    q: Tensor, k: Tensor, v: Tensor, form: Form, visible: Tensor | None = None, *, isa: str,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `reference.forward`. The result lies in memory as [B, Q, H, D], as the next projection wants it. `into`, if
    given, is written and returned: the result as it lies where it is, and the contiguous lse."""
    q, k, v = _rows(q), _rows(k), _rows(v)
    out, lse = _room(q) if into is None else into
    if out.shape != q.shape or out.dtype != q.dtype or out.stride(-1) != 1 or lse.shape != q.shape[:3]:
        raise ValueError(f"the result does not fit into {out.dtype} {list(out.shape)} and {list(lse.shape)}")
    call = _call(q, k, v, form, visible, lse)
    _point(call, out=out)
    call.write = call.out
    native.library().halfbyte_attention_forward(ctypes.byref(call), *_how(q, isa))
    return out, lse


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, form: Form,
    visible: Tensor | None = None, *, isa: str, into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `reference.backward`; the gradients lie in memory as their tensors do, or are written `into` those given."""
    d_out, q, k, v, out = _rows(d_out), _rows(q), _rows(k), _rows(v), _rows(out)
    d_q, d_k, d_v = (_like(q), _like(k), _like(v)) if into is None else into
    if any(d.shape != x.shape or d.dtype != x.dtype or d.stride(-1) != 1
           for d, x in ((d_q, q), (d_k, k), (d_v, v))):  # fmt: skip
        raise ValueError("the gradients do not fit where they are to be written")
    if not q.shape == out.shape == d_out.shape or lse.shape != q.shape[:3] or lse.dtype != torch.float32:
        raise ValueError(f"these shapes do not fit together: {list(q.shape)}, {list(out.shape)}, {list(d_out.shape)}, "
                         f"{lse.dtype} {list(lse.shape)}")  # fmt: skip
    if not q.dtype == out.dtype == d_out.dtype or not lse.is_contiguous():
        raise ValueError(f"these types do not fit together: {q.dtype}, {out.dtype}, {d_out.dtype}")
    call = _call(q, k, v, form, visible, lse)
    _point(call, out=out, d_out=d_out, d_q=d_q, d_k=d_k, d_v=d_v)
    native.library().halfbyte_attention_backward(ctypes.byref(call), *_how(q, isa))
    return d_q, d_k, d_v


def _room(q: Tensor) -> tuple[Tensor, Tensor]:
    """Where attention's result and the logarithms of its sums are written."""
    out = pool.empty((q.shape[0], q.shape[2], q.shape[1], q.shape[3]), q.dtype).transpose(1, 2)
    return out, torch.empty(q.shape[:3], dtype=torch.float32)


def forward_by_item(
    q: Tensor, k: Tensor, v: Tensor, form: Form, starts: tuple[int, ...], *, isa: str
) -> tuple[Tensor, Tensor]:
    """As `forward` of a row of items, each of which sees itself alone; item i has tokens starts[i] to starts[i + 1].

    The logarithms are [H S], item after item.
    """
    out, lse = _room(q)[0], torch.empty(q.shape[1] * q.shape[2], dtype=torch.float32)
    for item, part in _items(starts, q.shape[1]):
        mine = out[:, :, item], lse[part].view(1, q.shape[1], -1)
        forward(q[:, :, item], k[:, :, item], v[:, :, item], form, isa=isa, into=mine)
    return out, lse


def backward_by_item(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, form: Form, starts: tuple[int, ...], *,
    isa: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `backward` of what `forward_by_item` computed."""
    made = _like(q), _like(k), _like(v)
    for item, part in _items(starts, q.shape[1]):
        my_d_out, my_q, my_k, my_v, my_out = (tensor[:, :, item] for tensor in (d_out, q, k, v, out))
        d_q, d_k, d_v = (tensor[:, :, item] for tensor in made)
        my_lse = lse[part].view(1, q.shape[1], -1)
        backward(my_d_out, my_q, my_k, my_v, my_out, my_lse, form, isa=isa, into=(d_q, d_k, d_v))
    return made


def _items(starts: tuple[int, ...], heads: int) -> Iterator[tuple[slice, slice]]:
    """The tokens of each item, and its part of the logarithms."""
    for first, last in itertools.pairwise(starts):
        yield slice(first, last), slice(heads * first, heads * last)


def _rows(tensor: Tensor) -> Tensor:
    """`tensor`, copied if its last dimension is not contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _like(tensor: Tensor) -> Tensor:
    """Empty, laid out as `tensor`; contiguous where that has gaps or shares memory."""
    return _rows(pool.empty_like(tensor))


def _how(q: Tensor, isa: str) -> tuple[int, int, int]:
    return native.DTYPES[q.dtype], torch.get_num_threads(), native.ISAS.index(isa)


def _call(q: Tensor, k: Tensor, v: Tensor, form: Form, visible: Tensor | None, lse: Tensor) -> _Attention:
    batch, q_heads, queries, width = q.shape
    heads, keys = k.shape[1], k.shape[2]
    if k.shape != (batch, heads, keys, width) or v.shape != k.shape or q_heads % heads or not keys:
        raise ValueError(f"these shapes do not fit together: {list(q.shape)}, {list(k.shape)}, {list(v.shape)}")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in native.DTYPES:
        raise ValueError(f"these types do not fit together: {q.dtype}, {k.dtype}, {v.dtype}")
    if max(abs(form.offset), queries, keys) > _FAR:
        raise ValueError(f"positions beyond {_FAR}: {queries} queries, {keys} keys, offset {form.offset}")
    call = _Attention(
        lse=lse.data_ptr(), batch=batch, q_heads=q_heads, heads=heads, queries=queries, keys=keys, width=width,
        offset=form.offset, window=min(form.window, _FAR), scale=form.scale, cap=form.cap,
    )  # fmt: skip
    _point(call, q=q, k=k, v=v)
    if visible is not None:
        if visible.shape != (batch, keys) or visible.element_size() != 1 or not visible.is_contiguous():
            raise ValueError(f"the mask is {visible.dtype} {list(visible.shape)}, not bool {[batch, keys]}, contiguous")
        call.visible, call.visible_by = visible.data_ptr(), visible.stride(0)
    return call


def _point(call: _Attention, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        setattr(call, name, tensor.data_ptr())
        setattr(call, f"{name}_by", tensor.stride()[:3])
