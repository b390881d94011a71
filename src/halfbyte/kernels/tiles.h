// Products of small matrices that lie in a cache: C [m, n] = A [m, k] B [k, n], or added to C. Accumulation in fp32.
//
// B is stored in groups of consecutive k: [k / group][n][group], which is what a vector of 16 columns needs; an element
// of A is one group, broadcast, and may lie anywhere (`row` and `step`), so that A is also read transposed. With bf16
// and AVX-512 BF16 a group is a pair (vdpbf16ps multiplies pairs); everywhere else elements are fp32 and a group is one
// element. A tile of C is kept in registers over the whole of k: 6 x 64 with AVX-512 (24 accumulators of 32 registers),
// 6 x 16 with AVX2. The sum over k has one order whatever the tiling. Rejected: a library's product; a call of one
// costs more than a whole tile here.
#pragma once

#include "common.h"

namespace halfbyte {

constexpr int64_t kVector = 16;  // n is a multiple of it

// The matrix A: the group g of row r starts at data + r * row + g * step.
template <typename Element>
struct Left {
    const Element* data;
    int64_t row, step;
};

// What a micro-kernel computes: c [M, n] with M and n given by the template, rows c_row apart; the groups of b lie
// b_step elements apart.
template <typename Element>
using MicroKernel = void (*)(Left<Element> a, const Element* b, int64_t b_step, float* c, int64_t c_row, int64_t groups,
                             bool add);

// C [m, n] by micro-kernels[rows - 1][vectors - 1] of at most M x N vectors of 16 columns.
template <int M, int N, typename Element, typename Kernels>
HALFBYTE_INLINE void product_by(const Kernels& kernels, Left<Element> a, const Element* b, int64_t b_step, float* c,
                                int64_t c_row, int64_t m, int64_t n, int64_t groups, bool add, int64_t group) {
    for (int64_t n0 = 0; n0 < n; n0 += N * kVector) {
        const int64_t vectors = std::min<int64_t>(N, (n - n0) / kVector);
        for (int64_t m0 = 0; m0 < m; m0 += M) {
            const int64_t rows = std::min<int64_t>(M, m - m0);
            kernels[rows - 1][vectors - 1]({a.data + m0 * a.row, a.row, a.step}, b + n0 * group, b_step,
                                           c + m0 * c_row + n0, c_row, groups, add);
        }
    }
}

// An instruction set: the type of an element, the elements of a group, and `product`:
// C [m, n] = A B, or += if `add`, over `groups` groups of k; c_row and b_step as above.
struct PortableTiles {
    using Element = float;
    static constexpr int64_t kGroup = 1;
    static void product(Left<float> a, const float* b, int64_t b_step, float* c, int64_t c_row, int64_t m, int64_t n,
                        int64_t groups, bool add) {
        for (int64_t n0 = 0; n0 < n; n0 += kVector)
            for (int64_t i = 0; i < m; ++i) {
                float* out = c + i * c_row + n0;
                float sum[kVector] = {};
                for (int64_t g = 0; g < groups; ++g) {
                    const float factor = a.data[i * a.row + g * a.step];
                    for (int64_t j = 0; j < kVector; ++j) sum[j] += factor * b[g * b_step + n0 + j];
                }
                for (int64_t j = 0; j < kVector; ++j) out[j] = add ? out[j] + sum[j] : sum[j];
            }
    }
};

#ifdef HALFBYTE_X86
template <int M, int N>
HALFBYTE_AVX2 void micro_avx2(Left<float> a, const float* b, int64_t b_step, float* c, int64_t c_row, int64_t groups,
                              bool add) {
    static_assert(N == 1);
    __m256 sum[M][2];
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < 2; ++j) sum[i][j] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; ++g, b += b_step) {
        const __m256 right[2] = {_mm256_loadu_ps(b), _mm256_loadu_ps(b + 8)};
        for (int i = 0; i < M; ++i) {
            const __m256 left = _mm256_broadcast_ss(a.data + i * a.row + g * a.step);
            for (int j = 0; j < 2; ++j) sum[i][j] = _mm256_fmadd_ps(left, right[j], sum[i][j]);
        }
    }
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < 2; ++j) {
            float* out = c + i * c_row + 8 * j;
            _mm256_storeu_ps(out, add ? _mm256_add_ps(_mm256_loadu_ps(out), sum[i][j]) : sum[i][j]);
        }
}

