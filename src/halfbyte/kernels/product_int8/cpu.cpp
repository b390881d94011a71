// Products of bf16 rows with a packed matrix in int8, y = x W^T and dx = g W; reference.py is the specification.
//
// Method: `vpdpbusd` multiplies 64 bytes (unsigned by signed) and adds them up by fours, twice the work of a bf16
// instruction. Rows of x become signed bytes with one scale for each 64 steps of the contraction; the matrix becomes
// unsigned bytes, 128 added, where it is used: a unit of 64 output columns for kChunk steps, 64 KB in the second-level
// cache, under register tiles of 14 x 32 as in product/bf16.h. What the 128 adds (128 times the sum of a row's bytes) is
// known beforehand, and each integer sum starts with its opposite. After 64 steps the integers become fp32, are scaled
// and added to sums in the first-level cache: an eighth of the work of the integer products.
//
// Trade-off: 64 steps a scale rather than one a row. It costs 6 %, and an input with outlier channels (LLM.int8, Dettmers
// et al. 2022, arXiv:2208.07339) is then coarse only in the blocks that have one; in the forward product these blocks
// are NF4's own, so a code needs nothing but a look-up in a fixed table. Across (dx) a block of NF4 runs along the
// outputs: there the largest absmax of each of W's rows goes into g before it is quantised, and a tile of 64 x 64 gets
// one scale, to which its 64 tables are rounded. Rejected: dividing g anew for each 64 columns, exact but 40 % slower; one
// scale for 1024 steps, whose W is coarser in NF4 than its own blocks.
//
// LoRA's pair is multiplied in fp32 into the same sums: of its few steps nothing would be gained.
#include <cmath>

#include "weights.h"

namespace halfbyte {
namespace {

#ifdef HALFBYTE_X86

constexpr int64_t kTileRows = 14;   // of a register tile; it is 32 columns wide: 28 sums, 2 weights, 1 input
constexpr int64_t kChunk = 16;      // blocks of the contraction that are decoded at once
constexpr int64_t kMostRows = 512;  // rows at once; more are cut
constexpr float kTiny = 0x1p-100f;  // blocks of x with smaller magnitudes count as zero

// x [rows, steps] times a matrix, plus pair_x [rows, pair_steps] times pair (in fp32), into out [rows, columns].
struct Task {
    const bf16 *x, *bias;
    const float *pair_x, *pair;  // [rows, pair_steps] and [pair_steps, padded columns]
    const float* before;         // [steps]: what x is multiplied with before it is quantised, or null
    int64_t rows, steps, pair_steps, columns;
    bf16* out;

    int64_t blocks() const { return (steps + kBlock - 1) / kBlock; }
};

// The rows as bytes, by panels of `height` rows that lie one after the other; of a panel of `count` rows:
struct Inputs {
    uint32_t* quads;  // [block][quad][count], four steps each
    int32_t* starts;  // [block][count], -128 times the sum of the bytes
    float* scales;    // [block][count]
    int64_t height;
};

HALFBYTE_VNNI inline __mmask16 first_lanes(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : __mmask16((1 << count) - 1); }
HALFBYTE_VNNI inline __m512 widen(__m256i words) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

// 64 steps of a row, `left` of which exist -> bytes; returns their scale. NaN and infinity make a scale that is not
// finite, and so the result.
HALFBYTE_VNNI inline float quantise(const bf16* x, const float* before, int64_t left, __m512i* bytes) {
    __m512 values[4];
    __m512i most = _mm512_setzero_si512();
    for (int i = 0; i < 4; ++i) {
        const __mmask16 there = first_lanes(left - 16 * i);
        values[i] = widen(_mm256_maskz_loadu_epi16(there, x + 16 * i));
        if (before) values[i] = _mm512_mul_ps(values[i], _mm512_maskz_loadu_ps(there, before + 16 * i));
        const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(values[i]), _mm512_set1_epi32(0x7fffffff));
        most = _mm512_max_epi32(most, magnitude);  // as integers, in which NaN is the largest
    }
    const float absmax = from_bits(uint32_t(_mm512_reduce_max_epi32(most)));
    const __m512 up = _mm512_set1_ps(absmax < kTiny ? 0.0f : kMost / absmax);
    __m128i parts[4];
    for (int i = 0; i < 4; ++i) parts[i] = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(values[i], up)));
    const __m256i low = _mm256_set_m128i(parts[1], parts[0]), high = _mm256_set_m128i(parts[3], parts[2]);
    *bytes = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    return absmax * (1.0f / kMost);
}

