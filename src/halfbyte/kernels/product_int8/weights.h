// A packed matrix as bytes for `vpdpbusd`: what product_int8/cpu.cpp multiplies with. Needs whole blocks in a row.
#pragma once

#include "../product/shared.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {

constexpr int64_t kQuads = kBlock / 4;  // of a block of the contraction: `vpdpbusd` takes four steps at once
constexpr float kLevels = 124.11f;  // an NF4 level times this is nearly an integer: see reference.py
constexpr float kMost = 127.0f;

// Four vectors of 64 bytes, one a step -> the four steps of each of the 64 columns side by side, in order.
HALFBYTE_VNNI inline void interleave(__m512i* steps) {
    const __m512i low0 = _mm512_unpacklo_epi8(steps[0], steps[1]), low1 = _mm512_unpacklo_epi8(steps[2], steps[3]);
    const __m512i high0 = _mm512_unpackhi_epi8(steps[0], steps[1]), high1 = _mm512_unpackhi_epi8(steps[2], steps[3]);
    // lane l of the j-th holds the columns 16 * l + 4 * j + 0..3
    const __m512i a = _mm512_unpacklo_epi16(low0, low1), b = _mm512_unpackhi_epi16(low0, low1);
    const __m512i c = _mm512_unpacklo_epi16(high0, high1), d = _mm512_unpackhi_epi16(high0, high1);
    const __m512i ab0 = _mm512_shuffle_i32x4(a, b, 0x44), ab1 = _mm512_shuffle_i32x4(a, b, 0xee);
    const __m512i cd0 = _mm512_shuffle_i32x4(c, d, 0x44), cd1 = _mm512_shuffle_i32x4(c, d, 0xee);
    steps[0] = _mm512_shuffle_i32x4(ab0, cd0, 0x88);
    steps[1] = _mm512_shuffle_i32x4(ab0, cd0, 0xdd);
    steps[2] = _mm512_shuffle_i32x4(ab1, cd1, 0x88);
    steps[3] = _mm512_shuffle_i32x4(ab1, cd1, 0xdd);
}

// 16 values rounded to integers, as unsigned bytes with 128 added, four times over: a table for byte shuffles.
HALFBYTE_VNNI inline __m512i byte_table(__m512 values) {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(values));
    return _mm512_broadcast_i32x4(_mm_xor_si128(bytes, _mm_set1_epi8(char(0x80))));
}

struct Nf4Bytes {
    Nf4 packed;
    int64_t columns;
    static constexpr bool kBlockScales = true;

    HALFBYTE_VNNI const uint8_t* at(int64_t row, int64_t column) const { return packed.codes + (row * columns + column) / 2; }
    HALFBYTE_VNNI static __m512i look_up(const uint8_t* codes, __m512i table) {
        const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
        const __m512i index = _mm512_or_si512(_mm512_srli_epi16(wide, 4), _mm512_slli_epi16(wide, 8));
        return _mm512_shuffle_epi8(table, _mm512_and_si512(index, _mm512_set1_epi8(15)));
    }
    HALFBYTE_VNNI __m512i forward_table() const {
        return byte_table(_mm512_mul_ps(_mm512_loadu_ps(packed.levels), _mm512_set1_ps(kLevels)));
    }
    HALFBYTE_VNNI __m512i forward(int64_t row, int64_t column, __m512i table) const { return look_up(at(row, column), table); }

    // Of blocks first..first + count of `row`: what its bytes, less 128, are to be multiplied with.
    void scales(int64_t row, int64_t first, int64_t count, float* out) const {
        take_scales(packed, row * (columns / kBlock) + first, count, out);
        for (int64_t b = 0; b < count; ++b) out[b] *= 1.0f / kLevels;
    }
    float largest(int64_t row, float* buffer) const {
        const int64_t blocks = columns / kBlock;
        take_scales(packed, row * blocks, blocks, buffer);
        float most = 0.0f;
        for (int64_t b = 0; b < blocks; ++b) most = std::max(most, std::abs(buffer[b]));
        return most;
    }

