// Attention forward on AMX: a strip of 128 query rows against its visible keys, 64 at a time (forward.h has the method).
//
// A block is copied and transposed once; then 32 rows at a time meet it, so that their scores stay in the nearest cache
// between the two products. The products are a third of the time there; the rest is 2^x and the ways between tiles and
// vectors.
#pragma once

#include "amx.h"

#ifdef HALFBYTE_AMX

namespace halfbyte::attention {

// Scores s [lines][32] -> p [lines / 2][32][2] = 2^(s * factor - top), with the reference `top` and the sum `total` of
// each lane; the sums so far, `total` and out [padded][32], shrink where `top` rises.
HALFBYTE_AMX inline void soften_lanes(const float* s, int64_t lines, float factor, float* top, float* total, float* out,
                                      int64_t padded, bf16* p) {
    const __m512 scale = _mm512_set1_ps(factor);
    __m512 most[4], above[2], sum[2];
    for (int h = 0; h < 4; ++h) most[h] = _mm512_loadu_ps(s + 16 * h);
    for (int64_t j = 2; j < lines; j += 2)
        for (int h = 0; h < 4; ++h) most[h] = _mm512_max_ps(_mm512_loadu_ps(s + j * kSide + 16 * h), most[h]);
    for (int h = 0; h < 2; ++h) {
        const __m512 now = _mm512_mul_ps(_mm512_max_ps(most[h], most[h + 2]), scale);
        above[h] = _mm512_loadu_ps(top + 16 * h), sum[h] = _mm512_loadu_ps(total + 16 * h);
        const __mmask16 rises = _mm512_cmp_ps_mask(now, _mm512_add_ps(above[h], _mm512_set1_ps(kSlack)), _CMP_GT_OQ);
        if (!rises) continue;
        const __m512 risen = _mm512_mask_mov_ps(above[h], rises, now);
        const __m512 shrink = exp2_lanes(_mm512_sub_ps(above[h], risen));
        above[h] = risen, sum[h] = _mm512_mul_ps(sum[h], shrink);
        _mm512_storeu_ps(top + 16 * h, risen);
        for (float* line = out + 16 * h; line < out + padded * kSide; line += kSide)
            _mm512_storeu_ps(line, _mm512_mul_ps(_mm512_loadu_ps(line), shrink));
    }
    for (int64_t j = 0; j < lines; j += 2, s += 2 * kSide, p += 2 * kSide) {
        __m512 chance[4];
        for (int h = 0; h < 4; ++h) {
            chance[h] = exp2_lanes(_mm512_fmsub_ps(_mm512_loadu_ps(s + 16 * h), scale, above[h % 2]));
            sum[h % 2] = _mm512_add_ps(sum[h % 2], chance[h]);
        }
        store_pairs(rounded_lanes(chance), rounded_lanes(chance + 2), p);
    }
    for (int h = 0; h < 2; ++h) _mm512_storeu_ps(total + 16 * h, sum[h]);
}

// With the thread's TileRegisters.
HALFBYTE_AMX inline void strip_forward_amx(const Attention& a, const Strip& strip) {
    const int64_t width = a.width, padded = whole(width), lanes = whole(strip.count);
    Arena arena(padded * (kAmxRows * 6 + kAmxKeys * 6) + kAmxKeys * kSide * 6 + kAmxRows * 8);
    auto *q = arena.take<bf16>(kAmxRows * padded), *staged = arena.take<bf16>(kAmxKeys * padded);
    auto *keys_in = arena.take<bf16>(kAmxKeys * padded), *values = arena.take<bf16>(kAmxKeys * padded);
    auto *out = arena.take<float>(kAmxRows * padded), *s = arena.take<float>(kAmxKeys * kSide);
    auto* p = arena.take<bf16>(kAmxKeys * kSide);
    auto *top = arena.take<float>(kAmxRows), *total = arena.take<float>(kAmxRows);

    const bf16* rows[std::max(kAmxRows, kAmxKeys)];
    strip.point(static_cast<const bf16*>(a.q), a.q_by, rows);
    for (int64_t r = 0; r < lanes; r += kSide) {
        copy_lines(rows + r, strip.count - r, kSide, width, padded, staged);
        lines_as_columns(staged, padded, q + r * padded);
    }
    for (int64_t r = 0; r < lanes; ++r) top[r] = kLowest, total[r] = 0;
    std::memset(out, 0, size_t(lanes * padded) * sizeof *out);

    const float factor = (a.cap != 0 ? 1.0f : a.scale) * kLog2E;
    for (int64_t first = strip.keys.first; first < strip.keys.last; first += kAmxKeys) {
        const Range block{first, std::min(first + kAmxKeys, strip.keys.last)};
        const int64_t steps = whole(block.count());
        point_keys(static_cast<const bf16*>(a.v), a.v_by, strip.b, strip.head, block, rows);
        copy_lines(rows, block.count(), steps, width, padded, staged);
        lines_as_steps(staged, steps, padded, values);
        point_keys(static_cast<const bf16*>(a.k), a.k_by, strip.b, strip.head, block, rows);
        copy_lines(rows, block.count(), steps, width, padded, keys_in);
        for (int64_t r = 0; r < lanes; r += kSide) {
            const Range keys = strip.seen_by(r, kSide, block, a.window);
            if (!keys.count()) continue;
            const int64_t lines = whole(keys.count());
            product({keys_in, padded, kSide}, {q + r * padded, 2 * kSide}, s, kSide, lines, kSide, padded, false);
            mask(a, strip, keys, r, kSide, kSide, lines, s);
            soften_lanes(s, lines, factor, top + r, total + r, out + r * padded, padded, p);
            product({values, kSide, padded * kSide}, {p, 2 * kSide}, out + r * padded, kSide, padded, kSide, lines, true);
        }
    }
    bf16* to[kAmxRows];
    strip.point(static_cast<bf16*>(a.write), a.out_by, to);
    for (int64_t r = 0; r < strip.count; ++r) {
        const int64_t at = (strip.b * a.q_heads + strip.q_head(r)) * a.queries + strip.position(r);
        a.lse[at] = total[r] == 0 ? -kInfinity : top[r] * kLn2 + std::log(total[r]);
        total[r] = total[r] == 0 ? 0.0f : 1.0f / total[r];
    }
    for (int64_t r = 0; r < strip.count; r += kSide)
        store_lanes(out + r * padded, total + r, std::min(kSide, strip.count - r), width, to + r);
}

}  // namespace halfbyte::attention

#endif