HALFBYTE_VNNI void quantise_panel(const Task& task, int64_t row, int64_t count, const Inputs& inputs) {
    const int64_t blocks = task.blocks();
    const __mmask16 rows = first_lanes(count);
    for (int64_t b = 0; b < blocks; ++b) {
        __m512i bytes[16];
        float scales[16];
        for (int64_t r = count; r < 16; ++r) bytes[r] = _mm512_setzero_si512();
        for (int64_t r = 0; r < count; ++r)
            scales[r] = quantise(task.x + (row + r) * task.steps + b * kBlock, task.before ? task.before + b * kBlock : nullptr,
                                 task.steps - b * kBlock, bytes + r);
        transpose(bytes);
        const int64_t at = row * blocks + b * count;
        __m512i sum = _mm512_setzero_si512();
        for (int64_t q = 0; q < kQuads; ++q) {
            _mm512_mask_storeu_epi32(inputs.quads + at * kQuads + q * count, rows, bytes[q]);
            sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), bytes[q]);
        }
        _mm512_mask_storeu_epi32(inputs.starts + at, rows, _mm512_mullo_epi32(sum, _mm512_set1_epi32(-128)));
        std::memcpy(inputs.scales + at, scales, size_t(count) * sizeof(float));
    }
}

// ---- register tiles ---------------------------------------------------------------------------------------------------

typedef int32_t Integers __attribute__((vector_size(64)));  // with __m512i GCC would keep the sums in memory

// sums [kRows][32 of kUnit] += one block of kRows rows times 32 columns, scaled by `rows` and `columns`.
template <int kRows, bool kWhole>
HALFBYTE_VNNI __attribute__((noinline)) void tile_block(const uint32_t* quads, const int32_t* starts, const float* rows,
                                                        const uint32_t* weights, const float* columns, float* sums) {
    Integers sum[kRows][2];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < 2; ++c) sum[r][c] = (Integers)_mm512_set1_epi32(starts[r]);
    for (int q = 0; q < kQuads; ++q, quads += kRows, weights += 32) {
        const __m512i front = _mm512_loadu_si512(weights), back = _mm512_loadu_si512(weights + 16);
#pragma GCC unroll 14
        for (int r = 0; r < kRows; ++r) {
            const __m512i input = _mm512_set1_epi32(int(quads[r]));
            sum[r][0] = (Integers)_mm512_dpbusd_epi32((__m512i)sum[r][0], front, input);
            sum[r][1] = (Integers)_mm512_dpbusd_epi32((__m512i)sum[r][1], back, input);
        }
    }
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < 2; ++c) {
            const __m512 scale = _mm512_set1_ps(kWhole ? rows[r] * columns[0] : rows[r]);
            __m512 value = _mm512_cvtepi32_ps((__m512i)sum[r][c]);
            if (!kWhole) value = _mm512_mul_ps(value, _mm512_loadu_ps(columns + 16 * c));
            float* const to = sums + r * kUnit + 16 * c;
            _mm512_storeu_ps(to, _mm512_fmadd_ps(value, scale, _mm512_loadu_ps(to)));
        }
}

// The same for `blocks` blocks; `columns`: the scales of the columns, [block][kUnit], or with kWhole one a block.
template <int kRows, bool kWhole>
void tile(const uint32_t* quads, const int32_t* starts, const float* rows, const uint32_t* weights, const float* columns,
          int64_t blocks, float* sums) {
    for (int64_t b = 0; b < blocks; ++b)
        tile_block<kRows, kWhole>(quads + b * kQuads * kRows, starts + b * kRows, rows + b * kRows, weights + b * kQuads * 32,
                                  columns + b * (kWhole ? 1 : kUnit), sums);
}

using Tile = void (*)(const uint32_t*, const int32_t*, const float*, const uint32_t*, const float*, int64_t, float*);
template <bool kWhole>
constexpr Tile kTiles[kTileRows + 1] = {
    nullptr,         tile<1, kWhole>, tile<2, kWhole>,  tile<3, kWhole>,  tile<4, kWhole>,  tile<5, kWhole>,  tile<6, kWhole>,
    tile<7, kWhole>, tile<8, kWhole>, tile<9, kWhole>,  tile<10, kWhole>, tile<11, kWhole>, tile<12, kWhole>, tile<13, kWhole>,
    tile<14, kWhole>};

