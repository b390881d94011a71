// Products of rows with a frozen matrix: packed (NF4, int8) or dense; reference.py is the specification.
//
// For any number of rows bf16.h has the products in bf16 of processors with AVX512-BF16 and with AMX, int16.h those of
// processors with AVX2 and with AVX512-VNNI, and fp32.h those in fp32 of AVX2 and AVX-512. For what is left there is the
// product with few rows (decoding text is limited by reading the weights): a stretch of a row of weights is decoded to
// fp32 in the first-level cache and multiplied with all rows of x before the next. With many rows they dequantise the
// matrix and call torch (see __init__.py).
#include "../gate/gate.h"
#include "../vector.h"
#include "bf16.h"
#include "layer.h"

// fp32.cpp
HALFBYTE_API void halfbyte_product_fp32(const void* matrix, const void* x, int64_t count, const void* bias, const void* pair_x,
                                        const void* pair, int64_t pair_steps, void* out, int transposed, int threads, int isa);

// int16.cpp
HALFBYTE_API void halfbyte_product_int16(const void* matrix, const void* x, int64_t count, const void* bias, const void* pair_x,
                                         const void* pair, int64_t pair_steps, void* out, int transposed, int threads, int isa);

namespace halfbyte {
namespace {

// ---- few rows, any processor ------------------------------------------------------------------------------------------

constexpr int64_t kStretch = 1024;  // weights decoded at once
constexpr int64_t kRowsMost = 16;
constexpr int kLanes = 16;  // partial sums; they make the order of summation the same everywhere

// sums[r] += weights [count] * x[r] [count] for kRows rows that are `stride` apart; count is a multiple of kLanes.
template <int kRows>
HALFBYTE_INLINE void accumulate(const float* weights, const float* x, int64_t stride, int64_t count, float (*sums)[kLanes]) {
    float sum[kRows][kLanes];
    std::memcpy(sum, sums, sizeof sum);
    for (int64_t i = 0; i < count; i += kLanes)
        for (int r = 0; r < kRows; ++r)
            for (int lane = 0; lane < kLanes; ++lane) sum[r][lane] += weights[i + lane] * x[r * stride + i + lane];
    std::memcpy(sums, sum, sizeof sum);
}
HALFBYTE_INLINE void accumulate_rows(const float* weights, const float* x, int64_t stride, int64_t count, int64_t rows, float (*sums)[kLanes]) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) accumulate<4>(weights, x + r * stride, stride, count, sums + r);
    for (; r < rows; ++r) accumulate<1>(weights, x + r * stride, stride, count, sums + r);
}
HALFBYTE_INLINE void widen(const bf16* values, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = to_float(load(values + i));
}

using Accumulate = void (*)(const float*, const float*, int64_t, int64_t, int64_t, float (*)[kLanes]);
using Widen = void (*)(const bf16*, int64_t, float*);

void accumulate_portable(const float* w, const float* x, int64_t stride, int64_t count, int64_t rows, float (*sums)[kLanes]) {
    accumulate_rows(w, x, stride, count, rows, sums);
}
void widen_portable(const bf16* values, int64_t count, float* out) { widen(values, count, out); }
#ifdef HALFBYTE_X86
HALFBYTE_AVX512 void accumulate_avx512(const float* w, const float* x, int64_t stride, int64_t count, int64_t rows, float (*sums)[kLanes]) {
    accumulate_rows(w, x, stride, count, rows, sums);
}
HALFBYTE_AVX512 void widen_avx512(const bf16* values, int64_t count, float* out) { widen(values, count, out); }
#endif

struct Functions {
    Accumulate accumulate = accumulate_portable;
    Widen widen = widen_portable;
    explicit Functions(int isa) {
#ifdef HALFBYTE_X86
        if (isa >= kAvx512) accumulate = accumulate_avx512, widen = widen_avx512;
#else
        (void)isa;
#endif
    }
};

void decode_stretch(const MatrixArgument& matrix, int64_t row, int64_t begin, int64_t count, float* out, int isa, Widen widen) {
    const int64_t first = row * matrix.columns + begin;
    if (matrix.kind == kNf4) return decode_range(matrix.nf4(), first, first + count, out, isa);
    if (matrix.kind == kDense) return widen(static_cast<const bf16*>(matrix.codes) + first, count, out);
    if (matrix.kind == kDenseF32) return void(std::memcpy(out, static_cast<const char*>(matrix.codes) + 4 * first, size_t(4 * count)));
    if (matrix.kind == kDenseF16) {
        const auto* values = static_cast<const f16*>(matrix.codes) + first;
        for (int64_t i = 0; i < count; ++i) out[i] = to_float(load(values + i));
        return;
    }
    const auto* scale = static_cast<const float*>(matrix.absmax) + row;
    int8_decoder<float>(isa)(static_cast<const int8_t*>(matrix.codes) + first, scale, 1, count, out);
}

