// A matrix as 16-bit integers: what int16.h and few_int16.h multiply with.
#pragma once

#include <cmath>
#include <type_traits>

#include "fp32.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {
namespace int16 {

using fp32::kColumns;                   // output columns of a panel
constexpr int64_t kPairs = kBlock / 2;  // `vpmaddwd` takes two steps at once
constexpr int64_t kChunk = 256;         // steps of the contraction that are decoded at once
constexpr int64_t kPanels = kUnit / kColumns;  // of a unit
constexpr int64_t kPanel = kColumns * kChunk / 2, kPanelScales = kColumns * kChunk / kBlock;  // from one to the next: pairs, scales
constexpr float kMostInput = 8191.0f, kMostWeight = 4095.0f;
constexpr float kTiny = 0x1p-100f;  // blocks with smaller magnitudes count as zero

HALFBYTE_AVX2 HALFBYTE_INLINE __m256i magnitude(__m256 values) {  // as integers, in which NaN is the largest
    return _mm256_and_si256(_mm256_castps_si256(values), _mm256_set1_epi32(0x7fffffff));
}
HALFBYTE_AVX2 HALFBYTE_INLINE __m256 widen(const bf16* values) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}
HALFBYTE_AVX2 HALFBYTE_INLINE __m256 widen(const float* values) { return _mm256_loadu_ps(values); }
// `even` and `odd`, rounded, side by side in 32 bits.
HALFBYTE_AVX2 HALFBYTE_INLINE __m256i pair_up(__m256 even, __m256 odd) {
    return _mm256_blend_epi16(_mm256_cvtps_epi32(even), _mm256_slli_epi32(_mm256_cvtps_epi32(odd), 16), 0xaa);
}

// 64 steps of a row, `left` of which exist, as integers up to `largest`; returns their scale. NaN and infinity make a scale
// that is not finite, and so the result.
template <typename T>
HALFBYTE_AVX2 float quantise(const T* x, int64_t left, float largest, int16_t* out) {
    T padded[kBlock] = {};
    if (left < kBlock) {
        std::memcpy(padded, x, size_t(left) * sizeof(T));
        x = padded;
    }
    __m256 values[8];
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < 8; ++i) {
        values[i] = widen(x + 8 * i);
        most = _mm256_max_epi32(most, magnitude(values[i]));
    }
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    const float absmax = from_bits(uint32_t(_mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)))));
    const __m256 up = _mm256_set1_ps(absmax < kTiny ? 0.0f : largest / absmax);
    for (int i = 0; i < 8; i += 2) {
        const __m256i front = _mm256_cvtps_epi32(_mm256_mul_ps(values[i], up)), back = _mm256_cvtps_epi32(_mm256_mul_ps(values[i + 1], up));
        _mm256_store_si256(reinterpret_cast<__m256i*>(out + 8 * i), _mm256_permute4x64_epi64(_mm256_packs_epi32(front, back), 0xd8));
    }
    return absmax * (1.0f / largest);
}

HALFBYTE_AVX512 inline float quantise_512(const bf16* x, int64_t left, float largest, int16_t* out) {
    __m512 values[4];
    __m512i most = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m256i words = _mm256_maskz_loadu_epi16(__mmask16(first_words(std::min<int64_t>(16, left - 16 * i))), x + 16 * i);
        values[i] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
        most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(values[i]), _mm512_set1_epi32(0x7fffffff)));
    }
    const float absmax = from_bits(uint32_t(_mm512_reduce_max_epi32(most)));
    const __m512 up = _mm512_set1_ps(absmax < kTiny ? 0.0f : largest / absmax);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        _mm256_store_si256(reinterpret_cast<__m256i*>(out) + i, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(values[i], up))));
    return absmax * (1.0f / largest);
}

