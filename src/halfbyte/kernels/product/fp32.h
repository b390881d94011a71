// Products of many rows in fp32 for processors with AVX2 and without AVX-512: y = x W^T, and its transpose dx = g W.
//
// Method: the matrix is decoded where it is used. A unit of 64 output columns is decoded for kChunk steps of the
// contraction into 64 KB that stay in the second-level cache, laid out in panels of 16 columns, each of which fills half
// of the first-level cache while all rows of x go over it in register tiles of 6 x 16. So the fp32 matrix never exists,
// which would cost a pass over 8 times the bytes of a 4-bit one before the product begins. Sums live in `out`.
// Each output is summed in one order, whatever the number of threads or of rows; up to kFewRows rows go another way
// (few_fp32.h), in another order.
//
// Rejected: decoding the whole matrix for torch's product (on a Zen 3 a quarter slower forward, a tenth in both directions);
// shuffles to lay out x (no gain that could be measured).
#pragma once

#include "few_fp32.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {
namespace fp32 {

constexpr int64_t kRows = 6, kColumns = 16;  // of a register tile: 12 sums, 2 weights, 1 input
constexpr int64_t kChunk = 256;              // steps of the contraction that are decoded at once
constexpr int64_t kLaidOut = 2048;           // steps of the contraction whose rows are laid out at once
constexpr int64_t kMostRows = 512;           // rows at once; more are cut
constexpr int64_t kRowsAhead = 64;           // that are asked for before they are decoded

struct Task {
    const MatrixArgument& matrix;
    const float *x, *bias;  // x [rows, steps]; bias [columns] or null
    int64_t rows, steps, columns;
    float* out;  // [rows, columns]
    bool transposed;
};

// out [kCount][16] (rows `stride` apart) = start [16] (itself if `start` is null) + inputs [steps][kCount] x weights [steps][16].
// The sum of the steps begins at zero: added one after another to what is there, many would lose the last bits.
template <int kCount>
HALFBYTE_AVX2 void tile(const float* inputs, const float* weights, int64_t steps, const float* start, float* out, int64_t stride) {
    __m256 sum[kCount][2];
#pragma GCC unroll 6
    for (int r = 0; r < kCount; ++r)
        for (int c = 0; c < 2; ++c) sum[r][c] = _mm256_setzero_ps();
    for (int64_t s = 0; s < steps; ++s, inputs += kCount, weights += kColumns) {
        const __m256 front = _mm256_load_ps(weights), back = _mm256_load_ps(weights + 8);
#pragma GCC unroll 6
        for (int r = 0; r < kCount; ++r) {
            const __m256 input = _mm256_broadcast_ss(inputs + r);
            sum[r][0] = _mm256_fmadd_ps(input, front, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(input, back, sum[r][1]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kCount; ++r)
        for (int c = 0; c < 2; ++c) {
            float* const at = out + r * stride + 8 * c;
            _mm256_storeu_ps(at, _mm256_add_ps(_mm256_loadu_ps(start ? start + 8 * c : at), sum[r][c]));
        }
}

using Tile = void (*)(const float*, const float*, int64_t, const float*, float*, int64_t);
constexpr Tile kTiles[kRows + 1] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

// A tile of which only `columns` exist in `out`.
inline void edge(Tile run, const float* inputs, const float* weights, int64_t steps, const float* start, float* out, int64_t stride,
                 int64_t rows, int64_t columns) {
    float sums[kRows * kColumns] = {};
    for (int64_t r = 0; r < rows && !start; ++r) std::memcpy(sums + r * kColumns, out + r * stride, size_t(columns) * sizeof(float));
    run(inputs, weights, steps, start, sums, kColumns);
    for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r * stride, sums + r * kColumns, size_t(columns) * sizeof(float));
}

// 8 rows of 8 numbers, `stride` apart -> columns, kColumns apart.
HALFBYTE_AVX2 inline void transpose(const float* in, int64_t stride, float* out) {
    __m256 rows[8], pairs[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) rows[i] = _mm256_loadu_ps(in + i * stride);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        rows[4 * i] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0x44);
        rows[4 * i + 1] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0xee);
        rows[4 * i + 2] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0x44);
        rows[4 * i + 3] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        _mm256_store_ps(out + i * kColumns, _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20));
        _mm256_store_ps(out + (i + 4) * kColumns, _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31));
    }
}

HALFBYTE_AVX2 inline void widen(const bf16* values, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = to_float(load(values + i));
}

// Weights begin..begin + count of a row of the matrix as fp32. `isa`: at least kAvx2.
inline void decode(const MatrixArgument& matrix, int64_t row, int64_t begin, int64_t count, float* out, int isa = kAvx2) {
    const int64_t first = row * matrix.columns + begin;
    if (matrix.kind == kNf4) return decode_range(matrix.nf4(), first, first + count, out, isa);
    if (matrix.kind == kInt8)
        return int8_decoder<float>(isa)(static_cast<const int8_t*>(matrix.codes) + first, static_cast<const float*>(matrix.absmax) + row, 1, count, out);
    widen(static_cast<const bf16*>(matrix.codes) + first, count, out);
}

// W's rows first..first + count (at most 16) as output columns, steps begin..end along its columns -> [step][16].
HALFBYTE_AVX2 inline void lay_out(const MatrixArgument& matrix, int64_t first, int64_t count, int64_t begin, int64_t end, float* out) {
    alignas(32) float rows[kColumns][kChunk];
    for (int64_t r = 0; r < kColumns; ++r) {
        if (r < count)
            decode(matrix, first + r, begin, end - begin, rows[r]);
        else
            std::memset(rows[r], 0, sizeof rows[r]);
    }
    for (int64_t step = 0; step < end - begin; step += 8)  // what lies beyond the end is never read
        for (int64_t r = 0; r < kColumns; r += 8) transpose(rows[r] + step, kChunk, out + step * kColumns + r);
}

