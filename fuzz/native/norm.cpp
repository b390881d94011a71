// norm: RMSNorm, forward and backward.
#include "harness.h"

extern "C" {
void halfbyte_rms_norm(const void*, const void*, int64_t, int64_t, float, float, int, void*, float*, int, int, int);
void halfbyte_rms_norm_backward(const void*, const void*, const void*, const float*, int64_t, int64_t, float, void*, int, int,
                                int);
}

namespace {

using namespace fuzz;

void drive(Input& input) {
    Buffers buffers(input);
    const int isa = input.isa(), dtype = input.byte() % 2, threads = input.threads(), narrow = input.flag();
    const int64_t rows = input.count(4, 20) - input.flag(), columns = input.count(70, 2000);
    const float shift = input.flag() ? 1.0f : 0.0f, eps = input.real();
    const void* x = buffers.of(dtype, rows * columns);
    const void* weight = buffers.of(dtype, columns);
    void* y = buffers.of(dtype, rows * columns);
    auto* rstd = buffers.make<float>(rows);
    halfbyte_rms_norm(x, weight, rows, columns, eps, shift, narrow, y, rstd, dtype, threads, isa);
    const void* dy = buffers.of(dtype, rows * columns);
    void* dx = buffers.of(dtype, rows * columns);
    halfbyte_rms_norm_backward(dy, x, weight, rstd, rows, columns, shift, dx, dtype, threads, isa);
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
