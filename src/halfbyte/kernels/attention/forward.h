// Attention forward by blocks (Dao et al. 2022, arXiv:2205.14135): a strip against its visible keys, 64 at a time.
//
// Of each block: scores, their soft cap and mask, then P = 2^(score - running maximum) and its product with the values,
// added to what the blocks before gave; when a row's maximum rises, its sums so far shrink. Only the sum over P and the
// maximum are kept for the backward pass, as their logarithm.
#pragma once

#include "blocks.h"

namespace halfbyte::attention {

// Scores s [count][kRows], count even -> p [count / group][kRows][group] = 2^(s * factor - top), with the running
// maximum `top` and sum `total` of each row; `shrink` is what the rows' sums so far were multiplied with.
template <typename Element>
HALFBYTE_INLINE void soften(const float* HALFBYTE_APART s, int64_t count, int64_t lanes, float factor,
                            float* HALFBYTE_APART top, float* HALFBYTE_APART total, float* HALFBYTE_APART shrink,
                            Element* HALFBYTE_APART p) {
    float most[kRows];
    for (int64_t r = 0; r < lanes; ++r) most[r] = s[r];
    for (int64_t j = 1; j < count; ++j)
        for (int64_t r = 0; r < lanes; ++r) most[r] = s[j * kRows + r] > most[r] ? s[j * kRows + r] : most[r];
    for (int64_t r = 0; r < lanes; ++r) {
        const float now = most[r] * factor, higher = now > top[r] ? now : top[r];
        shrink[r] = exp2_of(top[r] - higher);
        total[r] *= shrink[r];
        top[r] = higher;
    }
    for (int64_t j = 0; j < count; j += 2)
        for (int64_t r = 0; r < lanes; ++r) {
            const float even = exp2_of(s[j * kRows + r] * factor - top[r]);
            const float odd = exp2_of(s[(j + 1) * kRows + r] * factor - top[r]);
            total[r] += even + odd;
            put_pair(even, odd, r, p + j * kRows);
        }
}

template <typename Tiles, typename T>
HALFBYTE_INLINE void strip_forward(const Attention& a, const Strip& strip) {
    using Element = typename Tiles::Element;
    constexpr int64_t kGroup = Tiles::kGroup;
    const int64_t width = a.width, padded = padded_width(a), lanes = strip.lanes;
    Arena arena(4 * (kRows * (5 * padded + 8) + kKeys * kRows * 2));
    auto* staged = arena.take<Element>(std::max(kRows, kKeys) * padded);
    auto* q = arena.take<Element>(kRows * padded);
    auto* keys_in = arena.take<Element>(kKeys * padded);
    auto* values = arena.take<Element>(kKeys * padded);
    auto* out = arena.take<float>(kRows * padded);
    auto* s = arena.take<float>(kKeys * kRows);
    auto* p = arena.take<Element>(kKeys * kRows);
    auto *top = arena.take<float>(kRows), *total = arena.take<float>(kRows), *shrink = arena.take<float>(kRows);

    const T* rows[kRows > kKeys ? kRows : kKeys];
    strip.point(static_cast<const T*>(a.q), a.q_by, rows);
    copy_rows(rows, strip.count, width, padded, staged);
    transpose_rows(staged, strip.count, lanes, padded, kRows, q);
    for (int64_t r = 0; r < kRows; ++r) top[r] = kLowest, total[r] = 0;
    for (int64_t i = 0; i < strip.count * padded; ++i) out[i] = 0;

    const float factor = (a.cap != 0 ? 1.0f : a.scale) * kLog2E;
    for (int64_t first = strip.keys.first; first < strip.keys.last; first += kKeys) {
        const Range keys{first, std::min(first + kKeys, strip.keys.last)};
        const int64_t count = keys.count(), even = (count + 1) / 2 * 2;
        point_keys(static_cast<const T*>(a.k), a.k_by, strip.b, strip.head, keys, rows);
        const auto left = left_of<Tiles>(rows, a.k_by[2], count, width, padded, keys_in);
        Tiles::product(left, q, kRows * kGroup, s, kRows, count, lanes, padded / kGroup, false);
        mask(a, strip, keys, 0, lanes, kRows, even, s);
        if (lanes == kVector) soften(s, even, kVector, factor, top, total, shrink, p);  // few queries: no loop over lanes
        else soften(s, even, lanes, factor, top, total, shrink, p);
        for (int64_t r = 0; r < strip.count; ++r)
            if (shrink[r] != 1.0f)
                for (int64_t d = 0; d < padded; ++d) out[r * padded + d] *= shrink[r];
        point_keys(static_cast<const T*>(a.v), a.v_by, strip.b, strip.head, keys, rows);
        group_rows(rows, count, width, padded, values);
        Tiles::product({p, kGroup, kRows * kGroup}, values, padded * kGroup, out, padded, strip.count, padded,
                       (count + kGroup - 1) / kGroup, true);
    }
    T* to[kRows];
    strip.point(static_cast<T*>(a.write), a.out_by, to);
    for (int64_t r = 0; r < strip.count; ++r) {
        const float share = total[r] == 0 ? 0.0f : 1.0f / total[r];
        for (int64_t d = 0; d < width; ++d) to[r][d] = from_float<T>(out[r * padded + d] * share);
        const int64_t at = (strip.b * a.q_heads + strip.q_head(r)) * a.queries + strip.position(r);
        a.lse[at] = total[r] == 0 ? -kInfinity : top[r] * kLn2 + std::log(total[r]);
    }
}

}  // namespace halfbyte::attention
