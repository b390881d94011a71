// rotary embedding, forward and its gradient, of inputs that lie by tokens or by heads
#include "harness.h"

extern "C" void halfbyte_rotary(const void*, int, int, int, int);

namespace {

using namespace fuzz;

struct Call {  // `Rotary` of rotary/cpu.cpp
    const void* x;
    void* out;
    const void *cos, *sin;
    int64_t x_by[3], out_by[3], angles_by;
    int64_t batch, heads, tokens, width, rotary, back;
};

void drive(Input& input) {
    Buffers buffers(input);
    const int isa = input.isa(), dtype = input.byte() % 2, threads = input.threads(), wide = dtype == kF32 || input.flag();
    Call call{};
    call.batch = input.count(2, 5), call.heads = input.count(3, 12), call.tokens = input.count(9, 60), call.width = input.count(20, 140);
    call.rotary = input.number(0, call.width / 2) * 2, call.back = input.flag();
    const int64_t n = call.batch * call.heads * call.tokens * call.width;
    if (n > 200000) return;
    for (int64_t* by : {call.x_by, call.out_by}) {
        const bool by_tokens = input.flag();
        by[0] = call.heads * call.tokens * call.width;
        by[1] = by_tokens ? call.width : call.tokens * call.width;
        by[2] = by_tokens ? call.heads * call.width : call.width;
    }
    const int64_t turns = input.flag() ? call.batch : 1;
    call.angles_by = turns > 1 ? call.tokens * call.rotary : 0;
    call.x = buffers.of(dtype, n), call.out = buffers.of(dtype, n);
    const int angle = wide ? kF32 : dtype;
    call.cos = buffers.of(angle, turns * call.tokens * call.rotary), call.sin = buffers.of(angle, turns * call.tokens * call.rotary);
    halfbyte_rotary(&call, dtype, wide, threads, isa);
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
