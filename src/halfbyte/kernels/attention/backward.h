// Attention backward by blocks (Dao et al. 2022, arXiv:2205.14135): a strip against its visible keys, 64 at a time.
//
// Of each block P is made again from the scores and the log-sums, then dS = P (dP - delta), delta = d_out . out,
// and three products: dV += P^T d_out and dK += dS^T Q, into fp32 accumulators of the whole key/value head
// (8 * keys * width bytes a thread), and dQ += dS K into that of the strip. Rejected: two passes, one for dQ and one
// for dK and dV, which need no accumulators but seven products instead of five.
#pragma once

#include "blocks.h"

namespace halfbyte::attention {

// Scores s and dP, both [count][kRows] -> P and dS = P (dP - delta), both [count][kRows], and dS once more grouped, as
// `p` of `soften` is (fp32: the same buffer). With a soft cap dS is multiplied with its derivative.
template <typename Element>
HALFBYTE_INLINE void derive(float* HALFBYTE_APART s, float* HALFBYTE_APART d_p, int64_t count, int64_t lanes,
                            float factor, float cap, const float* HALFBYTE_APART lse, const float* HALFBYTE_APART delta,
                            Element* HALFBYTE_APART p, Element* HALFBYTE_APART d_s,
                            Element* HALFBYTE_APART d_s_grouped) {
    for (int64_t j = 0; j < count; ++j) {
        float *HALFBYTE_APART score = s + j * kRows, *HALFBYTE_APART slope = d_p + j * kRows;
        for (int64_t r = 0; r < lanes; ++r) {
            const float chance = exp2_of(score[r] * factor - lse[r]);
            slope[r] = chance * (slope[r] - delta[r]);
            put(chance, p + j * kRows + r);
        }
        if (cap != 0)
            for (int64_t r = 0; r < lanes; ++r) {
                const float bent = (score[r] < -cap ? -cap : score[r]) / cap;  // a masked score is -infinity
                slope[r] *= 1.0f - bent * bent;
            }
        for (int64_t r = 0; r < lanes; ++r) put(slope[r], d_s + j * kRows + r);
    }
    if constexpr (sizeof(Element) == 2)
        for (int64_t j = 0; j < count; j += 2)
            for (int64_t r = 0; r < lanes; ++r)
                put_pair(d_p[j * kRows + r], d_p[(j + 1) * kRows + r], r, d_s_grouped + j * kRows);
}

// d_k and d_v: fp32 [keys][padded] of the key/value head, added to (d_k still lacks the factor `scale`).
template <typename Tiles, typename T>
HALFBYTE_INLINE void strip_backward(const Attention& a, const Strip& strip, float* d_k, float* d_v) {
    using Element = typename Tiles::Element;
    constexpr int64_t kGroup = Tiles::kGroup;
    const int64_t width = a.width, padded = padded_width(a), lanes = strip.lanes;
    Arena arena(4 * (kRows * (10 * padded + 2) + kKeys * kRows * 5));
    auto* staged = arena.take<Element>(kRows * padded);
    auto *q = arena.take<Element>(kRows * padded), *q_grouped = arena.take<Element>(kRows * padded);
    auto *d_out = arena.take<Element>(kRows * padded), *d_out_grouped = arena.take<Element>(kRows * padded);
    auto *keys_in = arena.take<Element>(kKeys * padded), *keys_grouped = arena.take<Element>(kKeys * padded);
    auto* values = arena.take<Element>(kKeys * padded);
    auto* d_q = arena.take<float>(kRows * padded);
    auto *s = arena.take<float>(kKeys * kRows), *d_p = arena.take<float>(kKeys * kRows);
    auto *p = arena.take<Element>(kKeys * kRows), *d_s = arena.take<Element>(kKeys * kRows);
    auto* d_s_grouped = kGroup == 1 ? d_s : arena.take<Element>(kKeys * kRows);
    auto *lse = arena.take<float>(kRows), *delta = arena.take<float>(kRows);

    const T *rows[kRows > kKeys ? kRows : kKeys], *outs[kRows];
    std::memset(q_grouped, 0, size_t(kRows * padded) * sizeof(Element));
    std::memset(d_out_grouped, 0, size_t(kRows * padded) * sizeof(Element));
    strip.point(static_cast<const T*>(a.q), a.q_by, rows);
    copy_rows(rows, strip.count, width, padded, staged);
    transpose_rows(staged, strip.count, lanes, padded, kRows, q);
    group_rows(rows, strip.count, width, padded, q_grouped);
    strip.point(static_cast<const T*>(a.d_out), a.d_out_by, rows);
    copy_rows(rows, strip.count, width, padded, staged);
    transpose_rows(staged, strip.count, lanes, padded, kRows, d_out);
    group_rows(rows, strip.count, width, padded, d_out_grouped);
    strip.point(static_cast<const T*>(a.out), a.out_by, outs);
    for (int64_t r = 0; r < kRows; ++r) {
        lse[r] = kInfinity, delta[r] = 0;  // no key, and no row: P is 0
        if (r >= strip.count) continue;
        const float stored = a.lse[(strip.b * a.q_heads + strip.q_head(r)) * a.queries + strip.position(r)];
        if (stored != -kInfinity) lse[r] = stored * kLog2E;
        float sums[kVector] = {};
        for (int64_t d = 0; d < width; ++d) sums[d % kVector] += to_float(rows[r][d]) * to_float(outs[r][d]);
        for (int64_t l = 0; l < kVector; ++l) delta[r] += sums[l];
    }
    for (int64_t i = 0; i < strip.count * padded; ++i) d_q[i] = 0;

    const float factor = (a.cap != 0 ? 1.0f : a.scale) * kLog2E;
    for (int64_t first = strip.keys.first; first < strip.keys.last; first += kKeys) {
        const Range keys{first, std::min(first + kKeys, strip.keys.last)};
        const int64_t count = keys.count(), even = (count + 1) / 2 * 2;
        point_keys(static_cast<const T*>(a.k), a.k_by, strip.b, strip.head, keys, rows);
        const auto left_k = left_of<Tiles>(rows, a.k_by[2], count, width, padded, keys_in);
        group_rows(rows, count, width, padded, keys_grouped);
        point_keys(static_cast<const T*>(a.v), a.v_by, strip.b, strip.head, keys, rows);
        const auto left_v = left_of<Tiles>(rows, a.v_by[2], count, width, padded, values);
        Tiles::product(left_k, q, kRows * kGroup, s, kRows, count, lanes, padded / kGroup, false);
        Tiles::product(left_v, d_out, kRows * kGroup, d_p, kRows, count, lanes, padded / kGroup, false);
        mask(a, strip, keys, 0, lanes, kRows, even, s);
        if (count % 2)
            for (int64_t r = 0; r < lanes; ++r) d_p[count * kRows + r] = 0;
        derive(s, d_p, even, lanes, factor, a.cap, lse, delta, p, d_s, d_s_grouped);
        Tiles::product({p, kRows, kGroup}, d_out_grouped, padded * kGroup, d_v + first * padded, padded, count, padded,
                       lanes / kGroup, true);
        Tiles::product({d_s, kRows, kGroup}, q_grouped, padded * kGroup, d_k + first * padded, padded, count, padded,
                       lanes / kGroup, true);
        Tiles::product({d_s_grouped, kGroup, kRows * kGroup}, keys_grouped, padded * kGroup, d_q, padded, strip.count,
                       padded, (count + kGroup - 1) / kGroup, true);
    }
    T* to[kRows];
    strip.point(static_cast<T*>(a.d_q), a.d_q_by, to);
    for (int64_t r = 0; r < strip.count; ++r)
        for (int64_t d = 0; d < width; ++d) to[r][d] = from_float<T>(d_q[r * padded + d] * a.scale);
}

}  // namespace halfbyte::attention
