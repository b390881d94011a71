// What the products of int16.h are made of for each instruction set: the register tile, and how a matrix is laid out for it.
//
// `vpmaddwd` and an addition (AVX2), or `vpdpwssd`, which is both in one (AVX-VNNI, AVX512-VNNI). Integers are added up
// exactly, and sums in fp32 in the same order, so y = x W^T has the same bits by all of them. Its transpose with NF4 has others
// by AVX512-VNNI, where 64 output columns share a scale (int16_layout_512.h).
#pragma once

#include <utility>

#include "int16_layout_512.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {
namespace int16 {

// ---- a matrix forward -------------------------------------------------------------------------------------------------

// Where a row of W comes from: steps begin..end of it as integers, and the scales of their blocks.
template <typename Layout>
struct LevelSource {  // NF4 whose blocks lie within a row
    typename Layout::Known of;
    HALFBYTE_AVX2 explicit LevelSource(const MatrixArgument& matrix) : of(matrix.nf4(), matrix.columns, kMostWeight) {}
    HALFBYTE_AVX2 void row(int64_t row, int64_t begin, int64_t end, int16_t* out, float* scales) const {
        const int64_t blocks = (end - begin) / kBlock;
        take_scales(of.packed, row * of.blocks + begin / kBlock, blocks, scales);
        for (int64_t b = 0; b < blocks; ++b) scales[b] *= 1.0f / kMostWeight;
        of.decode(of.at(row, begin / kBlock), blocks, out);
    }
};
template <typename Layout>
struct DenseSource {
    const MatrixArgument& matrix;
    HALFBYTE_AVX2 void row(int64_t row, int64_t begin, int64_t end, int16_t* out, float* scales) const {
        const bf16* const at = static_cast<const bf16*>(matrix.codes) + row * matrix.columns + begin;
        for (int64_t s = 0; s < end - begin; s += kBlock) *scales++ = Layout::quantise(at + s, end - begin - s, kMostWeight, out + s);
    }
};
struct DecodedSource {  // by way of fp32: int8, and NF4 whose blocks straddle rows
    const MatrixArgument& matrix;
    HALFBYTE_AVX2 void row(int64_t row, int64_t begin, int64_t end, int16_t* out, float* scales) const {
        alignas(32) float wide[kChunk];
        fp32::decode(matrix, row, begin, end - begin, wide);
        for (int64_t s = 0; s < end - begin; s += kBlock) *scales++ = quantise(wide + s, end - begin - s, kMostWeight, out + s);
    }
};

// W's rows first..first + count (at most 16) as output columns, steps begin..end (at most kChunk) along its columns ->
// integers [block][pair][16] and scales [block][16].
template <typename Layout, typename Source>
HALFBYTE_AVX2 void lay_out_from(const Source& source, int64_t first, int64_t count, int64_t begin, int64_t end, uint32_t* out, float* scales) {
    alignas(64) int16_t rows[kColumns][kChunk];
    const int64_t blocks = (end - begin + kBlock - 1) / kBlock;
    for (int64_t r = 0; r < kColumns; ++r) {
        float of_row[kChunk / kBlock] = {};
        if (r < count)
            source.row(first + r, begin, end, rows[r], of_row);
        else
            std::memset(rows[r], 0, sizeof rows[r]);
        for (int64_t b = 0; b < blocks; ++b) scales[b * kColumns + r] = of_row[b];
    }
    Layout::turn(rows, blocks * kPairs, out);
}
template <typename Layout>
void lay_out(const MatrixArgument& matrix, int64_t first, int64_t count, int64_t begin, int64_t end, uint32_t* out, float* scales) {
    if (matrix.kind == kDense) return lay_out_from<Layout>(DenseSource<Layout>{matrix}, first, count, begin, end, out, scales);
    if (matrix.kind == kNf4 && matrix.columns % kBlock == 0)
        return lay_out_from<Layout>(LevelSource<Layout>(matrix), first, count, begin, end, out, scales);
    lay_out_from<Layout>(DecodedSource{matrix}, first, count, begin, end, out, scales);
}

// ---- register tiles ---------------------------------------------------------------------------------------------------

// sums [panel][kCount][16] += `blocks` blocks of inputs [block][pair][kCount] times weights [panel][block][pair][16], and
// their scales: `rows` [block][kCount] and `columns` [panel][block][16]. Panels of the weights hold kChunk steps, those of the
// sums are `apart` numbers from each other.
using Tile = void (*)(const uint32_t* inputs, const float* rows, const uint32_t* weights, const float* columns, int64_t blocks, float* sums,
                      int64_t apart);

// That of a set for so many rows.
template <typename Set, size_t... kIndex>
Tile tile_of(int64_t rows, std::index_sequence<kIndex...>) {
    static constexpr Tile tiles[] = {Set::template tile<int(kIndex) + 1>...};
    return tiles[rows - 1];
}
template <typename Set>
Tile tile_of(int64_t rows) {
    return tile_of<Set>(rows, std::make_index_sequence<Set::kRows>());
}

typedef uint32_t Integers __attribute__((vector_size(32)));  // with __m256i GCC would keep the sums in memory; NaN overflows

// Of each set: rows of a register tile, panels that it takes at once, and how they are laid out.
template <bool kVnni>
struct Set256 {
    static constexpr int64_t kRows = 6, kPanelsAtOnce = 1;  // 12 sums, 2 weights, 1 input
    using Layout = Layout256;

