// int16_layout.h with vectors of 512 bits: the same bits, but for the transpose of NF4 (lay_out_levels).
#pragma once

#include "int16_layout.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {
namespace int16 {

HALFBYTE_AVX512 HALFBYTE_INLINE __m512i magnitude(__m512 values) {  // as integers, in which NaN is the largest
    return _mm512_and_si512(_mm512_castps_si512(values), _mm512_set1_epi32(0x7fffffff));
}
HALFBYTE_AVX512 HALFBYTE_INLINE __m512 widen(__m256i words) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}
HALFBYTE_AVX512 HALFBYTE_INLINE __m512i pair_up(__m512 even, __m512 odd) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_cvtps_epi32(even), _mm512_slli_epi32(_mm512_cvtps_epi32(odd), 16));
}
// By what 16 columns with these largest magnitudes are multiplied; stores their scales.
HALFBYTE_AVX512 HALFBYTE_INLINE __m512 up_from(__m512i most, float* scales) {
    const __m512 absmax = _mm512_castsi512_ps(most);
    _mm512_store_ps(scales, _mm512_mul_ps(absmax, _mm512_set1_ps(1.0f / kMostWeight)));
    return _mm512_maskz_div_ps(_mm512_cmp_ps_mask(absmax, _mm512_set1_ps(kTiny), _CMP_NLT_UQ), _mm512_set1_ps(kMostWeight), absmax);
}

// The levels of NF4 as integers up to `most`.
struct Levels512 : Nf4Rows {
    alignas(64) int16_t levels[32];  // twice, so that bit 4 of an index does not matter

    Levels512(const Nf4& nf4, int64_t columns, float most) : Nf4Rows{nf4, columns / kBlock} {
        for (int k = 0; k < 32; ++k) levels[k] = int16_t(std::lrintf(packed.levels[k % 16] * most));
    }
    HALFBYTE_AVX512 void decode(const uint8_t* at, int64_t count, int16_t* out) const {
        const __m512i table = _mm512_load_si512(levels);
        for (int64_t i = 0; i < 2 * count; ++i) _mm512_storeu_si512(out + 32 * i, _mm512_permutexvar_epi16(codes_in_words(at + 16 * i), table));
    }
};

struct Layout512 {
    using Known = Levels512;
    static constexpr int kIsa = kAvx512;

    HALFBYTE_AVX512 static float quantise(const bf16* x, int64_t left, float largest, int16_t* out) {
        __m512 values[4];
        __m512i most = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            values[i] = widen(_mm256_maskz_loadu_epi16(__mmask16(first_words(std::min<int64_t>(16, left - 16 * i))), x + 16 * i));
            most = _mm512_max_epi32(most, magnitude(values[i]));
        }
        const float absmax = from_bits(uint32_t(_mm512_reduce_max_epi32(most)));
        const __m512 up = _mm512_set1_ps(absmax < kTiny ? 0.0f : largest / absmax);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
            _mm256_store_si256(reinterpret_cast<__m256i*>(out) + i, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(values[i], up))));
        return absmax * (1.0f / largest);
    }
    HALFBYTE_AVX512 static void quantise_panel(const float* weights, int64_t steps, uint32_t* out, float* scales) {
        for (int64_t begin = 0; begin < steps; begin += kBlock, weights += kBlock * kColumns, out += kPairs * kColumns, scales += kColumns) {
            const int64_t have = std::min(kBlock, steps - begin);
            const auto step = [&](int64_t s) HALFBYTE_AVX512 { return s < have ? _mm512_load_ps(weights + s * kColumns) : _mm512_setzero_ps(); };
            __m512i most = _mm512_setzero_si512();
            for (int64_t s = 0; s < have; ++s) most = _mm512_max_epi32(most, magnitude(step(s)));
            const __m512 up = up_from(most, scales);
            for (int64_t p = 0; p < kPairs; ++p)
                _mm512_store_si512(out + p * kColumns, pair_up(_mm512_mul_ps(step(2 * p), up), _mm512_mul_ps(step(2 * p + 1), up)));
        }
    }
    HALFBYTE_AVX512 static void turn(const int16_t (*rows)[kChunk], int64_t pairs, uint32_t* out) {
        for (int64_t pair = 0; pair < pairs; pair += 16, out += 16 * kColumns) {
            __m512i block[16];
#pragma GCC unroll 16
            for (int r = 0; r < 16; ++r) block[r] = _mm512_load_si512(rows[r] + 2 * pair);
            transpose(block);
#pragma GCC unroll 16
            for (int p = 0; p < 16; ++p) _mm512_store_si512(out + p * kColumns, block[p]);
        }
    }

    static bool takes_units(const MatrixArgument& matrix) { return matrix.kind == kDense || (matrix.kind == kNf4 && matrix.columns % kBlock == 0); }
    // W's columns first..first + 64, or up to its last one, as output columns, steps along its rows begin..end -> integers
    // [panel][block][pair][16] and scales [panel][block][16], a panel kPanel (kPanelScales) from the next.
    static void lay_out_unit(const MatrixArgument& matrix, int64_t first, int64_t begin, int64_t end, uint32_t* out, float* scales) {
        (matrix.kind == kDense ? lay_out_dense : lay_out_levels)(matrix, first, begin, end, out, scales);
    }

