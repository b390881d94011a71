// Products in bf16 of few rows with NF4 for processors with AVX2, y = x W^T, through 16-bit integers: decoding text. few_vnni.h
// has what differs with AVX512-VNNI.
//
// Method: as in few_fp32.h 64 weights of a row of W at a time are looked up by byte shuffles, but their levels have two
// bytes and not four: a third of the shuffles. `vpmaddwd` multiplies them with x, which has one scale for each of W's
// blocks; both have 15 bits with the sign, so that a block's sum of 8 products a lane fits 32 bits and is exact.
// A dense or an int8 matrix is multiplied in fp32. A row's sum has one order, whatever the number of threads or of
// rows beside it.
#pragma once

#include "int16.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {
namespace int16 {

using fp32::kRowsOfStrip;
using fp32::kTogether;
static_assert(kTogether == 4, "kAdd and kStrip go by it");
constexpr int64_t kStrip = 32;       // blocks of 64 weights: of four rows of x, 16 KB, half of the first-level cache
constexpr int64_t kSlice = 1 << 14;  // outputs whose sums are held at once: a head has ten times as many
constexpr int64_t kFewRows = 10;     // up to here this is faster than int16.h
constexpr float kMostOfBoth = 16383.0f;  // of x and of the levels: a lane adds 8 products of a block

// Rows of x for a dense or an int8 matrix, in fp32.
struct RowsInFp32 {
    const MatrixArgument& matrix;
    int64_t rows;
    float* x;

    RowsInFp32(const Part& part, int64_t count) : matrix(part.matrix), rows(count), x(scratch<29, float>(count * part.steps)) {
        for (int64_t i = 0; i < rows * part.steps; ++i) x[i] = to_float(part.x[i]);
    }
    void multiply(int64_t start, int64_t count, float* out, int threads) const {
        MatrixArgument slice = matrix;
        const bool dense = matrix.kind == kDense;
        slice.codes = static_cast<const char*>(matrix.codes) + start * matrix.columns * (dense ? int64_t(sizeof(bf16)) : 1);
        if (!dense) slice.absmax = static_cast<const float*>(matrix.absmax) + start;
        for (int64_t r = 0; r < rows; r += fp32::kFewRows)
            fp32::multiply_if_few({slice, x + r * matrix.columns, nullptr, std::min(fp32::kFewRows, rows - r), matrix.columns, count, out + r * count, false}, threads);
    }
};

// How rows of x meet a row of W. kLanes: of a sum; kGroup: blocks that are looked up at once, in whose order x lies.
struct Few256 {
    using Known = Levels;
    using DenseRows = RowsInFp32;
    static constexpr int64_t kLanes = 8, kGroup = 1;
    static void lay_out(const int16_t* x, int16_t* out) {
        for (int64_t i = 0; i < kBlock; ++i) out[Levels::place(i)] = x[i];
    }

    // sums[r] += W's `row`, blocks first..first + count, times x[r] for kCount rows. x: rows of `blocks` blocks, laid out;
    // `inputs`: their scales, likewise, which `scales`, those of W, have in them already if kAlone.
    template <int kCount, bool kAlone = false>
    HALFBYTE_AVX2 static void add(const Levels& of, int64_t row, int64_t first, int64_t count, const float* scales, const int16_t* x,
                                  const float* inputs, int64_t blocks, float (*sums)[kLanes]) {
        __m256 sum[kCount];
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) sum[r] = _mm256_loadu_ps(sums[r]);
        const uint8_t* const codes = of.at(row, first);
        for (int64_t b = 0; b < count; ++b) {
            __m256i weights[4];
            of.look_up(codes + b * (kBlock / 2), weights);
            const __m256 scale = _mm256_broadcast_ss(scales + b);
#pragma GCC unroll 4
            for (int r = 0; r < kCount; ++r) {
                const auto* const at = reinterpret_cast<const __m256i*>(x + (r * blocks + first + b) * kBlock);
                const __m256i front = _mm256_add_epi32(_mm256_madd_epi16(weights[0], _mm256_load_si256(at)), _mm256_madd_epi16(weights[1], _mm256_load_si256(at + 1)));
                const __m256i back = _mm256_add_epi32(_mm256_madd_epi16(weights[2], _mm256_load_si256(at + 2)), _mm256_madd_epi16(weights[3], _mm256_load_si256(at + 3)));
                const __m256 both = kAlone ? scale : _mm256_mul_ps(scale, _mm256_broadcast_ss(inputs + r * blocks + first + b));
                sum[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(front, back)), both, sum[r]);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) _mm256_storeu_ps(sums[r], sum[r]);
    }
    // The same for one row of x and all blocks; `constants` has room for a number for each.
    HALFBYTE_AVX2 static void add_alone(const Levels& of, int64_t row, const int16_t* x, const float* inputs, int64_t blocks, float* constants,
                                        float (*sum)[kLanes]) {
        take_scales(of.packed, row * of.blocks, of.blocks, constants);
        for (int64_t b = 0; b < of.blocks; ++b) constants[b] *= inputs[b];
        add<1, true>(of, row, 0, of.blocks, constants, x, inputs, blocks, sum);
    }
};

// Rows of x for NF4 whose columns are whole blocks.
template <typename Few>
struct IntegerRows {
    typename Few::Known of;
    int64_t rows, blocks;  // of a row: whole groups
    int16_t* x;            // laid out
    float* scales;         // of x's blocks

