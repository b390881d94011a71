// Products with 5 to 32 rows (several texts at once, short prompts); walk.h has those of fewer.
// With AMX tiles (amx.h) take them.
//
// Method: 16 output columns, that is rows of W, lie in the 16 lanes. A line of 64 bytes of each is transposed as 32-bit
// words while it is still packed, so a transpose serves 128 weights a lane for NF4. A word then decodes to pairs: each
// of the four shifts of a word of eight NF4 codes has two of them where a look-up among the levels in bf16 wants its
// indices, and the inputs lie in the order that this gives. All rows of x go over a decoded pair at once; nothing is
// added up across lanes. The scale of a block multiplies the sum of its products. That rounds a weight once, as decoding
// to bf16 does, but not to the same bits.
//
// The 16 rows are read in turn, which no processor foresees; so the next 16, which lie one after the other in memory,
// are asked for meanwhile, into the second-level cache.
#pragma once

#include "layout.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {

constexpr int64_t kAcross = 16;      // output columns that are worked on at once
constexpr int64_t kLineBytes = 64;  // of each that are loaded at once: 16 words of 32 bits
constexpr int64_t kPanel = 16;      // rows of x at once

// ---- packed lines: a word of 32 bits in each lane -> kPairs times two weights of it, as bf16 ---------------------------
//
// kSteps weights to a line, kBlocks parts of it with scales of their own (or one scale a row: kScaleStep is 0).
// `order`: of 32 consecutive steps, the two of each of the 16 pairs.

struct DenseLines {
    const DenseMatrix& matrix;
    static constexpr int64_t kSteps = 32, kPairs = 1, kBlocks = 1, kScaleStep = 0;
    static constexpr int order(int pair, int of) { return 2 * pair + of; }

    const uint8_t* row(int64_t row) const { return reinterpret_cast<const uint8_t*>(matrix.weights + row * matrix.columns); }
    int64_t bytes() const { return matrix.columns * 2; }
    const float* scales(int64_t, int64_t) const {
        static constexpr float ones[kAcross] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
        return ones;
    }
    HALFBYTE_AVX512BF16 void pairs(__m512i word, __m512i* out) const { out[0] = word; }
};

struct Int8Lines {
    const Int8Matrix& matrix;
    static constexpr int64_t kSteps = 64, kPairs = 2, kBlocks = 1, kScaleStep = 0;
    static constexpr int order(int pair, int of) { return 4 * (pair / 2) + pair % 2 + 2 * of; }

    const uint8_t* row(int64_t row) const { return reinterpret_cast<const uint8_t*>(matrix.codes + row * matrix.columns); }
    int64_t bytes() const { return matrix.columns; }
    HALFBYTE_AVX512BF16 const float* scales(int64_t first, int64_t count) const {
        float* const out = scratch<5, float>(kAcross);
        for (int64_t r = 0; r < kAcross; ++r) out[r] = r < count ? load(matrix.scale + first + r) * (1.0f / 127.0f) : 0.0f;
        return out;
    }
    // Every int8 is a bf16 number: of its fp32 form the lower half is zero.
    HALFBYTE_AVX512BF16 void pairs(__m512i word, __m512i* out) const {
        for (int p = 0; p < 2; ++p) {
            const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(word, 24 - 8 * p), 24);
            const __m512i high = _mm512_srai_epi32(_mm512_slli_epi32(word, 8 - 8 * p), 24);
            out[p] = _mm512_or_si512(_mm512_srli_epi32((__m512i)_mm512_cvtepi32_ps(low), 16), (__m512i)_mm512_cvtepi32_ps(high));
        }
    }
};

// Rows that start with a block.
struct Nf4Lines {
    const Nf4Matrix& matrix;
    __m512i levels;  // bf16, the 16 of them twice, so that bit 4 of an index does not matter
    static constexpr int64_t kSteps = 128, kPairs = 4, kBlocks = 2, kScaleStep = kAcross;
    // The first weight of a byte is in its high nibble; the two of a pair are four nibbles apart.
    static constexpr int order(int pair, int of) { return 8 * (pair / 4) + (pair % 4 ^ 1) + 4 * of; }

