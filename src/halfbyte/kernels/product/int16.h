// Products in bf16 for processors without fast instructions for it, y = x W^T and its transpose dx = g W, through 16-bit integers.
//
// Method: `vpmaddwd` multiplies twice as many pairs of 16-bit integers as a multiply-add in fp32, and adds neighbours; `vpdpwssd`
// (AVX-VNNI, AVX512-VNNI) adds to the sum, too, in one instruction. Rows of x get one scale for each 64 steps of the contraction
// and become integers up to 8191; so does the matrix, up to 4095, with one scale for 64 steps of an output column, where it is
// used: 64 output columns at a time, in panels of 16 that fill a quarter to a half of the first-level cache while all rows of x
// go over them in register tiles (int16_sets.h). 64 products of 4095 and 8191 fit 32 bits, so the integers' sum is exact; then it
// is scaled and added to sums in fp32. LoRA's pair is some more steps of the same contraction. Each output is summed in one
// order, whatever the number of threads or of rows; up to kFewRows rows go another way (few_int16.h), in another order.
//
// Trade-off: bf16 keeps 8 bits of every number; here a number of x keeps fewer than that where another one of its 64 is 32
// times as large or more, of W where it is 16 times. That is lost where the large ones do not reach the result (x a
// thousand times as large in some channels and W as much smaller: an error of 3 %); where they do, they dominate it.
#pragma once

#include "int16_sets.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {
namespace int16 {

using fp32::kMostRows;
constexpr int64_t kLaidOut = 1 << 14;  // steps of the contraction whose rows are laid out at once

// One contraction: x [rows, steps] times a matrix.
struct Part {
    MatrixArgument matrix;
    const bf16* x;
    int64_t steps;
};

// Some steps of a part, and its rows there as integers, by panels of `height` rows that lie one after the other; of a panel
// of `count` rows:
struct Piece {
    const Part* part;
    int64_t begin, end;
    uint32_t* pairs;  // [block][pair][count], two steps each
    float* scales;    // [block][count]
    int64_t blocks() const { return (end - begin + kBlock - 1) / kBlock; }
};

struct Task {
    const Part* parts;  // whose products are added
    int64_t count;      // of parts
    const bf16* bias;   // [columns] or null
    int64_t rows, columns;
    bf16* out;  // [rows, columns]
    bool transposed;
};

// sums [panel][rows][16] += one unit of output columns of a piece.
template <typename Set>
void add_piece(const Task& task, const Piece& piece, int64_t height, int64_t column, float* sums) {
    using Layout = typename Set::Layout;
    const MatrixArgument& matrix = piece.part->matrix;
    const int64_t unit = std::min(kUnit, task.columns - column), blocks = piece.blocks();
    const bool whole = task.transposed && Layout::takes_units(matrix);
    float* const decoded = scratch<20, float>(task.transposed && !whole ? kUnit * kChunk : 0);
    uint32_t* const weights = scratch<21, uint32_t>(kPanels * kPanel);
    float* const scales = scratch<22, float>(kPanels * kPanelScales);
    for (int64_t begin = piece.begin; begin < piece.end; begin += kChunk) {
        const int64_t end = std::min(piece.end, begin + kChunk), have = (end - begin + kBlock - 1) / kBlock, done = (begin - piece.begin) / kBlock;
        if (whole)
            Layout::lay_out_unit(matrix, column, begin, end, weights, scales);
        else if (task.transposed)
            fp32::lay_out_transposed<kColumns, kChunk>(matrix, column, unit, begin, end, decoded, Layout::kIsa);
        for (int64_t at = 0; at < unit; at += Set::kPanelsAtOnce * kColumns) {
            uint32_t* const panel = weights + (whole ? at / kColumns * kPanel : 0);
            float* const of_panel = scales + (whole ? at / kColumns * kPanelScales : 0);
            for (int64_t p = 0; p < Set::kPanelsAtOnce && !whole; ++p) {
                const int64_t first = at + p * kColumns, there = std::clamp<int64_t>(unit - first, 0, kColumns);
                if (task.transposed)
                    Layout::quantise_panel(decoded + first * kChunk, end - begin, panel + p * kPanel, of_panel + p * kPanelScales);
                else
                    lay_out<Layout>(matrix, column + first, there, begin, end, panel + p * kPanel, of_panel + p * kPanelScales);
            }
            for (int64_t r = 0; r < task.rows; r += height) {
                const int64_t count = std::min(height, task.rows - r), group = r * blocks + done * count;
                tile_of<Set>(count)(piece.pairs + group * kPairs, piece.scales + group, panel, of_panel, have, sums + (at / kColumns * task.rows + r) * kColumns,
                                 task.rows * kColumns);
            }
        }
    }
}

// sums [panel][rows][16] -> out.
HALFBYTE_AVX2 inline void round_out(const Task& task, const float* sums, int64_t column) {
    for (int64_t at = column; at < std::min(column + kUnit, task.columns); at += kColumns) {
        const int64_t there = std::min(kColumns, task.columns - at);
        bf16 bias[kColumns] = {};
        if (task.bias) std::memcpy(bias, task.bias + at, size_t(there) * sizeof(bf16));
        const __m256 front = widen(bias), back = widen(bias + 8);
        for (int64_t r = 0; r < task.rows; ++r, sums += kColumns) {
            bf16 rounded[kColumns], *const to = task.out + r * task.columns + at;
            auto* const whole = reinterpret_cast<__m128i*>(there == kColumns ? to : rounded);
            _mm_storeu_si128(whole, round8(_mm256_add_ps(_mm256_load_ps(sums), front), bf16{}));
            _mm_storeu_si128(whole + 1, round8(_mm256_add_ps(_mm256_load_ps(sums + 8), back), bf16{}));
            if (there < kColumns) std::memcpy(to, rounded, size_t(there) * sizeof(bf16));
        }
    }
}

// Rows r..r + count of a piece as integers.
template <typename Layout>
void lay_out_rows(const Piece& piece, int64_t r, int64_t count) {
    const int64_t blocks = piece.blocks();
    for (int64_t row = 0; row < count; ++row)
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t group = r * blocks + b * count, begin = piece.begin + b * kBlock;
            alignas(32) int16_t steps[kBlock];
            const bf16* const from = piece.part->x + (r + row) * piece.part->steps + begin;
            piece.scales[group + row] = Layout::quantise(from, piece.end - begin, kMostInput, steps);
            for (int64_t p = 0; p < kPairs; ++p) std::memcpy(piece.pairs + (group * kPairs + p * count + row), steps + 2 * p, sizeof(uint32_t));
        }
}

