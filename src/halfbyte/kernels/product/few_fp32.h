// Products of few rows in fp32 for processors with AVX2 (and AVX-512, which memory keeps from more), y = x W^T: decoding text, where every weight is read for one
// token or some.
//
// Method: 64 weights of a row of W at a time. The 16 levels of NF4 lie in four registers by their bytes; a byte shuffle in
// each looks up 32 weights, and unpacking puts the bytes together to fp32. That leaves the weights in an order of its own,
// in which x is laid out once a call. They stay in registers, for four rows of x at most; the block's scale multiplies the
// sum of the block. 3 shuffles for 8 weights are what sets the pace: from its caches a core of a Zen 3 goes through 4
// weights a cycle.
// A row's sum has one order, whatever the number of threads or of rows beside it.
//
// Rejected: decoding to the first-level cache, by permutations of fp32, before multiplying (two fifths of the speed).
#pragma once

#include <type_traits>

#include "shared.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {
namespace fp32 {

constexpr int64_t kFewRows = 8;  // up to here this is faster than fp32.h
constexpr int kTogether = 4;     // rows of x that a decoded weight meets in registers
constexpr int64_t kStrip = 16;   // blocks of 64 weights: of four rows of x, 16 KB, half of the first-level cache
constexpr int64_t kAhead = 1024;  // bytes to fetch ahead: the processor stops at the end of a page (7 to 30 % for a dense W)
constexpr int64_t kRowsOfStrip = 8;  // rows of W that go over a strip of x before the next

// ---- 64 weights, as two halves of 4 x 8 -------------------------------------------------------------------------------

struct Nf4Blocks {
    Nf4 packed;
    int64_t blocks;  // of a row
    Planes planes;
    static constexpr bool kScaled = true;

    HALFBYTE_AVX2 explicit Nf4Blocks(const MatrixArgument& matrix)
        : packed(matrix.nf4()), blocks(matrix.columns / kBlock), planes(packed.levels) {}
    static int64_t place(int64_t i) {  // where weight i of a block is among the 64
        const int64_t byte = i / 2, lane = byte / 16, within = byte % 16;
        return i % 2 * 32 + within / 4 * 8 + lane * 4 + within % 4;
    }
    void scales(int64_t row, int64_t first, int64_t count, float* out) const { take_scales(packed, row * blocks + first, count, out); }
    float scale(int64_t) const { return 1.0f; }  // of a row

    template <int kHalf>
    HALFBYTE_AVX2 HALFBYTE_INLINE void half(int64_t row, int64_t block, __m256* out) const {
        const auto* at = reinterpret_cast<const __m256i*>(packed.codes + (row * blocks + block) * (kBlock / 2));
        const __m256i codes = _mm256_loadu_si256(at);
        const __m256i index = _mm256_and_si256(kHalf ? codes : _mm256_srli_epi16(codes, 4), _mm256_set1_epi8(15));
        planes.look_up(index, out);
    }
};

template <typename T>  // bf16, f16 or float
struct DenseBlocks {
    const T* weights;
    int64_t columns;
    static constexpr bool kScaled = false;
    static int64_t place(int64_t i) { return i; }
    float scale(int64_t) const { return 1.0f; }
    using Weight = T;
    DenseBlocks last(int64_t row, int64_t first, T* buffer) const {  // the rest of a row, with zeros behind it
        std::memcpy(buffer, weights + row * columns + first, size_t(columns - first) * sizeof(T));
        return {buffer, 0};
    }
    template <int kHalf>
    HALFBYTE_AVX2 HALFBYTE_INLINE void half(int64_t row, int64_t block, __m256* out) const {
        const T* at = weights + row * columns + block * kBlock + 32 * kHalf;
        for (size_t line = 0; line < sizeof(T) / 2; ++line) _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead + 64 * line, _MM_HINT_T0);
        for (int i = 0; i < 4; ++i) {
            if constexpr (sizeof(T) == 4) {
                out[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(at) + 8 * i);
            } else if constexpr (std::is_same_v<T, f16>) {
                out[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 8 * i)));
            } else {
                const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 8 * i)));
                out[i] = _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
            }
        }
    }
};

struct Int8Blocks {
    const int8_t* codes;
    const float* scale_of;
    int64_t columns;
    static constexpr bool kScaled = false;
    static int64_t place(int64_t i) { return i; }
    float scale(int64_t row) const { return load(scale_of + row) * (1.0f / 127.0f); }
    using Weight = int8_t;
    Int8Blocks last(int64_t row, int64_t first, int8_t* buffer) const {
        std::memcpy(buffer, codes + row * columns + first, size_t(columns - first));
        return {buffer, nullptr, 0};
    }
    template <int kHalf>
    HALFBYTE_AVX2 HALFBYTE_INLINE void half(int64_t row, int64_t block, __m256* out) const {
        const int8_t* at = codes + row * columns + block * kBlock + 32 * kHalf;
        if constexpr (kHalf == 0) _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead, _MM_HINT_T0);
        for (int i = 0; i < 4; ++i)
            out[i] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at + 8 * i))));
    }
};

// ---- rows of W with rows of x -----------------------------------------------------------------------------------------