    HALFBYTE_AVX2 IntegerRows(const Part& part, int64_t count)
        : of(part.matrix.nf4(), part.steps, kMostOfBoth), rows(count), blocks((of.blocks + Few::kGroup - 1) / Few::kGroup * Few::kGroup),
          x(scratch<27, int16_t>(count * blocks * kBlock)), scales(scratch<28, float>(count * blocks)) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t b = 0; b < blocks; b += Few::kGroup) {
                alignas(64) int16_t in_order[Few::kGroup * kBlock] = {};
                for (int64_t i = 0; i < Few::kGroup; ++i) {
                    const bool there = b + i < of.blocks;
                    const float scale = there ? quantise(part.x + r * part.steps + (b + i) * kBlock, kBlock, kMostOfBoth, in_order + i * kBlock) : 0.0f;
                    scales[r * blocks + b + i] = scale * (1.0f / kMostOfBoth);  // the levels' own is in it
                }
                Few::lay_out(in_order, x + (r * blocks + b) * kBlock);
            }
    }
    // ... times `count` rows of the matrix from `start` on -> out [rows, count].
    void multiply(int64_t start, int64_t count, float* out, int threads) const {
        parallel_shared(count, std::max<int64_t>(1, (1 << 15) / (of.blocks * kBlock)), threads, [&](int64_t first, int64_t last) {
            multiply_part(start + first, start + last, out + first, count);
        });
    }

private:
    // Rows first..last of W -> out [rows, stride], its columns likewise from `first` on.
    HALFBYTE_AVX2 void multiply_part(int64_t first, int64_t last, float* out, int64_t stride) const {
        constexpr decltype(&Few::template add<1>) kAdd[kTogether + 1] = {nullptr, Few::template add<1>, Few::template add<2>, Few::template add<3>,
                                                                         Few::template add<4>};
        float* const constants = scratch<26, float>(rows == 1 ? blocks : kStrip + Few::kGroup);
        for (int64_t row = first; row < last; row += kRowsOfStrip) {
            const int64_t count = std::min(kRowsOfStrip, last - row);
            float sums[kRowsOfStrip][kFewRows][Few::kLanes];
            for (int64_t i = 0; i < count; ++i) std::memset(sums[i], 0, size_t(rows) * sizeof sums[i][0]);
            if (rows == 1) {
                for (int64_t i = 0; i < count; ++i) Few::add_alone(of, row + i, x, scales, blocks, constants, sums[i]);
            } else {
                for (int64_t block = 0; block < of.blocks; block += kStrip) {
                    const int64_t have = std::min(kStrip, of.blocks - block);
                    for (int64_t i = 0; i < count; ++i) {
                        take_scales(of.packed, (row + i) * of.blocks + block, have, constants);
                        constants[have] = 0.0f;  // of a block that fills up a group
                        for (int64_t r = 0; r < rows; r += kTogether)
                            kAdd[std::min<int64_t>(kTogether, rows - r)](of, row + i, block, have, constants, x + r * blocks * kBlock,
                                                                        scales + r * blocks, blocks, sums[i] + r);
                    }
                }
            }
            for (int64_t i = 0; i < count; ++i)
                for (int64_t r = 0; r < rows; ++r) {
                    float* const lanes = sums[i][r];
                    for (int64_t width = Few::kLanes / 2; width > 0; width /= 2)
                        for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
                    out[r * stride + row - first + i] = lanes[0];
                }
        }
    }
};

HALFBYTE_AVX2 inline float dot(const bf16* left, const float* right, int64_t count) {
    __m256 lanes = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) lanes = _mm256_fmadd_ps(widen(left + i), _mm256_loadu_ps(right + i), lanes);
    float sum = 0.0f;
    for (; i < count; ++i) sum += to_float(left[i]) * right[i];
    alignas(32) float apart[8];
    _mm256_store_ps(apart, lanes);
    for (const float lane : apart) sum += lane;
    return sum;
}

template <typename Rows>
void multiply_slices(const Task& task, const Rows& x, int threads) {
    const int64_t rank = task.count == 2 ? task.parts[1].steps : 0;
    const auto* const pair = rank ? static_cast<const bf16*>(task.parts[1].matrix.codes) : nullptr;
    float* const h = scratch<32, float>(task.rows * rank);
    for (int64_t i = 0; i < task.rows * rank; ++i) h[i] = to_float(task.parts[1].x[i]);
    float* const sums = scratch<30, float>(task.rows * std::min(kSlice, task.columns));
    for (int64_t start = 0; start < task.columns; start += kSlice) {
        const int64_t count = std::min(kSlice, task.columns - start);
        x.multiply(start, count, sums, threads);
        parallel(count, std::max<int64_t>(1, (1 << 14) / (task.rows * (rank + 8))), threads, [&](int64_t first, int64_t last) {
            for (int64_t r = 0; r < task.rows; ++r)
                for (int64_t c = first; c < last; ++c) {
                    float sum = sums[r * count + c] + (task.bias ? to_float(task.bias[start + c]) : 0.0f);
                    if (rank) sum += dot(pair + (start + c) * rank, h + r * rank, rank);
                    task.out[r * task.columns + start + c] = from_float<bf16>(sum);
                }
        });
    }
}

// Whether they were multiplied: few rows, and NF4's blocks have to lie within a row.
template <typename Few>
bool multiply_if_few(const Task& task, int threads) {
    const MatrixArgument& matrix = task.parts[0].matrix;
    if (task.transposed || task.rows > kFewRows || (matrix.kind == kNf4 && matrix.columns % kBlock)) return false;
    if (matrix.kind == kNf4)
        multiply_slices(task, IntegerRows<Few>(task.parts[0], task.rows), threads);
    else if (matrix.kind == kDense)
        multiply_slices(task, typename Few::DenseRows(task.parts[0], task.rows), threads);
    else
        multiply_slices(task, RowsInFp32(task.parts[0], task.rows), threads);
    return true;
}

}  // namespace int16
}  // namespace
}  // namespace halfbyte

#endif
