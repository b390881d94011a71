// What a frozen matrix can be for the products of bf16.h and its methods: dense bf16, NF4 or int8. `words(row, column)` gives 64 weights of
// a row from there on as bf16, zeros beyond the row's end.
#pragma once

#include "shared.h"

#ifdef HALFBYTE_X86

#define HALFBYTE_ALWAYS inline __attribute__((always_inline))

namespace halfbyte {
namespace {

struct Words {
    __m512i low, high;  // bf16 columns 0..31 and 32..63
};
constexpr int64_t kWords = 64;

struct DenseMatrix {
    const bf16* weights;
    int64_t columns;
    HALFBYTE_AVX512BF16 void prefetch(int64_t row, int64_t column) const {
        _mm_prefetch(reinterpret_cast<const char*>(weights + row * columns + column), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(weights + row * columns + column + 32), _MM_HINT_T0);
    }

    HALFBYTE_AVX512BF16 Words words(int64_t row, int64_t column) const {
        const bf16* at = weights + row * columns + column;
        const int64_t left = columns - column;
        return {_mm512_maskz_loadu_epi16(first_words(left), at), _mm512_maskz_loadu_epi16(first_words(left - 32), at + 32)};
    }
};

struct Nf4Matrix {
    Nf4 packed;
    int64_t columns;
    HALFBYTE_AVX512BF16 void prefetch(int64_t row, int64_t column) const {
        _mm_prefetch(reinterpret_cast<const char*>(packed.codes + (row * columns + column) / 2), _MM_HINT_T0);
    }

    // The 16 levels of a block as bf16, twice, so that bit 4 of an index does not matter.
    HALFBYTE_AVX512BF16 __m512i table(int64_t block) const {
        const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(packed.levels), _mm512_set1_ps(packed.scale(block)));
        return _mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(scaled));
    }
    HALFBYTE_AVX512BF16 Words words(int64_t row, int64_t column) const {
        const uint64_t first = uint64_t(row * columns + column);
        if (first % kBlock || columns - column < kBlock) return straddling(row, column);
        const __m512i levels = table(int64_t(first / kBlock));
        const uint8_t* codes = packed.codes + first / 2;
        return {_mm512_permutexvar_epi16(codes_in_words(codes), levels), _mm512_permutexvar_epi16(codes_in_words(codes + 16), levels)};
    }

private:
    HALFBYTE_AVX512BF16 Words straddling(int64_t row, int64_t column) const {
        bf16 buffer[kWords] = {};
        const int64_t first = row * columns + column;
        for (int64_t i = 0; i < std::min(kWords, columns - column); ++i) {
            const uint8_t pair = packed.codes[(first + i) / 2];
            const float level = packed.levels[(first + i) % 2 ? pair & 15 : pair >> 4];
            buffer[i] = from_float<bf16>(level * packed.scale((first + i) / kBlock));
        }
        return {_mm512_loadu_si512(buffer), _mm512_loadu_si512(buffer + 32)};
    }
};

struct Int8Matrix {
    const int8_t* codes;
    const float* scale;
    int64_t columns;
    HALFBYTE_AVX512BF16 void prefetch(int64_t row, int64_t column) const {
        _mm_prefetch(reinterpret_cast<const char*>(codes + row * columns + column), _MM_HINT_T0);
    }

    HALFBYTE_AVX512BF16 Words words(int64_t row, int64_t column) const {
        const int8_t* at = codes + row * columns + column;
        const __m512 row_scale = _mm512_set1_ps(load(scale + row));
        __m512i halves[2];
        for (int half = 0; half < 2; ++half) {
            const __m256i bytes = _mm256_maskz_loadu_epi8(first_words(columns - column - 32 * half), at + 32 * half);
            const __m512 front = scaled(_mm256_castsi256_si128(bytes), row_scale);
            halves[half] = (__m512i)_mm512_cvtne2ps_pbh(scaled(_mm256_extracti128_si256(bytes, 1), row_scale), front);
        }
        return {halves[0], halves[1]};
    }

private:
    HALFBYTE_AVX512BF16 static __m512 scaled(__m128i bytes, __m512 row_scale) {
        const __m512 values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
        return _mm512_mul_ps(_mm512_mul_ps(values, row_scale), _mm512_set1_ps(1.0f / 127.0f));
    }
};

}  // namespace
}  // namespace halfbyte

#endif
