// Products in bf16 of few rows for processors with AVX512-VNNI: few_int16.h with vectors of 512 bits.
#pragma once

#include "few_int16.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {
namespace int16 {

constexpr int64_t kFar = 16384, kNear = 1024;  // bytes ahead that are asked for, into the second-level cache and the first
constexpr int64_t kFarDense = 4096;            // of dense bf16, into the second alone

// Rows of x for a dense matrix, in fp32. Of 32 columns the 16 even ones come first, since that is how a word of two bf16 numbers
// falls apart.
struct EvenOddRows {
    static constexpr int64_t kLine = 32;  // columns
    const MatrixArgument& matrix;
    int64_t rows, width;  // of a row: whole lines
    float* x;

    EvenOddRows(const Part& part, int64_t count)
        : matrix(part.matrix), rows(count), width((part.steps + kLine - 1) / kLine * kLine), x(scratch<29, float>(count * width)) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < width; ++i)
                x[r * width + i / kLine * kLine + i % 2 * (kLine / 2) + i % kLine / 2] = i < part.steps ? to_float(part.x[r * part.steps + i]) : 0.0f;
    }
    // ... times `count` rows of the matrix from `start` on -> out [rows, count].
    void multiply(int64_t start, int64_t count, float* out, int threads) const {
        constexpr decltype(&EvenOddRows::run<1>) kRun[kTogether + 1] = {nullptr, &EvenOddRows::run<1>, &EvenOddRows::run<2>, &EvenOddRows::run<3>,
                                                                        &EvenOddRows::run<4>};
        parallel_shared(count, std::max<int64_t>(1, (1 << 15) / width), threads, [&](int64_t first, int64_t last) {
            for (int64_t row = first; row < last; ++row)
                for (int64_t r = 0; r < rows; r += kTogether) {
                    const int64_t together = std::min<int64_t>(kTogether, rows - r);
                    (this->*kRun[together])(start + row, x + r * width, out + r * count + row, count);
                }
        });
    }

private:
    template <int kCount>
    HALFBYTE_AVX512 void run(int64_t row, const float* of_x, float* out, int64_t stride) const {
        __m512 even[kCount], odd[kCount];
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) even[r] = odd[r] = _mm512_setzero_ps();
        const auto* const weights = static_cast<const bf16*>(matrix.codes) + row * matrix.columns;
        for (int64_t i = 0; i < width; i += kLine) {
            _mm_prefetch(reinterpret_cast<const char*>(weights + i) + kFarDense, _MM_HINT_T1);
            const __m512i words = _mm512_maskz_loadu_epi16(first_words(matrix.columns - i), weights + i);
            const __m512 front = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
            const __m512 back = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000))));
#pragma GCC unroll 4
            for (int r = 0; r < kCount; ++r) {
                even[r] = _mm512_fmadd_ps(front, _mm512_load_ps(of_x + r * width + i), even[r]);
                odd[r] = _mm512_fmadd_ps(back, _mm512_load_ps(of_x + r * width + i + kLine / 2), odd[r]);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) out[r * stride] = _mm512_reduce_add_ps(_mm512_add_ps(even[r], odd[r]));
    }
};

// 64 bytes of codes are 32 words of four codes, of which four look-ups among 32 levels (whose index
// is a word's lowest bits) make 32 weights each; the first half of the lanes is one block's, the second the next one's.
struct Few512 {
    using Known = Levels512;
    using DenseRows = EvenOddRows;
    static constexpr int64_t kLanes = 16, kGroup = 2;

    // A group of x, in order -> as its weights come: a word's lowest four bits are its second weight, then come the first, the
    // fourth and the third.
    HALFBYTE_AVX512 static void lay_out(const int16_t* x, int16_t* out) {
        const __m512i by_word = _mm512_set_epi16(60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0, 60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20,
                                                 16, 12, 8, 4, 0);
        for (int v = 0; v < 4; ++v) {
            const __m512i from = _mm512_add_epi16(by_word, _mm512_set1_epi16(int16_t(v ^ 1)));
            const __m512i front = _mm512_permutex2var_epi16(_mm512_load_si512(x), from, _mm512_load_si512(x + 32));
            const __m512i back = _mm512_permutex2var_epi16(_mm512_load_si512(x + 64), from, _mm512_load_si512(x + 96));
            _mm512_store_si512(out + 32 * v, _mm512_inserti64x4(front, _mm512_castsi512_si256(back), 1));
        }
    }

