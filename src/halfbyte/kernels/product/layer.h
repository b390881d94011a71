// A linear layer with its LoRA pair, for the few rows of decoding; what other ops call of this one.
#pragma once

#include "../common.h"

namespace halfbyte {

// cpu.py has the same. Of one `dtype` (fp32 or bf16): bias [rows] or null, a [rank, columns] and
// b [rows, rank], which are null without a pair.
struct LayerArgument {
    const void *matrix, *bias, *a, *b;
    int64_t rank;

    // x [count, columns], count at most 16 -> out [count, rows]: x W^T + bias + (x A^T) B^T.
    void run(const void* x, int64_t count, void* out, int dtype, int threads, int isa) const;
};

}  // namespace halfbyte
