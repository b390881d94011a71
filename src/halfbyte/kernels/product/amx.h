// Products on processors with AMX, but those that walk.h has: five rows and more, g W with any number, and matrices whose
// blocks straddle rows. Tiles multiply sixteen times what a vector instruction does, so what counts with many rows is that
// every operand comes from a near cache; with few, decoding is the cost.
//
// Method: a thread takes blocks of output columns (512 for 512 rows) whose sums (fp32, 1 MB) stay in its second-level
// cache. The contraction is cut into chunks of 256 steps: of each the rows of x lie there, too, and of the matrix 64
// columns at a time are decoded just before they are used, 16 KB a half, which the first-level cache keeps while all
// rows go over it in register tiles of 2 x 2. So the 16-bit matrix never exists. A LoRA pair is one more chunk.
//
// Layout: everything in tiles of 1 KB, one after the other in the order of use, zeros beyond the edges. A tile on the
// left of a product is 16 x 32 steps as they lie in memory; one on the right is 16 pairs of steps x 16. For y = x W^T the
// left one is of W, for dx = g W it is of g: so no weight is ever transposed.
//
// Rejected: whole rows of x against one unit of columns, which reads x from the third-level cache for every 64 columns;
// sums that go to memory after each chunk.
#pragma once

#include "../amx.h"
#include "layout.h"

#ifdef HALFBYTE_AMX