    // 64 rows from `first` on (the last one again beyond `last`) of the block of columns from `column` on, divided by
    // what `inverse` is the reciprocals of -> [quad of rows][64 columns]; returns their common scale.
    HALFBYTE_VNNI float transposed(int64_t column, int64_t first, int64_t last, const float* inverse, __m512i (*out)[4]) const {
        float factors[kBlock], most = 0.0f;
        for (int64_t i = 0; i < kBlock; ++i) {
            const int64_t row = std::min(first + i, last);
            factors[i] = packed.scale((row * columns + column) / kBlock) * inverse[row];
            most = std::max(most, std::abs(factors[i]));
        }
        const float up = most > 0.0f ? kMost / most : 0.0f;
        const __m512 levels = _mm512_loadu_ps(packed.levels);
        for (int64_t q = 0; q < kQuads; ++q) {
            for (int i = 0; i < 4; ++i) {
                const uint8_t* codes = at(std::min(first + 4 * q + i, last), column);
                out[q][i] = look_up(codes, byte_table(_mm512_mul_ps(levels, _mm512_set1_ps(factors[4 * q + i] * up))));
            }
            interleave(out[q]);
        }
        return most * (1.0f / kMost);
    }
};

struct Int8Bytes {
    const int8_t* codes;
    const float* scale;
    int64_t columns;
    static constexpr bool kBlockScales = false;  // one scale a row

    HALFBYTE_VNNI const uint8_t* at(int64_t row, int64_t column) const {
        return reinterpret_cast<const uint8_t*>(codes) + row * columns + column;
    }
    HALFBYTE_VNNI __m512i forward_table() const { return _mm512_set1_epi8(char(0x80)); }
    HALFBYTE_VNNI __m512i forward(int64_t row, int64_t column, __m512i flip) const {
        return _mm512_xor_si512(_mm512_loadu_si512(at(row, column)), flip);
    }
    void scales(int64_t row, int64_t, int64_t count, float* out) const {
        for (int64_t b = 0; b < count; ++b) out[b] = load(scale + row) * (1.0f / kMost);
    }
    float largest(int64_t row, float*) const { return load(scale + row); }
    HALFBYTE_VNNI float transposed(int64_t column, int64_t first, int64_t last, const float*, __m512i (*out)[4]) const {
        const __m512i flip = forward_table();
        for (int64_t q = 0; q < kQuads; ++q) {
            for (int i = 0; i < 4; ++i) out[q][i] = forward(std::min(first + 4 * q + i, last), column, flip);
            interleave(out[q]);
        }
        return 1.0f / kMost;
    }
};

// Matrix rows `first`..`last` (at most kUnit) as output columns, blocks begin..begin + blocks along its columns ->
// two halves of [block][quad][32 columns] of four steps, and the scales [block][kUnit].
template <typename Matrix>
HALFBYTE_VNNI void lay_out(const Matrix& matrix, int64_t first, int64_t last, int64_t begin, int64_t blocks, uint32_t* out, float* scales) {
    const __m512i table = matrix.forward_table();
    for (int64_t group = 0; group < 4 && first + 16 * group < last; ++group) {
        uint32_t* const target = out + group / 2 * blocks * kQuads * 32 + group % 2 * 16;
        for (int64_t b = 0; b < blocks; ++b) {
            __m512i rows[16];
            for (int64_t r = 0; r < 16; ++r) {
                const int64_t row = std::min(first + 16 * group + r, last - 1);
                _mm_prefetch(reinterpret_cast<const char*>(matrix.at(row + 16, (begin + b) * kBlock)), _MM_HINT_T0);
                rows[r] = matrix.forward(row, (begin + b) * kBlock, table);
            }
            transpose(rows);
            for (int64_t q = 0; q < kQuads; ++q) _mm512_storeu_si512(target + (b * kQuads + q) * 32, rows[q]);
        }
    }
    float of_row[kUnit];
    for (int64_t c = 0; c < kUnit; ++c) {
        matrix.scales(std::min(first + c, last - 1), begin, blocks, of_row);
        for (int64_t b = 0; b < blocks; ++b) scales[b * kUnit + c] = of_row[b];
    }
}

// Matrix columns from `first` on (kUnit of them) as output columns, blocks begin..begin + blocks along its `rows` rows
// -> as `lay_out`, but one scale a block.
template <typename Matrix>
HALFBYTE_VNNI void lay_out_transposed(const Matrix& matrix, int64_t first, int64_t rows, int64_t begin, int64_t blocks,
                                      const float* inverse, uint32_t* out, float* scales) {
    for (int64_t b = 0; b < blocks; ++b) {
        __m512i quads[kQuads][4];
        scales[b] = matrix.transposed(first, (begin + b) * kBlock, rows - 1, inverse, quads);
        for (int64_t q = 0; q < kQuads; ++q)
            for (int i = 0; i < 4; ++i)
                _mm512_storeu_si512(out + i / 2 * blocks * kQuads * 32 + (b * kQuads + q) * 32 + i % 2 * 16, quads[q][i]);
    }
}

}  // namespace
}  // namespace halfbyte
#endif
