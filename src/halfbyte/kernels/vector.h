// Loops that the compiler turns into vectors: one body for every instruction set, and the functions it may call.
//
// A body is written once, as plain loops without branches, and compiled for each instruction set (`for_isa`), as wide
// as that is. Nothing is left to the compiler's liking that could change a result: a * b + c is rounded once where the
// body says so and the processor has it (`mul_add`), and sums run over kSumLanes lanes of their own. So AVX2 and
// AVX-512 give the same bits. Rejected: intrinsics, three times the code for no gain here, where memory sets the pace.
#pragma once

#include "common.h"

#if defined(_MSC_VER)
#define HALFBYTE_BODY [[msvc::forceinline]]
#else
#define HALFBYTE_BODY __attribute__((always_inline))
#endif

namespace halfbyte {

constexpr int kSumLanes = 64;  // of a sum: enough that an addition need not wait for the one before

// Whether a body may ask for a fused a * b + c: emulated, it would be slower than anything else here.
template <bool has>
struct Fused {
    static constexpr bool value = has;
};
#if defined(__ARM_FEATURE_FMA) || defined(__FMA__)
using FusedHere = Fused<true>;
#else
using FusedHere = Fused<false>;
#endif

#ifdef HALFBYTE_X86
template <typename Body>
HALFBYTE_AVX2 void run_avx2(const Body& body, int64_t first, int64_t last) {
    body(Fused<true>{}, first, last);
}
template <typename Body>
HALFBYTE_AVX512 void run_avx512(const Body& body, int64_t first, int64_t last) {
    body(Fused<true>{}, first, last);
}
#endif

// Calls body(fused, first, last), a lambda marked HALFBYTE_BODY, compiled for the instruction set `isa`.
template <typename Body>
void for_isa(int isa, const Body& body, int64_t first, int64_t last) {
#ifdef HALFBYTE_X86
    if (isa >= kAvx512) return run_avx512(body, first, last);
    if (isa >= kAvx2) return run_avx2(body, first, last);
#else
    (void)isa;
#endif
    body(FusedHere{}, first, last);
}

// a * b + c
template <typename Has>
HALFBYTE_INLINE float mul_add(Has, float a, float b, float c) {
#if defined(__GNUC__) || defined(__clang__)
    if constexpr (Has::value) return __builtin_fmaf(a, b, c);
#endif
    return a * b + c;
}

// The sum of term(0) .. term(count - 1), in fp32: 64 lanes, then pairs of them.
template <typename Term>
HALFBYTE_INLINE float sum_of(int64_t count, const Term& term) {
    float lanes[kSumLanes] = {};
    int64_t i = 0;
    for (; i + kSumLanes <= count; i += kSumLanes)
        for (int j = 0; j < kSumLanes; ++j) lanes[j] += term(i + j);
    for (int j = 0; i < count; ++i, ++j) lanes[j] += term(i);
    for (int width = kSumLanes / 2; width > 0; width /= 2)
        for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
    return lanes[0];
}

// e^x for x <= 0, with an error of about an ulp; 0 from -87.3 on, where the result would be subnormal. Where the factor
// log2(e) can go into a scale that is multiplied with anyway, exp2_of (exp.h) is cheaper; here the rounding of
// that product would cost up to 40 ulps.
//
// x = n ln 2 + r, |r| <= ln 2 / 2, and e^r = 1 + r + r^2 q(r); q is a minimax fit, relative error of the whole 3e-9.
template <typename Has>
HALFBYTE_INLINE float exp_negative(Has has, float x) {
    const float shifted = mul_add(has, x, 1.44269504f, 12582912.0f);  // 1.5 * 2^23: n in the low bits
    const float n = shifted - 12582912.0f;
    const float r = mul_add(has, n, -1.42860677e-6f, mul_add(has, n, -0.693145752f, x));
    float q = 1.381446476e-3f;
    q = mul_add(has, q, r, 8.368780622e-3f);
    q = mul_add(has, q, r, 4.166839426e-2f);
    q = mul_add(has, q, r, 1.666652011e-1f);
    q = mul_add(has, q, r, 4.999999341e-1f);
    const float power = from_bits((bits_of(shifted) + 127) << 23);
    const float value = (mul_add(has, q, r * r, r) + 1.0f) * power;
    return x < -87.3f ? 0.0f : value;
}

}  // namespace halfbyte
