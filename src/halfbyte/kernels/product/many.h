// Products with many rows, limited by arithmetic.
//
// Method: the matrix is decoded where it is used. A unit of 64 output columns is decoded for kChunk steps of the
// contraction into a buffer of 128 KB that stays in the second-level cache, laid out for `vdpbf16ps`, and all rows of x go
// over it in register tiles of 14 x 32. So the 16-bit matrix never exists, and a 4-bit one costs the memory traffic of a
// 4-bit one. The rows of x are laid out once a call, in panels of 14 rows. A LoRA pair, y += h B^T, is just some more
// steps of the contraction.
//
// Rejected: decoding the whole matrix and calling a library's product (it copies the matrix a second time into a layout
// of its own); decoding in the register tile (each weight would be decoded once per 14 rows).
#pragma once

#include "layout.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {

constexpr int64_t kTileRows = 14;   // of a register tile; it is 32 columns wide: 28 sums, 2 weights, 1 input
constexpr int64_t kChunk = 1024;    // steps of the contraction that are decoded at once
constexpr int64_t kLaidOut = 8192;  // steps of the contraction whose rows are laid out at once

// ---- the register tile ------------------------------------------------------------------------------------------------

// sums [kRows][32] (fp32, rows `stride` apart) = (or += if `more`) inputs [pairs][kRows] x weights [pairs][32].
template <int kRows>
HALFBYTE_AVX512BF16 void tile(const uint32_t* inputs, const uint32_t* weights, int64_t pairs, float* sums, int64_t stride, bool more) {
    __m512 sum[kRows][2];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < 2; ++c) sum[r][c] = more ? _mm512_loadu_ps(sums + r * stride + 16 * c) : _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; ++p, inputs += kRows, weights += 32) {
        const __m512bh front = (__m512bh)_mm512_loadu_si512(weights), back = (__m512bh)_mm512_loadu_si512(weights + 16);
#pragma GCC unroll 14
        for (int r = 0; r < kRows; ++r) {
            const __m512bh input = (__m512bh)_mm512_set1_epi32(int(inputs[r]));
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], front, input);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], back, input);
        }
    }
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < 2; ++c) _mm512_storeu_ps(sums + r * stride + 16 * c, sum[r][c]);
}

using Tile = void (*)(const uint32_t*, const uint32_t*, int64_t, float*, int64_t, bool);
constexpr Tile kTiles[kTileRows + 1] = {nullptr,  tile<1>, tile<2>,  tile<3>,  tile<4>,  tile<5>,  tile<6>, tile<7>,
                                        tile<8>, tile<9>, tile<10>, tile<11>, tile<12>, tile<13>, tile<14>};

// sums [rows][kUnit] -> out, `columns` of them (at most kUnit), with a bias [columns] or null.
HALFBYTE_AVX512BF16 inline void round_out(const float* sums, const bf16* bias, int64_t rows, int64_t columns, bf16* out, int64_t stride) {
    for (int half = 0; half < 2; ++half) {
        const __mmask32 there = first_words(columns - 32 * half);
        const __m512i biases = bias ? _mm512_maskz_loadu_epi16(there, bias + 32 * half) : _mm512_setzero_si512();
        const __m512 bias0 = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(biases)), 16));
        const __m512 bias1 = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(biases, 1)), 16));
        for (int64_t r = 0; r < rows; ++r) {
            const float* from = sums + r * kUnit + 32 * half;
            const __m512 front = _mm512_add_ps(_mm512_loadu_ps(from), bias0), back = _mm512_add_ps(_mm512_loadu_ps(from + 16), bias1);
            _mm512_mask_storeu_epi16(out + r * stride + 32 * half, there, (__m512i)_mm512_cvtne2ps_pbh(back, front));
        }
    }
}

// ---- all rows ---------------------------------------------------------------------------------------------------------

template <bool kTransposed, typename Matrix>
HALFBYTE_AVX512BF16 void lay_out_unit(const Matrix& matrix, int64_t column, int64_t columns, int64_t begin, int64_t end, uint32_t* out) {
    if constexpr (kTransposed)
        lay_out_transposed(matrix, column, begin, end, out);
    else
        lay_out(matrix, column, std::min(kUnit, columns - column), begin, end, out);
}

