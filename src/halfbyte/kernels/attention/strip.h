// What both passes of attention work on: the call as cpu.py makes it, strips of query rows, their masks and buffers.
//
// A strip is 64 query rows of one key/value head. They run over the positions and, within a position, over the heads of
// the group that share the key/value head: so grouped queries repeat no key, and a strip's keys end where the causal
// mask does. Everything between the products is transposed, S^T [keys, rows]: a row is a lane, so that the running
// maximum and sum go down the lanes without a reduction within a vector, keys enter a product as they lie in memory,
// and a masked key is a line that is skipped.
#pragma once

#include <cmath>
#include <limits>
#include <memory>

#include "../exp.h"
#include "../tiles.h"

namespace halfbyte::attention {

constexpr int64_t kRows = 64;  // query rows of a strip
constexpr int64_t kKeys = 64;  // keys of a block
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLowest = -1e30f;  // below every score, but finite: a row may see no key

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

HALFBYTE_INLINE int64_t padded_width(const Attention& a) { return (a.width + kVector - 1) / kVector * kVector; }

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

}  // namespace halfbyte::attention
