// Rows and a matrix as 16-bit integers by AVX2: what int16.h and few_int16.h multiply with.
#pragma once

#include <cmath>

#include "fp32.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {
namespace int16 {

constexpr int64_t kColumns = 16;         // output columns of a panel
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

// Rows [16][kChunk] of integers -> [pair][16], pairs as if they were numbers of 32 bits: they are only moved.
HALFBYTE_AVX2 inline void turn(const int16_t (*rows)[kChunk], int64_t pairs, uint32_t* out) {
    for (int64_t pair = 0; pair < pairs; pair += 8)
        for (int64_t r = 0; r < kColumns; r += 8)
            fp32::transpose<kColumns>(reinterpret_cast<const float*>(rows[r]) + pair, kChunk / 2, reinterpret_cast<float*>(out) + pair * kColumns + r);
}

// By what a matrix and rows are laid out, for int16_sets.h.
struct Layout256 {
    using Known = Levels;
    static constexpr int kIsa = kAvx2;
    static float quantise(const bf16* x, int64_t left, float largest, int16_t* out) { return int16::quantise(x, left, largest, out); }
    static void quantise_panel(const float* weights, int64_t steps, uint32_t* out, float* scales) { int16::quantise_panel(weights, steps, out, scales); }
    static void turn(const int16_t (*rows)[kChunk], int64_t pairs, uint32_t* out) { int16::turn(rows, pairs, out); }
    // Whether a unit of output columns of the transpose can be laid out at once, and how.
    static bool takes_units(const MatrixArgument&) { return false; }
    static void lay_out_unit(const MatrixArgument&, int64_t, int64_t, int64_t, uint32_t*, float*) {}
};

}  // namespace int16
}  // namespace
}  // namespace halfbyte

#endif