    HALFBYTE_AVX512BF16 explicit Nf4Lines(const Nf4Matrix& of)
        : matrix(of), levels(_mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(of.packed.levels)))) {}

    const uint8_t* row(int64_t row) const { return matrix.packed.codes + row * bytes(); }
    int64_t bytes() const { return matrix.columns / 2; }
    // [blocks of a line][kAcross]
    HALFBYTE_AVX512BF16 const float* scales(int64_t first, int64_t count) const {
        const int64_t blocks = matrix.columns / kBlock, padded = (blocks + 15) / 16 * 16;
        float* const straight = scratch<5, float>(kAcross * blocks);
        float* const turned = scratch<6, float>(kAcross * padded);
        take_scales(matrix.packed, first * blocks, count * blocks, straight);
        for (int64_t b = 0; b < blocks; b += 16) {
            const auto there = __mmask16(first_words(std::min<int64_t>(16, blocks - b)));
            __m512i square[16];
            for (int64_t r = 0; r < kAcross; ++r)
                square[r] = r < count ? _mm512_maskz_loadu_epi32(there, straight + r * blocks + b) : _mm512_setzero_si512();
            transpose(square);
            for (int64_t i = 0; i < 16; ++i) _mm512_storeu_si512(turned + (b + i) * kAcross, square[i]);
        }
        return turned;
    }
    // Shifts to the right as products: shifts and look-ups would wait for the same port.
    HALFBYTE_AVX512BF16 void pairs(__m512i word, __m512i* out) const {
        out[0] = _mm512_permutexvar_epi16(word, levels);
        out[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(word, 4), levels);
        out[2] = _mm512_permutexvar_epi16(_mm512_mulhi_epu16(word, _mm512_set1_epi16(1 << 8)), levels);
        out[3] = _mm512_permutexvar_epi16(_mm512_mulhi_epu16(word, _mm512_set1_epi16(1 << 4)), levels);
    }
};

// ---- the product ------------------------------------------------------------------------------------------------------

// sum[r] += columns first..first + count of the output for inputs [pairs][kRows].
template <int kRows, typename Lines>
HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS void add_across(const Lines& lines, int64_t first, int64_t count, const uint32_t* inputs, __m512* sum) {
    constexpr int kWords = 16 / Lines::kBlocks, kPairs = Lines::kPairs;
    const int64_t bytes = lines.bytes();
    const float* scales = lines.scales(first, count);
    const uint8_t* row[kAcross];
    for (int64_t r = 0; r < kAcross; ++r) row[r] = lines.row(first + std::min(r, count - 1));
    const uint8_t* next = lines.row(first) + kAcross * bytes;
    for (int64_t at = 0; at < bytes; at += kLineBytes, next += kAcross * kLineBytes) {
        const __mmask64 there = bytes - at >= kLineBytes ? ~__mmask64(0) : (__mmask64(1) << (bytes - at)) - 1;
        __m512i words[kAcross];
#pragma GCC unroll 16
        for (int r = 0; r < kAcross; ++r) {
            words[r] = _mm512_maskz_loadu_epi8(there, row[r] + at);
            _mm_prefetch(reinterpret_cast<const char*>(next + r * kLineBytes), _MM_HINT_T1);
        }
        transpose(words);
#pragma GCC unroll 2
        for (int block = 0; block < Lines::kBlocks; ++block) {
            __m512 part[kRows];
            for (auto& one : part) one = _mm512_setzero_ps();
#pragma GCC unroll 16
            for (int w = 0; w < kWords; ++w) {
                __m512i pairs[kPairs];
                lines.pairs(words[block * kWords + w], pairs);
#pragma GCC unroll 4
                for (int p = 0; p < kPairs; ++p, inputs += kRows)
#pragma GCC unroll 16
                    for (int r = 0; r < kRows; ++r)
                        part[r] = _mm512_dpbf16_ps(part[r], (__m512bh)pairs[p], (__m512bh)_mm512_set1_epi32(int(inputs[r])));
            }
            const __m512 scale = _mm512_loadu_ps(scales);
            scales += Lines::kScaleStep;
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) sum[r] = _mm512_fmadd_ps(part[r], scale, sum[r]);
        }
    }
}

