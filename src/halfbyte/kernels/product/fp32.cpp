// Products in fp32 with a frozen matrix for processors with AVX2, apart from cpu.cpp, which takes minutes to compile.
#include "fp32.h"

using namespace halfbyte;

// fp32, for AVX2: x [count, columns] -> out [count, rows], or with `transposed` x [count, rows] -> out [count, columns]. A dense
// matrix is bf16; bias [rows] or null.
HALFBYTE_API void halfbyte_product_fp32(const void* matrix, const void* x, int64_t count, const void* bias, void* out, int transposed,
                                        int threads) {
#ifdef HALFBYTE_X86
    const auto& of = *static_cast<const MatrixArgument*>(matrix);
    const int64_t steps = transposed ? of.rows : of.columns, columns = transposed ? of.columns : of.rows;
    fp32::multiply({of, static_cast<const float*>(x), static_cast<const float*>(bias), count, steps, columns, static_cast<float*>(out), transposed != 0},
                   threads);
#else
    (void)matrix, (void)x, (void)count, (void)bias, (void)out, (void)transposed, (void)threads;
#endif
}
