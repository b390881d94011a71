// Products of many rows in fp32 for processors with AVX2, and with AVX-512: y = x W^T, and its transpose dx = g W.
//
// Method: the matrix is decoded where it is used. A unit of 64 output columns is decoded for kChunk steps of the
// contraction into 64 KB that stay in the second-level cache, laid out in panels, over each of which all rows of x go in
// register tiles (fp32_tiles.h). So the fp32 matrix never exists, which would cost a pass over 8 times the bytes of a 4-bit
// one before the product begins. Sums live in `out`. A LoRA pair is a second matrix whose products are added to them.
// Each output is summed in one order, whatever the number of threads or of rows, and with AVX-512 as with AVX2; up to
// kFewRows rows go another way (few_fp32.h), in another order.
//
// Rejected: decoding the whole matrix for torch's product (on a Zen 3 a quarter slower forward, a tenth in both directions,
// and MKL keeps up to 60 MB of panels that no formula foretells); shuffles to lay out x (no gain that could be measured).
#pragma once

#include "few_fp32.h"
#include "fp32_tiles.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {
namespace fp32 {

constexpr int64_t kLaidOut = 2048;  // steps of the contraction whose rows are laid out at once
constexpr int64_t kMostRows = 512;  // rows at once; more are cut
constexpr int64_t kRowsAhead = 64;  // that are asked for before they are decoded

struct Task {
    const MatrixArgument& matrix;
    const float *x, *bias;  // x [rows, steps]; bias [columns] or null
    int64_t rows, steps, columns;
    float* out;  // [rows, columns]
    bool transposed;
    bool adds = false;  // to what is in `out`, instead of the bias
};

template <typename T>
HALFBYTE_AVX2 void widen(const T* values, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = to_float(load(values + i));
}

// Weights begin..begin + count of a row of the matrix as fp32. `isa`: at least kAvx2.
inline void decode(const MatrixArgument& matrix, int64_t row, int64_t begin, int64_t count, float* out, int isa = kAvx2) {
    const int64_t first = row * matrix.columns + begin;
    if (matrix.kind == kNf4) return decode_range(matrix.nf4(), first, first + count, out, isa);
    if (matrix.kind == kInt8)
        return int8_decoder<float>(isa)(static_cast<const int8_t*>(matrix.codes) + first, static_cast<const float*>(matrix.absmax) + row, 1, count, out);
    if (matrix.kind == kDense) return widen(static_cast<const bf16*>(matrix.codes) + first, count, out);
    if (matrix.kind == kDenseF16) return widen(static_cast<const f16*>(matrix.codes) + first, count, out);
    std::memcpy(out, static_cast<const char*>(matrix.codes) + first * int64_t(sizeof(float)), size_t(count) * sizeof(float));
}

// W's rows first..first + count (at most kColumns) as output columns, steps begin..end along its columns -> [step][kColumns].
template <int64_t kColumns>
HALFBYTE_AVX2 void lay_out(const MatrixArgument& matrix, int64_t first, int64_t count, int64_t begin, int64_t end, float* out, int isa) {
    alignas(64) float rows[kColumns][kChunk];
    for (int64_t r = 0; r < kColumns; ++r) {
        if (r < count)
            decode(matrix, first + r, begin, end - begin, rows[r], isa);
        else
            std::memset(rows[r], 0, sizeof rows[r]);
    }
    for (int64_t step = 0; step < end - begin; step += 8)  // what lies beyond the end is never read
        for (int64_t r = 0; r < kColumns; r += 8) transpose<kColumns>(rows[r] + step, kChunk, out + step * kColumns + r);
}

// Asks for the weights of a row from `column` on: rows lie too far apart for the processor to foresee the next one.
inline void ask_for(const MatrixArgument& matrix, int64_t row, int64_t column) {
    const int64_t at = row * matrix.columns + column;
    const auto* codes = static_cast<const char*>(matrix.codes);
    if (matrix.kind == kNf4) {
        _mm_prefetch(codes + at / 2, _MM_HINT_T1);
        _mm_prefetch(static_cast<const char*>(matrix.absmax) + at / kBlock * (matrix.nested_absmax ? 1 : 4), _MM_HINT_T1);
    } else {
        const int64_t bytes = matrix.kind == kInt8 ? 1 : matrix.kind == kDenseF32 ? 4 : 2;
        for (int64_t line = 0; line < bytes; ++line) _mm_prefetch(codes + bytes * at + 64 * line, _MM_HINT_T1);
    }
}

// W's columns first..first + count (at most kUnit) as output columns, steps along its rows begin..end
// -> [panel][kMost][kColumns].
template <int64_t kColumns, int64_t kMost>
void lay_out_transposed(const MatrixArgument& matrix, int64_t first, int64_t count, int64_t begin, int64_t end, float* out, int isa) {
    alignas(64) float row[kUnit] = {};
    for (int64_t step = begin; step < end; ++step) {
        ask_for(matrix, step + kRowsAhead, first);
        decode(matrix, step, first, count, row, isa);
        for (int64_t p = 0; p < kUnit / kColumns; ++p)
            std::memcpy(out + (p * kMost + step - begin) * kColumns, row + p * kColumns, kColumns * sizeof(float));
    }
}

// The rows of a task over steps base..base + steps: by panels of `height` rows, one after the other; of a panel [step][row].
struct Inputs {
    float* data;
    int64_t height, base, steps;

