// Products of bf16 rows with a frozen matrix for processors with AVX512-BF16: y = x W^T, and its transpose dx = g W.
//
// Method: the matrix is decoded where it is used. A unit of 64 output columns is decoded for kChunk steps of the
// contraction into a buffer of 128 KB that stays in the second-level cache, laid out for `vdpbf16ps` (two
// consecutive steps of one column side by side), and all rows of x go over it in register tiles of 14 x 32. So the
// 16-bit matrix never exists, and a 4-bit one costs the memory traffic of a 4-bit one. The rows of x are laid out once a
// call, in panels of 14 rows. A LoRA pair, y += h B^T, is just some more steps of the contraction.
// For up to kFewRows rows decoding costs more than multiplying: there NF4's levels, rounded to bf16, go from a code into
// the product without leaving the registers, and a block's absmax scales its sum. That rounds a weight once, as decoding
// to bf16 does, but not to the same bits.
//
// Each output is summed in one order, whatever the number of threads. Sums are fp32, rounded once.
//
// Rejected: decoding the whole matrix and calling a library's product (it copies the matrix a second time into a layout
// of its own); decoding in the register tile (each weight would be decoded once per 14 rows).
#pragma once

#include <new>

#include "../decode.h"

#ifdef HALFBYTE_X86

#define HALFBYTE_ALWAYS inline __attribute__((always_inline))
#define HALFBYTE_ALWAYS_LAMBDA __attribute__((always_inline))

namespace halfbyte {
namespace {

constexpr int64_t kUnit = 64;         // output columns that a thread works on at once
constexpr int64_t kTileRows = 14;     // of a register tile; it is 32 columns wide: 28 sums, 2 weights, 1 input
constexpr int64_t kChunk = 1024;      // steps of the contraction that are decoded at once
constexpr int64_t kLaidOut = 8192;    // steps of the contraction whose rows are laid out at once
constexpr int64_t kMostRows = 512;    // rows at once; more are cut
constexpr int64_t kFewRows = 8;

// A buffer of this thread that grows and is kept: fresh pages in every call would cost more than what they hold.
template <int kName, typename T>
T* scratch(int64_t count) {
    struct Buffer {
        T* data = nullptr;
        int64_t size = 0;
        ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
    };
    static thread_local Buffer buffer;
    if (buffer.size < count) {
        ::operator delete(buffer.data, std::align_val_t(64));
        buffer.data = nullptr;
        buffer.data = static_cast<T*>(::operator new(size_t(count) * sizeof(T), std::align_val_t(64)));
        buffer.size = count;
    }
    return buffer.data;
}

struct Words {
    __m512i low, high;  // bf16 columns 0..31 and 32..63
};

HALFBYTE_AVX512BF16 inline __mmask32 first_words(int64_t count) {
    return count >= 32 ? ~__mmask32(0) : count <= 0 ? 0 : (__mmask32(1) << count) - 1;
}

// ---- what a matrix can be: `words(row, column)` gives its 64 weights from there on, zeros beyond the row's end --------

struct DenseMatrix {
    const bf16* weights;
    int64_t columns;
    static constexpr bool kNibbles = false;
    HALFBYTE_AVX512BF16 void prefetch(int64_t row, int64_t column) const { 
        _mm_prefetch(reinterpret_cast<const char*>(weights + row * columns + column), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(weights + row * columns + column + 32), _MM_HINT_T0);
    }

    HALFBYTE_AVX512BF16 Words words(int64_t row, int64_t column) const {
        const bf16* at = weights + row * columns + column;
        const int64_t left = columns - column;
        return {_mm512_maskz_loadu_epi16(first_words(left), at), _mm512_maskz_loadu_epi16(first_words(left - 32), at + 32)};
    }
};

struct Nf4Matrix {
    Nf4 packed;
    int64_t columns;
    static constexpr bool kNibbles = true;
    HALFBYTE_AVX512BF16 void prefetch(int64_t row, int64_t column) const { _mm_prefetch(reinterpret_cast<const char*>(packed.codes + (row * columns + column) / 2), _MM_HINT_T0); }