// About kMostRows rows at most.
template <typename Set>
void multiply_rows(const Task& task, int threads) {
    const int64_t units = (task.columns + kUnit - 1) / kUnit, panels = (task.rows + Set::kRows - 1) / Set::kRows, steps = task.parts[0].steps;
    const int64_t height = (task.rows + panels - 1) / panels;  // of a panel: even ones, so that no tile is nearly empty
    float* const kept = steps > kLaidOut ? scratch<31, float>(units * kUnit * task.rows) : nullptr;
    for (int64_t base = 0; base == 0 || base < steps; base += kLaidOut) {
        Piece pieces[2] = {{task.parts, base, std::min(steps, base + kLaidOut), nullptr, nullptr}};
        const int64_t count = base == 0 ? task.count : 1;  // the pair goes with the first steps
        if (count == 2) pieces[1] = {task.parts + 1, 0, task.parts[1].steps, nullptr, nullptr};
        const int64_t before = task.rows * pieces[0].blocks(), groups = before + (count == 2 ? task.rows * pieces[1].blocks() : 0);
        pieces[0].pairs = scratch<23, uint32_t>(groups * kPairs), pieces[0].scales = scratch<24, float>(groups);
        pieces[1].pairs = pieces[0].pairs + before * kPairs, pieces[1].scales = pieces[0].scales + before;
        parallel(panels, 4, threads, [&](int64_t first, int64_t last) {
            for (int64_t r = first * height; r < std::min(last * height, task.rows); r += height)
                for (int64_t i = 0; i < count; ++i) lay_out_rows<typename Set::Layout>(pieces[i], r, std::min(height, task.rows - r));
        });
        parallel(units, 1, threads, [&](int64_t first, int64_t last) {
            for (int64_t unit = first; unit < last; ++unit) {
                float* const sums = kept ? kept + unit * kUnit * task.rows : scratch<25, float>(kUnit * task.rows);
                if (base == 0) std::memset(sums, 0, size_t(kUnit * task.rows) * sizeof(float));
                for (int64_t i = 0; i < count; ++i) add_piece<Set>(task, pieces[i], height, unit * kUnit, sums);
                if (base + kLaidOut >= steps) round_out(task, sums, unit * kUnit);
            }
        });
    }
}

template <typename Set>
void multiply(Task task, int threads) {
    const int64_t rows = task.rows, size = cut_evenly(rows, kMostRows, Set::kRows);
    for (int64_t first = 0; first < rows; first += size) {
        Task part = task;
        Part parts[2];
        for (int64_t i = 0; i < task.count; ++i) {
            parts[i] = task.parts[i];
            parts[i].x += first * parts[i].steps;
        }
        part.parts = parts;
        part.rows = std::min(size, rows - first);
        part.out += first * task.columns;
        multiply_rows<Set>(part, threads);
    }
}

}  // namespace int16
}  // namespace
}  // namespace halfbyte

#endif
