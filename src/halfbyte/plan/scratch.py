"""The buffers that all layers share while they multiply: halfbyte's own, and those of the library below torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from halfbyte.environment import cores
from halfbyte.plan.activations import ShapeInfo, head_shape, tile_bytes

# What the library below torch's products keeps for each thread where these are not native: MKL in fp32 (no more than
# the largest matrix takes, until `memory.give_back` frees it), oneDNN in 16 bits. By mkl_serv_mem_stat, on 1, 2 and 4
# threads.
_LIBRARY = {4: 7_700_000, 2: 2_300_000}
# Of kernels/product/amx.h (many.h and int16.h take no more) and kernels/attention/cpu.cpp: rows and steps that are laid
# out at once, and a thread's buffers (sums, decoded weights, a strip of attention).
_ROWS, _LAID_OUT, _THREAD = 512, 16384, 1_400_000
_LAID_OUT_FP32, _DECODED_FP32 = 2048, 4 * 64 * 256  # of kernels/product/fp32.h: steps, and a thread's bytes


def scratch_bytes(
    info: ShapeInfo, matrices: Iterable[tuple[int, int]], tokens: int, packed: bool, b: int = 2, left: int = 2
) -> int:
    """Bytes of the buffers that all layers share, for `tokens` rows at once and `matrices` [out, in].

    Native products: the rows laid out anew, sums where a contraction is longer than what is laid out at once (in fp32
    they are in the result), and each thread's decoded piece (kernels/product/amx.h, many.h, fp32.h); else one matrix
    decoded, if they are packed, or some rows of one converted, which are gone after each product: while those of down
    are there, `left` of the MLP's results are not (two of the gradients when it trains, one, whose block its output
    takes, when it answers).
    """
    shapes = list(matrices)
    if not info.native.products:
        if not packed:
            mlp = info.dims.mlp if info.dims is not None else 0
            others = [shape for shape in shapes if shape[1] != mlp]
            down = tile_bytes(info, [shape for shape in shapes if shape[1] == mlp], b) - left * b * tokens * mlp
            return max(down, tile_bytes(info, [*others, head_shape(info)], b))
        return b * max((rows * columns for rows, columns in shapes), default=0)
    rows = min(_ROWS, tokens)
    if info.dims is not None and info.dims.vocabulary:
        shapes.append((info.dims.vocabulary, info.dims.hidden))  # the head, with fewer rows
    ways = [way for shape in shapes for way in (shape, shape[::-1])]  # forward, and transposed
    if b == 4:
        return rows * 4 * max((min(steps, _LAID_OUT_FP32) for _, steps in ways), default=0) + cores() * _DECODED_FP32
    laid_out = max((2 * min(steps, _LAID_OUT) for _, steps in ways), default=0) + 2 * info.rank
    sums = max((4 * outputs for outputs, steps in ways if steps > _LAID_OUT), default=0)
    return rows * (laid_out + sums) + cores() * (_THREAD + 4 * 64 * rows)


def library_bytes(info: ShapeInfo, matrices: Iterable[tuple[int, int]], b: int) -> int:
    """Bytes that the processor's library keeps while it multiplies with `matrices` [out, in]: none where these products
    are native, the adapter's and dense ones in the type of activations, too."""
    if info.native.products:
        return 0
    return cores() * min(_LIBRARY[b], b * max((rows * columns for rows, columns in matrices), default=0))


def narrow_bytes(sizes: Sequence[int], b: int) -> int:
    """Bytes of the adapter's copy in the type of activations, of its matrices A and B in turn; in fp32 A is no copy."""
    return b * sum(sizes if b < 4 else sizes[1::2])