    HALFBYTE_AVX2 HALFBYTE_INLINE static void add(Integers& sum, __m256i input, __m256i weights) {
#ifdef HALFBYTE_AVXVNNI
        if constexpr (kVnni) {  // as assembly, since a function can't have its target from a template
            asm("%{vex%} vpdpwssd %[weights], %[input], %[sum]" : [sum] "+x"(sum) : [input] "x"(input), [weights] "x"(weights));
            return;
        }
#endif
        sum += (Integers)_mm256_madd_epi16(input, weights);
    }
    template <int kCount>
    HALFBYTE_AVX2 static void tile(const uint32_t* inputs, const float* rows, const uint32_t* weights, const float* columns, int64_t blocks,
                                   float* sums, int64_t) {
        for (int64_t b = 0; b < blocks; ++b, rows += kCount, columns += kColumns) {
            Integers sum[kCount][2];
#pragma GCC unroll 6
            for (int r = 0; r < kCount; ++r)
                for (int c = 0; c < 2; ++c) sum[r][c] = Integers{};
            for (int p = 0; p < kPairs; ++p, inputs += kCount, weights += kColumns) {
                const __m256i front = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights));
                const __m256i back = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights) + 1);
#pragma GCC unroll 6
                for (int r = 0; r < kCount; ++r) {
                    const __m256i input = _mm256_set1_epi32(int(inputs[r]));
                    add(sum[r][0], input, front);
                    add(sum[r][1], input, back);
                }
            }
            const __m256 front = _mm256_load_ps(columns), back = _mm256_load_ps(columns + 8);
#pragma GCC unroll 6
            for (int r = 0; r < kCount; ++r) {
                const __m256 scale = _mm256_broadcast_ss(rows + r);  // scales first: with one of them the sum might overflow
                float* const at = sums + r * kColumns;
                _mm256_store_ps(at, _mm256_fmadd_ps(_mm256_cvtepi32_ps((__m256i)sum[r][0]), _mm256_mul_ps(front, scale), _mm256_load_ps(at)));
                _mm256_store_ps(at + 8, _mm256_fmadd_ps(_mm256_cvtepi32_ps((__m256i)sum[r][1]), _mm256_mul_ps(back, scale), _mm256_load_ps(at + 8)));
            }
        }
    }
};

using Avx2 = Set256<false>;
using AvxVnni = Set256<true>;

typedef uint32_t WideIntegers __attribute__((vector_size(64)));  // likewise

struct Avx512Vnni {
    static constexpr int64_t kRows = 14, kPanelsAtOnce = 2;  // 28 sums, 2 weights, 1 input
    using Layout = Layout512;

    template <int kCount>
    HALFBYTE_VNNI static void tile(const uint32_t* inputs, const float* rows, const uint32_t* weights, const float* columns, int64_t blocks,
                                   float* sums, int64_t apart) {
        for (int64_t b = 0; b < blocks; ++b, rows += kCount, columns += kColumns) {
            WideIntegers sum[kCount][2];
#pragma GCC unroll 14
            for (int r = 0; r < kCount; ++r)
                for (int c = 0; c < 2; ++c) sum[r][c] = WideIntegers{};
            for (int p = 0; p < kPairs; ++p, inputs += kCount, weights += kColumns) {
                const __m512i front = _mm512_load_si512(weights), back = _mm512_load_si512(weights + kPanel);
#pragma GCC unroll 14
                for (int r = 0; r < kCount; ++r) {
                    const __m512i input = _mm512_set1_epi32(int(inputs[r]));
                    sum[r][0] = (WideIntegers)_mm512_dpwssd_epi32((__m512i)sum[r][0], input, front);
                    sum[r][1] = (WideIntegers)_mm512_dpwssd_epi32((__m512i)sum[r][1], input, back);
                }
            }
            const __m512 front = _mm512_load_ps(columns), back = _mm512_load_ps(columns + kPanelScales);
#pragma GCC unroll 14
            for (int r = 0; r < kCount; ++r) {
                const __m512 scale = _mm512_set1_ps(rows[r]);
                float *const at = sums + r * kColumns, *const beside = at + apart;
                _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum[r][0]), _mm512_mul_ps(front, scale), _mm512_load_ps(at)));
                _mm512_store_ps(beside, _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum[r][1]), _mm512_mul_ps(back, scale), _mm512_load_ps(beside)));
            }
        }
    }
};

}  // namespace int16
}  // namespace
}  // namespace halfbyte

#endif
