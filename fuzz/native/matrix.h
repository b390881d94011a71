// A frozen matrix for the drivers of the products: dense, NF4 or int8, as cpu.py describes it.
#pragma once

#include "harness.h"

namespace fuzz {

enum Kind : int32_t { kDense = 0, kNf4 = 1, kInt8 = 2, kDenseF32 = 3, kDenseF16 = 4 };

struct Matrix {  // `MatrixArgument` of product/shared.h
    int64_t rows, columns;
    const void *codes, *absmax;
    const float *nested_absmax, *levels, *dynamic;
    float offset;
    int32_t kind;
};

inline Matrix matrix(Input& input, Buffers& buffers, int64_t rows, int64_t columns, int kind) {
    Matrix made{rows, columns, nullptr, nullptr, nullptr, nullptr, nullptr, 0.0f, kind};
    const int64_t n = rows * columns, blocks = (n + 63) / 64;
    if (kind == kDense) made.codes = buffers.of(kBf16, n);
    if (kind == kDenseF32) made.codes = buffers.of(kF32, n);
    if (kind == kDenseF16) made.codes = buffers.of(kF16, n);
    if (kind == kInt8) {
        made.codes = buffers.make<int8_t>(n);
        made.absmax = buffers.make<float>(rows, kF32);
    }
    if (kind == kNf4) {
        const bool nested = input.flag();
        made.codes = buffers.make<uint8_t>((n + 1) / 2);
        if (nested) {
            made.absmax = buffers.make<uint8_t>(blocks);
            made.nested_absmax = buffers.make<float>((blocks + 255) / 256, kF32);
            made.offset = input.real();
        } else {
            made.absmax = buffers.make<float>(blocks, kF32);
        }
        made.levels = buffers.make<float>(16, kF32);
        made.dynamic = buffers.make<float>(256, kF32);
    }
    return made;
}

// Sizes of a product: mostly small, now and then large enough for every path.
inline int64_t width(Input& input, int64_t step = 1) {
    const int64_t made = input.count(70, 1200);
    return step > 1 || input.byte() % 4 == 0 ? (made + 63) / 64 * 64 : made;
}

}  // namespace fuzz
