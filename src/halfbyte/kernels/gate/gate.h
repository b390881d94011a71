// What other ops call of this one.
#pragma once

#include "../common.h"

// gate, up [rows, columns] with `stride` elements from row to row -> out [rows, columns]; type `dtype`, fp32 or bf16.
HALFBYTE_API void halfbyte_gate(const void* gate, const void* up, int64_t rows, int64_t columns, int64_t stride,
                                void* out, int act, int dtype, int threads, int isa);