// x [count, columns] fp32 with rows padded to `stride` -> out [count, rows].
template <typename T>
void multiply_stretches(const MatrixArgument& matrix, const float* x, int64_t stride, int64_t count, const T* bias, T* out,
                        int threads, int isa) {
    const Functions functions(isa);
    parallel(matrix.rows, std::max<int64_t>(1, (1 << 15) / matrix.columns), threads, [&](int64_t first, int64_t last) {
        alignas(64) float weights[kStretch], sums[kRowsMost][kLanes];
        for (int64_t row = first; row < last; ++row) {
            std::memset(sums, 0, sizeof sums);
            for (int64_t begin = 0; begin < matrix.columns; begin += kStretch) {
                const int64_t have = std::min(kStretch, matrix.columns - begin), padded = (have + kLanes - 1) / kLanes * kLanes;
                std::memset(weights + padded - std::min<int64_t>(padded, kLanes), 0, sizeof(float) * kLanes);
                decode_stretch(matrix, row, begin, have, weights, isa, functions.widen);
                functions.accumulate(weights, x + begin, stride, padded, count, sums);
            }
            for (int64_t r = 0; r < count; ++r) {
                float sum = bias ? to_float(bias[row]) : 0.0f;
                for (const float lane : sums[r]) sum += lane;
                out[r * matrix.rows + row] = from_float<T>(sum);
            }
        }
    });
}

template <typename T>
void multiply_few_rows(const MatrixArgument& matrix, const T* x, int64_t count, const T* bias, T* out, int threads, int isa) {
    const int64_t stride = (matrix.columns + kLanes - 1) / kLanes * kLanes;
    std::vector<float> wide(size_t(count * stride), 0.0f);
    for (int64_t r = 0; r < count; ++r)
        for (int64_t i = 0; i < matrix.columns; ++i) wide[size_t(r * stride + i)] = to_float(x[r * matrix.columns + i]);
    multiply_stretches(matrix, wide.data(), stride, count, bias, out, threads, isa);
}

}  // namespace
}  // namespace halfbyte

using namespace halfbyte;

// x [count, columns], count at most 16, of type `dtype` (fp32 or bf16) -> out [count, rows]; bias [rows] or null.
HALFBYTE_API void halfbyte_product_few(const void* matrix, const void* x, int64_t count, const void* bias, void* out,
                                       int dtype, int threads, int isa) {
    const auto& of = *static_cast<const MatrixArgument*>(matrix);
    if (dtype == kBf16)
        return multiply_few_rows(of, static_cast<const bf16*>(x), count, static_cast<const bf16*>(bias), static_cast<bf16*>(out), threads, isa);
    multiply_few_rows(of, static_cast<const float*>(x), count, static_cast<const float*>(bias), static_cast<float*>(out), threads, isa);
}

// bf16: x [count, columns] -> out [count, rows], or with `transposed` x [count, rows] -> out [count, columns].
// `pair` adds pair_x [count, pair_steps] times pair ([rows, pair_steps]; transposed: [pair_steps, columns]), or is null.
// Needs what `isa`, at least kAvx2, stands for; for kAmx tiles that the system has allowed (may_use_amx).
HALFBYTE_API void halfbyte_product_bf16(const void* matrix, const void* x, int64_t count, const void* bias, const void* pair_x,
                                        const void* pair, int64_t pair_steps, void* out, int transposed, int threads, int isa) {
#ifdef HALFBYTE_X86
    if (isa < kAvx512Bf16) return halfbyte_product_int16(matrix, x, count, bias, pair_x, pair, pair_steps, out, transposed, threads, isa);
    const auto& of = *static_cast<const MatrixArgument*>(matrix);
    const int64_t steps = transposed ? of.rows : of.columns, columns = transposed ? of.columns : of.rows;
    const Task task{static_cast<const bf16*>(x), static_cast<const bf16*>(pair_x), static_cast<const bf16*>(bias), count, steps,
                    pair ? pair_steps : 0, columns, static_cast<bf16*>(out)};
    const DenseMatrix beside{static_cast<const bf16*>(pair), transposed ? columns : pair_steps};
    const auto run = [&](const auto& frozen, bool blocks_in_rows) {
        if (transposed) return multiply<true>(task, frozen, beside, blocks_in_rows, threads, isa);
        multiply<false>(task, frozen, beside, blocks_in_rows, threads, isa);
    };
    if (of.kind == kNf4) return run(Nf4Matrix{of.nf4(), of.columns}, of.columns % kBlock == 0);
    if (of.kind == kInt8) return run(Int8Matrix{static_cast<const int8_t*>(of.codes), static_cast<const float*>(of.absmax), of.columns}, true);
    run(DenseMatrix{static_cast<const bf16*>(of.codes), of.columns}, true);
#else
    (void)matrix, (void)x, (void)count, (void)bias, (void)pair_x, (void)pair, (void)pair_steps, (void)out, (void)transposed, (void)threads, (void)isa;
#endif
}

