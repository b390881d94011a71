// gate: act(gate) * up, forward and backward, of two matrices or of the halves of one.
#include "harness.h"

extern "C" {
void halfbyte_gate(const void*, const void*, int64_t, int64_t, int64_t, void*, int, int, int, int);
void halfbyte_gate_backward(const void*, const void*, const void*, int64_t, int64_t, int64_t, void*, void*, int, int, int, int);
}

namespace {

using namespace fuzz;

void drive(Input& input) {
    Buffers buffers(input);
    const int isa = input.isa(), dtype = input.byte() % 2, threads = input.threads(), act = input.byte() % 3;
    const int64_t rows = input.count(4, 20), columns = input.count(70, 2000);
    const bool halves = input.flag();
    const int64_t stride = halves ? 2 * columns : columns, size = dtype == kF32 ? 4 : 2;
    auto* gate = static_cast<char*>(buffers.of(dtype, rows * stride));
    auto* up = halves ? gate + columns * size : static_cast<char*>(buffers.of(dtype, rows * columns));
    void* out = buffers.of(dtype, rows * columns);
    halfbyte_gate(gate, up, rows, columns, stride, out, act, dtype, threads, isa);
    auto* d_gate = static_cast<char*>(buffers.of(dtype, rows * stride));
    auto* d_up = halves ? d_gate + columns * size : static_cast<char*>(buffers.of(dtype, rows * columns));
    const void* dy = buffers.of(dtype, rows * columns);
    halfbyte_gate_backward(dy, gate, up, rows, columns, stride, d_gate, d_up, act, dtype, threads, isa);
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