namespace halfbyte {
namespace {

constexpr int64_t kTile = 16, kTileSteps = 32;  // rows (or columns) and steps of a tile
constexpr int64_t kTileSize = kTile * kTileSteps, kSumsSize = kTile * kTile;
constexpr int64_t kStepsAtOnce = 256;
constexpr int64_t kMostSteps = 16384;  // whose inputs are laid out at once
constexpr int64_t kCached = 1 << 20;  // bytes: what of the inputs or of the sums is sure to stay in the second-level cache

// ---- products of tiles ------------------------------------------------------------------------------------------------

// sums [kLeft][kRight] tiles (+)= left [kLeft][count] x right [kRight][count]; the `by` are from one to the next.
template <int kLeft, int kRight>
HALFBYTE_AMX void multiply_tiles(const bf16* left, int64_t left_by, const bf16* right, int64_t right_by, int64_t count, float* sums,
                                 int64_t sums_left, int64_t sums_right, bool more) {
    constexpr int64_t kBytes = 64;  // of a tile's row
    before_tile_loads();
    float* const sums10 = sums + sums_left;
    if (more) {
        _tile_loadd(0, sums, kBytes);
        if constexpr (kRight == 2) _tile_loadd(1, sums + sums_right, kBytes);
        if constexpr (kLeft == 2) _tile_loadd(2, sums10, kBytes);
        if constexpr (kLeft + kRight == 4) _tile_loadd(3, sums10 + sums_right, kBytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < count; ++i, left += kTileSize, right += kTileSize) {
        _tile_loadd(4, left, kBytes);
        _tile_loadd(6, right, kBytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (kRight == 2) {
            _tile_loadd(7, right + right_by, kBytes);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (kLeft == 2) {
            _tile_loadd(5, left + left_by, kBytes);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (kLeft + kRight == 4) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, kBytes);
    if constexpr (kRight == 2) _tile_stored(1, sums + sums_right, kBytes);
    if constexpr (kLeft == 2) _tile_stored(2, sums10, kBytes);
    if constexpr (kLeft + kRight == 4) _tile_stored(3, sums10 + sums_right, kBytes);
}

// ---- layouts ----------------------------------------------------------------------------------------------------------

constexpr int64_t tiles_of(int64_t steps) { return (steps + kTileSteps - 1) / kTileSteps; }

// Rows first..first + 16 of x [rows, stride], `steps` of each -> tiles, as pairs x rows (`kPairs`) or as they are.
template <bool kPairs>
HALFBYTE_AVX512BF16 void lay_out_inputs(const bf16* x, int64_t rows, int64_t stride, int64_t steps, bf16* out) {
    for (int64_t step = 0; step < steps; step += kTileSteps, out += kTileSize) {
        const __mmask32 there = first_words(steps - step);
        __m512i tile[kTile];
        for (int64_t r = 0; r < kTile; ++r)
            tile[r] = r < rows ? _mm512_maskz_loadu_epi16(there, x + r * stride + step) : _mm512_setzero_si512();
        if constexpr (kPairs) transpose(tile);
        for (int64_t r = 0; r < kTile; ++r) _mm512_store_si512(out + r * kTileSteps, tile[r]);
    }
}

// W's rows column..column + 64 as they lie, steps begin..end along its columns -> 4 x tiles; what is read next is asked for.
template <typename Matrix>
HALFBYTE_AVX512BF16 void lay_out_left(const Matrix& matrix, int64_t column, int64_t columns, int64_t begin, int64_t end, bf16* out) {
    const int64_t tiles = tiles_of(end - begin);
    const int64_t next = end < matrix.columns ? end : 0, further = end < matrix.columns ? 0 : kUnit;
    for (int64_t r = 0; r < kUnit; ++r) {
        bf16* const to = out + r / kTile * tiles * kTileSize + r % kTile * kTileSteps;
        const bool there = column + r < columns;
        for (int64_t tile = 0; tile < tiles; tile += 2) {
            Words words{};
            if (there) {
                matrix.prefetch(column + r + further, next + tile * kTileSteps);
                words = matrix.words(column + r, begin + tile * kTileSteps);
            }
            _mm512_store_si512(to + tile * kTileSize, words.low);
            if (tile + 1 < tiles) _mm512_store_si512(to + (tile + 1) * kTileSize, words.high);
        }
    }
}

// W's columns column..column + 64, steps begin..end along its rows, as pairs of steps x columns -> 4 x tiles.
template <typename Matrix>
HALFBYTE_AVX512BF16 void lay_out_right(const Matrix& matrix, int64_t column, int64_t begin, int64_t end, bf16* out) {
    const int64_t tiles = tiles_of(end - begin), size = tiles * kTileSize;
    for (int64_t p = 0; p < tiles * kTile; ++p, out += kTileSteps) {
        const int64_t row = begin + 2 * p;
        if (row + 8 < end) matrix.prefetch(row + 8, column), matrix.prefetch(row + 9, column);
        const Words even = row < end ? matrix.words(row, column) : Words{};
        const Words odd = row + 1 < end ? matrix.words(row + 1, column) : Words{};
        const Interleaved low(even.low, odd.low), high(even.high, odd.high);
        _mm512_store_si512(out, low.front);
        _mm512_store_si512(out + size, low.back);
        _mm512_store_si512(out + 2 * size, high.front);
        _mm512_store_si512(out + 3 * size, high.back);
    }
}

// A panel's sums of 32 columns (two tiles, `by` apart; W's rows are theirs if `kTurned`) -> out, with a bias or null.
template <bool kTurned>
HALFBYTE_AVX512BF16 void round_tiles(const float* sums, int64_t by, const bf16* bias, int64_t rows, int64_t columns, bf16* out, int64_t stride) {
    const __mmask32 there = first_words(columns);
    __m512i front[kTile], back[kTile];
    for (int64_t r = 0; r < kTile; ++r) {
        front[r] = _mm512_load_si512(sums + r * kTile);
        back[r] = _mm512_load_si512(sums + by + r * kTile);
    }
    if constexpr (kTurned) transpose(front), transpose(back);
    const __m512i biases = bias ? _mm512_maskz_loadu_epi16(there, bias) : _mm512_setzero_si512();
    const auto bias0 = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(biases)), 16);
    const auto bias1 = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(biases, 1)), 16);
    for (int64_t r = 0; r < rows; ++r) {
        const __m512 low = _mm512_add_ps((__m512)front[r], bias0), high = _mm512_add_ps((__m512)back[r], bias1);
        _mm512_mask_storeu_epi16(out + r * stride, there, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

// ---- all rows ---------------------------------------------------------------------------------------------------------

// Steps `base` to base + steps of x, laid out: chunks of the contraction one after the other, of each all panels of 16 rows.
struct Inputs {
    const bf16* data;
    int64_t panels, base, steps;
    const bf16* chunk(int64_t begin) const { return data + (begin - base) * panels * kTile; }
    int64_t end() const { return base + steps; }
    static int64_t size(int64_t panels, int64_t steps) { return panels * tiles_of(steps) * kTileSize; }
};

// x has rows of `stride`, and room is at `out`.
template <bool kTransposed>
Inputs lay_out_all(const bf16* x, int64_t rows, int64_t stride, int64_t base, int64_t steps, int threads, bf16* out) {
    const Inputs made{out, (rows + kTile - 1) / kTile, base, steps};
    if (steps == 0) return made;
    parallel(made.panels, 1 + (1 << 15) / steps, threads, [&](int64_t first, int64_t last) {
        for (int64_t begin = base; begin < made.end(); begin += kStepsAtOnce) {
            const int64_t count = std::min(kStepsAtOnce, made.end() - begin);
            bf16* const chunk = out + (begin - base) * made.panels * kTile;
            for (int64_t p = first; p < last; ++p)
                lay_out_inputs<!kTransposed>(x + p * kTile * stride + begin, std::min(kTile, rows - p * kTile), stride, count,
                                             chunk + p * tiles_of(count) * kTileSize);
        }
    });
    return made;
}

// One half of a unit (2 x tiles of the matrix) with all panels; sums of a panel lie panels apart from column to column.
template <bool kTransposed>
HALFBYTE_AMX void multiply_half(const bf16* weights, const bf16* inputs, int64_t panels, int64_t tiles, float* sums, bool more) {
    const int64_t by = tiles * kTileSize, across = panels * kSumsSize;
    for (int64_t p = 0; p < panels; p += 2) {
        const bf16* const x = inputs + p * by;
        float* const to = sums + p * kSumsSize;
        if constexpr (kTransposed) {
            if (p + 1 < panels) multiply_tiles<2, 2>(x, by, weights, by, tiles, to, kSumsSize, across, more);
            else multiply_tiles<1, 2>(x, by, weights, by, tiles, to, kSumsSize, across, more);
        } else {
            if (p + 1 < panels) multiply_tiles<2, 2>(weights, by, x, by, tiles, to, across, kSumsSize, more);
            else multiply_tiles<2, 1>(weights, by, x, by, tiles, to, across, kSumsSize, more);
        }
    }
}

// Units first..last of the output, all steps of `x`; with `more` they are added to.
template <bool kTransposed, typename Matrix>
HALFBYTE_AMX void multiply_units(const Matrix& matrix, const Inputs& x, int64_t first, int64_t last, int64_t columns, float* sums, bool more) {
    bf16* const weights = scratch<10, bf16>(kUnit * kStepsAtOnce);
    for (int64_t begin = x.base; begin < x.end(); begin += kStepsAtOnce, more = true) {
        const int64_t end = std::min(x.end(), begin + kStepsAtOnce), tiles = tiles_of(end - begin);
        for (int64_t unit = first; unit < last; ++unit) {
            const int64_t column = unit * kUnit;
            if constexpr (kTransposed) lay_out_right(matrix, column, begin, end, weights);
            else lay_out_left(matrix, column, columns, begin, end, weights);
            for (int half = 0; half < 2 && column + half * 2 * kTile < columns; ++half)
                multiply_half<kTransposed>(weights + half * 2 * tiles * kTileSize, x.chunk(begin), x.panels, tiles,
                                           sums + ((unit - first) * 4 + half * 2) * x.panels * kSumsSize, more);
        }
    }
}

// Units of 64 columns that a block has: as many as their sums allow. Of W's rows no more than it takes to read x seldom
// enough, since a block reads each of them in pieces of a chunk, and memory is the faster the longer a piece is.
template <bool kTransposed>
int64_t units_at_once(const Inputs& x) {
    const int64_t rows = x.panels * kTile, most = std::max<int64_t>(1, kCached / (kUnit * rows * int64_t(sizeof(float))));
    return kTransposed ? most : std::min(most, 1 + rows * x.steps * int64_t(sizeof(bf16)) / (2 * kCached));
}

// Units first..last. `kept`: sums of all units that live on from one stretch of the contraction to the next, or null where
// there is only one.
template <bool kTransposed, typename Matrix>
HALFBYTE_AMX void multiply_block(const Task& task, const Matrix& matrix, const Inputs& x, const DenseMatrix& pair, const Inputs& pair_x,
                                 int64_t first, int64_t last, float* kept) {
    const TileRegisters registers;
    const int64_t of_unit = kUnit * x.panels * kTile;
    float* const sums = kept ? kept + first * of_unit : scratch<11, float>((last - first) * of_unit);
    multiply_units<kTransposed>(matrix, x, first, last, task.columns, sums, x.base > 0);
    if (x.end() < task.steps) return;
    if (pair_x.steps) multiply_units<kTransposed>(pair, pair_x, first, last, task.columns, sums, task.steps > 0);
    for (int64_t p = 0; p < x.panels; ++p)
        for (int64_t column = first * kUnit; column < std::min(last * kUnit, task.columns); column += 2 * kTile)
            round_tiles<!kTransposed>(sums + ((column - first * kUnit) / kTile * x.panels + p) * kSumsSize, x.panels * kSumsSize,
                                      task.bias ? task.bias + column : nullptr, std::min(kTile, task.rows - p * kTile),
                                      task.columns - column, task.out + p * kTile * task.columns + column, task.columns);
}

template <bool kTransposed, typename Matrix>
void multiply_amx(const Task& task, const Matrix& matrix, const DenseMatrix& pair, int threads) {
    const int64_t panels = (task.rows + kTile - 1) / kTile, units = (task.columns + kUnit - 1) / kUnit;
    const int64_t size = Inputs::size(panels, std::min(kMostSteps, task.steps));
    bf16* const inputs = scratch<12, bf16>(size + Inputs::size(panels, task.pair_steps));
    float* const kept = task.steps > kMostSteps ? scratch<13, float>(units * kUnit * panels * kTile) : nullptr;
    const Inputs pair_x = lay_out_all<kTransposed>(task.pair_x, task.rows, task.pair_steps, 0, task.pair_steps, threads, inputs + size);
    for (int64_t base = 0; base == 0 || base < task.steps; base += kMostSteps) {
        const int64_t steps = std::min(kMostSteps, task.steps - base);
        const Inputs x = lay_out_all<kTransposed>(task.x, task.rows, task.steps, base, steps, threads, inputs);
        const int64_t at_once = units_at_once<kTransposed>(x);
        parallel(units, 1, threads, [&](int64_t first, int64_t last) {
            for (int64_t unit = first; unit < last; unit += at_once)
                multiply_block<kTransposed>(task, matrix, x, pair, pair_x, unit, std::min(last, unit + at_once), kept);
        });
    }
}

}  // namespace
}  // namespace halfbyte

#endif