    void take(const Task& task, int64_t first, int64_t last) const {  // rows
        for (int64_t r = first; r < last; r += height) {
            const int64_t count = std::min(height, last - r);
            float* to = data + r * steps;
            for (int64_t s = 0; s < steps; ++s)
                for (int64_t i = 0; i < count; ++i) *to++ = task.x[(r + i) * task.steps + base + s];
        }
    }
};

// One unit of output columns with rows first..last of the inputs.
template <typename Set>
void multiply_unit(const Task& task, const Inputs& inputs, int64_t column, int64_t first, int64_t last, float* weights) {
    constexpr int64_t kColumns = Set::kColumns;
    const int64_t unit = std::min(kUnit, task.columns - column), base = inputs.base, steps = inputs.steps;
    for (int64_t begin = 0; begin < steps; begin += kChunk) {
        const int64_t end = std::min(steps, begin + kChunk);
        if (task.transposed) lay_out_transposed<kColumns, kChunk>(task.matrix, column, unit, base + begin, base + end, weights, Set::kIsa);
        for (int64_t at = 0; at < unit; at += kColumns) {
            const int64_t there = std::min(kColumns, unit - at);
            float* const panel = weights + at * kChunk;
            if (!task.transposed) lay_out<kColumns>(task.matrix, column + at, there, base + begin, base + end, panel, Set::kIsa);
            alignas(64) float bias[kColumns] = {};
            if (task.bias) std::memcpy(bias, task.bias + column + at, size_t(there) * sizeof(float));
            const float* const start = base + begin == 0 && !task.adds ? bias : nullptr;
            for (int64_t r = first; r < last; r += inputs.height) {
                const int64_t count = std::min(inputs.height, last - r);
                const float* const rows = inputs.data + r * steps + begin * count;
                float* const out = task.out + r * task.columns + column + at;
                if (there == kColumns)
                    tile_of<Set>(count, there)(rows, panel, end - begin, start, out, task.columns);
                else
                    edge<Set>(rows, panel, end - begin, start, out, task.columns, count, there);
            }
        }
    }
}

// Into how many parts the rows are cut where there are few units of columns, as with LoRA's pairs: each decodes the unit
// anew, so as few as let the last thread end first.
inline int64_t parts_of(int64_t units, int64_t panels, int64_t threads) {
    int64_t best = 1;
    for (int64_t parts = 2; parts <= std::min(panels, threads) && units % threads; ++parts)
        if ((units * parts + threads - 1) / threads * best < (units * best + threads - 1) / threads * parts) best = parts;
    return best;
}

// At most kMostRows rows.
template <typename Set>
void multiply_rows(const Task& task, int threads) {
    const int64_t units = (task.columns + kUnit - 1) / kUnit, panels = (task.rows + Set::kRows - 1) / Set::kRows;
    const int64_t height = (task.rows + panels - 1) / panels;  // of a panel: even ones, so that no tile is nearly empty
    const int64_t parts = units < 2 * threads ? parts_of(units, panels, threads) : 1;
    float* const data = scratch<4, float>(task.rows * std::min(kLaidOut, task.steps));
    for (int64_t base = 0; base < task.steps; base += kLaidOut) {
        const Inputs inputs{data, height, base, std::min(kLaidOut, task.steps - base)};
        parallel(panels, 4, threads, [&](int64_t first, int64_t last) { inputs.take(task, first * height, std::min(last * height, task.rows)); });
        parallel(units * parts, 1, threads, [&](int64_t first, int64_t last) {
            float* const weights = scratch<5, float>(kUnit * kChunk);
            for (int64_t one = first; one < last; ++one) {
                const int64_t part = one % parts, begin = panels * part / parts * height, end = panels * (part + 1) / parts * height;
                multiply_unit<Set>(task, inputs, one / parts * kUnit, begin, std::min(end, task.rows), weights);
            }
        });
    }
}

// Whether the few rows were multiplied; NF4's blocks have to lie within a row.
inline bool multiply_if_few(const Task& task, int threads) {
    const MatrixArgument& of = task.matrix;
    if (task.transposed || task.adds || task.rows > kFewRows || (of.kind == kNf4 && of.columns % kBlock)) return false;
    const auto run = [&](const auto& blocks) { multiply_few(blocks, task.x, task.rows, task.steps, task.columns, task.bias, task.out, threads); };
    if (of.kind == kNf4)
        run(Nf4Blocks(of));
    else if (of.kind == kInt8)
        run(Int8Blocks{static_cast<const int8_t*>(of.codes), static_cast<const float*>(of.absmax), of.columns});
    else if (of.kind == kDense)
        run(DenseBlocks<bf16>{static_cast<const bf16*>(of.codes), of.columns});
    else if (of.kind == kDenseF16)
        run(DenseBlocks<f16>{static_cast<const f16*>(of.codes), of.columns});
    else
        run(DenseBlocks<float>{static_cast<const float*>(of.codes), of.columns});
    return true;
}

template <typename Set>
void multiply(const Task& task, int threads) {
    if (multiply_if_few(task, threads)) return;
    const int64_t rows = task.rows, size = cut_evenly(rows, kMostRows, Set::kRows);
    for (int64_t first = 0; first < rows; first += size) {
        Task part = task;
        part.rows = std::min(size, rows - first);
        part.x += first * task.steps;
        part.out += first * task.columns;
        multiply_rows<Set>(part, threads);
    }
}

}  // namespace fp32
}  // namespace
}  // namespace halfbyte

#endif