// sums[r] += 8 lanes of W's `row`, blocks first..first + count, times x[r] (laid out; rows `stride` apart), for kRows rows.
template <int kRows, typename Blocks>
HALFBYTE_AVX2 void add_blocks(const Blocks& of, int64_t row, int64_t first, int64_t count, const float* scales, const float* x,
                              int64_t stride, float (*sums)[8]) {
    __m256 sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = _mm256_loadu_ps(sums[r]);
    for (int64_t b = 0; b < count; ++b) {
        const float* at = x + (first + b) * kBlock;
        __m256 weights[4], even[kRows], odd[kRows];  // two sums, so that an addition need not wait for the one before
        of.template half<0>(row, first + b, weights);
        for (int r = 0; r < kRows; ++r) even[r] = _mm256_mul_ps(weights[0], _mm256_loadu_ps(at + r * stride));
        for (int r = 0; r < kRows; ++r) odd[r] = _mm256_mul_ps(weights[1], _mm256_loadu_ps(at + r * stride + 8));
        for (int r = 0; r < kRows; ++r) even[r] = _mm256_fmadd_ps(weights[2], _mm256_loadu_ps(at + r * stride + 16), even[r]);
        for (int r = 0; r < kRows; ++r) odd[r] = _mm256_fmadd_ps(weights[3], _mm256_loadu_ps(at + r * stride + 24), odd[r]);
        of.template half<1>(row, first + b, weights);
        for (int i = 0; i < 4; i += 2) {
            for (int r = 0; r < kRows; ++r) even[r] = _mm256_fmadd_ps(weights[i], _mm256_loadu_ps(at + r * stride + 32 + 8 * i), even[r]);
            for (int r = 0; r < kRows; ++r) odd[r] = _mm256_fmadd_ps(weights[i + 1], _mm256_loadu_ps(at + r * stride + 40 + 8 * i), odd[r]);
        }
        if constexpr (Blocks::kScaled) {
            const __m256 scale = _mm256_broadcast_ss(scales + b);
            for (int r = 0; r < kRows; ++r) sum[r] = _mm256_fmadd_ps(_mm256_add_ps(even[r], odd[r]), scale, sum[r]);
        } else {
            for (int r = 0; r < kRows; ++r) sum[r] = _mm256_add_ps(_mm256_add_ps(even[r], odd[r]), sum[r]);
        }
    }
    for (int r = 0; r < kRows; ++r) _mm256_storeu_ps(sums[r], sum[r]);
}

template <typename Blocks>
void add_rows(const Blocks& of, int64_t row, int64_t first, int64_t count, const float* scales, const float* x, int64_t stride,
              int64_t rows, float (*sums)[8]) {
    constexpr decltype(&add_blocks<1, Blocks>) kAdd[kTogether + 1] = {nullptr, add_blocks<1, Blocks>, add_blocks<2, Blocks>,
                                                                      add_blocks<3, Blocks>, add_blocks<4, Blocks>};
    for (int64_t r = 0; r < rows; r += kTogether) {
        const int64_t together = std::min<int64_t>(kTogether, rows - r);
        kAdd[together](of, row, first, count, scales, x + r * stride, stride, sums + r);
    }
}

// Rows first..last of W; x laid out, with rows of `padded` numbers.
template <typename Blocks>
void multiply_part(const Blocks& of, const float* x, int64_t padded, int64_t rows, int64_t columns, int64_t first, int64_t last,
                   int64_t outputs, const float* bias, float* out) {
    const int64_t whole = columns / kBlock, strip = rows == 1 ? std::max<int64_t>(whole, 1) : kStrip;
    float* const scales = scratch<6, float>(strip);
    for (int64_t row = first; row < last; row += kRowsOfStrip) {
        const int64_t count = std::min(kRowsOfStrip, last - row);
        float sums[kRowsOfStrip][kFewRows][8];
        for (int64_t i = 0; i < count; ++i) std::memset(sums[i], 0, size_t(rows) * sizeof sums[i][0]);
        for (int64_t block = 0; block < whole; block += strip) {
            const int64_t blocks = std::min(strip, whole - block);
            for (int64_t i = 0; i < count; ++i) {
                if constexpr (Blocks::kScaled) of.scales(row + i, block, blocks, scales);
                add_rows(of, row + i, block, blocks, scales, x, padded, rows, sums[i]);
            }
        }
        for (int64_t i = 0; i < count; ++i) {
            if constexpr (!Blocks::kScaled) {
                if (whole * kBlock < columns) {
                    typename Blocks::Weight buffer[kBlock] = {};
                    const auto end = of.last(row + i, whole * kBlock, buffer);
                    add_rows(end, 0, 0, 1, scales, x + whole * kBlock, padded, rows, sums[i]);
                }
            }
            for (int64_t r = 0; r < rows; ++r) {
                float sum = 0.0f;
                for (const float lane : sums[i][r]) sum += lane;
                sum *= of.scale(row + i);
                out[r * outputs + row + i] = bias ? sum + bias[row + i] : sum;
            }
        }
    }
}

// x [rows, columns] times the matrix -> out [rows, outputs]; at most kFewRows rows.
template <typename Blocks>
void multiply_few(const Blocks& of, const float* x, int64_t rows, int64_t columns, int64_t outputs, const float* bias, float* out, int threads) {
    const int64_t padded = (columns + kBlock - 1) / kBlock * kBlock;
    float* const laid_out = scratch<7, float>(rows * padded);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < padded; ++i)
            laid_out[r * padded + i / kBlock * kBlock + Blocks::place(i % kBlock)] = i < columns ? x[r * columns + i] : 0.0f;
    parallel(outputs, std::max<int64_t>(1, (1 << 15) / columns), threads, [&](int64_t first, int64_t last) {
        multiply_part(of, laid_out, padded, rows, columns, first, last, outputs, bias, out);
    });
}

}  // namespace fp32
}  // namespace
}  // namespace halfbyte

#endif