    HALFBYTE_VNNI HALFBYTE_INLINE static __m512 both(const float* of) {
        return _mm512_mask_broadcastss_ps(_mm512_set1_ps(of[0]), 0xff00, _mm_load_ss(of + 1));
    }
    HALFBYTE_VNNI HALFBYTE_INLINE static __m512i half(const uint8_t* codes) {
        return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
    }
    HALFBYTE_INLINE static void ask_ahead(const uint8_t* codes) {
        _mm_prefetch(reinterpret_cast<const char*>(codes) + kFar, _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(codes) + kNear, _MM_HINT_T0);
    }
    // sums[r] += one group of W times x[r], whose inputs for the next r lie `blocks` blocks on.
    template <int kCount>
    HALFBYTE_VNNI HALFBYTE_INLINE static void add_group(__m512i words, __m512i levels, __m512 scale, const int16_t* x, const float* inputs,
                                                        int64_t blocks, __m512* sum) {
        const __m512i weights[4] = {_mm512_permutexvar_epi16(words, levels), _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), levels),
                                    _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 8), levels), _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 12), levels)};
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r, x += blocks * kBlock, inputs += blocks) {
            __m512i part = _mm512_setzero_si512();
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) part = _mm512_dpwssd_epi32(part, weights[v], _mm512_load_si512(x + 32 * v));
            sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), _mm512_mul_ps(scale, both(inputs)), sum[r]);
        }
    }
    template <int kCount>
    HALFBYTE_VNNI static void add(const Levels512& of, int64_t row, int64_t first, int64_t count, const float* scales, const int16_t* x,
                                  const float* inputs, int64_t blocks, float (*sums)[kLanes]) {
        __m512 sum[kCount];
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) sum[r] = _mm512_loadu_ps(sums[r]);
        const __m512i levels = _mm512_load_si512(of.levels);
        const uint8_t* codes = of.at(row, first);
        x += first * kBlock, inputs += first;
        for (; count >= kGroup; count -= kGroup, codes += kBlock, scales += kGroup, x += kGroup * kBlock, inputs += kGroup) {
            ask_ahead(codes);
            add_group<kCount>(_mm512_loadu_si512(codes), levels, both(scales), x, inputs, blocks, sum);
        }
        if (count) add_group<kCount>(half(codes), levels, both(scales), x, inputs, blocks, sum);
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) _mm512_storeu_ps(sums[r], sum[r]);
    }
    // As Few256::add_alone. Scales are put together where they are used: made for the whole row before, they took a quarter of
    // the time.
    HALFBYTE_VNNI static void add_alone(const Levels512& of, int64_t row, const int16_t* x, const float* inputs, int64_t blocks, float* constants,
                                        float (*sums)[kLanes]) {
        const Nf4& packed = of.packed;
        if (of.blocks % kGroup || !packed.nested_absmax) {
            take_scales(packed, row * of.blocks, of.blocks, constants);
            if (of.blocks < blocks) constants[of.blocks] = 0.0f;
            return add<1>(of, row, 0, of.blocks, constants, x, inputs, blocks, sums);
        }
        __m512 sum = _mm512_loadu_ps(sums[0]);
        const __m512i levels = _mm512_load_si512(of.levels);
        const __m512 offset = _mm512_set1_ps(packed.offset);
        const uint8_t *codes = of.at(row, 0), *absmax = static_cast<const uint8_t*>(packed.absmax);
        for (int64_t b = row * of.blocks, end = b + of.blocks; b < end; b += kGroup, codes += kBlock, x += kGroup * kBlock, inputs += kGroup) {
            ask_ahead(codes);
            const float apart[kGroup] = {packed.dynamic[absmax[b]], packed.dynamic[absmax[b + 1]]};
            const __m512 nested = _mm512_set1_ps(load(packed.nested_absmax + uint64_t(b) / kNestedBlock));
            add_group<1>(_mm512_loadu_si512(codes), levels, _mm512_add_ps(_mm512_mul_ps(both(apart), nested), offset), x, inputs, blocks, &sum);
        }
        _mm512_storeu_ps(sums[0], sum);
    }
};

}  // namespace int16
}  // namespace
}  // namespace halfbyte

#endif
