// dequantise: any stretch of an NF4 matrix, rows of an int8 one. Codes and constants hold whatever a file can hold; every
// instruction set gives the bits of the portable code.
#include "harness.h"

extern "C" {
void halfbyte_dequantise_nf4(const uint8_t*, const void*, const float*, float, const float*, const float*, int64_t, int64_t,
                             void*, int, int, int);
void halfbyte_dequantise_int8(const int8_t*, const float*, int64_t, int64_t, void*, int, int, int);
void halfbyte_wish_huge_pages(void*, int64_t);
}

namespace {

using namespace fuzz;

void nf4(Input& input, Buffers& buffers, int isa, int dtype, int threads) {
    const int64_t n = input.count(300, 20000), blocks = (n + 63) / 64;
    const int64_t first = input.number(0, n - 1), last = input.number(first + 1, n), count = last - first;
    const bool nested = input.flag();
    const auto* codes = buffers.make<uint8_t>((n + 1) / 2);
    const void* absmax = nested ? static_cast<const void*>(buffers.make<uint8_t>(blocks)) : buffers.make<float>(blocks, kF32);
    const float* outer = nested ? buffers.make<float>((blocks + 255) / 256, kF32) : nullptr;
    const auto* levels = buffers.make<float>(16, kF32);
    const auto* dynamic = buffers.make<float>(256, kF32);
    const float offset = input.real();
    const int64_t bytes = count * (dtype == kF32 ? 4 : 2);
    auto* out = static_cast<uint8_t*>(buffers.of(dtype, count));
    halfbyte_dequantise_nf4(codes, absmax, outer, offset, levels, dynamic, first, last, out, dtype, threads, isa);
    auto* expected = static_cast<uint8_t*>(buffers.of(dtype, count));
    halfbyte_dequantise_nf4(codes, absmax, outer, offset, levels, dynamic, first, last, expected, dtype, 1, kPortable);
    bool finite = offset == offset && offset - offset == 0;  // of NaN any will do
    for (int64_t i = 0; i < (nested ? (blocks + 255) / 256 : blocks); ++i) {
        const float value = nested ? outer[i] : static_cast<const float*>(absmax)[i];
        finite = finite && value - value == 0 && value < 1e30f && value > -1e30f;
    }
    for (int i = 0; i < 256; ++i) finite = finite && dynamic[i] - dynamic[i] == 0 && levels[i % 16] - levels[i % 16] == 0;
    if (finite && !same(out, expected, bytes)) fail("other bits");
}

void int8(Input& input, Buffers& buffers, int isa, int dtype, int threads) {
    const int64_t rows = input.count(4, 20), columns = input.count(80, 2000);
    const auto* codes = buffers.make<int8_t>(rows * columns);
    const auto* scale = buffers.make<float>(rows, kF32);
    void* out = buffers.of(dtype, rows * columns);
    halfbyte_dequantise_int8(codes, scale, rows, columns, out, dtype, threads, isa);
    void* expected = buffers.of(dtype, rows * columns);
    halfbyte_dequantise_int8(codes, scale, rows, columns, expected, dtype, 1, kPortable);
    bool finite = true;
    for (int64_t r = 0; r < rows; ++r) finite = finite && scale[r] - scale[r] == 0;
    if (finite && !same(out, expected, rows * columns * (dtype == kF32 ? 4 : 2))) fail("other bits");
}

void drive(Input& input) {
    Buffers buffers(input);
    const int isa = input.isa(), dtype = input.byte() % 3, threads = input.threads();
    input.byte() % 4 ? nf4(input, buffers, isa, dtype, threads) : int8(input, buffers, isa, dtype, threads);
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