// Asks for the weights of a row from `column` on: rows lie too far apart for the processor to foresee the next one.
inline void ask_for(const MatrixArgument& matrix, int64_t row, int64_t column) {
    const int64_t at = row * matrix.columns + column;
    _mm_prefetch(static_cast<const char*>(matrix.codes) + (matrix.kind == kNf4 ? at / 2 : matrix.kind == kInt8 ? at : 2 * at), _MM_HINT_T1);
    if (matrix.kind == kNf4) _mm_prefetch(static_cast<const char*>(matrix.absmax) + at / kBlock * (matrix.nested_absmax ? 1 : 4), _MM_HINT_T1);
    if (matrix.kind == kDense) _mm_prefetch(static_cast<const char*>(matrix.codes) + 2 * at + 64, _MM_HINT_T1);
}

// W's columns first..first + count (at most kUnit) as output columns, steps along its rows begin..end -> [panel][kMost][16].
template <int64_t kMost>
void lay_out_transposed(const MatrixArgument& matrix, int64_t first, int64_t count, int64_t begin, int64_t end, float* out, int isa = kAvx2) {
    alignas(64) float row[kUnit] = {};
    for (int64_t step = begin; step < end; ++step) {
        ask_for(matrix, step + kRowsAhead, first);
        decode(matrix, step, first, count, row, isa);
        for (int64_t p = 0; p < kUnit / kColumns; ++p)
            std::memcpy(out + (p * kMost + step - begin) * kColumns, row + p * kColumns, kColumns * sizeof(float));
    }
}

// One unit of output columns over steps base..base + steps, whose rows are laid out in `inputs`.
inline void multiply_unit(const Task& task, const float* inputs, int64_t height, int64_t base, int64_t steps, int64_t column, float* weights) {
    const int64_t unit = std::min(kUnit, task.columns - column);
    for (int64_t begin = 0; begin < steps; begin += kChunk) {
        const int64_t end = std::min(steps, begin + kChunk);
        if (task.transposed) lay_out_transposed<kChunk>(task.matrix, column, unit, base + begin, base + end, weights);
        for (int64_t at = 0; at < unit; at += kColumns) {
            const int64_t there = std::min(kColumns, unit - at);
            float* const panel = weights + at * kChunk;
            if (!task.transposed) lay_out(task.matrix, column + at, there, base + begin, base + end, panel);
            alignas(32) float first[kColumns] = {};
            if (task.bias) std::memcpy(first, task.bias + column + at, size_t(there) * sizeof(float));
            const float* const start = base + begin == 0 ? first : nullptr;
            for (int64_t r = 0; r < task.rows; r += height) {
                const int64_t count = std::min(height, task.rows - r);
                const float* const rows = inputs + r * steps + begin * count;
                float* const out = task.out + r * task.columns + column + at;
                if (there == kColumns)
                    kTiles[count](rows, panel, end - begin, start, out, task.columns);
                else
                    edge(kTiles[count], rows, panel, end - begin, start, out, task.columns, count, there);
            }
        }
    }
}

// At most kMostRows rows.
inline void multiply_rows(const Task& task, int threads) {
    const int64_t units = (task.columns + kUnit - 1) / kUnit, panels = (task.rows + kRows - 1) / kRows;
    const int64_t height = (task.rows + panels - 1) / panels;  // of a panel: even ones, so that no tile is nearly empty
    float* const inputs = scratch<4, float>(task.rows * std::min(kLaidOut, task.steps));
    for (int64_t base = 0; base < task.steps; base += kLaidOut) {
        const int64_t steps = std::min(kLaidOut, task.steps - base);
        parallel(panels, 4, threads, [&](int64_t first, int64_t last) {
            for (int64_t r = first * height; r < std::min(last * height, task.rows); r += height) {
                const int64_t count = std::min(height, task.rows - r);
                float* to = inputs + r * steps;
                for (int64_t s = 0; s < steps; ++s)
                    for (int64_t i = 0; i < count; ++i) *to++ = task.x[(r + i) * task.steps + base + s];
            }
        });
        parallel(units, 1, threads, [&](int64_t first, int64_t last) {
            float* const weights = scratch<5, float>(kUnit * kChunk);
            for (int64_t unit = first; unit < last; ++unit)
                multiply_unit(task, inputs, height, base, steps, unit * kUnit, weights);
        });
    }
}

// Whether the few rows were multiplied; NF4's blocks have to lie within a row.
inline bool multiply_if_few(const Task& task, int threads) {
    const MatrixArgument& of = task.matrix;
    if (task.transposed || task.rows > kFewRows || (of.kind == kNf4 && of.columns % kBlock)) return false;
    const auto run = [&](const auto& blocks) { multiply_few(blocks, task.x, task.rows, task.steps, task.columns, task.bias, task.out, threads); };
    if (of.kind == kNf4)
        run(Nf4Blocks(of));
    else if (of.kind == kInt8)
        run(Int8Blocks{static_cast<const int8_t*>(of.codes), static_cast<const float*>(of.absmax), of.columns});
    else
        run(DenseBlocks{static_cast<const bf16*>(of.codes), of.columns});
    return true;
}

inline void multiply(Task task, int threads) {
    if (multiply_if_few(task, threads)) return;
    const int64_t rows = task.rows, size = cut_evenly(rows, kMostRows, kRows);
    for (int64_t first = 0; first < rows; first += size) {
        Task part = task;
        part.rows = std::min(size, rows - first);
        part.x += first * task.steps;
        part.out += first * task.columns;
        multiply_rows(part, threads);
    }
}

}  // namespace fp32
}  // namespace
}  // namespace halfbyte

#endif