    // The 16 levels of a block as bf16, twice, so that bit 4 of an index does not matter.
    HALFBYTE_AVX512BF16 __m512i table(int64_t block) const {
        const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(packed.levels), _mm512_set1_ps(packed.scale(block)));
        return _mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(scaled));
    }
    HALFBYTE_AVX512BF16 Words words(int64_t row, int64_t column) const {
        const uint64_t first = uint64_t(row * columns + column);
        if (first % kBlock || columns - column < kBlock) return straddling(row, column);
        const __m512i levels = table(int64_t(first / kBlock));
        const auto* codes = reinterpret_cast<const __m128i*>(packed.codes + first / 2);
        return {look_up(codes, levels), look_up(codes + 1, levels)};
    }

private:
    HALFBYTE_AVX512BF16 static __m512i look_up(const __m128i* codes, __m512i levels) {
        const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes));
        return _mm512_permutexvar_epi16(_mm512_or_si512(_mm512_srli_epi32(wide, 4), _mm512_slli_epi32(wide, 16)), levels);
    }
    HALFBYTE_AVX512BF16 Words straddling(int64_t row, int64_t column) const {
        bf16 buffer[kUnit] = {};
        const int64_t first = row * columns + column;
        for (int64_t i = 0; i < std::min(kUnit, columns - column); ++i) {
            const uint8_t pair = packed.codes[(first + i) / 2];
            const float level = packed.levels[(first + i) % 2 ? pair & 15 : pair >> 4];
            buffer[i] = from_float<bf16>(level * packed.scale((first + i) / kBlock));
        }
        return {_mm512_loadu_si512(buffer), _mm512_loadu_si512(buffer + 32)};
    }
};

struct Int8Matrix {
    const int8_t* codes;
    const float* scale;
    int64_t columns;
    static constexpr bool kNibbles = false;
    HALFBYTE_AVX512BF16 void prefetch(int64_t row, int64_t column) const { _mm_prefetch(reinterpret_cast<const char*>(codes + row * columns + column), _MM_HINT_T0); }

    HALFBYTE_AVX512BF16 Words words(int64_t row, int64_t column) const {
        const int8_t* at = codes + row * columns + column;
        const __m512 row_scale = _mm512_set1_ps(load(scale + row));
        __m512i halves[2];
        for (int half = 0; half < 2; ++half) {
            const __m256i bytes = _mm256_maskz_loadu_epi8(first_words(columns - column - 32 * half), at + 32 * half);
            const __m512 front = scaled(_mm256_castsi256_si128(bytes), row_scale);
            halves[half] = (__m512i)_mm512_cvtne2ps_pbh(scaled(_mm256_extracti128_si256(bytes, 1), row_scale), front);
        }
        return {halves[0], halves[1]};
    }

private:
    HALFBYTE_AVX512BF16 static __m512 scaled(__m128i bytes, __m512 row_scale) {
        const __m512 values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
        return _mm512_mul_ps(_mm512_mul_ps(values, row_scale), _mm512_set1_ps(1.0f / 127.0f));
    }
};

// ---- layouts ----------------------------------------------------------------------------------------------------------

