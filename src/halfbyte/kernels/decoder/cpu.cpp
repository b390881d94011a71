// The layers of a decoder for one new token of each of some texts, in one call; reference.py is the specification.
//
// Between the products of a decoded token stand norms, rotary embeddings, the cache and sums. They take a microsecond or
// two each, and as calls of their own from Python twenty or more, some fifteen times a layer: on two cores as much as a
// third of a token of a small model. Every part is the op of its own folder, so nothing is computed in a second way.
#include <memory>
#include <type_traits>
#include <utility>

#include "../attention/strip.h"
#include "../gate/gate.h"
#include "../product/layer.h"
#include "../rotary/rotary.h"
#include "../vector.h"

HALFBYTE_API void halfbyte_attention_forward(const halfbyte::attention::Attention* a, int dtype, int threads, int isa);
HALFBYTE_API void halfbyte_rms_norm(const void* x, const void* weight, int64_t rows, int64_t columns, float eps, float shift,
                                    int narrow, void* y, float* rstd, int dtype, int threads, int isa);

namespace halfbyte {
namespace {

// The structures of cpu.py, which has them under these names with an underscore.
struct NormArgument {
    const void* weight;  // [columns], or null: there is no such norm
    int64_t columns;
    float eps, shift;
    int64_t narrow;
};

struct BlockArgument {
    LayerArgument q, k, v, o, gate, up, down;
    NormArgument before_attention, of_q, of_k, after_attention, before_mlp, after_mlp;
    void *keys, *values;                  // the cache [rows, kv_heads, room, head]
    int64_t keys_by[3], values_by[3];     // strides of row, head and token, in elements
    int64_t act, angles, window;          // angles: which of the step's, or negative: no rotary embedding
    float scale, cap, residual;           // residual: what is added to the hidden state is multiplied by it
};

struct Angles {
    const void *cos, *sin;  // [rows, rotary], of the type of the hidden state or fp32
};

struct StepArgument {
    void* hidden;  // [rows, width], read and written
    const Angles* angles;
    const uint8_t* visible;  // [rows, position + 1], 0 where padding is; or null
    int64_t rows, width, inner, heads, kv_heads, head, rotary, position;
    int64_t wide;  // the angles are fp32
};

// Buffers of a call, all rows of each.
template <typename T>
struct Room {
    std::unique_ptr<T[]> memory;
    std::unique_ptr<float[]> sums;
    T *normed, *made, *q, *k, *v, *normed_q, *normed_k, *turned, *attended, *gate, *up, *both;

    explicit Room(const StepArgument& s)
        : memory(new T[size_t(s.rows * (2 * s.width + 4 * s.heads * s.head + 3 * s.kv_heads * s.head + 3 * s.inner))]),
          sums(new float[size_t(s.rows * (s.heads + s.kv_heads))]) {
        T* at = memory.get();
        const auto take = [&](int64_t columns) { return std::exchange(at, at + s.rows * columns); };
        for (T** of : {&normed, &made}) *of = take(s.width);
        for (T** of : {&q, &normed_q, &turned, &attended}) *of = take(s.heads * s.head);
        for (T** of : {&k, &normed_k, &v}) *of = take(s.kv_heads * s.head);
        for (T** of : {&gate, &up, &both}) *of = take(s.inner);
    }
};

template <typename T>
class Step {
   public:
    Step(const StepArgument& step, int threads, int isa) : s(step), room(step), threads(threads), isa(isa) {}

    void run(const BlockArgument& b) const {
        T* const hidden = static_cast<T*>(s.hidden);
        const T* x = normed(b.before_attention, hidden, s.width, room.normed);
        product(b.q, x, room.q), product(b.k, x, room.k), product(b.v, x, room.v);
        const T* q = normed(b.of_q, room.q, s.heads * s.head, room.normed_q);
        const T* k = normed(b.of_k, room.k, s.kv_heads * s.head, room.normed_k);
        if (b.angles >= 0) {
            const int64_t by[3] = {s.heads * s.head, s.head, s.head};
            rotate(q, s.heads, s.angles[b.angles], room.turned, by), q = room.turned;
            rotate(k, s.kv_heads, s.angles[b.angles], static_cast<T*>(b.keys) + s.position * b.keys_by[2], b.keys_by);
        } else {
            store(k, static_cast<T*>(b.keys), b.keys_by);
        }
        store(room.v, static_cast<T*>(b.values), b.values_by);
        attend(b, q);
        product(b.o, room.attended, room.made);
        add(normed(b.after_attention, room.made, s.width, room.normed), b.residual, hidden);

        x = normed(b.before_mlp, hidden, s.width, room.normed);
        product(b.gate, x, room.gate), product(b.up, x, room.up);
        halfbyte_gate(room.gate, room.up, s.rows, s.inner, s.inner, room.both, int(b.act), kDtype, threads, isa);
        product(b.down, room.both, room.made);
        add(normed(b.after_mlp, room.made, s.width, room.normed), b.residual, hidden);
    }