// The product with a LoRA pair: x W^T + bias + (x A^T) B^T, A [rank, columns] and B [rows, rank] in bf16. The small
// product x A^T is rounded to bf16, as it is where it is a call of its own; one call instead of two saves a decoded
// token as much time as the small product takes.
HALFBYTE_API void halfbyte_product_adapted(const void* matrix, const void* x, int64_t count, const void* bias, const void* a,
                                           const void* b, int64_t rank, void* out, int threads, int isa) {
    const int64_t columns = static_cast<const MatrixArgument*>(matrix)->columns;
    const MatrixArgument small{rank, columns, a, nullptr, nullptr, nullptr, nullptr, 0.0f, kDense};
    std::vector<bf16> h(size_t(count * rank));
    halfbyte_product_bf16(&small, x, count, nullptr, nullptr, nullptr, 0, h.data(), 0, threads, isa);
    halfbyte_product_bf16(matrix, x, count, bias, h.data(), b, rank, out, 0, threads, isa);
}

namespace halfbyte {
namespace {

// out [count, rows] = x [count, columns] times `weights` [rows, columns]^T, or added to what is there.
template <typename T, bool adds>
void multiply_small(const T* weights, int64_t rows, int64_t columns, const T* x, int64_t count, T* out, int threads, int isa) {
    const auto body = [=](auto, int64_t first, int64_t last) HALFBYTE_BODY {
        for (int64_t row = first; row < last; ++row)
            for (int64_t r = 0; r < count; ++r) {
                float lanes[kLanes] = {};
                const T *left = weights + row * columns, *right = x + r * columns;
                int64_t i = 0;
                for (; i + kLanes <= columns; i += kLanes)
                    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += to_float(left[i + lane]) * to_float(right[i + lane]);
                for (int lane = 0; i < columns; ++i, ++lane) lanes[lane] += to_float(left[i]) * to_float(right[i]);
                float sum = adds ? to_float(out[r * rows + row]) : 0.0f;
                for (const float lane : lanes) sum += lane;
                out[r * rows + row] = from_float<T>(sum);
            }
    };
    parallel(rows, std::max<int64_t>(1, (1 << 15) / (columns * count)), threads,
             [&](int64_t first, int64_t last) { for_isa(isa, body, first, last); });
}

template <typename T>
void add_pair(const LayerArgument& of, const void* x, int64_t count, void* out, int threads, int isa) {
    const auto& matrix = *static_cast<const MatrixArgument*>(of.matrix);
    std::vector<T> h(size_t(count * of.rank));
    multiply_small<T, false>(static_cast<const T*>(of.a), of.rank, matrix.columns, static_cast<const T*>(x), count, h.data(), threads, isa);
    multiply_small<T, true>(static_cast<const T*>(of.b), matrix.rows, of.rank, h.data(), count, static_cast<T*>(out), threads, isa);
}

}  // namespace

void LayerArgument::run(const void* x, int64_t count, void* out, int dtype, int threads, int isa) const {
    if (dtype == kBf16 && isa >= kAvx2 && isa != kAvx512) {
        if (a) return halfbyte_product_adapted(matrix, x, count, bias, a, b, rank, out, threads, isa);
        return halfbyte_product_bf16(matrix, x, count, bias, nullptr, nullptr, 0, out, 0, threads, isa);
    }
    isa = std::min<int>(isa, kAvx512);
    if (dtype == kF32 && isa >= kAvx2)
        halfbyte_product_fp32(matrix, x, count, bias, nullptr, nullptr, 0, out, 0, threads, isa);
    else
        halfbyte_product_few(matrix, x, count, bias, out, dtype, threads, isa);
    if (a) (dtype == kBf16 ? add_pair<bf16> : add_pair<float>)(*this, x, count, out, threads, isa);
}

}  // namespace halfbyte

// Frees the buffers that products of the calling thread keep from call to call.
HALFBYTE_API void halfbyte_release_buffers() { Buffer::release_all(); }

// down(act(gate(x)) * up(x)) for layers = {gate, up, down}, x [count, columns of gate] of type `dtype`, count at most 16: one
// call instead of four or more, since of a decoded token's time a fifth is what stands between the calls.
HALFBYTE_API void halfbyte_gated_mlp(const void* layers, const void* x, int64_t count, int act, void* out, int dtype, int threads, int isa) {
    const auto* of = static_cast<const LayerArgument*>(layers);
    const int64_t inner = static_cast<const MatrixArgument*>(of[0].matrix)->rows, bytes = count * inner * (dtype == kBf16 ? 2 : 4);
    std::vector<char> gate(static_cast<size_t>(bytes)), up(gate.size()), both(gate.size());
    of[0].run(x, count, gate.data(), dtype, threads, isa);
    of[1].run(x, count, up.data(), dtype, threads, isa);
    halfbyte_gate(gate.data(), up.data(), count, inner, inner, both.data(), act, dtype, threads, isa);
    of[2].run(both.data(), count, out, dtype, threads, isa);
}
