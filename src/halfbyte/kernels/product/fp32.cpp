// Products in fp32 with a frozen matrix for processors with AVX2, apart from cpu.cpp, which takes minutes to compile.
#include "fp32.h"

using namespace halfbyte;

// fp32: x [count, columns] -> out [count, rows], or with `transposed` x [count, rows] -> out [count, columns]. A dense matrix
// is bf16, fp16 or fp32; bias [rows] or null. `pair` adds pair_x [count, pair_steps] times pair ([rows, pair_steps]; transposed:
// [pair_steps, columns]), or is null. `isa`: at least kAvx2.
HALFBYTE_API void halfbyte_product_fp32(const void* matrix, const void* x, int64_t count, const void* bias, const void* pair_x,
                                        const void* pair, int64_t pair_steps, void* out, int transposed, int threads, int isa) {
#ifdef HALFBYTE_X86
    const auto& of = *static_cast<const MatrixArgument*>(matrix);
    const int64_t steps = transposed ? of.rows : of.columns, columns = transposed ? of.columns : of.rows;
    const auto run = [&](const MatrixArgument& factor, const void* rows, const void* start, int64_t length, bool adds) {
        const fp32::Task task{factor, static_cast<const float*>(rows), static_cast<const float*>(start), count, length, columns,
                              static_cast<float*>(out), transposed != 0, adds};
        isa >= kAvx512 ? fp32::multiply<fp32::Avx512>(task, threads) : fp32::multiply<fp32::Avx2>(task, threads);
    };
    run(of, x, bias, steps, false);
    if (!pair) return;
    const MatrixArgument beside{transposed ? pair_steps : columns, transposed ? columns : pair_steps, pair, nullptr, nullptr, nullptr, nullptr, 0.0f, kDenseF32};
    run(beside, pair_x, nullptr, pair_steps, true);
#else
    (void)matrix, (void)x, (void)count, (void)bias, (void)pair_x, (void)pair, (void)pair_steps, (void)out, (void)transposed, (void)threads, (void)isa;
#endif
}
