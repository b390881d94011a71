// Attention forward of few queries (decoding) on AVX-512 BF16: keys and values are read once, at the pace of memory.
//
// With at most 16 rows of a key/value head the lanes of a strip (strip.h) would be mostly empty, so here a lane is
// something else: of a score 32 dimensions at once, summed across the vector for 16 keys together (15 additions make
// one vector of 16 sums); of P a key; of the result a dimension. V's rows are interleaved in pairs within quarters of a
// vector, which is the cheap way; the order of the dimensions is put right when the result is stored.
//
// A head with many keys is cut into parts of kPartKeys or more, so that few heads occupy more threads; into how many
// depends on the shapes alone, and they are combined in order. Rejected: tiles of AMX; memory sets the pace without.
#pragma once

#include "lanes.h"

#ifdef HALFBYTE_X86

namespace halfbyte::attention {

constexpr int64_t kFewRows = 16;    // of a key/value head: queries times the heads of a group
constexpr int64_t kFewKeys = 64;    // keys of a block
constexpr int64_t kPartKeys = 512;  // the least that a head is cut into
constexpr int64_t kParts = 64;      // of all heads together, where the keys suffice

HALFBYTE_INLINE int64_t few_parts(const Attention& a) {
    const int64_t heads = a.batch * a.heads;
    return std::max<int64_t>(1, std::min(a.keys / kPartKeys, (kParts + heads - 1) / heads));
}

// What a part makes of each row: the reference of its powers, their sum, and the sum of the values by them, in `padded`
// dimensions of the order that `weigh` leaves.
struct Partial {
    float *top, *total, *out;
    static HALFBYTE_INLINE int64_t size(int64_t padded) { return kFewRows * (padded + 2); }
    HALFBYTE_INLINE Partial(float* memory) : top(memory), total(top + kFewRows), out(total + kFewRows) {}
};

// The sums of the lanes of 16 vectors.
HALFBYTE_AVX512BF16 inline __m512 sums_of(__m512* v) {
    for (int i = 0; i < 8; ++i)
        v[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castps_pd(v[2 * i]), b = _mm512_castps_pd(v[2 * i + 1]);
        v[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    for (int i = 0; i < 2; ++i)
        v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(v[0], v[1], 0x88), _mm512_shuffle_f32x4(v[0], v[1], 0xdd));
}

// The products of q [padded] with 16 keys.
HALFBYTE_AVX512BF16 inline __m512 scores_of(const bf16* q, const bf16* const* keys, int64_t width) {
    __m512 sums[16];
    for (int i = 0; i < 16; ++i) sums[i] = _mm512_setzero_ps();
    for (int64_t d = 0; d < width; d += kSide) {
        const __mmask32 there = first_words(width - d);
        const auto left = reinterpret_cast<__m512bh>(_mm512_loadu_si512(q + d));
        for (int i = 0; i < 16; ++i)
            sums[i] = _mm512_dpbf16_ps(sums[i], left,
                                       reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(there, keys[i] + d)));
    }
    return sums_of(sums);
}

// Scores s [count of 64] of row r, with their mask -> p of the same keys; top, total and out are of this row.
HALFBYTE_AVX512BF16 inline void soften_keys(const float* s, float factor, float* top, float* total, float* out,
                                            int64_t padded, bf16* p) {
    __m512 score[4], most = _mm512_set1_ps(-kInfinity), sum = _mm512_setzero_ps();
    for (int i = 0; i < 4; ++i) {
        score[i] = _mm512_mul_ps(_mm512_loadu_ps(s + 16 * i), _mm512_set1_ps(factor));
        most = _mm512_max_ps(score[i], most);
    }
    const float now = _mm512_reduce_max_ps(most);
    if (now > *top + kSlack) {
        const float shrink = exp2_of(*top - now);
        *top = now, *total *= shrink;
        for (int64_t d = 0; d < padded; d += 16)
            _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_loadu_ps(out + d), _mm512_set1_ps(shrink)));
    }
    for (int i = 0; i < 4; ++i) {
        score[i] = exp2_lanes(_mm512_sub_ps(score[i], _mm512_set1_ps(*top)));
        sum = _mm512_add_ps(sum, score[i]);
    }
    *total += _mm512_reduce_add_ps(sum);
    _mm512_storeu_si512(p, rounded_lanes(score));
    _mm512_storeu_si512(p + kSide, rounded_lanes(score + 2));
}

