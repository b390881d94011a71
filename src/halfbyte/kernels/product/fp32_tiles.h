// Register tiles of the products in fp32: rows of x times a panel of weights, for AVX2 and for AVX-512.
#pragma once

#include <utility>

#include "shared.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {
namespace fp32 {

constexpr int64_t kChunk = 256;  // steps of the contraction that are decoded at once, and that a tile sums up

// A set has `kIsa`, the instruction set by which weights are decoded, `kRows` and `kColumns` of its tile and
//   tile<kCount, kVectors>: out [kCount][kVectors] (rows `stride` apart) = start (one row; `out` itself if it is null)
//       + inputs [steps][kCount] x weights [steps][kColumns], of which the first kVectors vectors count.
// The sum of the steps begins at zero: added one after another to what is there, many would lose the last bits. Written
// out for each set, since a function is compiled for one instruction set and its intrinsics are that one's.

struct Avx2 {
    static constexpr int kIsa = kAvx2;
    static constexpr int64_t kRows = 6, kColumns = 16, kWidth = 8;  // 12 sums, 2 weights, 1 input

    template <int kCount, int kVectors>
    HALFBYTE_AVX2 static void tile(const float* inputs, const float* weights, int64_t steps, const float* start, float* out, int64_t stride) {
        __m256 sum[kCount][kVectors];
#pragma GCC unroll 6
        for (int r = 0; r < kCount; ++r)
            for (int c = 0; c < kVectors; ++c) sum[r][c] = _mm256_setzero_ps();
        for (int64_t s = 0; s < steps; ++s, inputs += kCount, weights += kColumns) {
            __m256 weight[kVectors];
            for (int c = 0; c < kVectors; ++c) weight[c] = _mm256_load_ps(weights + kWidth * c);
#pragma GCC unroll 6
            for (int r = 0; r < kCount; ++r) {
                const __m256 input = _mm256_broadcast_ss(inputs + r);
                for (int c = 0; c < kVectors; ++c) sum[r][c] = _mm256_fmadd_ps(input, weight[c], sum[r][c]);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < kCount; ++r)
            for (int c = 0; c < kVectors; ++c) {
                float* const at = out + r * stride + kWidth * c;
                _mm256_storeu_ps(at, _mm256_add_ps(_mm256_loadu_ps(start ? start + kWidth * c : at), sum[r][c]));
            }
    }
};

struct Avx512 {
    static constexpr int kIsa = kAvx512;
    static constexpr int64_t kRows = 12, kColumns = 32, kWidth = 16;  // 24 sums, 2 weights, 1 input

    template <int kCount, int kVectors>
    HALFBYTE_AVX512 static void tile(const float* inputs, const float* weights, int64_t steps, const float* start, float* out, int64_t stride) {
        __m512 sum[kCount][kVectors];
#pragma GCC unroll 14
        for (int r = 0; r < kCount; ++r)
            for (int c = 0; c < kVectors; ++c) sum[r][c] = _mm512_setzero_ps();
        for (int64_t s = 0; s < steps; ++s, inputs += kCount, weights += kColumns) {
            __m512 weight[kVectors];
            for (int c = 0; c < kVectors; ++c) weight[c] = _mm512_load_ps(weights + kWidth * c);
#pragma GCC unroll 14
            for (int r = 0; r < kCount; ++r) {
                const __m512 input = _mm512_set1_ps(inputs[r]);
                for (int c = 0; c < kVectors; ++c) sum[r][c] = _mm512_fmadd_ps(input, weight[c], sum[r][c]);
            }
        }
#pragma GCC unroll 14
        for (int r = 0; r < kCount; ++r)
            for (int c = 0; c < kVectors; ++c) {
                float* const at = out + r * stride + kWidth * c;
                _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(start ? start + kWidth * c : at), sum[r][c]));
            }
    }
};

using Tile = void (*)(const float*, const float*, int64_t, const float*, float*, int64_t);

template <typename Set, int kVectors, size_t... kCounts>
constexpr std::array<Tile, sizeof...(kCounts)> tiles_of(std::index_sequence<kCounts...>) {
    return {{Set::template tile<int(kCounts) + 1, kVectors>...}};
}

// For `columns` columns of a panel (at most kColumns), the tile of `rows` rows.
template <typename Set>
Tile tile_of(int64_t rows, int64_t columns) {
    static constexpr auto kWhole = tiles_of<Set, 2>(std::make_index_sequence<size_t(Set::kRows)>());
    static constexpr auto kHalf = tiles_of<Set, 1>(std::make_index_sequence<size_t(Set::kRows)>());
    return (columns > Set::kWidth ? kWhole : kHalf)[size_t(rows - 1)];
}

// A tile of which only `columns` exist in `out`.
template <typename Set>
void edge(const float* inputs, const float* weights, int64_t steps, const float* start, float* out, int64_t stride, int64_t rows,
          int64_t columns) {
    alignas(64) float sums[Set::kRows * Set::kColumns] = {};
    for (int64_t r = 0; r < rows && !start; ++r) std::memcpy(sums + r * Set::kColumns, out + r * stride, size_t(columns) * sizeof(float));
    tile_of<Set>(rows, columns)(inputs, weights, steps, start, sums, Set::kColumns);
    for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r * stride, sums + r * Set::kColumns, size_t(columns) * sizeof(float));
}

// 8 rows of 8 numbers, `stride` apart -> columns, kColumns apart.
template <int64_t kColumns>
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

}  // namespace fp32
}  // namespace
}  // namespace halfbyte

#endif
