// Attention backward on AMX: a strip of 128 query rows against its visible keys, 64 at a time (backward.h has the
// method).
//
// 32 rows at a time meet a block: their scores and dP, P and dS of them, and the part of dQ. P^T and dS^T stay, rounded,
// for all rows that see the block, so that the products with dO and Q add to dV and dK once a block and strip: fp32
// sums of the whole key/value head are the one thing here that does not fit the nearest cache.
#pragma once

#include "amx.h"

#ifdef HALFBYTE_AMX

namespace halfbyte::attention {

// Scores s and dP, both [lines][32] -> P and dS = P (dP - delta), both [lines][32], and dS once more as pairs of keys,
// [lines / 2][32][2]. With a soft cap dS is multiplied with its derivative.
HALFBYTE_AMX inline void derive_lanes(const float* s, const float* d_p, int64_t lines, float factor, float cap,
                                      const float* lse, const float* delta, bf16* p, bf16* d_s, bf16* d_s_pairs) {
    const __m512 scale = _mm512_set1_ps(factor);
    const __m512 sums[2] = {_mm512_loadu_ps(lse), _mm512_loadu_ps(lse + 16)};
    const __m512 means[2] = {_mm512_loadu_ps(delta), _mm512_loadu_ps(delta + 16)};
    for (int64_t j = 0; j < lines; j += 2) {
        __m512i slopes[2];
        for (int i = 0; i < 2; ++i, s += kSide, d_p += kSide, p += kSide, d_s += kSide) {
            __m512 chance[2], slope[2];
            for (int h = 0; h < 2; ++h) {
                const __m512 score = _mm512_loadu_ps(s + 16 * h);
                chance[h] = exp2_lanes(_mm512_fmsub_ps(score, scale, sums[h]));
                slope[h] = _mm512_mul_ps(chance[h], _mm512_sub_ps(_mm512_loadu_ps(d_p + 16 * h), means[h]));
                if (cap != 0) {  // a masked score is -infinity
                    const __m512 bent = _mm512_max_ps(_mm512_mul_ps(score, _mm512_set1_ps(1 / cap)), _mm512_set1_ps(-1));
                    slope[h] = _mm512_mul_ps(slope[h], _mm512_fnmadd_ps(bent, bent, _mm512_set1_ps(1)));
                }
            }
            slopes[i] = rounded_lanes(slope);
            _mm512_storeu_si512(p, rounded_lanes(chance));
            _mm512_storeu_si512(d_s, slopes[i]);
        }
        store_pairs(slopes[0], slopes[1], d_s_pairs + j * kSide);
    }
}

// Rows of `width` as columns of a product, and as steps of one; `staged` [32][whole(width)] is for a time.
HALFBYTE_AMX inline void lay_out_rows(const bf16* const* rows, int64_t count, int64_t width, bf16* staged, bf16* columns,
                                      bf16* pairs) {
    const int64_t padded = whole(width);
    for (int64_t r = 0; r < count; r += kSide) {
        copy_lines(rows + r, count - r, kSide, width, padded, staged);
        lines_as_columns(staged, padded, columns + r * padded);
        lines_as_pairs(staged, kSide, padded, pairs + r * padded);
    }
}

// With the thread's TileRegisters; d_k and d_v: fp32 of the key/value head, in rows of whole(width), added to (d_k still
// lacks the factor `scale`). The products reach up to 31 rows beyond the last key.
HALFBYTE_AMX inline void strip_backward_amx(const Attention& a, const Strip& strip, float* d_k, float* d_v) {
    const int64_t width = a.width, padded = whole(width), lanes = whole(strip.count);
    Arena arena(padded * (kAmxRows * 12 + kAmxKeys * 8) + kAmxKeys * (kSide * 10 + kAmxRows * 4) + kAmxRows * 8);
    auto *q = arena.take<bf16>(kAmxRows * padded), *q_pairs = arena.take<bf16>(kAmxRows * padded);
    auto *d_out = arena.take<bf16>(kAmxRows * padded), *d_out_pairs = arena.take<bf16>(kAmxRows * padded);
    auto *keys_in = arena.take<bf16>(kAmxKeys * padded), *keys_turned = arena.take<bf16>(kAmxKeys * padded);
    auto *values = arena.take<bf16>(kAmxKeys * padded), *staged = values;
    auto* d_q = arena.take<float>(kAmxRows * padded);
    auto *s = arena.take<float>(kAmxKeys * kSide), *d_p = arena.take<float>(kAmxKeys * kSide);
    auto *p = arena.take<bf16>(kAmxKeys * kAmxRows), *d_s = arena.take<bf16>(kAmxKeys * kAmxRows);
    auto* d_s_pairs = arena.take<bf16>(kAmxKeys * kSide);
    auto *lse = arena.take<float>(kAmxRows), *delta = arena.take<float>(kAmxRows);

    const bf16 *rows[std::max(kAmxRows, kAmxKeys)], *outs[kAmxRows];
    strip.point(static_cast<const bf16*>(a.q), a.q_by, rows);
    lay_out_rows(rows, strip.count, width, staged, q, q_pairs);
    strip.point(static_cast<const bf16*>(a.d_out), a.d_out_by, rows);
    lay_out_rows(rows, strip.count, width, staged, d_out, d_out_pairs);
    strip.point(static_cast<const bf16*>(a.out), a.out_by, outs);
    for (int64_t r = 0; r < lanes; ++r) {
        lse[r] = kInfinity, delta[r] = 0;  // no key, and no row: P is 0
        if (r >= strip.count) continue;
        const float stored = a.lse[(strip.b * a.q_heads + strip.q_head(r)) * a.queries + strip.position(r)];
        if (stored != -kInfinity) lse[r] = stored * kLog2E;
        delta[r] = dot(rows[r], outs[r], width);
    }
    std::memset(d_q, 0, size_t(lanes * padded) * sizeof *d_q);

    const float factor = (a.cap != 0 ? 1.0f : a.scale) * kLog2E;
    for (int64_t first = strip.keys.first; first < strip.keys.last; first += kAmxKeys) {
        const Range block{first, std::min(first + kAmxKeys, strip.keys.last)};
        const int64_t lines = whole(block.count());
        point_keys(static_cast<const bf16*>(a.k), a.k_by, strip.b, strip.head, block, rows);
        copy_lines(rows, block.count(), lines, width, padded, keys_in);
        lines_as_steps(keys_in, lines, padded, keys_turned);
        point_keys(static_cast<const bf16*>(a.v), a.v_by, strip.b, strip.head, block, rows);
        copy_lines(rows, block.count(), lines, width, padded, values);
        int64_t begin = lanes, end = 0;  // the rows that see the block
        for (int64_t r = 0; r < lanes; r += kSide) {
            if (!strip.seen_by(r, kSide, block, a.window).count()) continue;
            begin = std::min(begin, r), end = r + kSide;
            product({keys_in, padded, kSide}, {q + r * padded, 2 * kSide}, s, kSide, lines, kSide, padded, false);
            product({values, padded, kSide}, {d_out + r * padded, 2 * kSide}, d_p, kSide, lines, kSide, padded, false);
            mask(a, strip, block, r, kSide, kSide, lines, s);
            derive_lanes(s, d_p, lines, factor, a.cap, lse + r, delta + r, p + r * lines, d_s + r * lines, d_s_pairs);
            product({keys_turned, kSide, padded * kSide}, {d_s_pairs, 2 * kSide}, d_q + r * padded, kSide, padded, kSide,
                    lines, true);
        }
        if (begin >= end) continue;
        product({p + begin * lines, kSide, lines * kSide}, {d_out_pairs + begin * padded, 2 * padded},
                d_v + first * padded, padded, lines, padded, end - begin, true);
        product({d_s + begin * lines, kSide, lines * kSide}, {q_pairs + begin * padded, 2 * padded},
                d_k + first * padded, padded, lines, padded, end - begin, true);
    }
    bf16* to[kAmxRows];
    strip.point(static_cast<bf16*>(a.d_q), a.d_q_by, to);
    std::fill_n(delta, kAmxRows, a.scale);
    for (int64_t r = 0; r < strip.count; r += kSide)
        store_lanes(d_q + r * padded, delta, std::min(kSide, strip.count - r), width, to + r);
}

}  // namespace halfbyte::attention

#endif
