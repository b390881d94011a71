// Cross-entropy of rows of logits, which it overwrites by their gradient; reference.py is the specification. A scale and
// a soft cap of the logits are computed on the way, in fp32, and cost no pass of their own.
//
// Three passes over a row, of which only the first sees memory, since a row of 128,256 bf16 logits (257 kB) stays in a
// core's second-level cache: the largest logit; the sum of e^(x - largest); the softmax, less 1 at the target. The sum
// runs in fp32 over blocks and in fp64 over their sums. Rejected: one pass with a running maximum, which saves the
// cheapest of the three and makes every sum depend on the order; keeping the exponentials, twice a row's size.
#include <cmath>

#include "../exp.h"
#include "../vector.h"

namespace halfbyte {
namespace {

constexpr int64_t kSumBlock = 4096;

template <typename T>
HALFBYTE_INLINE float largest_of(const T* x, int64_t columns) {
    float lanes[kSumLanes];
    for (int j = 0; j < kSumLanes; ++j) lanes[j] = to_float(x[0]);
    int64_t i = 0;
    for (; i + kSumLanes <= columns; i += kSumLanes)
        for (int j = 0; j < kSumLanes; ++j) lanes[j] = lanes[j] < to_float(x[i + j]) ? to_float(x[i + j]) : lanes[j];
    for (; i < columns; ++i) lanes[0] = lanes[0] < to_float(x[i]) ? to_float(x[i]) : lanes[0];
    float largest = lanes[0];
    for (int j = 1; j < kSumLanes; ++j) largest = largest < lanes[j] ? lanes[j] : largest;
    return largest;
}

// What is done to a logit x after the product, and the derivative where the result is y. Both functions rise, so the
// largest logit stays the largest.
struct Scaled {
    float scale;
    HALFBYTE_INLINE float operator()(float x) const { return x * scale; }
    HALFBYTE_INLINE float slope(float) const { return scale; }
};
struct Capped {
    float scale, cap, inner, inverse;
    Capped(float scale, float cap) : scale(scale), cap(cap), inner(scale / cap), inverse(1.0f / cap) {}
    HALFBYTE_INLINE float operator()(float x) const { return cap * tanh_of(x * inner); }
    HALFBYTE_INLINE float slope(float y) const {
        const float share = y * inverse;
        return scale * (1.0f - share * share);
    }
};

template <typename Has, typename End, typename T>
HALFBYTE_INLINE void entropy_row(Has has, End end, T* x, int64_t columns, int64_t target, bool gradient,
                                 double* loss) {
    const float largest = end(largest_of(x, columns)), at_target = end(to_float(x[target]));
    double sum = 0;
    for (int64_t start = 0; start < columns; start += kSumBlock) {
        const T* block = x + start;
        sum += sum_of(std::min(kSumBlock, columns - start),
                      [=](int64_t i) HALFBYTE_BODY { return exp_negative(has, end(to_float(block[i])) - largest); });
    }
    *loss = std::log(sum) + (double(largest) - at_target);
    if (!gradient) return;
    const float share = float(1.0 / sum);
    const float target_share = exp_negative(has, at_target - largest) * share;
    for (int64_t i = 0; i < columns; ++i) {
        const float y = end(to_float(x[i]));
        x[i] = from_float<T>(exp_negative(has, y - largest) * share * end.slope(y));
    }
    x[target] = from_float<T>((target_share - 1.0f) * end.slope(at_target));
}

template <typename End, typename T>
void entropy(End end, T* logits, const int64_t* targets, int64_t rows, int64_t columns, bool gradient, double* losses,
             int threads, int isa) {
    const auto body = [=](auto has, int64_t first, int64_t last) HALFBYTE_BODY {
        for (int64_t r = first; r < last; ++r)
            entropy_row(has, end, logits + r * columns, columns, targets[r], gradient, losses + r);
    };
    parallel(rows, 1 + (1 << 14) / columns, threads,
             [&](int64_t first, int64_t last) { for_isa(isa, body, first, last); });
}

}  // namespace
}  // namespace halfbyte

using namespace halfbyte;

// logits [rows, columns] of type `dtype` (fp32 or bf16), targets [rows] -> losses [rows] in nats, of logits that were
// multiplied by `scale` and, where it is not 0, softly capped at `cap`; with `gradient` the logits become the gradient of
// the sum of the losses by what they were.
HALFBYTE_API void halfbyte_cross_entropy(void* logits, const int64_t* targets, int64_t rows, int64_t columns,
                                         int gradient, float scale, float cap, double* losses, int dtype, int threads,
                                         int isa) {
    const auto of = [&](auto* x) {
        if (cap > 0) return entropy(Capped(scale, cap), x, targets, rows, columns, gradient != 0, losses, threads, isa);
        entropy(Scaled{scale}, x, targets, rows, columns, gradient != 0, losses, threads, isa);
    };
    dtype == kBf16 ? of(static_cast<bf16*>(logits)) : of(static_cast<float*>(logits));
}