// 16 x 16 transpose of 32-bit words, in place.
HALFBYTE_AVX512BF16 inline void transpose(__m512i* rows) {
    __m512i turned[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        turned[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        turned[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        rows[4 * i] = _mm512_unpacklo_epi64(turned[4 * i], turned[4 * i + 2]);
        rows[4 * i + 1] = _mm512_unpackhi_epi64(turned[4 * i], turned[4 * i + 2]);
        rows[4 * i + 2] = _mm512_unpacklo_epi64(turned[4 * i + 1], turned[4 * i + 3]);
        rows[4 * i + 3] = _mm512_unpackhi_epi64(turned[4 * i + 1], turned[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        turned[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
        turned[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
        turned[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
        turned[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        rows[i] = _mm512_shuffle_i32x4(turned[i], turned[i + 8], 0x88);
        rows[i + 4] = _mm512_shuffle_i32x4(turned[i + 4], turned[i + 12], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(turned[i], turned[i + 8], 0xdd);
        rows[i + 12] = _mm512_shuffle_i32x4(turned[i + 4], turned[i + 12], 0xdd);
    }
}

// `rows` (at most kTileRows) x `steps` of x, whose rows are `stride` apart -> [pair of steps][row] of pairs.
HALFBYTE_AVX512BF16 inline void lay_out_rows(const bf16* x, int64_t stride, int64_t rows, int64_t steps, uint32_t* out) {
    for (int64_t step = 0; step < steps; step += 32) {
        __m512i block[16];
        for (int64_t r = rows; r < 16; ++r) block[r] = _mm512_setzero_si512();
        const __mmask32 there = first_words(steps - step);
        for (int64_t r = 0; r < rows; ++r) block[r] = _mm512_maskz_loadu_epi16(there, x + r * stride + step);
        transpose(block);
        const int64_t pairs = std::min<int64_t>(16, (steps - step + 1) / 2);
        for (int64_t p = 0; p < pairs; ++p)
            _mm512_mask_storeu_epi32(out + (step / 2 + p) * rows, __mmask16((1 << rows) - 1), block[p]);
    }
}

// W's rows first..first + count (at most kUnit) as output columns, steps along its columns: two halves of
// [pair of steps][32 columns] of pairs, one after the other.
template <typename Matrix>
HALFBYTE_AVX512BF16 void lay_out(const Matrix& matrix, int64_t first, int64_t count, int64_t begin, int64_t end, uint32_t* out) {
    const int64_t pairs = (end - begin + 1) / 2;
    for (int64_t group = 0; group < 4; ++group) {
        uint32_t* target = out + group / 2 * pairs * 32 + group % 2 * 16;
        const int64_t rows = std::max<int64_t>(0, std::min<int64_t>(16, count - 16 * group));
        for (int64_t step = begin; step < end; step += kUnit) {
            __m512i low[16], high[16];
            for (int64_t r = rows; r < 16; ++r) low[r] = high[r] = _mm512_setzero_si512();
            for (int64_t r = 0; r < rows; ++r) {
                matrix.prefetch(first + 16 * group + r + 16, step);
                const Words words = matrix.words(first + 16 * group + r, step);
                low[r] = words.low;
                high[r] = words.high;
            }
            transpose(low);
            transpose(high);
            uint32_t* at = target + (step - begin) / 2 * 32;
            const int64_t left = pairs - (step - begin) / 2;
            for (int64_t p = 0; p < std::min<int64_t>(16, left); ++p) _mm512_storeu_si512(at + p * 32, low[p]);
            for (int64_t p = 0; p < std::min<int64_t>(16, left - 16); ++p) _mm512_storeu_si512(at + (16 + p) * 32, high[p]);
        }
    }
}

// W's columns first..first + 64 as output columns, steps along its rows begin..end.
template <typename Matrix>
HALFBYTE_AVX512BF16 void lay_out_transposed(const Matrix& matrix, int64_t first, int64_t begin, int64_t end, uint32_t* out) {
    const int64_t pairs = (end - begin + 1) / 2;
    alignas(64) uint16_t order[64];
    for (int i = 0; i < 64; ++i) order[i] = uint16_t(i / 2 + i % 2 * 32);
    const __m512i front = _mm512_load_si512(order), back = _mm512_load_si512(order + 32);
    for (int64_t p = 0; p < pairs; ++p) {
        const int64_t row = begin + 2 * p;
        const Words even = matrix.words(row, first);
        const Words odd = row + 1 < end ? matrix.words(row + 1, first) : Words{};
        uint32_t* at = out + p * 32;
        _mm512_storeu_si512(at, _mm512_permutex2var_epi16(even.low, front, odd.low));
        _mm512_storeu_si512(at + 16, _mm512_permutex2var_epi16(even.low, back, odd.low));
        _mm512_storeu_si512(at + pairs * 32, _mm512_permutex2var_epi16(even.high, front, odd.high));
        _mm512_storeu_si512(at + pairs * 32 + 16, _mm512_permutex2var_epi16(even.high, back, odd.high));
    }
}

// ---- the register tile ------------------------------------------------------------------------------------------------

// sums [kRows][32] (fp32, rows `stride` apart) = (or += if `more`) inputs [pairs][kRows] x weights [pairs][32].
template <int kRows>
HALFBYTE_AVX512BF16 void tile(const uint32_t* inputs, const uint32_t* weights, int64_t pairs, float* sums, int64_t stride, bool more) {
    __m512 sum[kRows][2];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < 2; ++c) sum[r][c] = more ? _mm512_loadu_ps(sums + r * stride + 16 * c) : _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; ++p, inputs += kRows, weights += 32) {
        const __m512bh front = (__m512bh)_mm512_loadu_si512(weights), back = (__m512bh)_mm512_loadu_si512(weights + 16);
#pragma GCC unroll 14
        for (int r = 0; r < kRows; ++r) {
            const __m512bh input = (__m512bh)_mm512_set1_epi32(int(inputs[r]));
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], front, input);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], back, input);
        }
    }
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < 2; ++c) _mm512_storeu_ps(sums + r * stride + 16 * c, sum[r][c]);
}

using Tile = void (*)(const uint32_t*, const uint32_t*, int64_t, float*, int64_t, bool);
constexpr Tile kTiles[kTileRows + 1] = {nullptr,  tile<1>, tile<2>,  tile<3>,  tile<4>,  tile<5>,  tile<6>, tile<7>,
                                        tile<8>, tile<9>, tile<10>, tile<11>, tile<12>, tile<13>, tile<14>};

// sums [rows][kUnit] -> out, `columns` of them (at most kUnit), with a bias [columns] or null.
HALFBYTE_AVX512BF16 inline void round_out(const float* sums, const bf16* bias, int64_t rows, int64_t columns, bf16* out, int64_t stride) {
    for (int half = 0; half < 2; ++half) {
        const __mmask32 there = first_words(columns - 32 * half);
        const __m512i biases = bias ? _mm512_maskz_loadu_epi16(there, bias + 32 * half) : _mm512_setzero_si512();
        const __m512 bias0 = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(biases)), 16));
        const __m512 bias1 = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(biases, 1)), 16));
        for (int64_t r = 0; r < rows; ++r) {
            const float* from = sums + r * kUnit + 32 * half;
            const __m512 front = _mm512_add_ps(_mm512_loadu_ps(from), bias0), back = _mm512_add_ps(_mm512_loadu_ps(from + 16), bias1);
            _mm512_mask_storeu_epi16(out + r * stride + 32 * half, there, (__m512i)_mm512_cvtne2ps_pbh(back, front));
        }
    }
}

