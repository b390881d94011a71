// Attention forward and backward by blocks (Dao et al. 2022, arXiv:2205.14135); reference.py is the specification.
//
// A unit of work is a strip of 64 query rows of one key/value head, against its visible keys in blocks of 64. The rows
// of a strip run over the positions and, within a position, over the heads of the group that share the key/value head:
// so grouped queries repeat no key, a strip's keys end where the causal mask does, and one query row (decoding) is a
// strip like any other. Everything between the products is transposed, S^T [keys, rows]: a row is a lane, so that the
// running maximum and sum go down the lanes without a reduction within a vector, keys enter a product as they lie in
// memory, and a masked key is a line that is skipped. The backward pass goes through the strips of a key/value head and
// adds to dK and dV of the whole head in fp32 (8 * keys * width bytes a thread), and to dQ of the strip.
//
// Where there are few key/value heads the strips of one are dealt to several accumulators, added in a fixed order; how
// many depends on the shapes alone, so neither the number of threads nor a second run changes a bit. The price is that
// more threads than 8 help only where there are more heads. Rejected: two passes, one for dQ and one for dK and dV,
// which need no accumulators but seven products instead of five; and packing K and V once per head for all strips,
// which saves 3 % and needs buffers of the size of both.
//
// Elements of the products are bf16 for bf16 inputs on AVX-512 BF16 (P and dS are rounded to it, as in any bf16
// attention), else fp32. Widths are padded with zeros to a multiple of 16 on the way into the buffers.
#include <cmath>
#include <limits>
#include <memory>

#include "../exp.h"
#include "../tiles.h"

namespace halfbyte {
namespace {

constexpr int64_t kRows = 64;   // query rows of a strip
constexpr int64_t kKeys = 64;   // keys of a block
constexpr int64_t kUnits = 8;   // accumulators of dK and dV that there are at least, where the strips suffice
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLowest = -1e30f;  // below every score, but finite: a row may see no key

}  // namespace

// What cpu.py passes; strides in elements, of batch, head and token; the last dimension is contiguous.
struct Attention {
    const void *q, *k, *v, *out, *d_out;  // [batch, q_heads, queries, width]; k and v [batch, heads, keys, width]
    void *write, *d_q, *d_k, *d_v;        // `write` is the forward's out
    float* lse;                           // [batch, q_heads, queries]: log of the sum of exp(score); -infinity: no key
    const uint8_t* visible;               // [batch, keys], 0 where padding is; or null
    int64_t q_by[3], k_by[3], v_by[3], out_by[3], d_out_by[3], d_q_by[3], d_k_by[3], d_v_by[3], visible_by;
    int64_t batch, q_heads, heads, queries, keys, width;
    int64_t offset;  // query i sees the keys up to i + offset
    int64_t window;  // and only the last so many of those; 0: all
    float scale, cap;  // score = scale q k, then cap tanh(score / cap); cap 0: none
};

namespace {

struct Range {
    int64_t first, last;
    HALFBYTE_INLINE int64_t count() const { return std::max<int64_t>(0, last - first); }
};

// A strip: rows first..last of one key/value head, where row r is position r / group and head r % group of the group.
struct Strip {
    int64_t b, head, group, first, count, lanes;
    Range keys;             // that any of its rows sees
    int32_t newest[kRows];  // of each row: the last key that it may see, by causality

    HALFBYTE_INLINE Strip(const Attention& a, Range visible, int64_t b, int64_t head, int64_t index)
        : b(b), head(head), group(a.q_heads / a.heads), first(index * kRows) {
        count = std::min(kRows, a.queries * group - first);
        lanes = (count + kVector - 1) / kVector * kVector;
        for (int64_t r = 0; r < kRows; ++r) {
            const int64_t row = first + std::min(r, count - 1);
            newest[r] = int32_t(std::max<int64_t>(-1, row / group + a.offset));
        }
        keys = {visible.first, std::min<int64_t>(visible.last, newest[count - 1] + 1)};
        if (a.window) keys.first = std::max<int64_t>(keys.first, first / group + a.offset - a.window + 1);
    }
    HALFBYTE_INLINE int64_t position(int64_t r) const { return (first + r) / group; }
    HALFBYTE_INLINE int64_t q_head(int64_t r) const { return head * group + (first + r) % group; }

