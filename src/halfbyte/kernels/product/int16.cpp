// Products in bf16 with a frozen matrix for processors with AVX2 or AVX512-VNNI, by 16-bit integers.
#include "few_vnni.h"

using namespace halfbyte;

// As halfbyte_product_bf16 (cpu.cpp), which calls it.
HALFBYTE_API void halfbyte_product_int16(const void* matrix, const void* x, int64_t count, const void* bias, const void* pair_x,
                                         const void* pair, int64_t pair_steps, void* out, int transposed, int threads, int isa) {
#ifdef HALFBYTE_X86
    if (count == 0) return;
    const auto& of = *static_cast<const MatrixArgument*>(matrix);
    const int64_t steps = transposed ? of.rows : of.columns, columns = transposed ? of.columns : of.rows;
    const MatrixArgument beside{transposed ? pair_steps : columns, transposed ? columns : pair_steps, pair, nullptr, nullptr, nullptr, nullptr, 0.0f, kDense};
    const int16::Part parts[2] = {{of, static_cast<const bf16*>(x), steps}, {beside, static_cast<const bf16*>(pair_x), pair_steps}};
    const int16::Task task{parts, pair ? 2 : 1, static_cast<const bf16*>(bias), count, columns, static_cast<bf16*>(out), transposed != 0};
    const auto run = [&](auto few, auto many) {
        if (!int16::multiply_if_few<decltype(few)>(task, threads)) int16::multiply<decltype(many)>(task, threads);
    };
    if (isa >= kAvx512Vnni) return run(int16::Few512{}, int16::Avx512Vnni{});
    if (isa == kAvxVnni) return run(int16::Few256{}, int16::AvxVnni{});
    run(int16::Few256{}, int16::Avx2{});
#else
    (void)matrix, (void)x, (void)count, (void)bias, (void)pair_x, (void)pair, (void)pair_steps, (void)out, (void)transposed, (void)threads, (void)isa;
#endif
}
