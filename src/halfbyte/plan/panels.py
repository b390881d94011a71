"""What MKL keeps while it multiplies in fp32 with AVX2: panels, into which it copies what it is given.

Read from mkl_serv_mem_stat (reserved) and RssAnon (written to), product by product, for 1, 2 and 4 threads, 1 to 2048
rows, widths of 128 to 32768 and contractions of 4 to 14336. Of x [M, K] times a matrix [K, N] one buffer holds a part
of the matrix, half its width but at most 3200 columns, of at most 384 steps of the contraction, and beside it a part
of x; with two threads there are two such buffers, unless x has few rows. With more threads it is three of 2400 columns
at most. A contraction of less than 256 steps reserves as much as one of 256, and writes to less.

A product takes the buffers that one before left, if they are large enough; else new ones are made, and the old ones
stay until `memory.give_back` frees them all. So what is kept depends on the order of products.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_COLUMNS, _STEPS, _LEAST_STEPS, _ROWS = 3200, 384, 256, 768
_MANY_COLUMNS = 3 * 2400  # of all buffers together, with more than two threads
_FEW = 8  # rows below which a single buffer is used

Product = tuple[int, int, int]  # rows, columns of the result, steps of the contraction


@dataclass
class _Buffers:
    reserved: int
    written: int


def kept_bytes(products: Iterable[Product], threads: int) -> int:
    """Bytes that MKL has written to and keeps after `products`, in this order, in fp32."""
    kept: list[_Buffers] = []
    for product in products:
        reserved, written = _panel(*product, threads)
        fits = next((one for one in kept if one.reserved >= reserved), None)
        if fits is None:
            kept.append(_Buffers(reserved, written))
        else:
            fits.written = max(fits.written, written)
    return sum(one.written for one in kept)


def _panel(rows: int, columns: int, steps: int, threads: int) -> tuple[int, int]:
    """(reserved, written) in bytes of one product. Where little is contracted, what is written is a bound."""
    buffers = 1 if threads == 1 or rows < _FEW else 2
    width = buffers * min(-(-columns // 2), _COLUMNS)
    if threads > 2 and columns > width:
        width = min(columns, _MANY_COLUMNS)
    room = max(min(steps, _STEPS), _LEAST_STEPS)
    beside = min(rows, _ROWS) * room  # of x; half of that is written to
    written = min(width * room, buffers * min(columns, 2 * _COLUMNS) * steps)
    return 4 * (width * room + beside), 4 * (written + min(beside // 2, min(rows, _ROWS) * steps))
