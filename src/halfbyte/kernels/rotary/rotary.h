// What other ops call of this one.
#pragma once

#include "../common.h"

namespace halfbyte {

// What cpu.py passes; strides in elements, of batch, head and token; the last dimension is contiguous.
struct Rotary {
    const void* x;  // [batch, heads, tokens, width]
    void* out;      // the same shape
    const void *cos, *sin;  // [batch or 1, tokens, rotary]
    int64_t x_by[3], out_by[3], angles_by;  // angles_by: stride of batch
    int64_t batch, heads, tokens, width, rotary, back;
};

}  // namespace halfbyte

// x and out of type `dtype` (fp32 or bf16); `wide`: the angles are fp32, else of that type, too.
HALFBYTE_API void halfbyte_rotary(const halfbyte::Rotary* call, int dtype, int wide, int threads, int isa);
