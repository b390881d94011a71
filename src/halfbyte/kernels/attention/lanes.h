// Vectors of AVX-512 BF16 that attention on AMX (amx.h) and that of few queries (few.h) are made of.
//
// Elsewhere loops are left to the compiler, with exp2_of, whose bits no instruction set changes; here that would be most
// of the time.
#pragma once

#include "strip.h"

#ifdef HALFBYTE_X86

namespace halfbyte::attention {

constexpr int64_t kSide = 32;  // elements of a vector; rows and columns of what a product of tiles computes at once
constexpr float kSlack = 8.0f;  // a row's sums shrink only if its maximum rises by more, so P is at most 2^kSlack; that
                                // costs no precision, and after the first keys hardly any sum is touched again

HALFBYTE_INLINE int64_t whole(int64_t count) { return (count + kSide - 1) / kSide * kSide; }

// The elements of two vectors by turns.
HALFBYTE_AVX512BF16 inline void store_pairs(__m512i even, __m512i odd, bf16* to) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i index = _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(32)), 16));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, index, odd));
    const __m512i upper = _mm512_add_epi16(index, _mm512_set1_epi16(16));
    _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi16(even, upper, odd));
}

// Two vectors of 16 lanes, rounded: 32 elements.
HALFBYTE_AVX512BF16 inline __m512i rounded_lanes(const __m512* lanes) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(lanes[1], lanes[0]));
}

// 2^x with an error of 2e-7, far below the rounding of what is made of it; 0 for -infinity, NaN for NaN. Unlike exp2_of
// (exp.h) it promises no bits: its products and sums are fused, and the processor splits x and scales the power.
HALFBYTE_AVX512BF16 inline __m512 exp2_lanes(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, 0), n = _mm512_sub_ps(x, f);
    __m512 power = _mm512_set1_ps(1.32647273e-3f);
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(9.67151299e-3f));
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(5.55073358e-2f));
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(0.240222424f));
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(0.693147004f));
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(power, n);
}

// The sum of the products of two rows.
HALFBYTE_AVX512BF16 inline float dot(const bf16* a, const bf16* b, int64_t width) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t d = 0; d < width; d += kSide) {
        const __mmask32 there = first_words(width - d);
        sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(there, a + d)),
                               reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(there, b + d)));
    }
    return _mm512_reduce_add_ps(sum);
}

}  // namespace halfbyte::attention

#endif