// out [R][C x 32 of padded] += p [R][64] times `count` values, of which the first is values[0].
template <int R, int C>
HALFBYTE_AVX512BF16 void weigh(const bf16* p, const bf16* const* values, int64_t count, int64_t d, int64_t width,
                               int64_t padded, float* out) {
    __m512 sum[R][2 * C];
    __mmask32 there[C];
    for (int c = 0; c < C; ++c) there[c] = first_words(width - d - c * kSide);
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < 2 * C; ++c) sum[r][c] = _mm512_loadu_ps(out + r * padded + d + 16 * c);
    for (int64_t j = 0; j < count; j += 2) {
        __m512bh right[2 * C];
        for (int c = 0; c < C; ++c) {
            const __m512i even = _mm512_maskz_loadu_epi16(there[c], values[j] + d + c * kSide);
            const __m512i odd = _mm512_maskz_loadu_epi16(there[c], values[j + 1] + d + c * kSide);
            right[2 * c] = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(even, odd));
            right[2 * c + 1] = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(even, odd));
        }
        for (int r = 0; r < R; ++r) {
            int32_t pair;
            std::memcpy(&pair, p + r * kFewKeys + j, sizeof pair);
            const auto left = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
            for (int c = 0; c < 2 * C; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], left, right[c]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < 2 * C; ++c) _mm512_storeu_ps(out + r * padded + d + 16 * c, sum[r][c]);
}

// The strip (all rows of a head) against `range`, a part of its keys.
HALFBYTE_AVX512BF16 inline void attend_few(const Attention& a, const Strip& strip, Range range, Partial made) {
    using Weigh = void (*)(const bf16*, const bf16* const*, int64_t, int64_t, int64_t, int64_t, float*);
    static constexpr Weigh weighs[4][2] = {
        {weigh<1, 1>, weigh<1, 2>}, {weigh<2, 1>, weigh<2, 2>}, {weigh<3, 1>, weigh<3, 2>}, {weigh<4, 1>, weigh<4, 2>}};
    const int64_t width = a.width, padded = whole(width), count = strip.count;
    Arena arena(padded * kFewRows * 2 + kFewKeys * kFewRows * 6);
    auto *q = arena.take<bf16>(kFewRows * padded), *p = arena.take<bf16>(kFewRows * kFewKeys);
    auto* s = arena.take<float>(kFewRows * kFewKeys);
    const bf16 *queries[kFewRows], *keys[kFewKeys], *values[kFewKeys];
    strip.point(static_cast<const bf16*>(a.q), a.q_by, queries);
    for (int64_t r = 0; r < count; ++r)
        for (int64_t d = 0; d < padded; d += kSide)
            _mm512_storeu_si512(q + r * padded + d, _mm512_maskz_loadu_epi16(first_words(width - d), queries[r] + d));
    for (int64_t r = 0; r < count; ++r) made.top[r] = kLowest, made.total[r] = 0;
    std::memset(made.out, 0, size_t(count * padded) * sizeof(float));

    const float factor = (a.cap != 0 ? 1.0f : a.scale) * kLog2E;
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i span = _mm512_set1_epi32(a.window ? int32_t(a.window) : INT32_MAX);
    for (int64_t first = range.first; first < range.last; first += kFewKeys) {
        const Range block{first, std::min(first + kFewKeys, range.last)};
        const int64_t there = block.count(), ahead = block.last < range.last ? kFewKeys * a.k_by[2] : 0;
        point_keys(static_cast<const bf16*>(a.k), a.k_by, strip.b, strip.head, block, keys);
        point_keys(static_cast<const bf16*>(a.v), a.v_by, strip.b, strip.head, block, values);
        for (int64_t j = there; j < kFewKeys; ++j) keys[j] = keys[there - 1], values[j] = values[there - 1];
        for (int64_t j = 0; j < kFewKeys; j += 16) {
            __mmask16 held = j < there ? __mmask16(first_words(std::min<int64_t>(16, there - j))) : __mmask16(0);
            if (a.visible && held) {
                const uint8_t* visible = a.visible + strip.b * a.visible_by + first + j;
                held = _mm_test_epi8_mask(_mm_maskz_loadu_epi8(held, visible), _mm_set1_epi8(-1));
            }
            for (int64_t i = j; i < j + 16; ++i)  // what comes next: memory answers while the scores are computed
                for (int64_t d = 0; d < width; d += kSide) {
                    _mm_prefetch(reinterpret_cast<const char*>(values[i] + d), _MM_HINT_T0);
                    _mm_prefetch(reinterpret_cast<const char*>(keys[i] + (ahead + d)), _MM_HINT_T0);
                }
            const __m512i key = _mm512_add_epi32(lane, _mm512_set1_epi32(int32_t(first + j)));
            for (int64_t r = 0; r < count; ++r) {
                const __m512i newest = _mm512_set1_epi32(strip.newest[r]);
                __mmask16 sees = _mm512_mask_cmple_epi32_mask(held, key, newest);
                sees = _mm512_mask_cmplt_epi32_mask(sees, _mm512_sub_epi32(newest, key), span);
                float* scores = s + r * kFewKeys + j;
                __m512 score = _mm512_set1_ps(-kInfinity);
                if (sees) score = scores_of(q + r * padded, keys + j, width);
                if (a.cap != 0) {
                    _mm512_storeu_ps(scores, score);
                    for (int i = 0; i < 16; ++i) scores[i] = a.cap * tanh_of(scores[i] * (a.scale / a.cap));
                    score = _mm512_loadu_ps(scores);
                }
                _mm512_storeu_ps(scores, _mm512_mask_mov_ps(_mm512_set1_ps(-kInfinity), sees, score));
            }
        }
        for (int64_t r = 0; r < count; ++r)
            soften_keys(s + r * kFewKeys, factor, made.top + r, made.total + r, made.out + r * padded, padded,
                        p + r * kFewKeys);
        for (int64_t r = 0; r < count; r += 4)
            for (int64_t d = 0; d < padded; d += 2 * kSide)
                weighs[std::min<int64_t>(4, count - r) - 1][padded - d > kSide](
                    p + r * kFewKeys, values, there, d, width, padded, made.out + r * padded);
    }
}

