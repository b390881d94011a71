// What both passes of attention work on: the call as cpu.py makes it, strips of query rows, their masks and buffers.
//
// A strip is some query rows of one key/value head. They run over the positions and, within a position, over the heads of
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

constexpr int64_t kMostRows = 128;  // query rows of the longest strips
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

// A strip: up to `rows` rows of one key/value head, where row r is position r / group and head r % group of the group.
struct Strip {
    int64_t b, head, group, first, count, lanes;
    Range keys;                 // that any of its rows sees
    int32_t newest[kMostRows];  // of each row: the last key that it may see, by causality

    HALFBYTE_INLINE Strip(const Attention& a, Range visible, int64_t b, int64_t head, int64_t index, int64_t rows)
        : b(b), head(head), group(a.q_heads / a.heads), first(index * rows) {
        count = std::min(rows, a.queries * group - first);
        lanes = (count + kVector - 1) / kVector * kVector;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t row = first + std::min(r, count - 1);
            newest[r] = int32_t(std::max<int64_t>(-1, row / group + a.offset));
        }
        keys = {visible.first, std::min<int64_t>(visible.last, newest[count - 1] + 1)};
        if (a.window) keys.first = std::max<int64_t>(keys.first, first / group + a.offset - a.window + 1);
    }
    HALFBYTE_INLINE int64_t position(int64_t r) const { return (first + r) / group; }
    HALFBYTE_INLINE int64_t q_head(int64_t r) const { return head * group + (first + r) % group; }

    // The keys of `block` up to the last that one of `lanes` rows from row r on may see; none if a window ends before.
    HALFBYTE_INLINE Range seen_by(int64_t r, int64_t lanes, Range block, int64_t window) const {
        if (window && newest[r] - window >= block.last - 1) return {block.first, block.first};
        return {block.first, std::min<int64_t>(block.last, newest[r + lanes - 1] + 1)};
    }

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

// Scores s [keys][row] of `lanes` rows from row `from` on: soft cap, then -infinity where a row does not see a key. The
// lines from the last key to `lines` are filled, too.
HALFBYTE_INLINE void mask(const Attention& a, const Strip& strip, Range keys, int64_t from, int64_t lanes, int64_t row,
                          int64_t lines, float* s) {
    const int64_t count = keys.count();
    if (a.cap != 0) {
        const float factor = a.scale / a.cap;
        for (int64_t j = 0; j < count; ++j)
            for (int64_t r = 0; r < lanes; ++r) s[j * row + r] = a.cap * tanh_of(s[j * row + r] * factor);
    }
    const int32_t* newest = strip.newest + from;
    const bool newer = keys.last - 1 > newest[0];
    const bool older = a.window && keys.first <= newest[lanes - 1] - a.window;
    const uint8_t* visible = a.visible ? a.visible + strip.b * a.visible_by + keys.first : nullptr;
    for (int64_t j = 0; j < count; ++j) {
        float* line = s + j * row;
        const auto key = int32_t(keys.first + j), span = a.window ? int32_t(a.window) : INT32_MAX;
        if (visible && !visible[j])
            for (int64_t r = 0; r < lanes; ++r) line[r] = -kInfinity;
        else if (newer || older)
            for (int64_t r = 0; r < lanes; ++r) {
                const bool sees = (key <= newest[r]) & (newest[r] - key < span);
                line[r] = sees ? line[r] : -kInfinity;
            }
    }
    for (int64_t j = count; j < lines; ++j)
        for (int64_t r = 0; r < lanes; ++r) s[j * row + r] = -kInfinity;
}

}  // namespace halfbyte::attention