// Columns [steps][16] in fp32, in blocks of 64 steps -> integers [block][pair][16] and scales [block][16].
HALFBYTE_AVX2 inline void quantise_panel(const float* weights, int64_t steps, uint32_t* out, float* scales) {
    for (int64_t begin = 0; begin < steps; begin += kBlock, weights += kBlock * kColumns, out += kPairs * kColumns, scales += kColumns) {
        for (int half = 0; half < 2; ++half) {
            const float* const from = weights + 8 * half;
            const int64_t have = std::min(kBlock, steps - begin);
            __m256i most = _mm256_setzero_si256();
            for (int64_t s = 0; s < have; ++s) most = _mm256_max_epi32(most, magnitude(_mm256_load_ps(from + s * kColumns)));
            const __m256 absmax = _mm256_castsi256_ps(most);
            const __m256 there = _mm256_cmp_ps(absmax, _mm256_set1_ps(kTiny), _CMP_NLT_UQ);
            const __m256 up = _mm256_and_ps(there, _mm256_div_ps(_mm256_set1_ps(kMostWeight), absmax));
            _mm256_store_ps(scales + 8 * half, _mm256_mul_ps(absmax, _mm256_set1_ps(1.0f / kMostWeight)));
            int64_t p = 0;
            for (; 2 * p < have; ++p) {
                const __m256 even = _mm256_load_ps(from + 2 * p * kColumns);
                const __m256 odd = 2 * p + 1 < have ? _mm256_load_ps(from + (2 * p + 1) * kColumns) : _mm256_setzero_ps();
                _mm256_store_si256(reinterpret_cast<__m256i*>(out + p * kColumns) + half, pair_up(_mm256_mul_ps(even, up), _mm256_mul_ps(odd, up)));
            }
            for (; p < kPairs; ++p) _mm256_store_si256(reinterpret_cast<__m256i*>(out + p * kColumns) + half, _mm256_setzero_si256());
        }
    }
}

HALFBYTE_AVX512 inline void quantise_panel_512(const float* weights, int64_t steps, uint32_t* out, float* scales) {
    const __m512i positive = _mm512_set1_epi32(0x7fffffff);
    for (int64_t begin = 0; begin < steps; begin += kBlock, weights += kBlock * kColumns, out += kPairs * kColumns, scales += kColumns) {
        const int64_t have = std::min(kBlock, steps - begin);
        __m512i most = _mm512_setzero_si512();
        for (int64_t s = 0; s < have; ++s) most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_load_si512(weights + s * kColumns), positive));
        const __m512 absmax = _mm512_castsi512_ps(most);
        const __mmask16 there = _mm512_cmp_ps_mask(absmax, _mm512_set1_ps(kTiny), _CMP_NLT_UQ);
        const __m512 up = _mm512_maskz_div_ps(there, _mm512_set1_ps(kMostWeight), absmax);
        _mm512_store_ps(scales, _mm512_mul_ps(absmax, _mm512_set1_ps(1.0f / kMostWeight)));
        const auto step = [&](int64_t s) HALFBYTE_AVX512 { return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(weights + s * kColumns), up)); };
        for (int64_t p = 0; p < kPairs; ++p) {
            const __m512i even = 2 * p < have ? step(2 * p) : _mm512_setzero_si512(), odd = 2 * p + 1 < have ? step(2 * p + 1) : _mm512_setzero_si512();
            _mm512_store_si512(out + p * kColumns, _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16)));
        }
    }
}

// NF4 whose rows are whole blocks.
struct Nf4Rows {
    Nf4 packed;
    int64_t blocks;  // of a row
    const uint8_t* at(int64_t row, int64_t block) const { return packed.codes + (row * blocks + block) * (kBlock / 2); }
};

// Its levels as integers up to `most`, by their bytes.
struct Levels : Nf4Rows {
    __m256i low, high;  // bytes of the 16 levels, each twice