// ---- many rows --------------------------------------------------------------------------------------------------------

// x [rows, steps] times `matrix`, then pair_x [rows, pair_steps] times `pair`, into out [rows, columns].
struct Task {
    const bf16 *x, *pair_x, *bias;
    int64_t rows, steps, pair_steps, columns;
    bf16* out;
};

template <bool kTransposed, typename Matrix>
HALFBYTE_AVX512BF16 void lay_out_unit(const Matrix& matrix, int64_t column, int64_t columns, int64_t begin, int64_t end, uint32_t* out) {
    if constexpr (kTransposed)
        lay_out_transposed(matrix, column, begin, end, out);
    else
        lay_out(matrix, column, std::min(kUnit, columns - column), begin, end, out);
}

// One segment of the contraction (`steps` of x, laid out in `inputs` from step `base` on) for one unit.
template <bool kTransposed, typename Matrix>
HALFBYTE_AVX512BF16 void multiply_unit(const Matrix& matrix, const uint32_t* inputs, int64_t rows, int64_t height, int64_t base,
                                       int64_t steps, int64_t column, int64_t columns, uint32_t* weights, float* sums, bool more) {
    for (int64_t begin = 0; begin < steps; begin += kChunk, more = true) {
        const int64_t end = std::min(steps, begin + kChunk), pairs = (end - begin + 1) / 2, all = (steps + 1) / 2;
        lay_out_unit<kTransposed>(matrix, column, columns, base + begin, base + end, weights);
        for (int half = 0; half < 2 && column + 32 * half < columns; ++half)
            for (int64_t r = 0; r < rows; r += height) {
                const int64_t count = std::min(height, rows - r);
                kTiles[count](inputs + r * all + begin / 2 * count, weights + half * pairs * 32, pairs,
                              sums + r * kUnit + 32 * half, kUnit, more);
            }
    }
}