   private:
    static constexpr int kDtype = std::is_same_v<T, bf16> ? kBf16 : kF32;
    const StepArgument& s;
    Room<T> room;
    int threads, isa;

    void product(const LayerArgument& layer, const T* x, T* out) const { layer.run(x, s.rows, out, kDtype, threads, isa); }

    // x [rows, width] normed into `out`, each part of a row that is as wide as the norm; x itself where there is none.
    T* normed(const NormArgument& norm, T* x, int64_t width, T* out) const {
        if (!norm.weight) return x;
        halfbyte_rms_norm(x, norm.weight, s.rows * (width / norm.columns), norm.columns, norm.eps, norm.shift, int(norm.narrow), out,
                          room.sums.get(), kDtype, threads, isa);
        return out;
    }

    // x [rows, heads, head] turned, into `out`, whose rows and heads are `by` apart.
    void rotate(const T* x, int64_t heads, const Angles& angles, T* out, const int64_t* by) const {
        const Rotary call{x, out, angles.cos, angles.sin, {heads * s.head, s.head, s.head}, {by[0], by[1], by[2]}, s.rotary,
                          s.rows, heads, 1, s.head, s.rotary, 0};
        halfbyte_rotary(&call, kDtype, int(s.wide), threads, isa);
    }

    void store(const T* x, T* cache, const int64_t* by) const {
        for (int64_t r = 0; r < s.rows; ++r)
            for (int64_t h = 0; h < s.kv_heads; ++h)
                std::memcpy(cache + r * by[0] + h * by[1] + s.position * by[2], x + (r * s.kv_heads + h) * s.head, size_t(s.head) * sizeof(T));
    }

    void attend(const BlockArgument& b, const T* q) const {
        const int64_t width = s.heads * s.head;
        attention::Attention a{};
        a.q = q, a.k = b.keys, a.v = b.values, a.out = a.write = room.attended, a.lse = room.sums.get(), a.visible = s.visible;
        for (int i = 0; i < 3; ++i) {
            a.q_by[i] = a.out_by[i] = i == 1 ? s.head : width;
            a.k_by[i] = b.keys_by[i], a.v_by[i] = b.values_by[i];
        }
        a.visible_by = a.keys = s.position + 1;
        a.batch = s.rows, a.q_heads = s.heads, a.heads = s.kv_heads, a.queries = 1, a.width = s.head;
        a.offset = s.position, a.window = b.window, a.scale = b.scale, a.cap = b.cap;
        halfbyte_attention_forward(&a, kDtype, threads, isa);
    }

    // hidden += residual * x
    void add(const T* x, float residual, T* hidden) const {
        const auto body = [=](auto, int64_t first, int64_t last) HALFBYTE_BODY {
            for (int64_t i = first; i < last; ++i) hidden[i] = from_float<T>(to_float(hidden[i]) + to_float(from_float<T>(to_float(x[i]) * residual)));
        };
        for_isa(isa, body, 0, s.rows * s.width);
    }
};

template <typename T>
void decode(const StepArgument& step, const BlockArgument* blocks, int64_t count, int threads, int isa) {
    const Step<T> one(step, threads, isa);
    for (int64_t i = 0; i < count; ++i) one.run(blocks[i]);
}

}  // namespace
}  // namespace halfbyte

// The new token of each row through `count` blocks; rows at most 16, fp32 or bf16. Keys and values go into the caches.
HALFBYTE_API void halfbyte_decode(const void* step, const void* blocks, int64_t count, int dtype, int threads, int isa) {
    using namespace halfbyte;
    (dtype == kBf16 ? decode<bf16> : decode<float>)(*static_cast<const StepArgument*>(step), static_cast<const BlockArgument*>(blocks), count,
                                                    threads, isa);
}