    HALFBYTE_AVX2 Levels(const Nf4& nf4, int64_t columns, float most) : Nf4Rows{nf4, columns / kBlock} {
        alignas(16) uint8_t apart[2][16];
        for (int k = 0; k < 16; ++k) {
            const auto level = uint16_t(int16_t(std::lrintf(packed.levels[k] * most)));
            apart[0][k] = uint8_t(level), apart[1][k] = uint8_t(level >> 8);
        }
        low = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(apart[0])));
        high = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(apart[1])));
    }
    static int64_t place(int64_t i) {  // where `look_up` leaves weight i of a block
        const int64_t byte = i / 2, within = byte % 16;
        return i % 2 * 32 + within / 8 * 16 + byte / 16 * 8 + within % 8;
    }
    // 64 weights; those of even places first.
    HALFBYTE_AVX2 HALFBYTE_INLINE void look_up(const uint8_t* at, __m256i* out) const {
        const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
        const __m256i nibble = _mm256_set1_epi8(15);
        for (int half = 0; half < 2; ++half) {
            const __m256i index = _mm256_and_si256(half ? codes : _mm256_srli_epi16(codes, 4), nibble);
            const __m256i front = _mm256_shuffle_epi8(low, index), back = _mm256_shuffle_epi8(high, index);
            out[2 * half] = _mm256_unpacklo_epi8(front, back), out[2 * half + 1] = _mm256_unpackhi_epi8(front, back);
        }
    }
    // The weights of some blocks in order.
    HALFBYTE_AVX2 HALFBYTE_INLINE void decode(const uint8_t* at, int64_t count, int16_t* out) const {
        for (; count > 0; --count, at += kBlock / 2, out += kBlock) {
            __m256i apart[4];
            look_up(at, apart);
            auto* const to = reinterpret_cast<__m256i*>(out);
            for (int i = 0; i < 2; ++i) {
                const __m256i front = _mm256_unpacklo_epi16(apart[i], apart[i + 2]), back = _mm256_unpackhi_epi16(apart[i], apart[i + 2]);
                _mm256_store_si256(to + i, _mm256_permute2x128_si256(front, back, 0x20));
                _mm256_store_si256(to + i + 2, _mm256_permute2x128_si256(front, back, 0x31));
            }
        }
    }
};

// The same in a register of words, for processors with AVX-512.
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

// W's columns first..first + 64, a block of each row of NF4, as output columns, steps along its rows begin..end -> integers
// [panel][block][pair][16] and scales [panel][block][16], panels as int16_sets.h has them. 64 rows share a scale in all their
// columns, that of the block with the largest absmax: so each row's levels are scaled, and not its weights. (A block that is much
// smaller than that of a row nearby keeps fewer bits than it would with a scale for each column.)
HALFBYTE_AVX512 inline void lay_out_levels_transposed(const MatrixArgument& matrix, int64_t first, int64_t begin, int64_t end, uint32_t* out, float* scales) {
    const Nf4 packed = matrix.nf4();
    const __m512 known = _mm512_loadu_ps(packed.levels);
    alignas(64) uint16_t order[64];
    for (int i = 0; i < 64; ++i) order[i] = uint16_t(i / 2 + i % 2 * 32);
    const __m512i front = _mm512_load_si512(order), back = _mm512_load_si512(order + 32);
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
                _mm512_store_si512(at, _mm512_permutex2var_epi16(rows[0][half], front, rows[1][half]));
                _mm512_store_si512(at + kPanel, _mm512_permutex2var_epi16(rows[0][half], back, rows[1][half]));
            }
        }
    }
}

// As lay_out_levels_transposed, for a dense matrix and up to 64 columns, each with a scale of its own as in quantise_panel.
HALFBYTE_AVX512 inline void lay_out_dense_transposed(const MatrixArgument& matrix, int64_t first, int64_t begin, int64_t end, uint32_t* out, float* scales) {
    const auto* const weights = static_cast<const bf16*>(matrix.codes) + first;
    __mmask16 there[kPanels];
    for (int64_t p = 0; p < kPanels; ++p) there[p] = __mmask16(first_words(std::min(kColumns, matrix.columns - first - p * kColumns)));
    for (int64_t step = begin; step < end; step += kBlock, out += kPairs * kColumns, scales += kColumns) {
        const int64_t last = std::min(step + kBlock, end);
        const auto wide = [&](int64_t row, int64_t p) HALFBYTE_AVX512 {  // 16 numbers of a row, zeros beyond the last row
            const __m256i words = _mm256_maskz_loadu_epi16(row < last ? there[p] : 0, weights + std::min(row, last - 1) * matrix.columns + p * kColumns);
            return _mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16);
        };
        __m512i most[kPanels] = {};
        for (int64_t row = step; row < last; ++row) {
            fp32::ask_for(matrix, row + fp32::kRowsAhead, first);
#pragma GCC unroll 4
            for (int64_t p = 0; p < kPanels; ++p) most[p] = _mm512_max_epi32(most[p], _mm512_and_si512(wide(row, p), _mm512_set1_epi32(0x7fffffff)));
        }
        __m512 up[kPanels];
#pragma GCC unroll 4
        for (int64_t p = 0; p < kPanels; ++p) {
            const __m512 absmax = _mm512_castsi512_ps(most[p]);
            up[p] = _mm512_maskz_div_ps(_mm512_cmp_ps_mask(absmax, _mm512_set1_ps(kTiny), _CMP_NLT_UQ), _mm512_set1_ps(kMostWeight), absmax);
            _mm512_store_ps(scales + p * kPanelScales, _mm512_mul_ps(absmax, _mm512_set1_ps(1.0f / kMostWeight)));
        }
        for (int64_t pair = 0; pair < kPairs; ++pair)
#pragma GCC unroll 4
            for (int64_t p = 0; p < kPanels; ++p) {
                const auto integers = [&](int64_t row) HALFBYTE_AVX512 { return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(wide(row, p)), up[p])); };
                const __m512i odd = _mm512_slli_epi32(integers(step + 2 * pair + 1), 16);
                _mm512_store_si512(out + p * kPanel + pair * kColumns, _mm512_mask_blend_epi16(0xaaaaaaaa, integers(step + 2 * pair), odd));
            }
    }
}

