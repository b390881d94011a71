// product in bf16 (AVX2, AVX-VNNI and AVX512-VNNI by 16-bit integers, AVX512-BF16, AMX): any number of rows, its transpose,
// a pair beside it; the product with a LoRA pair and the gated MLP in one call, which go through the same code.
#include "matrix.h"

extern "C" {
void halfbyte_product_bf16(const void*, const void*, int64_t, const void*, const void*, const void*, int64_t, void*, int, int,
                           int);
void halfbyte_product_adapted(const void*, const void*, int64_t, const void*, const void*, const void*, int64_t, void*, int,
                              int);
void halfbyte_gated_mlp(const void*, const void*, int64_t, int, void*, int, int, int);
}

namespace {

using namespace fuzz;

struct Layer {  // `LayerArgument` of product/layer.h
    const void *matrix, *bias, *a, *b;
    int64_t rank;
};

void plain(Input& input, Buffers& buffers, int isa, int threads, int kind) {
    const bool transposed = input.flag();
    const int64_t count = input.count(20, 600), rows = width(input), columns = width(input);
    if (rows * columns > 60000 || count * (rows + columns) > 250000) return;
    const int64_t wide = transposed ? rows : columns, narrow = transposed ? columns : rows;
    const Matrix of = matrix(input, buffers, rows, columns, kind);
    const void* x = buffers.of(kBf16, count * wide);
    const void* bias = !transposed && input.flag() ? buffers.of(kBf16, rows) : nullptr;
    const int64_t rank = input.byte() % 3 ? input.count(8, 70) : 0;
    const void* h = rank ? buffers.of(kBf16, count * rank) : nullptr;
    const void* pair = rank ? buffers.of(kBf16, rank * narrow) : nullptr;
    void* out = buffers.of(kBf16, count * narrow);
    halfbyte_product_bf16(&of, x, count, bias, h, pair, rank, out, transposed, threads, isa);
}

void adapted(Input& input, Buffers& buffers, int isa, int threads, int kind) {
    const int64_t count = input.count(5, 16), rows = width(input), columns = width(input), rank = input.count(8, 70);
    if (rows * columns > 60000) return;
    const Matrix of = matrix(input, buffers, rows, columns, kind);
    const void* x = buffers.of(kBf16, count * columns);
    const void* bias = input.flag() ? buffers.of(kBf16, rows) : nullptr;
    const void* a = buffers.of(kBf16, rank * columns);
    const void* b = buffers.of(kBf16, rows * rank);
    void* out = buffers.of(kBf16, count * rows);
    halfbyte_product_adapted(&of, x, count, bias, a, b, rank, out, threads, isa);
}

void mlp(Input& input, Buffers& buffers, int isa, int threads, int kind) {
    const int64_t count = input.count(5, 16), hidden = input.count(40, 130), inner = input.count(40, 130);
    Matrix of[3];
    Layer layers[3];
    for (int i = 0; i < 3; ++i) {
        const int64_t rows = i < 2 ? inner : hidden, columns = i < 2 ? hidden : inner, rank = input.number(1, 20);
        const bool pair = i == 2 && input.flag();  // one of them: there are buffers for no more
        of[i] = matrix(input, buffers, rows, columns, kind == kNf4 && i ? kInt8 : kind);
        layers[i] = {of + i, input.flag() ? buffers.of(kBf16, rows) : nullptr, nullptr, nullptr, 0};
        if (pair) layers[i].a = buffers.of(kBf16, rank * columns), layers[i].b = buffers.of(kBf16, rows * rank), layers[i].rank = rank;
    }
    const void* x = buffers.of(kBf16, count * hidden);
    void* out = buffers.of(kBf16, count * hidden);
    halfbyte_gated_mlp(layers, x, count, input.byte() % 3, out, 1, threads, isa);
}

void drive(Input& input) {
    Buffers buffers(input);
    const int isa = input.isa(kAvx2), kind = input.byte() % 3, threads = input.threads(), what = input.byte() % 8;
    if (isa < 0) return;
    what == 0 ? mlp(input, buffers, isa, threads, kind)
              : what < 3 ? adapted(input, buffers, isa, threads, kind) : plain(input, buffers, isa, threads, kind);
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