template <bool kTransposed, typename Matrix>
void multiply_rows(const Task& task, const Matrix& matrix, const DenseMatrix& pair, int threads) {
    const int64_t units = (task.columns + kUnit - 1) / kUnit, panels = (task.rows + kTileRows - 1) / kTileRows;
    const int64_t height = (task.rows + panels - 1) / panels;  // of a panel: even ones, so that no tile is nearly empty
    const int64_t most = (std::min(kLaidOut, task.steps) + 1) / 2 + (task.pair_steps + 1) / 2;
    uint32_t* const inputs = scratch<0, uint32_t>(task.rows * most);
    // Sums of all units live on from one stretch of the contraction to the next only where there is more than one.
    const bool many = task.steps > kLaidOut;
    float* const kept = many ? scratch<1, float>(units * kUnit * task.rows) : nullptr;
    for (int64_t base = 0; base < task.steps; base += kLaidOut) {
        const int64_t steps = std::min(kLaidOut, task.steps - base), pair_steps = base + steps == task.steps ? task.pair_steps : 0;
        uint32_t* pair_inputs = inputs + task.rows * ((steps + 1) / 2);
        parallel(panels, 4, threads, [&](int64_t first, int64_t last) {
            for (int64_t r = first * height; r < std::min(last * height, task.rows); r += height) {
                const int64_t count = std::min(height, task.rows - r);
                lay_out_rows(task.x + r * task.steps + base, task.steps, count, steps, inputs + r * ((steps + 1) / 2));
                if (pair_steps)
                    lay_out_rows(task.pair_x + r * pair_steps, pair_steps, count, pair_steps, pair_inputs + r * ((pair_steps + 1) / 2));
            }
        });
        parallel(units, 1, threads, [&](int64_t first, int64_t last) {
            uint32_t* const weights = scratch<2, uint32_t>(kUnit * kChunk / 2);
            float* const own = many ? nullptr : scratch<3, float>(kUnit * task.rows);
            for (int64_t unit = first; unit < last; ++unit) {
                const int64_t column = unit * kUnit;
                float* sums = many ? kept + unit * kUnit * task.rows : own;
                multiply_unit<kTransposed>(matrix, inputs, task.rows, height, base, steps, column, task.columns, weights, sums, base > 0);
                if (pair_steps)
                    multiply_unit<kTransposed>(pair, pair_inputs, task.rows, height, 0, pair_steps, column, task.columns, weights, sums, true);
                if (base + steps == task.steps)
                    round_out(sums, task.bias ? task.bias + column : nullptr, task.rows, task.columns - column,
                              task.out + column, task.columns);
            }
        });
    }
}

// ---- few rows ---------------------------------------------------------------------------------------------------------

// The inputs of a row in the order in which its weights come out of `dots`, zeros beyond the end.
template <typename Matrix>
HALFBYTE_AVX512BF16 void arrange(const bf16* x, int64_t steps, uint16_t* out) {
    const DenseMatrix row{x, steps};
    if constexpr (!Matrix::kNibbles) {
        for (int64_t step = 0; step < steps; step += kUnit) {
            const Words words = row.words(0, step);
            _mm512_storeu_si512(out + step, words.low);
            _mm512_storeu_si512(out + step + 32, words.high);
        }
        return;
    }
    // Nibble j of the 32 words of 128 codes is the weight 4 * word + {1, 0, 3, 2}[j].
    alignas(64) uint16_t even[32], odd[32];
    for (int i = 0; i < 32; ++i) even[i] = uint16_t(2 * i), odd[i] = uint16_t(2 * i + 1);
    const __m512i evens = _mm512_load_si512(even), odds = _mm512_load_si512(odd);
    for (int64_t step = 0; step < steps; step += 2 * kUnit) {
        const Words front = row.words(0, step), back = step + kUnit < steps ? row.words(0, step + kUnit) : Words{};
        const __m512i even0 = _mm512_permutex2var_epi16(front.low, evens, front.high), even1 = _mm512_permutex2var_epi16(back.low, evens, back.high);
        const __m512i odd0 = _mm512_permutex2var_epi16(front.low, odds, front.high), odd1 = _mm512_permutex2var_epi16(back.low, odds, back.high);
        _mm512_storeu_si512(out + step, _mm512_permutex2var_epi16(odd0, evens, odd1));
        _mm512_storeu_si512(out + step + 32, _mm512_permutex2var_epi16(even0, evens, even1));
        _mm512_storeu_si512(out + step + 64, _mm512_permutex2var_epi16(odd0, odds, odd1));
        _mm512_storeu_si512(out + step + 96, _mm512_permutex2var_epi16(even0, odds, even1));
    }
}