// Where a row of W comes from: steps begin..end of it as integers, and the scales of their blocks.
template <typename Known>
struct LevelSource {  // NF4 whose blocks lie within a row
    Known of;
    HALFBYTE_AVX2 explicit LevelSource(const MatrixArgument& matrix) : of(matrix.nf4(), matrix.columns, kMostWeight) {}
    HALFBYTE_AVX2 void row(int64_t row, int64_t begin, int64_t end, int16_t* out, float* scales) const {
        const int64_t blocks = (end - begin) / kBlock;
        take_scales(of.packed, row * of.blocks + begin / kBlock, blocks, scales);
        for (int64_t b = 0; b < blocks; ++b) scales[b] *= 1.0f / kMostWeight;
        of.decode(of.at(row, begin / kBlock), blocks, out);
    }
};
template <bool k512>
struct DenseSource {
    const MatrixArgument& matrix;
    HALFBYTE_AVX2 void row(int64_t row, int64_t begin, int64_t end, int16_t* out, float* scales) const {
        const bf16* const at = static_cast<const bf16*>(matrix.codes) + row * matrix.columns + begin;
        for (int64_t s = 0; s < end - begin; s += kBlock) *scales++ = (k512 ? quantise_512 : quantise<bf16>)(at + s, end - begin - s, kMostWeight, out + s);
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

// Rows [16][kChunk] of integers -> [pair][16], pairs as if they were numbers of 32 bits: they are only moved.
HALFBYTE_AVX2 inline void turn(const int16_t (*rows)[kChunk], int64_t pairs, uint32_t* out) {
    for (int64_t pair = 0; pair < pairs; pair += 8)
        for (int64_t r = 0; r < kColumns; r += 8)
            fp32::transpose(reinterpret_cast<const float*>(rows[r]) + pair, kChunk / 2, reinterpret_cast<float*>(out) + pair * kColumns + r);
}
HALFBYTE_AVX512 inline void turn_512(const int16_t (*rows)[kChunk], int64_t pairs, uint32_t* out) {
    for (int64_t pair = 0; pair < pairs; pair += 16, out += 16 * kColumns) {
        __m512i block[16];
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) block[r] = _mm512_load_si512(rows[r] + 2 * pair);
        transpose(block);
#pragma GCC unroll 16
        for (int p = 0; p < 16; ++p) _mm512_store_si512(out + p * kColumns, block[p]);
    }
}

// W's rows first..first + count (at most 16) as output columns, steps begin..end (at most kChunk) along its columns ->
// integers [block][pair][16] and scales [block][16].
template <bool k512, typename Source>
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
    k512 ? turn_512(rows, blocks * kPairs, out) : turn(rows, blocks * kPairs, out);
}
template <bool k512>
void lay_out(const MatrixArgument& matrix, int64_t first, int64_t count, int64_t begin, int64_t end, uint32_t* out, float* scales) {
    using Known = std::conditional_t<k512, Levels512, Levels>;
    if (matrix.kind == kDense) return lay_out_from<k512>(DenseSource<k512>{matrix}, first, count, begin, end, out, scales);
    if (matrix.kind == kNf4 && matrix.columns % kBlock == 0)
        return lay_out_from<k512>(LevelSource<Known>(matrix), first, count, begin, end, out, scales);
    lay_out_from<k512>(DecodedSource{matrix}, first, count, begin, end, out, scales);
}

}  // namespace int16
}  // namespace
}  // namespace halfbyte

#endif