// sums [rows][kUnit] = inputs [rows][steps] times weights [steps][stride], of which kUnit columns count; fp32.
template <int kRows>
HALFBYTE_VNNI void pair_tile(const float* inputs, const float* weights, int64_t stride, int64_t steps, float* sums) {
    __m512 sum[kRows][4];
    for (auto& row : sum)
        for (auto& one : row) one = _mm512_setzero_ps();
    for (int64_t k = 0; k < steps; ++k)
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c)
                sum[r][c] = _mm512_fmadd_ps(_mm512_set1_ps(inputs[r * steps + k]), _mm512_loadu_ps(weights + k * stride + 16 * c), sum[r][c]);
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < 4; ++c) _mm512_storeu_ps(sums + r * kUnit + 16 * c, sum[r][c]);
}
HALFBYTE_VNNI inline void multiply_pair(const Task& task, int64_t column, int64_t stride, float* sums) {
    int64_t r = 0;
    for (; r + 6 <= task.rows; r += 6)
        pair_tile<6>(task.pair_x + r * task.pair_steps, task.pair + column, stride, task.pair_steps, sums + r * kUnit);
    for (; r < task.rows; ++r)
        pair_tile<1>(task.pair_x + r * task.pair_steps, task.pair + column, stride, task.pair_steps, sums + r * kUnit);
}

// sums [rows][kUnit] -> out, with a bias or null.
HALFBYTE_VNNI inline void round_out(const Task& task, const float* sums, int64_t column) {
    for (int c = 0; c < 4; ++c, column += 16) {
        const __mmask16 there = first_lanes(task.columns - column);
        const __m512 bias = task.bias && there ? widen(_mm256_maskz_loadu_epi16(there, task.bias + column)) : _mm512_setzero_ps();
        for (int64_t r = 0; there && r < task.rows; ++r) {
            const __m512 sum = _mm512_add_ps(_mm512_loadu_ps(sums + r * kUnit + 16 * c), bias);
            _mm256_mask_storeu_epi16(task.out + r * task.columns + column, there, round16(sum, bf16{}));
        }
    }
}

// ---- the product ------------------------------------------------------------------------------------------------------

template <bool kTransposed, typename Matrix>
HALFBYTE_VNNI void multiply_unit(const Task& task, const Matrix& matrix, const Inputs& inputs, const float* inverse, int64_t column,
                                 uint32_t* weights, float* scales, float* sums) {
    const int64_t blocks = task.blocks();
    for (int64_t begin = 0; begin < blocks; begin += kChunk) {
        const int64_t have = std::min(kChunk, blocks - begin);
        if constexpr (kTransposed)
            lay_out_transposed(matrix, column, task.steps, begin, have, inverse, weights, scales);
        else
            lay_out(matrix, column, std::min(column + kUnit, task.columns), begin, have, weights, scales);
        for (int half = 0; half < 2 && column + 32 * half < task.columns; ++half)
            for (int64_t r = 0; r < task.rows; r += inputs.height) {
                const int64_t count = std::min(inputs.height, task.rows - r), at = r * blocks + begin * count;
                kTiles<kTransposed>[count](inputs.quads + at * kQuads, inputs.starts + at, inputs.scales + at,
                                           weights + half * have * kQuads * 32, kTransposed ? scales : scales + 32 * half, have,
                                           sums + r * kUnit + 32 * half);
            }
    }
}

template <bool kTransposed, typename Matrix>
void multiply_rows(const Task& task, const Matrix& matrix, const float* inverse, int threads) {
    const int64_t units = (task.columns + kUnit - 1) / kUnit, panels = (task.rows + kTileRows - 1) / kTileRows;
    const int64_t height = (task.rows + panels - 1) / panels;  // of a panel: even ones, so that no tile is nearly empty
    const int64_t groups = task.rows * task.blocks();
    const Inputs inputs{scratch<0, uint32_t>(groups * kQuads), scratch<1, int32_t>(groups), scratch<2, float>(groups), height};
    parallel(panels, 4, threads, [&](int64_t first, int64_t last) {
        for (int64_t r = first * height; r < std::min(last * height, task.rows); r += height)
            quantise_panel(task, r, std::min(height, task.rows - r), inputs);
    });
    parallel(units, 1, threads, [&](int64_t first, int64_t last) {
        uint32_t* const weights = scratch<3, uint32_t>(kUnit * kChunk * kQuads);
        float* const scales = scratch<4, float>(kUnit * kChunk);
        float* const sums = scratch<5, float>(kUnit * task.rows);
        for (int64_t unit = first; unit < last; ++unit) {
            if (task.pair_steps)
                multiply_pair(task, unit * kUnit, units * kUnit, sums);
            else
                std::memset(sums, 0, sizeof(float) * size_t(kUnit * task.rows));
            multiply_unit<kTransposed>(task, matrix, inputs, inverse, unit * kUnit, weights, scales, sums);
            round_out(task, sums, unit * kUnit);
        }
    });
}

