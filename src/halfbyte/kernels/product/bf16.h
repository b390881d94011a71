// Products of bf16 rows with a frozen matrix for processors with AVX512-BF16: y = x W^T, and its transpose dx = g W.
// walk.h, few.h and many.h have the methods, and fp16.h and amx.h those for processors with tiles.
//
// Each output is summed in one order, whatever the number of threads. Sums are fp32, rounded once.
#pragma once

#include "amx.h"
#include "few.h"
#include "fp16.h"
#include "many.h"

#ifdef HALFBYTE_X86

#include <type_traits>

namespace halfbyte {
namespace {

constexpr int64_t kFewRows = 32;    // up to here few.h is the faster one, where there are no tiles
constexpr int64_t kMostRows = 512;  // rows at once; more are cut

HALFBYTE_AVX512BF16 inline DenseLines lines_of(const DenseMatrix& matrix) { return {matrix}; }
HALFBYTE_AVX512BF16 inline Int8Lines lines_of(const Int8Matrix& matrix) { return {matrix}; }
HALFBYTE_AVX512BF16 inline Nf4Lines lines_of(const Nf4Matrix& matrix) { return Nf4Lines{matrix}; }
HALFBYTE_AVX512BF16 inline DenseWalk walk_of(const DenseMatrix& matrix) { return {matrix}; }
HALFBYTE_AVX512BF16 inline Int8Walk walk_of(const Int8Matrix& matrix) { return {matrix}; }
HALFBYTE_AVX512BF16 inline Nf4Walk<Bf16Line> walk_of(const Nf4Matrix& matrix) { return Nf4Walk<Bf16Line>{matrix}; }

template <typename Matrix>
HALFBYTE_AVX512BF16 void multiply_walked(const Task& task, const Matrix& matrix, const DenseMatrix& pair, int threads, int isa) {
#ifdef HALFBYTE_FP16
    if constexpr (std::is_same_v<Matrix, Nf4Matrix>)
        if (isa >= kAmx && multiply_walking_fp16(task, matrix, pair, threads)) return;
#else
    (void)isa;
#endif
    multiply_walking(task, walk_of(matrix), pair, threads);
}

template <bool kTransposed, typename Matrix>
HALFBYTE_AVX512BF16 void multiply(Task task, const Matrix& matrix, const DenseMatrix& pair, bool blocks_in_rows, int threads, int isa) {
    if (task.rows == 0) return;
    if (!kTransposed && task.rows <= kWalkedRows && blocks_in_rows) return multiply_walked(task, matrix, pair, threads, isa);
    if (!kTransposed && isa < kAmx && task.rows <= kFewRows && blocks_in_rows) return multiply_few(task, lines_of(matrix), pair, threads);
    const int64_t rows = task.rows, size = cut_evenly(rows, kMostRows, isa >= kAmx ? kPanel : kTileRows);
    for (int64_t first = 0; first < rows; first += size) {
        Task part = task;
        part.rows = std::min(size, rows - first);
        part.x += first * task.steps;
        part.pair_x += first * task.pair_steps;
        part.out += first * task.columns;
#ifdef HALFBYTE_AMX
        if (isa >= kAmx) {
            multiply_amx<kTransposed>(part, matrix, pair, threads);
            continue;
        }
#endif
        multiply_many<kTransposed>(part, matrix, pair, threads);
    }
}

}  // namespace
}  // namespace halfbyte

#endif
