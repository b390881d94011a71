// 2^x for loops that the compiler vectorises: no table, no branch, no call. For attention, whose scale takes up the
// factor log2(e); e^x of numbers as they come, to the ulp, is exp_negative (vector.h).
//
// x = n + f with n the nearest integer; 2^f is a polynomial of degree 6 (fitted for the least relative error over
// |f| <= 1/2, 2e-9; with its roundings 1.7 units in the last place of fp32), and 2^n is put into the exponent's bits.
// The sum is written with products and sums of their own, not fused, so that every instruction set gives the same bits.
#pragma once

#include "common.h"

namespace halfbyte {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// 2^x for x < 127.5: 0 below -126.5 (so that of -infinity is 0), NaN for NaN.
HALFBYTE_INLINE float exp2_of(float x) {
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which its low bits then hold
    x = x < -127.0f ? -127.0f : x;         // a comparison that lets a NaN through
    const float shifted = x + kShift, f = x - (shifted - kShift);
    float power = 1.5353362e-4f;
    power = power * f + 1.3398875e-3f;
    power = power * f + 9.618437e-3f;
    power = power * f + 5.5503324e-2f;
    power = power * f + 2.4022648e-1f;
    power = power * f + 6.9314718e-1f;
    power = power * f + 1.0f;
    return power * from_bits((bits_of(shifted) << 23) + 0x3f800000);  // n = -127 makes the factor 0
}

// tanh(x) = sign(x) (1 - 2^-y) / (1 + 2^-y) with y = 2 |x| log2(e); an absolute error of 1e-7.
HALFBYTE_INLINE float tanh_of(float x) {
    const float e = exp2_of((x < 0 ? x : -x) * (2 * kLog2E));
    const float magnitude = (1.0f - e) / (1.0f + e);
    return x < 0 ? -magnitude : magnitude;
}

}  // namespace halfbyte