// sum[c][r] += the columns `column` + c of the output, before the lanes are added up, for inputs [kRows][padded].
template <int kRows, int kColumns, typename Matrix>
HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS void dots(const Matrix& matrix, int64_t column, const uint16_t* inputs, int64_t padded, __m512 (*sum)[kRows]) {
    for (int64_t step = 0; step < matrix.columns; step += kUnit)
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) {
            const Words words = matrix.words(column + c, step);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                const uint16_t* input = inputs + r * padded + step;
                sum[c][r] = _mm512_dpbf16_ps(sum[c][r], (__m512bh)words.low, (__m512bh)_mm512_loadu_si512(input));
                sum[c][r] = _mm512_dpbf16_ps(sum[c][r], (__m512bh)words.high, (__m512bh)_mm512_loadu_si512(input + 32));
            }
        }
}

// 128 codes, two blocks with scales[0] and scales[1], one in the lower and one in the upper lanes; `there` says which of
// their words exist. sum[r] += their product with the inputs of kRows rows.
template <int kRows>
HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS void nibble_step(const uint8_t* codes, __mmask16 there, const float* scales, __m512i levels,
                                                     const uint16_t* inputs, int64_t padded, __m512* sum) {
    const __m512i words = _mm512_maskz_loadu_epi32(there, codes);
    // Shifts to the right by 4, 8 and 12, as products: shifts and look-ups would wait for the same port.
    const __m512i weights[4] = {_mm512_permutexvar_epi16(words, levels),
                                _mm512_permutexvar_epi16(_mm512_mulhi_epu16(words, _mm512_set1_epi16(1 << 12)), levels),
                                _mm512_permutexvar_epi16(_mm512_mulhi_epu16(words, _mm512_set1_epi16(1 << 8)), levels),
                                _mm512_permutexvar_epi16(_mm512_mulhi_epu16(words, _mm512_set1_epi16(1 << 4)), levels)};
    const __m512 scale = _mm512_mask_broadcastss_ps(_mm512_set1_ps(scales[0]), 0xff00, _mm_load_ss(scales + 1));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        __m512 part = _mm512_setzero_ps();
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
            part = _mm512_dpbf16_ps(part, (__m512bh)weights[j], (__m512bh)_mm512_load_si512(inputs + r * padded + 32 * j));
        sum[r] = _mm512_fmadd_ps(part, scale, sum[r]);
    }
}

// NF4 whose rows start with a block. One row of x: the codes column by column, so that they are read in one stream.
// More rows: kColumns columns side by side, which share the loads of the inputs.
template <int kRows, int kColumns>
HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS void nibble_dots(const Nf4Matrix& matrix, int64_t column, const uint16_t* inputs, int64_t padded,
                                                     __m512 (*sums)[kRows]) {
    __m512 sum[kColumns][kRows];  // not through the pointer, or they would be stored in every step
    std::memcpy(sum, sums, sizeof sum);
    const int64_t blocks = matrix.columns / kBlock, bytes = blocks * (kBlock / 2);
    // All scales first: a scalar store that is loaded again as part of a vector has to have left for the cache by then.
    float* const scales = scratch<5, float>(kColumns * blocks + 1);
    take_scales(matrix.packed, column * blocks, kColumns * blocks, scales);
    scales[kColumns * blocks] = 0.0f;
    const __m512i levels = _mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(matrix.packed.levels)));
    const uint8_t* const codes = matrix.packed.codes + column * bytes;
    const int64_t ahead = kRows == 1 ? 2048 : kColumns * bytes;
    const auto step = [&](int c, int64_t b) HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS_LAMBDA {
        const uint8_t* at = codes + c * bytes + b * (kBlock / 2);
        _mm_prefetch(reinterpret_cast<const char*>(at + ahead), _MM_HINT_T0);
        nibble_step<kRows>(at, b + 1 < blocks ? 0xffff : 0xff, scales + c * blocks + b, levels, inputs + b * kBlock, padded, sum[c]);
    };
    if constexpr (kRows == 1) {
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c)
            for (int64_t b = 0; b < blocks; b += 2) step(c, b);
    } else {
        for (int64_t b = 0; b < blocks; b += 2)
#pragma GCC unroll 4
            for (int c = 0; c < kColumns; ++c) step(c, b);
    }
    std::memcpy(sums, sum, sizeof sum);
}