// Of a row's largest absmax: below it the reciprocal would overflow, and the row counts as zeros.
constexpr float kSmallest = 0x1p-126f;

template <bool kTransposed, typename Matrix>
void multiply(Task task, const Matrix& matrix, const bf16* pair_x, int threads) {
    const float* inverse = nullptr;
    if constexpr (kTransposed) {
        float* const largest = scratch<6, float>(2 * task.steps);
        parallel(task.steps, 256, threads, [&](int64_t first, int64_t last) {
            float* const buffer = scratch<7, float>(matrix.columns / kBlock);
            for (int64_t row = first; row < last; ++row) {
                largest[row] = matrix.largest(row, buffer);
                largest[task.steps + row] = largest[row] >= kSmallest ? 1.0f / largest[row] : 0.0f;
            }
        });
        task.before = largest;
        inverse = largest + task.steps;
    }
    if (task.rows == 0) return;
    const int64_t size = cut_evenly(task.rows, kMostRows, kTileRows);
    float* const wide = scratch<8, float>(size * task.pair_steps);
    for (int64_t first = 0; first < task.rows; first += size) {
        Task part = task;
        part.rows = std::min(size, task.rows - first);
        part.x += first * task.steps;
        part.out += first * task.columns;
        for (int64_t i = 0; i < part.rows * task.pair_steps; ++i) wide[i] = to_float(pair_x[first * task.pair_steps + i]);
        part.pair_x = wide;
        multiply_rows<kTransposed>(part, matrix, inverse, threads);
    }
}

// pair [rows, steps] (transposed: [steps, columns]) -> fp32 [steps][columns, padded to whole units].
const float* widen_pair(const bf16* pair, int64_t steps, int64_t columns, bool transposed) {
    const int64_t padded = (columns + kUnit - 1) / kUnit * kUnit;
    float* const out = scratch<9, float>(steps * padded);
    for (int64_t k = 0; k < steps; ++k)
        for (int64_t c = 0; c < padded; ++c)
            out[k * padded + c] = c < columns ? to_float(pair[transposed ? k * columns + c : c * steps + k]) : 0.0f;
    return out;
}
#endif

}  // namespace
}  // namespace halfbyte

using namespace halfbyte;

// Arguments as of halfbyte_product_bf16; the matrix is NF4 or int8, and its columns are a multiple of 64. Needs
// AVX512-VNNI.
HALFBYTE_API void halfbyte_product_int8(const void* matrix, const void* x, int64_t count, const void* bias, const void* pair_x,
                                        const void* pair, int64_t pair_steps, void* out, int transposed, int threads) {
#ifdef HALFBYTE_X86
    const auto& of = *static_cast<const MatrixArgument*>(matrix);
    const int64_t steps = transposed ? of.rows : of.columns, columns = transposed ? of.columns : of.rows;
    pair_steps = pair ? pair_steps : 0;
    const float* wide = widen_pair(static_cast<const bf16*>(pair), pair_steps, columns, transposed);
    const Task task{static_cast<const bf16*>(x), static_cast<const bf16*>(bias), nullptr, wide, nullptr, count, steps, pair_steps,
                    columns, static_cast<bf16*>(out)};
    const auto run = [&](const auto& packed) {
        if (transposed) return multiply<true>(task, packed, static_cast<const bf16*>(pair_x), threads);
        multiply<false>(task, packed, static_cast<const bf16*>(pair_x), threads);
    };
    if (of.kind == kNf4) return run(Nf4Bytes{of.nf4(), of.columns});
    run(Int8Bytes{static_cast<const int8_t*>(of.codes), static_cast<const float*>(of.absmax), of.columns});
#else
    (void)matrix, (void)x, (void)count, (void)bias, (void)pair_x, (void)pair, (void)pair_steps, (void)out, (void)transposed, (void)threads;
#endif
}
