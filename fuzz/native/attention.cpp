// attention, forward and backward: grouped heads, windows, soft caps, padding, and strides with gaps or turned dimensions.
#include "harness.h"

struct Attention {  // as in attention/strip.h
    const void *q, *k, *v, *out, *d_out;
    void *write, *d_q, *d_k, *d_v;
    float* lse;
    const uint8_t* visible;
    int64_t q_by[3], k_by[3], v_by[3], out_by[3], d_out_by[3], d_q_by[3], d_k_by[3], d_v_by[3], visible_by;
    int64_t batch, q_heads, heads, queries, keys, width, offset, window;
    float scale, cap;
};

extern "C" {
void halfbyte_attention_forward(const Attention*, int, int, int);
void halfbyte_attention_backward(const Attention*, int, int, int);
}

namespace {

using namespace fuzz;

// A tensor [batch, heads, tokens, width], as a projection leaves it, as a cache does, or with a gap after each row.
void* tensor(Input& input, Buffers& buffers, int dtype, int64_t batch, int64_t heads, int64_t tokens, int64_t width,
             int64_t* by) {
    const int64_t gap = input.byte() % 4 ? 0 : input.byte() % 9, row = width + gap;
    const bool turned = input.flag();
    by[0] = heads * tokens * row, by[1] = turned ? row : tokens * row, by[2] = turned ? heads * row : row;
    return buffers.of(dtype, (batch - 1) * by[0] + (heads - 1) * by[1] + (tokens - 1) * by[2] + width);
}

void drive(Input& input) {
    Buffers buffers(input);
    Attention a{};
    const int isa = input.isa(), dtype = input.byte() % 3, threads = input.threads();
    a.batch = input.count(1, 2), a.heads = input.count(2, 3), a.q_heads = a.heads * (1 + input.byte() % 4);
    a.queries = input.count(12, 90), a.keys = input.count(24, 200), a.width = input.count(24, 160);
    a.offset = input.flag() ? a.keys - a.queries : input.number(0, 400) - 200;
    a.window = input.byte() % 3 ? 0 : input.byte() % 16 ? input.number(1, 60) : INT32_MAX;
    a.scale = 0.125f, a.cap = input.byte() % 4 ? 0.0f : 3.0f;
    if (a.batch * a.q_heads * (a.queries + 8) * (a.width + 8) > 200000 || a.batch * a.heads * a.keys * (a.width + 8) > 100000) return;
    if (a.batch * a.q_heads * a.queries * a.keys * a.width > 3000000) return;
    if (input.flag()) {
        auto* visible = buffers.make<uint8_t>(a.batch * a.keys);
        for (int64_t i = 0; i < a.batch * a.keys; ++i) visible[i] &= 1;
        a.visible = visible, a.visible_by = a.keys;
    }
    a.q = tensor(input, buffers, dtype, a.batch, a.q_heads, a.queries, a.width, a.q_by);
    a.k = tensor(input, buffers, dtype, a.batch, a.heads, a.keys, a.width, a.k_by);
    a.v = tensor(input, buffers, dtype, a.batch, a.heads, a.keys, a.width, a.v_by);
    a.write = tensor(input, buffers, dtype, a.batch, a.q_heads, a.queries, a.width, a.out_by);
    a.out = a.write;
    a.lse = buffers.make<float>(a.batch * a.q_heads * a.queries);
    halfbyte_attention_forward(&a, dtype, threads, isa);
    if (input.flag()) {
        a.d_out = tensor(input, buffers, dtype, a.batch, a.q_heads, a.queries, a.width, a.d_out_by);
        a.d_q = tensor(input, buffers, dtype, a.batch, a.q_heads, a.queries, a.width, a.d_q_by);
        a.d_k = tensor(input, buffers, dtype, a.batch, a.heads, a.keys, a.width, a.d_k_by);
        a.d_v = tensor(input, buffers, dtype, a.batch, a.heads, a.keys, a.width, a.d_v_by);
        halfbyte_attention_backward(&a, dtype, threads, isa);
    }
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