    // Element 0 of each row of a tensor with strides `by`.
    template <typename T>
    HALFBYTE_INLINE void point(T* base, const int64_t* by, T** rows) const {
        for (int64_t r = 0; r < count; ++r) rows[r] = base + b * by[0] + q_head(r) * by[1] + position(r) * by[2];
    }
};

template <typename T>
HALFBYTE_INLINE void point_keys(T* base, const int64_t* by, int64_t b, int64_t head, Range keys, T** rows) {
    for (int64_t j = keys.first; j < keys.last; ++j) rows[j - keys.first] = base + b * by[0] + head * by[1] + j * by[2];
}

// ---- buffers --------------------------------------------------------------------------------------------------------

// The calling thread's buffers, cut from one piece of memory that it keeps for the next call.
struct Arena {
    char* next;
    explicit Arena(int64_t size) {
        static thread_local std::unique_ptr<char[]> memory;
        static thread_local int64_t held = 0;
        if (held < size) memory.reset(new char[size_t(size) + 64]), held = size;
        next = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64);
    }
    template <typename T>
    T* take(int64_t count) {
        T* taken = reinterpret_cast<T*>(next);
        next += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
        return taken;
    }
};

// ---- between the products -------------------------------------------------------------------------------------------

// Scores s [keys][kRows]: soft cap, then -infinity where a row does not see a key. The lines up to an even number of
// keys are filled, too.
HALFBYTE_INLINE void mask(const Attention& a, const Strip& strip, Range keys, float* s) {
    const int64_t count = keys.count(), lanes = strip.lanes;
    if (a.cap != 0) {
        const float factor = a.scale / a.cap;
        for (int64_t j = 0; j < count; ++j)
            for (int64_t r = 0; r < lanes; ++r) s[j * kRows + r] = a.cap * tanh_of(s[j * kRows + r] * factor);
    }
    const bool newer = keys.last - 1 > strip.newest[0];
    const bool older = a.window && keys.first <= strip.newest[strip.count - 1] - a.window;
    const uint8_t* visible = a.visible ? a.visible + strip.b * a.visible_by + keys.first : nullptr;
    for (int64_t j = 0; j < count; ++j) {
        float* line = s + j * kRows;
        const auto key = int32_t(keys.first + j), span = a.window ? int32_t(a.window) : INT32_MAX;
        if (visible && !visible[j])
            for (int64_t r = 0; r < lanes; ++r) line[r] = -kInfinity;
        else if (newer || older)
            for (int64_t r = 0; r < lanes; ++r) {
                const bool sees = (key <= strip.newest[r]) & (strip.newest[r] - key < span);
                line[r] = sees ? line[r] : -kInfinity;
            }
    }
    if (count % 2)
        for (int64_t r = 0; r < lanes; ++r) s[count * kRows + r] = -kInfinity;
}

// Rounds to bf16; a NaN stays one, since those that arise from bf16 inputs have no bits in the lower half.
HALFBYTE_INLINE uint32_t rounded(float value) {
    const uint32_t bits = bits_of(value);
    return bits + 0x7fff + (bits >> 16 & 1);
}
HALFBYTE_INLINE void put(float value, float* to) { *to = value; }
HALFBYTE_INLINE void put(float value, bf16* to) { to->bits = uint16_t(rounded(value) >> 16); }

// A row of two neighbouring keys into a grouped buffer: [2][kRows] for fp32, [kRows][2] for bf16.
HALFBYTE_INLINE void put_pair(float even, float odd, int64_t r, float* to) { to[r] = even, to[kRows + r] = odd; }
HALFBYTE_INLINE void put_pair(float even, float odd, int64_t r, bf16* to) {
    reinterpret_cast<uint32_t*>(to)[r] = rounded(even) >> 16 | (rounded(odd) & 0xffff0000);
}

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

// ---- a strip forward ------------------------------------------------------------------------------------------------

HALFBYTE_INLINE int64_t padded_width(const Attention& a) { return (a.width + kVector - 1) / kVector * kVector; }

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
        mask(a, strip, keys, s);
        if (lanes == kVector) soften(s, even, kVector, factor, top, total, shrink, p);  // decoding: no loop over lanes
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

// ---- a strip backward -----------------------------------------------------------------------------------------------

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
        mask(a, strip, keys, s);
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

// ---- instruction sets -----------------------------------------------------------------------------------------------

#define HALFBYTE_STRIPS(Name, Base, TARGET)                                                              \
    struct Name : Base {                                                                                 \
        template <typename T>                                                                            \
        TARGET static void forward(const Attention& a, const Strip& strip) {                             \
            strip_forward<Base, T>(a, strip);                                                            \
        }                                                                                                \
        template <typename T>                                                                            \
        TARGET static void backward(const Attention& a, const Strip& strip, float* d_k, float* d_v) {    \
            strip_backward<Base, T>(a, strip, d_k, d_v);                                                 \
        }                                                                                                \
    };
HALFBYTE_STRIPS(Portable, PortableTiles, )
#ifdef HALFBYTE_X86
HALFBYTE_STRIPS(Avx2, Avx2Tiles, HALFBYTE_AVX2)
HALFBYTE_STRIPS(Avx512, Avx512Tiles, HALFBYTE_AVX512)
HALFBYTE_STRIPS(Avx512Bf16, Avx512Bf16Tiles, HALFBYTE_AVX512BF16)
#endif
#undef HALFBYTE_STRIPS

// ---- the split over threads -----------------------------------------------------------------------------------------

// Of each batch: from the first visible key to the last.
std::vector<Range> visible_ranges(const Attention& a) {
    std::vector<Range> ranges(size_t(a.batch), Range{0, a.keys});
    for (int64_t b = 0; a.visible && b < a.batch; ++b) {
        const uint8_t* row = a.visible + b * a.visible_by;
        Range& range = ranges[size_t(b)];
        while (range.first < range.last && !row[range.first]) ++range.first;
        while (range.first < range.last && !row[range.last - 1]) --range.last;
    }
    return ranges;
}

HALFBYTE_INLINE int64_t strips_per_head(const Attention& a) {
    return (a.queries * (a.q_heads / a.heads) + kRows - 1) / kRows;
}

// Units worth waking a thread for, if one takes `products` multiplications.
HALFBYTE_INLINE int64_t grain_of(int64_t products) { return 1 + (1 << 20) / std::max<int64_t>(1, products); }

template <typename Kernels, typename T>
void forward(const Attention& a, int threads) {
    const auto visible = visible_ranges(a);
    const int64_t strips = strips_per_head(a);
    const int64_t grain = grain_of(std::min(kRows, a.queries * a.q_heads / a.heads) * a.keys * a.width);
    parallel(a.batch * a.heads * strips, grain, threads, [&](int64_t first, int64_t last) {
        for (int64_t unit = first; unit < last; ++unit) {
            const int64_t head = unit / strips, place = unit % strips;  // short strips and long ones by turns
            const int64_t index = place % 2 ? strips - 1 - place / 2 : place / 2;
            const int64_t b = head / a.heads;
            Kernels::template forward<T>(a, Strip(a, visible[size_t(b)], b, head % a.heads, index));
        }
    });
}

template <typename T>
void store_keys(const Attention& a, void* base, const int64_t* by, int64_t head, const float* sums, float scale) {
    T* to = static_cast<T*>(base) + head / a.heads * by[0] + head % a.heads * by[1];
    const int64_t padded = padded_width(a);
    for (int64_t j = 0; j < a.keys; ++j)
        for (int64_t d = 0; d < a.width; ++d) to[j * by[2] + d] = from_float<T>(sums[j * padded + d] * scale);
}

template <typename Kernels, typename T>
void backward(const Attention& a, int threads) {
    const auto visible = visible_ranges(a);
    const int64_t strips = strips_per_head(a), heads = a.batch * a.heads, size = 2 * a.keys * padded_width(a);
    const int64_t parts = std::min(strips, (kUnits + heads - 1) / heads);
    std::vector<float> shared(size_t(parts > 1 ? heads * parts * size : 0));
    const auto finish = [&](int64_t head, const float* sums) {
        store_keys<T>(a, a.d_k, a.d_k_by, head, sums, a.scale);
        store_keys<T>(a, a.d_v, a.d_v_by, head, sums + size / 2, 1.0f);
    };
    const int64_t products = strips / parts * kRows * a.keys * a.width;
    parallel(heads * parts, grain_of(products), threads, [&](int64_t first, int64_t last) {
        std::vector<float> own(size_t(parts > 1 ? 0 : size));
        for (int64_t unit = first; unit < last; ++unit) {
            const int64_t head = unit / parts, b = head / a.heads;
            float* sums = parts > 1 ? shared.data() + unit * size : own.data();
            std::fill(sums, sums + size, 0.0f);
            for (int64_t index = unit % parts; index < strips; index += parts)
                Kernels::template backward<T>(a, Strip(a, visible[size_t(b)], b, head % a.heads, index), sums,
                                              sums + size / 2);
            if (parts == 1) finish(head, sums);
        }
    });
    if (parts == 1) return;
    parallel(heads, 1, threads, [&](int64_t first, int64_t last) {
        for (int64_t head = first; head < last; ++head) {
            float* sums = shared.data() + head * parts * size;
            for (int64_t part = 1; part < parts; ++part)
                for (int64_t i = 0; i < size; ++i) sums[i] += sums[part * size + i];
            finish(head, sums);
        }
    });
}

template <typename Kernels, typename T>
void run(const Attention& a, bool back, int threads) {
    back ? backward<Kernels, T>(a, threads) : forward<Kernels, T>(a, threads);
}

template <typename Kernels>
void run_as(const Attention& a, int dtype, bool back, int threads) {
    if (dtype == kBf16) return run<Kernels, bf16>(a, back, threads);
    if (dtype == kF16) return run<Kernels, f16>(a, back, threads);
    run<Kernels, float>(a, back, threads);
}

void dispatch(const Attention& a, int dtype, bool back, int threads, int isa) {
#ifdef HALFBYTE_X86
    if (isa == kAvx512Bf16 && dtype == kBf16) return run<Avx512Bf16, bf16>(a, back, threads);
    if (isa >= kAvx512) return run_as<Avx512>(a, dtype, back, threads);
    if (isa == kAvx2) return run_as<Avx2>(a, dtype, back, threads);
#else
    (void)isa;
#endif
    run_as<Portable>(a, dtype, back, threads);
}

}  // namespace
}  // namespace halfbyte

using namespace halfbyte;

// Writes `write` and `lse`; tensors of type `dtype`.
HALFBYTE_API void halfbyte_attention_forward(const Attention* a, int dtype, int threads, int isa) {
    dispatch(*a, dtype, false, threads, isa);
}

// Reads out, lse and d_out; writes d_q, d_k and d_v.
HALFBYTE_API void halfbyte_attention_backward(const Attention* a, int dtype, int threads, int isa) {
    dispatch(*a, dtype, true, threads, isa);
}