// The parts of a head, `size` apart, combined and stored.
HALFBYTE_AVX512BF16 inline void finish_few(const Attention& a, const Strip& strip, float* memory, int64_t parts) {
    const int64_t padded = whole(a.width), size = Partial::size(padded);
    const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    bf16* to[kFewRows];
    strip.point(static_cast<bf16*>(a.write), a.out_by, to);
    for (int64_t r = 0; r < strip.count; ++r) {
        float top = kLowest, total = 0;
        for (int64_t i = 0; i < parts; ++i) top = std::max(top, Partial(memory + i * size).top[r]);
        for (int64_t i = 0; i < parts; ++i) {
            const Partial part(memory + i * size);
            total += part.total[r] * (part.top[r] = exp2_of(part.top[r] - top));
        }
        const __m512 share = _mm512_set1_ps(total == 0 ? 0.0f : 1.0f / total);
        for (int64_t d = 0; d < a.width; d += kSide) {
            __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, ordered[2];
            for (int64_t i = 0; i < parts; ++i) {
                const Partial part(memory + i * size);
                for (int c = 0; c < 2; ++c)
                    sum[c] = _mm512_fmadd_ps(_mm512_loadu_ps(part.out + r * padded + d + 16 * c),
                                             _mm512_set1_ps(part.top[r]), sum[c]);
            }
            ordered[0] = _mm512_mul_ps(_mm512_permutex2var_ps(sum[0], low, sum[1]), share);
            ordered[1] = _mm512_mul_ps(_mm512_permutex2var_ps(sum[0], high, sum[1]), share);
            _mm512_mask_storeu_epi16(to[r] + d, first_words(a.width - d), rounded_lanes(ordered));
        }
        const int64_t at = (strip.b * a.q_heads + strip.q_head(r)) * a.queries + strip.position(r);
        a.lse[at] = total == 0 ? -kInfinity : top * kLn2 + std::log(total);
    }
}

}  // namespace halfbyte::attention

#endif
