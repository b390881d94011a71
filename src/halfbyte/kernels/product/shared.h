// What the products (product/) and those in int8 (product_int8/) share.
#pragma once

#include "../decode.h"
#include "scratch.h"

namespace halfbyte {
namespace {

constexpr int64_t kUnit = 64;  // output columns of a matrix that are laid out at once

// kDense is bf16; the products in fp32 take the other dense ones, too.
enum Kind : int32_t { kDense = 0, kNf4 = 1, kInt8 = 2, kDenseF32 = 3, kDenseF16 = 4 };

// What cpu.py passes for a matrix [rows, columns]; the layout is that of `_Matrix` there.
struct MatrixArgument {
    int64_t rows, columns;
    const void *codes, *absmax;  // absmax: NF4's constants, or int8's scale
    const float *nested_absmax, *levels, *dynamic;
    float offset;
    int32_t kind;

    Nf4 nf4() const { return {static_cast<const uint8_t*>(codes), absmax, nested_absmax, offset, levels, dynamic}; }
};

// `rows` cut evenly into parts of about `most`, whole tiles of `height` rows but for the last one: the rows of a part.
inline int64_t cut_evenly(int64_t rows, int64_t most, int64_t height) {
    const int64_t parts = std::max<int64_t>(1, (rows + most - 1) / most);
    return ((rows + parts - 1) / parts + height - 1) / height * height;
}

#ifdef HALFBYTE_X86
// The 16-bit words of two vectors by turns: of their first halves and of their second ones.
struct Interleaved {
    __m512i front, back;
    HALFBYTE_AVX512 HALFBYTE_INLINE Interleaved(__m512i even, __m512i odd) {
        const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __m512i first = _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(32)), 16));
        front = _mm512_permutex2var_epi16(even, first, odd);
        back = _mm512_permutex2var_epi16(even, _mm512_add_epi16(first, _mm512_set1_epi16(16)), odd);
    }
};

// 16 x 16 transpose of 32-bit words, in place.
HALFBYTE_AVX512 inline void transpose(__m512i* rows) {
    __m512i turned[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        turned[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        turned[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        rows[4 * i] = _mm512_unpacklo_epi64(turned[4 * i], turned[4 * i + 2]);
        rows[4 * i + 1] = _mm512_unpackhi_epi64(turned[4 * i], turned[4 * i + 2]);
        rows[4 * i + 2] = _mm512_unpacklo_epi64(turned[4 * i + 1], turned[4 * i + 3]);
        rows[4 * i + 3] = _mm512_unpackhi_epi64(turned[4 * i + 1], turned[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        turned[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
        turned[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
        turned[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
        turned[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        rows[i] = _mm512_shuffle_i32x4(turned[i], turned[i + 8], 0x88);
        rows[i + 4] = _mm512_shuffle_i32x4(turned[i + 4], turned[i + 12], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(turned[i], turned[i + 8], 0xdd);
        rows[i + 12] = _mm512_shuffle_i32x4(turned[i + 4], turned[i + 12], 0xdd);
    }
}
#endif

}  // namespace
}  // namespace halfbyte