// One segment of the contraction (`steps` of x, laid out in `inputs` from step `base` on) for one unit.
template <bool kTransposed, typename Matrix>
HALFBYTE_AVX512BF16 void multiply_unit(const Matrix& matrix, const uint32_t* inputs, int64_t rows, int64_t height, int64_t base,
                                       int64_t steps, int64_t column, int64_t columns, uint32_t* weights, float* sums, bool more) {
    for (int64_t begin = 0; begin < steps; begin += kChunk, more = true) {
        const int64_t end = std::min(steps, begin + kChunk), pairs = (end - begin + 1) / 2, all = (steps + 1) / 2;
        lay_out_unit<kTransposed>(matrix, column, columns, base + begin, base + end, weights);
        for (int half = 0; half < 2 && column + 32 * half < columns; ++half)
            for (int64_t r = 0; r < rows; r += height) {
                const int64_t count = std::min(height, rows - r);
                kTiles[count](inputs + r * all + begin / 2 * count, weights + half * pairs * 32, pairs,
                              sums + r * kUnit + 32 * half, kUnit, more);
            }
    }
}

// `count` rows of x, `stride` apart, as `tile` reads them.
HALFBYTE_AVX512BF16 inline void lay_out_panel(const bf16* x, int64_t stride, int64_t count, int64_t steps, uint32_t* out) {
    alignas(64) uint16_t order[32];
    for (int i = 0; i < 32; ++i) order[i] = uint16_t(i);
    lay_out_rows(x, stride, count, steps, (steps + 1) / 2, _mm512_load_si512(order), out);
}

template <bool kTransposed, typename Matrix>
void multiply_many(const Task& task, const Matrix& matrix, const DenseMatrix& pair, int threads) {
    const int64_t units = (task.columns + kUnit - 1) / kUnit, panels = (task.rows + kTileRows - 1) / kTileRows;
    const int64_t height = (task.rows + panels - 1) / panels;  // of a panel: even ones, so that no tile is nearly empty
    const int64_t most = (std::min(kLaidOut, task.steps) + 1) / 2 + (task.pair_steps + 1) / 2;
    uint32_t* const inputs = scratch<0, uint32_t>(task.rows * most);
    // Sums of all units live on from one stretch of the contraction to the next only where there is more than one.
    const bool many = task.steps > kLaidOut;
    float* const kept = many ? scratch<1, float>(units * kUnit * task.rows) : nullptr;
    for (int64_t base = 0; base < task.steps; base += kLaidOut) {
        const int64_t steps = std::min(kLaidOut, task.steps - base), pair_steps = base + steps == task.steps ? task.pair_steps : 0;
        uint32_t* pair_inputs = inputs + task.rows * ((steps + 1) / 2);
        parallel(panels, 4, threads, [&](int64_t first, int64_t last) {
            for (int64_t r = first * height; r < std::min(last * height, task.rows); r += height) {
                const int64_t count = std::min(height, task.rows - r);
                lay_out_panel(task.x + r * task.steps + base, task.steps, count, steps, inputs + r * ((steps + 1) / 2));
                if (pair_steps)
                    lay_out_panel(task.pair_x + r * pair_steps, pair_steps, count, pair_steps, pair_inputs + r * ((pair_steps + 1) / 2));
            }
        });
        parallel(units, 1, threads, [&](int64_t first, int64_t last) {
            uint32_t* const weights = scratch<2, uint32_t>(kUnit * kChunk / 2);
            float* const own = many ? nullptr : scratch<3, float>(kUnit * task.rows);
            for (int64_t unit = first; unit < last; ++unit) {
                const int64_t column = unit * kUnit;
                float* sums = many ? kept + unit * kUnit * task.rows : own;
                multiply_unit<kTransposed>(matrix, inputs, task.rows, height, base, steps, column, task.columns, weights, sums, base > 0);
                if (pair_steps)
                    multiply_unit<kTransposed>(pair, pair_inputs, task.rows, height, 0, pair_steps, column, task.columns, weights, sums, true);
                if (base + steps == task.steps)
                    round_out(sums, task.bias ? task.bias + column : nullptr, task.rows, task.columns - column,
                              task.out + column, task.columns);
            }
        });
    }
}

}  // namespace
}  // namespace halfbyte

#endif