template <int kRows, int kColumns, typename Matrix>
HALFBYTE_AVX512BF16 void few_columns(const Task& task, const Matrix& matrix, const DenseMatrix& pair, const uint16_t* inputs,
                                     int64_t padded, const uint16_t* pair_inputs, int64_t pair_padded, int64_t column) {
    __m512 sum[kColumns][kRows];
    for (auto& of_column : sum)
        for (auto& one : of_column) one = _mm512_setzero_ps();
    if constexpr (Matrix::kNibbles)
        nibble_dots<kRows, kColumns>(matrix, column, inputs, padded, sum);
    else
        dots<kRows, kColumns>(matrix, column, inputs, padded, sum);
    if (task.pair_steps) dots<kRows, kColumns>(pair, column, pair_inputs, pair_padded, sum);
    for (int c = 0; c < kColumns; ++c)
        for (int64_t r = 0; r < std::min<int64_t>(kRows, task.rows); ++r) {
            const float bias = task.bias ? to_float(task.bias[column + c]) : 0.0f;
            task.out[r * task.columns + column + c] = from_float<bf16>(_mm512_reduce_add_ps(sum[c][r]) + bias);
        }
}

template <int kRows, typename Matrix>
void multiply_few(const Task& task, const Matrix& matrix, const DenseMatrix& pair, int threads) {
    constexpr int kColumns = kRows >= 8 ? 2 : 4;
    const auto pad = [](int64_t steps) { return (steps + 2 * kUnit - 1) / (2 * kUnit) * (2 * kUnit); };
    const int64_t padded = pad(task.steps), pair_padded = pad(task.pair_steps);
    uint16_t* const inputs = scratch<4, uint16_t>(kRows * (padded + pair_padded));
    uint16_t* const pair_inputs = inputs + kRows * padded;
    std::memset(inputs, 0, sizeof(uint16_t) * size_t(kRows * (padded + pair_padded)));
    for (int64_t r = 0; r < task.rows; ++r) {
        arrange<Matrix>(task.x + r * task.steps, task.steps, inputs + r * padded);
        if (task.pair_steps) arrange<DenseMatrix>(task.pair_x + r * task.pair_steps, task.pair_steps, pair_inputs + r * pair_padded);
    }
    parallel(task.columns, std::max<int64_t>(16, (1 << 16) / padded), threads, [&](int64_t first, int64_t last) {
        int64_t column = first;
        for (; column + kColumns <= last; column += kColumns)
            few_columns<kRows, kColumns>(task, matrix, pair, inputs, padded, pair_inputs, pair_padded, column);
        for (; column < last; ++column)
            few_columns<kRows, 1>(task, matrix, pair, inputs, padded, pair_inputs, pair_padded, column);
    });
}

template <bool kTransposed, typename Matrix>
void multiply(Task task, const Matrix& matrix, const DenseMatrix& pair, bool blocks_in_rows, int threads) {
    if (task.rows == 0) return;
    if (!kTransposed && task.rows <= kFewRows && blocks_in_rows) {
        if (task.rows == 1) return multiply_few<1>(task, matrix, pair, threads);
        if (task.rows == 2) return multiply_few<2>(task, matrix, pair, threads);
        if (task.rows <= 4) return multiply_few<4>(task, matrix, pair, threads);
        return multiply_few<8>(task, matrix, pair, threads);
    }
    const int64_t cuts = (task.rows + kMostRows - 1) / kMostRows;
    const int64_t size = ((task.rows + cuts - 1) / cuts + kTileRows - 1) / kTileRows * kTileRows;
    const int64_t rows = task.rows;
    for (int64_t first = 0; first < rows; first += size) {
        Task part = task;
        part.rows = std::min(size, rows - first);
        part.x += first * task.steps;
        part.pair_x += first * task.pair_steps;
        part.out += first * task.columns;
        multiply_rows<kTransposed>(part, matrix, pair, threads);
    }
}

}  // namespace
}  // namespace halfbyte

#endif