template <int M, int N>
HALFBYTE_AVX512 void micro_avx512(Left<float> a, const float* b, int64_t b_step, float* c, int64_t c_row,
                                  int64_t groups, bool add) {
    __m512 sum[M][N];
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < N; ++j) sum[i][j] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; ++g, b += b_step) {
        __m512 right[N];
        for (int j = 0; j < N; ++j) right[j] = _mm512_loadu_ps(b + 16 * j);
        for (int i = 0; i < M; ++i) {
            const __m512 left = _mm512_set1_ps(a.data[i * a.row + g * a.step]);
            for (int j = 0; j < N; ++j) sum[i][j] = _mm512_fmadd_ps(left, right[j], sum[i][j]);
        }
    }
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < N; ++j) {
            float* out = c + i * c_row + 16 * j;
            _mm512_storeu_ps(out, add ? _mm512_add_ps(_mm512_loadu_ps(out), sum[i][j]) : sum[i][j]);
        }
}

template <int M, int N>
HALFBYTE_AVX512BF16 void micro_avx512bf16(Left<bf16> a, const bf16* b, int64_t b_step, float* c, int64_t c_row,
                                          int64_t groups, bool add) {
    __m512 sum[M][N];
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < N; ++j) sum[i][j] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; ++g, b += b_step) {
        __m512bh right[N];
        for (int j = 0; j < N; ++j) right[j] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + 32 * j));
        for (int i = 0; i < M; ++i) {
            int32_t pair;
            std::memcpy(&pair, a.data + i * a.row + g * a.step, sizeof pair);
            const auto left = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
            for (int j = 0; j < N; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
        }
    }
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < N; ++j) {
            float* out = c + i * c_row + 16 * j;
            _mm512_storeu_ps(out, add ? _mm512_add_ps(_mm512_loadu_ps(out), sum[i][j]) : sum[i][j]);
        }
}

#define HALFBYTE_ROW4(micro, m) {micro<m, 1>, micro<m, 2>, micro<m, 3>, micro<m, 4>}
#define HALFBYTE_6X4(micro) \
    {HALFBYTE_ROW4(micro, 1), HALFBYTE_ROW4(micro, 2), HALFBYTE_ROW4(micro, 3), \
     HALFBYTE_ROW4(micro, 4), HALFBYTE_ROW4(micro, 5), HALFBYTE_ROW4(micro, 6)}

struct Avx2Tiles {
    using Element = float;
    static constexpr int64_t kGroup = 1;
    static void product(Left<float> a, const float* b, int64_t b_step, float* c, int64_t c_row, int64_t m, int64_t n,
                        int64_t groups, bool add) {
        static constexpr MicroKernel<float> kernels[6][1] = {{micro_avx2<1, 1>}, {micro_avx2<2, 1>},
                                                             {micro_avx2<3, 1>}, {micro_avx2<4, 1>},
                                                             {micro_avx2<5, 1>}, {micro_avx2<6, 1>}};
        product_by<6, 1>(kernels, a, b, b_step, c, c_row, m, n, groups, add, kGroup);
    }
};

struct Avx512Tiles {
    using Element = float;
    static constexpr int64_t kGroup = 1;
    static void product(Left<float> a, const float* b, int64_t b_step, float* c, int64_t c_row, int64_t m, int64_t n,
                        int64_t groups, bool add) {
        static constexpr MicroKernel<float> kernels[6][4] = HALFBYTE_6X4(micro_avx512);
        product_by<6, 4>(kernels, a, b, b_step, c, c_row, m, n, groups, add, kGroup);
    }
};

