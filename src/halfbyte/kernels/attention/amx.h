// What attention on AMX is made of: products of whole tiles, the layouts that they want, and 2^x.
//
// A product takes A with 32 consecutive steps of a row side by side, and B with pairs of steps side by side. Scores are
// transposed here, too (strip.h): S^T = K Q^T and dP^T = V dO^T leave a row to each lane, and two vectors of them, P^T
// or dS^T of 32 rows and a key, are A of the products that sum over rows (dV, dK) when they are rounded, and B of those
// that sum over keys (out^T = V^T P^T, dQ^T = K^T dS^T) when two keys are interleaved: one instruction a vector. What
// remains is to transpose V (forward) and K (backward), once a block, and Q, dO and the results once a strip.
// Rejected: scores with keys as lanes, which need as much transposing, and a reduction within vectors for each maximum;
// and V transposed once for all strips, which saves little with strips of 128 rows and needs a buffer of its size.
//
// Everything is padded with zeros to multiples of 32, so that each product is one of 32 x 32 tiles of C: 2 x 2 of the
// eight registers, the most products for each tile loaded.
#pragma once

#include "../amx.h"
#include "lanes.h"

#ifdef HALFBYTE_AMX

namespace halfbyte::attention {

constexpr int64_t kAmxRows = kMostRows;  // query rows of a strip
constexpr int64_t kAmxKeys = 64;         // keys of a block

// The matrix A: 32 steps of row r, from step 32 i on, at data + r * row + i * step.
struct TileLeft {
    const bf16* data;
    int64_t row, step;
};
// The matrix B: the pair i of steps, [n][2], at data + i * row.
struct TileRight {
    const bf16* data;
    int64_t row;
};

// C [m, n] = A [m, k] B [k, n], or += if `add`; its rows lie c_row apart, and m, n and k are multiples of 32.
HALFBYTE_AMX inline void product(TileLeft a, TileRight b, float* c, int64_t c_row, int64_t m, int64_t n, int64_t k,
                                 bool add) {
    before_tile_loads();
    const int64_t a_bytes = a.row * 2, b_bytes = b.row * 2, c_bytes = c_row * 4;
    for (int64_t n0 = 0; n0 < n; n0 += kSide)
        for (int64_t m0 = 0; m0 < m; m0 += kSide) {
            float *upper = c + m0 * c_row + n0, *lower = upper + 16 * c_row;
            if (add) {
                _tile_loadd(0, upper, c_bytes);
                _tile_loadd(1, upper + 16, c_bytes);
                _tile_loadd(2, lower, c_bytes);
                _tile_loadd(3, lower + 16, c_bytes);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            const bf16 *left = a.data + m0 * a.row, *right = b.data + n0 * 2;
            for (int64_t step = 0; step < k; step += kSide, left += a.step, right += 16 * b.row) {
                _tile_loadd(6, right, b_bytes);
                _tile_loadd(4, left, a_bytes);
                _tile_loadd(7, right + 32, b_bytes);
                _tile_loadd(5, left + 16 * a.row, a_bytes);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, upper, c_bytes);
            _tile_stored(1, upper + 16, c_bytes);
            _tile_stored(2, lower, c_bytes);
            _tile_stored(3, lower + 16, c_bytes);
        }
}

// ---- layouts --------------------------------------------------------------------------------------------------------

// The 16 bytes at each of four addresses, `apart` bytes apart.
HALFBYTE_AMX inline __m512i four_places(const void* address, int64_t apart) {
    const char* at = static_cast<const char*>(address);
    const auto place = [=](int64_t i) { return reinterpret_cast<const __m128i*>(at + i * apart); };
    __m512i all = _mm512_castsi128_si512(_mm_loadu_si128(place(0)));
    all = _mm512_inserti32x4(all, _mm_loadu_si128(place(1)), 1);
    all = _mm512_inserti32x4(all, _mm_loadu_si128(place(2)), 2);
    return _mm512_inserti32x4(all, _mm_loadu_si128(place(3)), 3);
}

// 16 lines of 4 words of 32 bits, `apart` bytes apart -> 4 lines of 16.
HALFBYTE_AMX inline void transpose_words(const void* from, int64_t apart, __m512i* to) {
    __m512i in[4], mixed[4];
    for (int i = 0; i < 4; ++i) in[i] = four_places(static_cast<const char*>(from) + i * apart, 4 * apart);
    for (int i = 0; i < 2; ++i) {
        mixed[i] = _mm512_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
        mixed[i + 2] = _mm512_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
        to[2 * i] = _mm512_unpacklo_epi64(mixed[2 * i], mixed[2 * i + 1]);
        to[2 * i + 1] = _mm512_unpackhi_epi64(mixed[2 * i], mixed[2 * i + 1]);
    }
}

// 32 lines of 8 elements, `apart` elements apart -> 8 lines of 32.
HALFBYTE_AMX inline void transpose_halves(const bf16* from, int64_t apart, __m512i* to) {
    __m512i in[8], mixed[8];
    for (int i = 0; i < 8; ++i) in[i] = four_places(from + i * apart, 16 * apart);
    for (int i = 0; i < 4; ++i) {
        mixed[i] = _mm512_unpacklo_epi16(in[2 * i], in[2 * i + 1]);
        mixed[i + 4] = _mm512_unpackhi_epi16(in[2 * i], in[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {  // of columns 2 i and 2 i + 1: lines 0..3 in `in[i]`, lines 4..7 in `in[i + 4]`
        const __m512i *pairs = mixed + i / 2 * 4;
        in[i] = i % 2 ? _mm512_unpackhi_epi32(pairs[0], pairs[1]) : _mm512_unpacklo_epi32(pairs[0], pairs[1]);
        in[i + 4] = i % 2 ? _mm512_unpackhi_epi32(pairs[2], pairs[3]) : _mm512_unpacklo_epi32(pairs[2], pairs[3]);
    }
    for (int i = 0; i < 4; ++i) {
        to[2 * i] = _mm512_unpacklo_epi64(in[i], in[i + 4]);
        to[2 * i + 1] = _mm512_unpackhi_epi64(in[i], in[i + 4]);
    }
}

// Rows of `width` -> out [lines][padded], zero beyond the rows and beyond the width.
HALFBYTE_AMX inline void copy_lines(const bf16* const* rows, int64_t count, int64_t lines, int64_t width,
                                    int64_t padded, bf16* out) {
    for (int64_t r = 0; r < lines; ++r)
        for (int64_t d = 0; d < padded; d += kSide, out += kSide) {
            const __mmask32 there = r < count ? first_words(width - d) : 0;
            _mm512_storeu_si512(out, _mm512_maskz_loadu_epi16(there, r < count ? rows[r] + d : nullptr));
        }
}

// in [lines][padded], whole tiles -> [lines / 32][padded][32]: A of a product over the lines, of which each is a step.
HALFBYTE_AMX inline void lines_as_steps(const bf16* in, int64_t lines, int64_t padded, bf16* out) {
    for (int64_t j = 0; j < lines; j += kSide)
        for (int64_t d = 0; d < padded; d += 8, out += 8 * kSide) {
            __m512i turned[8];
            transpose_halves(in + j * padded + d, padded, turned);
            for (int i = 0; i < 8; ++i) _mm512_storeu_si512(out + i * kSide, turned[i]);
        }
}

// in [32][padded] -> [padded / 2][32][2]: B of a product whose columns are the lines.
HALFBYTE_AMX inline void lines_as_columns(const bf16* in, int64_t padded, bf16* out) {
    for (int64_t d = 0; d < padded; d += 8, out += 8 * kSide)
        for (int64_t half = 0; half < 2; ++half) {
            __m512i turned[4];
            transpose_words(in + 16 * half * padded + d, padded * 2, turned);
            for (int i = 0; i < 4; ++i) _mm512_storeu_si512(out + (2 * i * kSide + half * kSide), turned[i]);
        }
}

// in [lines][padded] -> [lines / 2][padded][2]: B of a product over the lines.
HALFBYTE_AMX inline void lines_as_pairs(const bf16* in, int64_t lines, int64_t padded, bf16* out) {
    for (int64_t r = 0; r < lines; r += 2)
        for (int64_t d = 0; d < padded; d += kSide, out += 2 * kSide)
            store_pairs(_mm512_loadu_si512(in + r * padded + d), _mm512_loadu_si512(in + (r + 1) * padded + d), out);
}

// in [padded][32], times factor [32], transposed, rounded and written to `count` rows of `width`.
HALFBYTE_AMX inline void store_lanes(const float* in, const float* factor, int64_t count, int64_t width,
                                     bf16* const* rows) {
    for (int64_t d = 0; d < width; d += 16)
        for (int64_t r = 0; r < count; r += 4) {
            __m512i turned[4];
            transpose_words(in + d * kSide + r, kSide * 4, turned);
            for (int64_t i = 0; i < std::min<int64_t>(4, count - r); ++i) {
                const __m512 value = _mm512_mul_ps(_mm512_castsi512_ps(turned[i]), _mm512_set1_ps(factor[r + i]));
                _mm256_mask_storeu_epi16(rows[r + i] + d, __mmask16(first_words(std::min<int64_t>(16, width - d))),
                                         reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
            }
        }
}

}  // namespace halfbyte::attention

#endif