// Columns first..first + count of kRows rows of the output, from what `lay_out_few` made of x and of the pair's rows.
template <int kRows, typename Lines>
HALFBYTE_AVX512BF16 void multiply_across(const Lines& lines, const DenseMatrix& pair, int64_t first, int64_t count, const uint32_t* inputs,
                                        const uint32_t* pair_inputs, const bf16* bias, bf16* out, int64_t stride) {
    __m512 sum[kRows];
    for (auto& one : sum) one = _mm512_setzero_ps();
    add_across<kRows>(lines, first, count, inputs, sum);
    if (pair_inputs) add_across<kRows>(DenseLines{pair}, first, count, pair_inputs, sum);
    const auto there = __mmask16(first_words(count));
    const __m256i biases = bias ? _mm256_maskz_loadu_epi16(there, bias + first) : _mm256_setzero_si256();
    const __m512 wide = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(biases), 16));
    for (int r = 0; r < kRows; ++r)
        _mm256_mask_storeu_epi16(out + r * stride + first, there, (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(sum[r], wide)));
}

template <typename Lines>
struct FewRows {
    using Function = void (*)(const Lines&, const DenseMatrix&, int64_t, int64_t, const uint32_t*, const uint32_t*, const bf16*, bf16*, int64_t);
    static constexpr Function of[kPanel + 1] = {  // walk.h has fewer than five rows, and two panels have more
        nullptr, nullptr, nullptr, nullptr, nullptr, multiply_across<5, Lines>, multiply_across<6, Lines>, multiply_across<7, Lines>,
        multiply_across<8, Lines>, multiply_across<9, Lines>, multiply_across<10, Lines>, multiply_across<11, Lines>,
        multiply_across<12, Lines>, multiply_across<13, Lines>, multiply_across<14, Lines>, multiply_across<15, Lines>,
        multiply_across<16, Lines>};
};

// Pairs of steps that the inputs of a row take: whole lines.
template <typename Lines>
constexpr int64_t pairs_of(int64_t steps) {
    return (steps + Lines::kSteps - 1) / Lines::kSteps * Lines::kSteps / 2;
}

// Rows of x [rows, steps], `height` at a time: panels [pairs][rows of the panel], one after the other.
template <typename Lines>
HALFBYTE_AVX512BF16 void lay_out_few(const bf16* x, int64_t rows, int64_t height, int64_t steps, uint32_t* out) {
    alignas(64) uint16_t order[32];
    for (int i = 0; i < 32; ++i) order[i] = uint16_t(Lines::order(i / 2, i % 2));
    const int64_t pairs = pairs_of<Lines>(steps);
    for (int64_t r = 0; r < rows; r += height)
        lay_out_rows(x + r * steps, steps, std::min(height, rows - r), steps, pairs, _mm512_load_si512(order), out + r * pairs);
}

template <typename Lines>
void multiply_few(const Task& task, const Lines& lines, const DenseMatrix& pair, int threads) {
    const int64_t panels = (task.rows + kPanel - 1) / kPanel, height = (task.rows + panels - 1) / panels;
    const int64_t pairs = pairs_of<Lines>(task.steps), pair_pairs = pairs_of<DenseLines>(task.pair_steps);
    uint32_t* const inputs = scratch<4, uint32_t>(task.rows * (pairs + pair_pairs));
    uint32_t* const pair_inputs = task.pair_steps ? inputs + task.rows * pairs : nullptr;
    lay_out_few<Lines>(task.x, task.rows, height, task.steps, inputs);
    if (pair_inputs) lay_out_few<DenseLines>(task.pair_x, task.rows, height, task.pair_steps, pair_inputs);
    parallel((task.columns + kAcross - 1) / kAcross, std::max<int64_t>(1, (1 << 12) / pairs), threads, [&](int64_t begin, int64_t end) {
        for (int64_t first = begin * kAcross; first < std::min(end * kAcross, task.columns); first += kAcross)
            for (int64_t r = 0; r < task.rows; r += height) {
                const int64_t rows = std::min(height, task.rows - r);
                FewRows<Lines>::of[rows](lines, pair, first, std::min(kAcross, task.columns - first), inputs + r * pairs,
                                         pair_inputs ? pair_inputs + r * pair_pairs : nullptr, task.bias, task.out + r * task.columns, task.columns);
            }
    });
}

}  // namespace
}  // namespace halfbyte

#endif
