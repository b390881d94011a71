// product in fp32 (AVX2): any number of rows, and the transpose.
#include "matrix.h"

extern "C" void halfbyte_product_fp32(const void*, const void*, int64_t, const void*, void*, int, int);

namespace {

using namespace fuzz;

void drive(Input& input) {
    Buffers buffers(input);
    if (input.isa(kAvx2) < 0) return;
    const int kind = input.byte() % 3, threads = input.threads(), transposed = input.flag();
    const int64_t count = input.count(40, 600), rows = width(input), columns = width(input);
    if (rows * columns > 60000 || count * (rows + columns) > 250000) return;
    const Matrix of = matrix(input, buffers, rows, columns, kind);
    const void* x = buffers.of(kF32, count * (transposed ? rows : columns));
    const void* bias = !transposed && input.flag() ? buffers.of(kF32, rows) : nullptr;
    void* out = buffers.of(kF32, count * (transposed ? columns : rows));
    halfbyte_product_fp32(&of, x, count, bias, out, transposed, threads);
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
