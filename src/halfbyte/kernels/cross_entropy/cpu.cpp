// Cross-entropy of rows of logits, which it overwrites by their gradient; reference.py is the specification.
//
// Three passes over a row, of which only the first sees memory, since a row of 128,256 bf16 logits (257 kB) stays in a
// core's second-level cache: the largest logit; the sum of e^(x - largest); the softmax, less 1 at the target. The sum
// runs in fp32 over blocks and in fp64 over their sums. Rejected: one pass with a running maximum, which saves the
// cheapest of the three and makes every sum depend on the order; keeping the exponentials, twice a row's size.
#include <cmath>

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

template <typename Has, typename T>
HALFBYTE_INLINE void entropy_row(Has has, T* x, int64_t columns, int64_t target, bool gradient, double* loss) {
    const float largest = largest_of(x, columns), at_target = to_float(x[target]);
    double sum = 0;
    for (int64_t start = 0; start < columns; start += kSumBlock) {
        const T* block = x + start;
        sum += sum_of(std::min(kSumBlock, columns - start),
                      [=](int64_t i) HALFBYTE_BODY { return exp_negative(has, to_float(block[i]) - largest); });
    }
    *loss = std::log(sum) + (double(largest) - at_target);
    if (!gradient) return;
    const float scale = float(1.0 / sum);
    const float target_share = exp_negative(has, at_target - largest) * scale;
    for (int64_t i = 0; i < columns; ++i) x[i] = from_float<T>(exp_negative(has, to_float(x[i]) - largest) * scale);
    x[target] = from_float<T>(target_share - 1.0f);
}

template <typename T>
void entropy(T* logits, const int64_t* targets, int64_t rows, int64_t columns, bool gradient, double* losses,
             int threads, int isa) {
    const auto body = [=](auto has, int64_t first, int64_t last) HALFBYTE_BODY {
        for (int64_t r = first; r < last; ++r)
            entropy_row(has, logits + r * columns, columns, targets[r], gradient, losses + r);
    };
    parallel(rows, 1 + (1 << 14) / columns, threads,
             [&](int64_t first, int64_t last) { for_isa(isa, body, first, last); });
}

}  // namespace
}  // namespace halfbyte

using namespace halfbyte;

// logits [rows, columns] of type `dtype` (fp32 or bf16), targets [rows] -> losses [rows] in nats; with `gradient` the
// logits become the gradient of the sum of the losses.
HALFBYTE_API void halfbyte_cross_entropy(void* logits, const int64_t* targets, int64_t rows, int64_t columns,
                                         int gradient, double* losses, int dtype, int threads, int isa) {
    if (dtype == kBf16)
        return entropy(static_cast<bf16*>(logits), targets, rows, columns, gradient != 0, losses, threads, isa);
    entropy(static_cast<float*>(logits), targets, rows, columns, gradient != 0, losses, threads, isa);
}
