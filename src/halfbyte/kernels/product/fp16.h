// The products of walk.h with NF4 weights in fp16, for processors with AMX, all of which have AVX512-FP16.
//
// They multiply 64 pairs of fp16 in a cycle and 32 of bf16 in two: one row is a quarter faster from the caches and a tenth from
// memory, four are a third faster. It is the more precise way, too: a level is rounded to 11 bits instead of 8. Inputs are multiplied by the power
// of two that brings the largest of their row to 2^12 .. 2^13, so that the four products that are added up in fp16 stay
// below its end, 65504; those smaller than the largest by more than 2^26 lose bits. A row that holds infinity or NaN is
// left to bf16.
#pragma once

#include "walk.h"

#if defined(HALFBYTE_AMX) && (__clang_major__ >= 14 || (!defined(__clang__) && __GNUC__ >= 12))
#define HALFBYTE_FP16  // an assembler that knows the instruction

namespace halfbyte {
namespace {

struct Fp16Line {
    struct Scale {
        __m512 front, back;
    };
    static constexpr bool kOneRow = false;

    HALFBYTE_AVX512BF16 static __m512i levels(const float* of) {
        return _mm512_broadcast_i64x4(_mm512_cvtps_ph(_mm512_loadu_ps(of), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    template <typename T>
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS static Scale both(T front, T back) {
        return {_mm512_set1_ps(front), _mm512_set1_ps(back)};
    }
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS static Scale scaled(const Scale& by, const Scale& nested, __m512 offset) {
        return {_mm512_fmadd_ps(by.front, nested.front, offset), _mm512_fmadd_ps(by.back, nested.back, offset)};
    }
    template <int kRows>
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS static void add(const __m512i* indices, __m512i levels, const Scale& scale, const uint32_t* x, __m512* sum) {
        __m512i part[kRows];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) part[r] = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
            const __m512i weights = _mm512_permutexvar_epi16(indices[v], levels);
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) add_products(part[r], weights, x + (v * kRows + r) * kTogether);
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            sum[r] = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(part[r])), scale.front, sum[r]);
            sum[r] = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(part[r], 1)), scale.back, sum[r]);
        }
    }

private:
    // As assembly, since the intrinsic asks for a target of its own, and with it all that this is inlined into would.
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS static void add_products(__m512i& to, __m512i weights, const uint32_t* x) {
        asm("vfmadd231ph %2, %1, %0" : "+v"(to) : "v"(weights), "m"(*reinterpret_cast<const __m512i*>(x)));
    }
};

// `rows` x `steps` of x as fp16, each row times a power of two, and in `unscale` its inverse; false where one is not finite.
HALFBYTE_AVX512BF16 inline bool to_fp16(const bf16* x, int64_t rows, int64_t steps, bf16* out, float* unscale) {
    for (int64_t r = 0; r < rows; ++r, x += steps, out += steps) {
        uint16_t largest = 0;
        for (int64_t i = 0; i < steps; ++i) largest = std::max(largest, uint16_t(load(x + i).bits & 0x7fff));
        if (largest >= 0x7f80) return false;
        const uint32_t up = std::min<uint32_t>(253, 2 * 127 + 12 - (largest >> 7));  // biased exponent of the factor
        unscale[r] = from_bits((2 * 127 - up) << 23);
        const __m512 factor = _mm512_set1_ps(from_bits(up << 23));
        for (int64_t i = 0; i < steps; i += 16) {
            const auto there = __mmask16(first_words(steps - i));
            const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, x + i)), 16);
            const __m512 scaled = _mm512_mul_ps(_mm512_castsi512_ps(wide), factor);
            _mm256_mask_storeu_epi16(out + i, there, _mm512_cvtps_ph(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        }
    }
    return true;
}

// As multiply_walking; false, and nothing done, where x can't be multiplied in fp16.
HALFBYTE_AVX512BF16 inline bool multiply_walking_fp16(Task task, const Nf4Matrix& matrix, const DenseMatrix& pair, int threads) {
    bf16* const inputs = scratch<7, bf16>(task.rows * task.steps);
    Nf4Walk<Fp16Line> walk{matrix};
    if (!to_fp16(task.x, task.rows, task.steps, inputs, walk.unscale)) return false;
    task.x = inputs;
    multiply_walking(task, walk, pair, threads);
    return true;
}

}  // namespace
}  // namespace halfbyte

#endif
