// product in fp32 (AVX2, AVX-512): any number of rows, the transpose, a LoRA pair.
#include "matrix.h"

extern "C" void halfbyte_product_fp32(const void*, const void*, int64_t, const void*, const void*, const void*, int64_t, void*, int, int, int);

namespace {

using namespace fuzz;

void drive(Input& input) {
    Buffers buffers(input);
    const int isa = input.isa(kAvx2);
    if (isa < 0) return;
    const int kind = input.byte() % 5, threads = input.threads(), transposed = input.flag();
    const int64_t count = input.count(40, 600), rows = width(input), columns = width(input);
    if (rows * columns > 60000 || count * (rows + columns) > 250000) return;
    const int64_t wide = transposed ? rows : columns, narrow = transposed ? columns : rows;
    const Matrix of = matrix(input, buffers, rows, columns, kind);
    const void* x = buffers.of(kF32, count * wide);
    const void* bias = !transposed && input.flag() ? buffers.of(kF32, rows) : nullptr;
    const int64_t rank = input.byte() % 3 ? input.count(8, 70) : 0;
    const void* h = rank ? buffers.of(kF32, count * rank) : nullptr;
    const void* pair = rank ? buffers.of(kF32, rank * narrow) : nullptr;
    void* out = buffers.of(kF32, count * narrow);
    halfbyte_product_fp32(&of, x, count, bias, h, pair, rank, out, transposed, threads, isa);
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
