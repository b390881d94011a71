"""The buffers that all layers share while they multiply: halfbyte's own, and those of the library below torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from halfbyte.environment import cores
from halfbyte.plan.activations import LOSS_CHUNK, ShapeInfo, head_shape, tile_bytes

# What the library below torch's products keeps for each thread where these are not native: MKL in fp32 (no more than
# the largest matrix takes, until `memory.give_back` frees it), oneDNN in 16 bits. By mkl_serv_mem_stat, on 1, 2 and 4
# threads.
_LIBRARY = {4: 7_700_000, 2: 2_300_000}
# Of kernels/product/amx.h (many.h and int16.h take no more) and kernels/attention/cpu.cpp: rows and steps that are laid
# out at once, and a thread's buffers (sums, decoded weights, a strip of attention).
_ROWS, _LAID_OUT, _THREAD = 512, 16384, 1_400_000
_LAID_OUT_FP32, _DECODED_FP32 = 2048, 4 * 64 * 256  # of kernels/product/fp32.h: steps, and a thread's bytes


def scratch_bytes(
    info: ShapeInfo, matrices: Iterable[tuple[int, int]], tokens: int, packed: bool, b: int = 2, *, trains: bool = True,
    positions: int | None = None,
) -> int:  # fmt: skip
    """Bytes of the buffers that all layers share, for `tokens` rows at once and `matrices` [out, in]; `positions` of
    them (None: all) have logits.

    Native products: the rows laid out anew, sums where a contraction is longer than what is laid out at once (in fp32
    they are in the result), and each thread's decoded piece (kernels/product/amx.h, many.h, fp32.h); else one matrix
    decoded, if they are packed, or some rows of one converted, which are gone after each product: while those of down
    are there, of the MLP's results two gradients are not when it trains, and when it answers one, whose block its
    output takes.
    """
    shapes = list(matrices)
    if not (info.native.products if packed else info.multiplies_dense(b)):
        if not packed:
            mlp = info.dims.mlp if info.dims is not None else 0
            others = [shape for shape in shapes if shape[1] != mlp]
            left = (2 if trains else 1) * b * tokens * mlp
            down = tile_bytes(info, [shape for shape in shapes if shape[1] == mlp], b) - left
            return max(down, tile_bytes(info, [*others, head_shape(info)], b))
        return b * max((rows * columns for rows, columns in shapes), default=0)
    of_layers = max((_laid_out_bytes(info, shape, tokens, b, trains) for shape in shapes), default=0)
    positions = 0 if not info.multiplies_dense(b) else tokens if positions is None else min(positions, tokens)
    of_head = _laid_out_bytes(info, head_shape(info), min(positions, LOSS_CHUNK) if trains else positions, b, trains)
    threads = _DECODED_FP32 if b == 4 else _THREAD + 4 * 64 * min(_ROWS, tokens)
    return max(of_layers, of_head) + cores() * threads


def _laid_out_bytes(info: ShapeInfo, matrix: tuple[int, int], count: int, b: int, trains: bool) -> int:
    """Bytes of `count` rows that are laid out for a product with a `matrix` [out, in] (and, when it trains, with its
    transpose), and of their sums."""
    rows, most = min(_ROWS, count), 0
    for outputs, steps in (matrix, matrix[::-1]) if trains else (matrix,):
        if b == 4:
            most = max(most, 4 * min(steps, _LAID_OUT_FP32))
        else:
            most = max(most, 2 * min(steps, _LAID_OUT) + 2 * info.rank + 4 * outputs * (steps > _LAID_OUT))
    return rows * most


def library_bytes(info: ShapeInfo, matrices: Iterable[tuple[int, int]], b: int) -> int:
    """Bytes that the processor's library keeps while it multiplies with `matrices` [out, in]: none where these products
    are native, of the head and the adapter, too."""
    if info.native.products and info.multiplies_dense(b):
        return 0
    return cores() * min(_LIBRARY[b], b * max((rows * columns for rows, columns in matrices), default=0))


def narrow_bytes(sizes: Sequence[int], b: int) -> int:
    """Bytes of the adapter's copy in the type of activations, of its matrices A and B in turn; in fp32 A is no copy."""
    return b * sum(sizes if b < 4 else sizes[1::2])
