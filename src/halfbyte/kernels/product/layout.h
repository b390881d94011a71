// What is multiplied (`Task`), and layouts that `vdpbf16ps` reads: two consecutive steps of the contraction side by side in 32 bits.
#pragma once

#include "matrix.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {

// x [rows, steps] times a matrix, then pair_x [rows, pair_steps] times a LoRA matrix, into out [rows, columns].
struct Task {
    const bf16 *x, *pair_x, *bias;
    int64_t rows, steps, pair_steps, columns;
    bf16* out;
};

// `rows` (at most 16) x `steps` of x, whose rows are `stride` apart -> [pairs][row] of pairs, zeros beyond the last step.
// Of 32 consecutive steps, pair p takes order[2 p] and order[2 p + 1].
HALFBYTE_AVX512BF16 inline void lay_out_rows(const bf16* x, int64_t stride, int64_t rows, int64_t steps, int64_t pairs, __m512i order,
                                             uint32_t* out) {
    for (int64_t step = 0; step < 2 * pairs; step += 32) {
        __m512i block[16];
        for (int64_t r = rows; r < 16; ++r) block[r] = _mm512_setzero_si512();
        const __mmask32 there = first_words(steps - step);
        for (int64_t r = 0; r < rows; ++r)
            block[r] = _mm512_permutexvar_epi16(order, _mm512_maskz_loadu_epi16(there, x + r * stride + step));
        transpose(block);
        for (int64_t p = 0; p < std::min<int64_t>(16, pairs - step / 2); ++p)
            _mm512_mask_storeu_epi32(out + (step / 2 + p) * rows, __mmask16((1 << rows) - 1), block[p]);
    }
}

// W's rows first..first + count (at most kUnit) as output columns, steps along its columns: two halves of
// [pair of steps][32 columns] of pairs, one after the other.
template <typename Matrix>
HALFBYTE_AVX512BF16 void lay_out(const Matrix& matrix, int64_t first, int64_t count, int64_t begin, int64_t end, uint32_t* out) {
    const int64_t pairs = (end - begin + 1) / 2;
    for (int64_t group = 0; group < 4; ++group) {
        uint32_t* target = out + group / 2 * pairs * 32 + group % 2 * 16;
        const int64_t rows = std::max<int64_t>(0, std::min<int64_t>(16, count - 16 * group));
        for (int64_t step = begin; step < end; step += kUnit) {
            __m512i low[16], high[16];
            for (int64_t r = rows; r < 16; ++r) low[r] = high[r] = _mm512_setzero_si512();
            for (int64_t r = 0; r < rows; ++r) {
                matrix.prefetch(first + 16 * group + r + 16, step);
                const Words words = matrix.words(first + 16 * group + r, step);
                low[r] = words.low;
                high[r] = words.high;
            }
            transpose(low);
            transpose(high);
            uint32_t* at = target + (step - begin) / 2 * 32;
            const int64_t left = pairs - (step - begin) / 2;
            for (int64_t p = 0; p < std::min<int64_t>(16, left); ++p) _mm512_storeu_si512(at + p * 32, low[p]);
            for (int64_t p = 0; p < std::min<int64_t>(16, left - 16); ++p) _mm512_storeu_si512(at + (16 + p) * 32, high[p]);
        }
    }
}

// W's columns first..first + 64 as output columns, steps along its rows begin..end.
template <typename Matrix>
HALFBYTE_AVX512BF16 void lay_out_transposed(const Matrix& matrix, int64_t first, int64_t begin, int64_t end, uint32_t* out) {
    const int64_t pairs = (end - begin + 1) / 2;
    for (int64_t p = 0; p < pairs; ++p) {
        const int64_t row = begin + 2 * p;
        const Words even = matrix.words(row, first);
        const Words odd = row + 1 < end ? matrix.words(row + 1, first) : Words{};
        uint32_t* at = out + p * 32;
        const Interleaved low(even.low, odd.low), high(even.high, odd.high);
        _mm512_storeu_si512(at, low.front);
        _mm512_storeu_si512(at + 16, low.back);
        _mm512_storeu_si512(at + pairs * 32, high.front);
        _mm512_storeu_si512(at + pairs * 32 + 16, high.back);
    }
}

}  // namespace
}  // namespace halfbyte

#endif