struct Avx512Bf16Tiles {
    using Element = bf16;
    static constexpr int64_t kGroup = 2;
    static void product(Left<bf16> a, const bf16* b, int64_t b_step, float* c, int64_t c_row, int64_t m, int64_t n,
                        int64_t groups, bool add) {
        static constexpr MicroKernel<bf16> kernels[6][4] = HALFBYTE_6X4(micro_avx512bf16);
        product_by<6, 4>(kernels, a, b, b_step, c, c_row, m, n, groups, add, kGroup);
    }
};
#undef HALFBYTE_ROW4
#undef HALFBYTE_6X4
#endif

// ---- from tensors into buffers: elements of the products, padded with zeros -----------------------------------------

template <typename Element, typename T>
HALFBYTE_INLINE Element convert(T value) {
    if constexpr (std::is_same_v<Element, T>) return value;
    else return from_float<Element>(to_float(value));
}

// rows [count][width] -> out [count][padded].
template <typename Element, typename T>
HALFBYTE_INLINE void copy_rows(const T* const* rows, int64_t count, int64_t width, int64_t padded, Element* out) {
    for (int64_t r = 0; r < count; ++r, out += padded) {
        const T* HALFBYTE_APART row = rows[r];
        for (int64_t d = 0; d < width; ++d) out[d] = convert<Element>(row[d]);
        for (int64_t d = width; d < padded; ++d) out[d] = Element{};
    }
}

// As copy_rows, but [ceil(count / group)][padded][group]: a group holds consecutive rows.
template <typename Element, typename T>
HALFBYTE_INLINE void group_rows(const T* const* rows, int64_t count, int64_t width, int64_t padded, Element* out) {
    if constexpr (sizeof(Element) == 4) {
        copy_rows(rows, count, width, padded, out);
    } else {
        auto* HALFBYTE_APART pairs = reinterpret_cast<uint32_t*>(out);
        for (int64_t r = 0; r < count; r += 2, pairs += padded) {
            const bool single = r + 1 == count;
            const T *HALFBYTE_APART even = rows[r], *HALFBYTE_APART odd = rows[single ? r : r + 1];
            const uint32_t keep = single ? 0xffff : 0xffffffff;
            for (int64_t d = 0; d < width; ++d)
                pairs[d] = (uint32_t(even[d].bits) | uint32_t(odd[d].bits) << 16) & keep;
            for (int64_t d = width; d < padded; ++d) pairs[d] = 0;
        }
    }
}

// in [count][padded] -> out [padded / group][step][group], zero from row `count` to row `lanes`.
template <typename Element>
HALFBYTE_INLINE void transpose_rows(const Element* in, int64_t count, int64_t lanes, int64_t padded, int64_t step,
                                    Element* out) {
    const auto* HALFBYTE_APART words = reinterpret_cast<const uint32_t*>(in);
    auto* HALFBYTE_APART to = reinterpret_cast<uint32_t*>(out);
    const int64_t columns = padded * int64_t(sizeof(Element)) / 4;
    for (int64_t c = 0; c < columns; ++c) {
        for (int64_t r = 0; r < count; ++r) to[c * step + r] = words[r * columns + c];
        for (int64_t r = count; r < lanes; ++r) to[c * step + r] = 0;
    }
}

// rows [count][width], `by` apart, as a left matrix: where they lie if they can be read there, else copied to `buffer`.
template <typename Tiles, typename T>
HALFBYTE_INLINE Left<typename Tiles::Element> left_of(const T* const* rows, int64_t by, int64_t count, int64_t width,
                                                      int64_t padded, typename Tiles::Element* buffer) {
    if constexpr (std::is_same_v<T, typename Tiles::Element>)
        if (width == padded) return {rows[0], by, Tiles::kGroup};
    copy_rows(rows, count, width, padded, buffer);
    return {buffer, padded, Tiles::kGroup};
}

}  // namespace halfbyte
