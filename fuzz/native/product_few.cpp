// product: up to 16 rows, in every instruction set and in fp32 and bf16.
#include "matrix.h"

extern "C" void halfbyte_product_few(const void*, const void*, int64_t, const void*, void*, int, int, int);

namespace {

using namespace fuzz;

void drive(Input& input) {
    Buffers buffers(input);
    const int isa = input.isa(), dtype = input.byte() % 2, kind = input.byte() % 5, threads = input.threads();
    const int64_t count = input.count(5, 16), rows = width(input), columns = width(input);
    if (rows * columns > 100000) return;
    const Matrix of = matrix(input, buffers, rows, columns, kind);
    const void* x = buffers.of(dtype, count * columns);
    const void* bias = input.flag() ? buffers.of(dtype, rows) : nullptr;
    void* out = buffers.of(dtype, count * rows);
    halfbyte_product_few(&of, x, count, bias, out, dtype, threads, isa);
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
