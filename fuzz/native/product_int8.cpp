// product_int8 (AVX512-VNNI): more than 16 rows, packed weights whose in-features are a multiple of 64, and the transpose.
#include "matrix.h"

extern "C" void halfbyte_product_int8(const void*, const void*, int64_t, const void*, const void*, const void*, int64_t, void*,
                                      int, int);

namespace {

using namespace fuzz;

void drive(Input& input) {
    static const bool vnni = halfbyte_isas() >> kAvx512Vnni & 1;
    if (!vnni) return;
    Buffers buffers(input);
    const bool transposed = input.flag();
    const int kind = 1 + input.byte() % 2, threads = input.threads();
    const int64_t count = 16 + input.count(8, 150), rows = width(input), columns = width(input, 64);
    if (rows * columns > 60000) return;
    const int64_t wide = transposed ? rows : columns, narrow = transposed ? columns : rows;
    const Matrix of = matrix(input, buffers, rows, columns, kind);
    const void* x = buffers.of(kBf16, count * wide);
    const void* bias = !transposed && input.flag() ? buffers.of(kBf16, rows) : nullptr;
    const int64_t rank = input.byte() % 3 ? input.count(8, 70) : 0;
    const void* h = rank ? buffers.of(kBf16, count * rank) : nullptr;
    const void* pair = rank ? buffers.of(kBf16, rank * narrow) : nullptr;
    void* out = buffers.of(kBf16, count * narrow);
    halfbyte_product_int8(&of, x, count, bias, h, pair, rank, out, transposed, threads);
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