private:
    // Of NF4 the 64 columns are a block of each row. 64 rows share a scale in all of them, that of the block with the largest absmax:
    // so each row's levels are scaled, and not its weights. (A block that is much smaller than that of a row nearby keeps fewer bits
    // than it would with a scale for each column.)
    HALFBYTE_AVX512 static void lay_out_levels(const MatrixArgument& matrix, int64_t first, int64_t begin, int64_t end, uint32_t* out, float* scales) {
        const Nf4 packed = matrix.nf4();
        const __m512 known = _mm512_loadu_ps(packed.levels);
        for (int64_t step = begin; step < end; step += kBlock, out += kPairs * kColumns, scales += kColumns) {
            const int64_t have = std::min(kBlock, end - step);
            float of_row[kBlock];
            uint32_t most = 0;  // as integers, in which NaN is the largest
            for (int64_t s = 0; s < have; ++s) {
                of_row[s] = packed.scale(((step + s) * matrix.columns + first) / kBlock);
                most = std::max(most, bits_of(of_row[s]) & 0x7fffffff);
            }
            const float absmax = from_bits(most), up = absmax < kTiny ? 0.0f : kMostWeight / absmax;
            for (int64_t p = 0; p < kPanels; ++p) _mm512_store_ps(scales + p * kPanelScales, _mm512_set1_ps(absmax * (1.0f / kMostWeight)));
            for (int64_t pair = 0; pair < kPairs; ++pair) {
                __m512i rows[2][2] = {};
                for (int64_t i = 0; i < 2 && 2 * pair + i < have; ++i) {
                    const int64_t row = step + 2 * pair + i;
                    fp32::ask_for(matrix, row + fp32::kRowsAhead, first);
                    const __m512i levels = _mm512_cvtps_epi32(_mm512_mul_ps(known, _mm512_set1_ps(of_row[2 * pair + i] * up)));
                    const __m512i table = _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(levels));  // twice: an index's bit 4 does not matter
                    const uint8_t* const codes = packed.codes + (row * matrix.columns + first) / 2;
                    for (int half = 0; half < 2; ++half) rows[i][half] = _mm512_permutexvar_epi16(codes_in_words(codes + 16 * half), table);
                }
                for (int half = 0; half < 2; ++half) {
                    uint32_t* const at = out + 2 * half * kPanel + pair * kColumns;
                    const Interleaved both(rows[0][half], rows[1][half]);
                    _mm512_store_si512(at, both.front);
                    _mm512_store_si512(at + kPanel, both.back);
                }
            }
        }
    }

    // Of a dense matrix each column has a scale of its own, as in quantise_panel.
    HALFBYTE_AVX512 static void lay_out_dense(const MatrixArgument& matrix, int64_t first, int64_t begin, int64_t end, uint32_t* out, float* scales) {
        const auto* const weights = static_cast<const bf16*>(matrix.codes) + first;
        __mmask16 there[kPanels];
        for (int64_t p = 0; p < kPanels; ++p) there[p] = __mmask16(first_words(std::min(kColumns, matrix.columns - first - p * kColumns)));
        for (int64_t step = begin; step < end; step += kBlock, out += kPairs * kColumns, scales += kColumns) {
            const int64_t last = std::min(step + kBlock, end);
            const auto numbers = [&](int64_t row, int64_t p) HALFBYTE_AVX512 {  // 16 of a row, zeros beyond the last row
                return widen(_mm256_maskz_loadu_epi16(row < last ? there[p] : 0, weights + std::min(row, last - 1) * matrix.columns + p * kColumns));
            };
            __m512i most[kPanels] = {};
            for (int64_t row = step; row < last; ++row) {
                fp32::ask_for(matrix, row + fp32::kRowsAhead, first);
#pragma GCC unroll 4
                for (int64_t p = 0; p < kPanels; ++p) most[p] = _mm512_max_epi32(most[p], magnitude(numbers(row, p)));
            }
            __m512 up[kPanels];
#pragma GCC unroll 4
            for (int64_t p = 0; p < kPanels; ++p) up[p] = up_from(most[p], scales + p * kPanelScales);
            for (int64_t pair = 0; pair < kPairs; ++pair)
#pragma GCC unroll 4
                for (int64_t p = 0; p < kPanels; ++p) {
                    const __m512 even = _mm512_mul_ps(numbers(step + 2 * pair, p), up[p]), odd = _mm512_mul_ps(numbers(step + 2 * pair + 1, p), up[p]);
                    _mm512_store_si512(out + p * kPanel + pair * kColumns, pair_up(even, odd));
                }
        }
    }
};

}  // namespace int16
}  // namespace
}  // namespace halfbyte

#endif
