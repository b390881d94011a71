// quantise: NF4, its double quantisation, int8. Every instruction set gives the bits of the portable code.
#include "harness.h"

extern "C" {
int halfbyte_quantise_nf4(const void*, int, int64_t, const float*, uint8_t*, float*, int, int);
void halfbyte_quantise_absmax(const float*, int64_t, float, const uint8_t*, uint8_t*, float*, int);
int halfbyte_quantise_int8(const void*, int, int64_t, int64_t, int8_t*, float*, int, int);
}

namespace {

using namespace fuzz;

// A matrix of a mapped file, which may begin at any byte.
const void* weights(Input& input, Buffers& buffers, int dtype, int64_t count) {
    if (!input.flag()) return buffers.of(dtype, count);
    return buffers.make<uint8_t>(count * (dtype == kF32 ? 4 : 2) + 1) + 1;
}

void nf4(Input& input, Buffers& buffers) {
    const int isa = input.isa(), dtype = input.byte() % 3, threads = input.threads();
    const int64_t n = input.count(300, 20000), codes = (n + 1) / 2, blocks = (n + 63) / 64;
    const void* weight = weights(input, buffers, dtype, n);
    float* bounds = buffers.make<float>(15);
    for (int i = 0; i < 15; ++i) bounds[i] = float(i - 7) / 8;
    auto* made = buffers.make<uint8_t>(codes);
    auto* absmax = buffers.make<float>(blocks);
    const int fault = halfbyte_quantise_nf4(weight, dtype, n, bounds, made, absmax, threads, isa);
    auto* expected = buffers.make<uint8_t>(codes);
    auto* largest = buffers.make<float>(blocks);
    if (halfbyte_quantise_nf4(weight, dtype, n, bounds, expected, largest, 1, kPortable) != fault) fail("another fault");
    if (!fault && !(same(made, expected, codes) && same(absmax, largest, 4 * blocks))) fail("other bits");
}

void absmax(Input& input, Buffers& buffers) {
    const int64_t blocks = input.count(300, 2000), threads = input.threads();
    const float offset = input.real();
    auto* values = buffers.make<float>(blocks, kF32);
    auto* lookup = buffers.make<uint8_t>(65536);
    auto* codes = buffers.make<uint8_t>(blocks);
    auto* nested = buffers.make<float>((blocks + 255) / 256);
    halfbyte_quantise_absmax(values, blocks, offset, lookup, codes, nested, int(threads));
}

void int8(Input& input, Buffers& buffers) {
    const int isa = input.isa(), dtype = input.byte() % 3, threads = input.threads();
    const int64_t rows = input.count(4, 20), columns = input.count(80, 2000);
    const void* weight = weights(input, buffers, dtype, rows * columns);
    auto* codes = buffers.make<int8_t>(rows * columns);
    auto* scale = buffers.make<float>(rows);
    const int fault = halfbyte_quantise_int8(weight, dtype, rows, columns, codes, scale, threads, isa);
    auto* expected = buffers.make<int8_t>(rows * columns);
    auto* largest = buffers.make<float>(rows);
    const int other = halfbyte_quantise_int8(weight, dtype, rows, columns, expected, largest, 1, kPortable);
    if (!fault != !other) fail("another fault");
    if (!fault && !(same(codes, expected, rows * columns) && same(scale, largest, 4 * rows))) fail("other bits");
}

void drive(Input& input) {
    Buffers buffers(input);
    switch (input.byte() % 4) {
        case 0: absmax(input, buffers); break;
        case 1: int8(input, buffers); break;
        default: nf4(input, buffers);
    }
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
