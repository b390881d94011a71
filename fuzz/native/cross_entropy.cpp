// cross_entropy: with and without the gradient, a scale and a soft cap, for targets within the vocabulary.
#include "harness.h"

extern "C" void halfbyte_cross_entropy(void*, const int64_t*, int64_t, int64_t, int, float, float, double*, int, int,
                                       int);

namespace {

using namespace fuzz;

void drive(Input& input) {
    Buffers buffers(input);
    const int isa = input.isa(), dtype = input.byte() % 2, threads = input.threads(), gradient = input.flag();
    const int64_t rows = input.count(3, 10), columns = input.count(150, 9000);
    void* logits = buffers.of(dtype, rows * columns);
    auto* targets = buffers.make<int64_t>(rows);
    for (int64_t r = 0; r < rows; ++r) targets[r] = int64_t(uint64_t(targets[r]) % uint64_t(columns));
    auto* losses = buffers.make<double>(rows);
    const float scale = input.flag() ? 1.0f : 0.125f, cap = input.flag() ? 30.0f : 0.0f;
    halfbyte_cross_entropy(logits, targets, rows, columns, gradient, scale, cap, losses, dtype, threads, isa);
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
