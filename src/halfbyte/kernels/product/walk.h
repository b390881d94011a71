// Products with 1 to 4 rows (decoding text): nothing matters but how fast the packed matrix comes from memory.
//
// Method: each row of W is walked in the order in which it lies in memory, which is what a processor's own prefetching
// expects; beside it, what comes 8 kB later is asked for into the second-level cache, whose queue is longer, and 1 kB
// later into the first (on a Zen 4 a seventh faster than into the first alone). 64 bytes at a time are decoded in place: for
// NF4 they are 32 words of four codes, of which four look-ups among the levels (whose index is the lowest bits, so a
// shift is all it takes) make 32 weights each. The rows of x are laid out once a call in the order in which these
// weights come, so that they are read from the first-level cache as they are. The lanes of a sum belong to stretches of
// eight columns, hence those of a block lie side by side, and its scale multiplies the sum of its products. Lanes are
// added up only at a row's end, for 16 rows of W at once.
//
// The price: all rows of x are read again for each row of W. few.h shares them among 16 rows of W and takes over from five
// rows on; with one it is slower by a third or more, as its transposing costs more than all of this. From two rows on the
// multipliers are the limit where they take two cycles for a `vdpbf16ps` (Intel; fp16.h is the way round). Rejected: scales decoded for some rows
// of W before, while memory waits (up to a tenth slower); two or four rows of W at a time, which are no faster for one row
// of x; levels and products in fp32, no faster for one row and slower for four, since the inputs are twice as large. For
// two rows of x both came out faster, by a sixth to a quarter, which was not thought worth another path.
#pragma once

#include "layout.h"

#ifdef HALFBYTE_X86

namespace halfbyte {
namespace {

constexpr int64_t kWalkedRows = 4;
constexpr int64_t kFar = 8192, kNear = 1024;  // bytes between what is worked on and what is asked for, by cache
constexpr int64_t kFarDense = 4096;           // of dense bf16, into the second-level cache alone: its lines are due too soon for more
constexpr int64_t kLine = 64;                 // bytes of W that are decoded at once
constexpr int64_t kTogether = 16;             // lanes of a sum, and rows of W whose lanes are added up at once

HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS __m512bh inputs_at(const uint32_t* x) { return (__m512bh)_mm512_load_si512(x); }
HALFBYTE_ALWAYS void ask_ahead(const void* at) {
    _mm_prefetch(static_cast<const char*>(at) + kFar, _MM_HINT_T1);
    _mm_prefetch(static_cast<const char*>(at) + kNear, _MM_HINT_T0);
}

// ---- how a row of each kind of matrix is walked ------------------------------------------------------------------------
//
// kSteps: columns to a line. kVectors: how many vectors of inputs a line takes for each row of x; they lie [line][vector]
// [row of x]. `lay_out` makes those of a line of one row, `apart` words from each other, of x's `left` values from there on.
// `add_row` adds the products of a row of W with kRows rows of x to the lanes of sum [kRows].

struct DenseWalk {
    const DenseMatrix matrix;
    static constexpr int64_t kSteps = 32, kVectors = 1;

    HALFBYTE_AVX512BF16 static void lay_out(const bf16* x, int64_t left, uint32_t* out, int64_t) {
        _mm512_store_si512(out, _mm512_maskz_loadu_epi16(first_words(left), x));
    }
    template <int kRows>
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS void add_row(int64_t row, const uint32_t* x, __m512* sum) const {
        const bf16* weights = matrix.weights + row * matrix.columns;
        int64_t left = matrix.columns;
        if (left >= 2 * kSteps) {  // with two sums, since one chain of products would be slower than memory
            __m512 other[kRows];
            for (auto& one : other) one = _mm512_setzero_ps();
            for (; left >= 2 * kSteps; left -= 2 * kSteps, weights += 2 * kSteps, x += 2 * kRows * kTogether) {
                add_whole_line<kRows>(weights, x, sum);
                add_whole_line<kRows>(weights + kSteps, x + kRows * kTogether, other);
            }
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) sum[r] = _mm512_add_ps(sum[r], other[r]);
        }
        for (; left > 0; left -= kSteps, weights += kSteps, x += kRows * kTogether)
            add_line<kRows>(_mm512_maskz_loadu_epi16(first_words(left), weights), x, sum);
    }

private:
    template <int kRows>
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS static void add_whole_line(const bf16* weights, const uint32_t* x, __m512* sum) {
        _mm_prefetch(reinterpret_cast<const char*>(weights) + kFarDense, _MM_HINT_T1);
        add_line<kRows>(_mm512_loadu_si512(weights), x, sum);
    }
    template <int kRows>
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS static void add_line(__m512i words, const uint32_t* x, __m512* sum) {
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)words, inputs_at(x + r * kTogether));
    }
};

// In fp32: to make bf16 of bytes would cost more than the products.
struct Int8Walk {
    const Int8Matrix matrix;
    static constexpr int64_t kSteps = 64, kVectors = 4;

    HALFBYTE_AVX512BF16 static void lay_out(const bf16* x, int64_t left, uint32_t* out, int64_t apart) {
        for (int64_t v = 0; v < kVectors; ++v) {
            const __m256i words = _mm256_maskz_loadu_epi16(__mmask16(first_words(left - 16 * v)), x + 16 * v);
            _mm512_store_si512(out + v * apart, _mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
        }
    }
    template <int kRows>
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS void add_row(int64_t row, const uint32_t* x, __m512* sum) const {
        const int8_t* codes = matrix.codes + row * matrix.columns;
        int64_t left = matrix.columns;
        __m512 all[kRows];
        for (auto& one : all) one = _mm512_setzero_ps();
        for (; left >= kSteps; left -= kSteps, codes += kSteps, x += kRows * kVectors * kTogether) {
            ask_ahead(codes);
            add_line<kRows>(codes, x, all);
        }
        if (left > 0) {
            alignas(64) int8_t rest[kSteps];
            _mm512_store_si512(rest, _mm512_maskz_loadu_epi8((__mmask64(1) << left) - 1, codes));
            add_line<kRows>(rest, x, all);
        }
        const __m512 scale = _mm512_set1_ps(load(matrix.scale + row) * (1.0f / 127.0f));
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sum[r] = _mm512_fmadd_ps(all[r], scale, sum[r]);
    }

private:
    template <int kRows>
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS static void add_line(const int8_t* codes, const uint32_t* x, __m512* all) {
        __m512 weights[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
            weights[v] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes) + v)));
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const auto input = [&](int v) { return reinterpret_cast<const float*>(x + (v * kRows + r) * kTogether); };
            const __m512 front = _mm512_fmadd_ps(weights[1], _mm512_load_ps(input(1)), _mm512_mul_ps(weights[0], _mm512_load_ps(input(0))));
            const __m512 back = _mm512_fmadd_ps(weights[3], _mm512_load_ps(input(3)), _mm512_mul_ps(weights[2], _mm512_load_ps(input(2))));
            all[r] = _mm512_add_ps(all[r], _mm512_add_ps(front, back));
        }
    }
};

// How a line of NF4 codes, 32 words of four, is multiplied. `Scale`: of its two blocks. `kOneRow`: whether it has `add_one` for
// a single row of x. The levels are 16-bit numbers, the 16 of them twice, so that bit 4 of an index does not matter.
struct Bf16Line {
    using Scale = __m512;
    static constexpr bool kOneRow = true;

    HALFBYTE_AVX512BF16 static __m512i levels(const float* of) {
        return _mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(of)));
    }
    template <typename T>
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS static Scale both(T front, T back) {
        return _mm512_mask_broadcastss_ps(_mm512_set1_ps(front), 0xff00, _mm_set_ss(back));
    }
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS static Scale scaled(Scale by, Scale nested, __m512 offset) { return _mm512_fmadd_ps(by, nested, offset); }
    template <int kRows>
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS static void add(const __m512i* indices, __m512i levels, Scale scale, const uint32_t* x, __m512* sum) {
        __m512 part[kRows];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) part[r] = _mm512_setzero_ps();
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
            const __m512i weights = _mm512_permutexvar_epi16(indices[v], levels);
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r)
                part[r] = _mm512_dpbf16_ps(part[r], (__m512bh)weights, inputs_at(x + (v * kRows + r) * kTogether));
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sum[r] = _mm512_fmadd_ps(part[r], scale, sum[r]);
    }

    // The same for one row, loads and scale included. As assembly for the order of its instructions, and because compilers
    // put the scale together by a masked broadcast, which on a Zen 4 waits for the pipes of the look-ups: 9.2 cycles a line
    // from the caches instead of 10; four pipes need 7.
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS static void add_one(const uint8_t* codes, __m512i levels, float front, float back, Scale nested,
                                                            __m512 offset, const uint32_t* x, __m512* sum) {
        const auto* line = reinterpret_cast<const __m512i_u*>(codes);
        const auto* inputs = reinterpret_cast<const __m512i*>(x);
        __m512i first, second, third, fourth;
        __m512 part, scale;
        asm("vmovdqu64 %[line], %[first]\n\t"
            "vpxord %x[part], %x[part], %x[part]\n\t"
            "vpsrlw $4, %[first], %[second]\n\t"
            "vpsrlw $8, %[first], %[third]\n\t"
            "vpsrlw $12, %[first], %[fourth]\n\t"
            "vpermw %[levels], %[first], %[first]\n\t"
            "vdpbf16ps %[x0], %[first], %[part]\n\t"
            "vpermw %[levels], %[second], %[second]\n\t"
            "vdpbf16ps %[x1], %[second], %[part]\n\t"
            "vpermw %[levels], %[third], %[third]\n\t"
            "vdpbf16ps %[x2], %[third], %[part]\n\t"
            "vpermw %[levels], %[fourth], %[fourth]\n\t"
            "vdpbf16ps %[x3], %[fourth], %[part]\n\t"
            "vinsertf64x4 $1, %[back], %[front], %[scale]\n\t"
            "vfmadd132ps %[nested], %[offset], %[scale]\n\t"
            "vfmadd231ps %[part], %[scale], %[sum]"
            : [first] "=&v"(first), [second] "=&v"(second), [third] "=&v"(third), [fourth] "=&v"(fourth), [part] "=&v"(part),
              [scale] "=&v"(scale), [sum] "+&v"(*sum)
            : [line] "m"(*line), [x0] "m"(inputs[0]), [x1] "m"(inputs[1]), [x2] "m"(inputs[2]), [x3] "m"(inputs[3]), [levels] "v"(levels),
              [front] "v"(_mm512_castps256_ps512(_mm256_set1_ps(front))), [back] "v"(_mm256_set1_ps(back)), [nested] "v"(nested),
              [offset] "v"(offset));
    }
};

// Rows that start with a block. A line is two blocks, but for the last one where a row ends with half a line.
template <typename Line>
struct Nf4Walk {
    const Nf4Matrix matrix;
    const __m512i levels;
    float unscale[kWalkedRows] = {1, 1, 1, 1};  // what the sums of each row of x are multiplied with
    static constexpr int64_t kSteps = 128, kVectors = 4;

    HALFBYTE_AVX512BF16 explicit Nf4Walk(const Nf4Matrix& of) : matrix(of), levels(Line::levels(of.packed.levels)) {}

    // A word's lowest four bits are its second weight, then come the first, the fourth and the third.
    HALFBYTE_AVX512BF16 static void lay_out(const bf16* x, int64_t left, uint32_t* out, int64_t apart) {
        __m512i steps[4];
        for (int i = 0; i < 4; ++i) steps[i] = _mm512_maskz_loadu_epi16(first_words(left - 32 * i), x + 32 * i);
        for (int v = 0; v < kVectors; ++v) {
            alignas(64) uint16_t order[32];
            for (int i = 0; i < 32; ++i) order[i] = uint16_t(i % 16 * 4 + (v ^ 1));
            const __m512i from = _mm512_load_si512(order);
            const __m512i front = _mm512_permutex2var_epi16(steps[0], from, steps[1]);
            const __m512i back = _mm512_permutex2var_epi16(steps[2], from, steps[3]);
            _mm512_store_si512(out + v * apart, _mm512_inserti64x4(front, _mm512_castsi512_si256(back), 1));
        }
    }
    template <int kRows>
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS void add_row(int64_t row, const uint32_t* x, __m512* sum) const {
        const uint8_t* codes = matrix.packed.codes + row * (matrix.columns / 2);
        int64_t block = row * (matrix.columns / kBlock), left = matrix.columns;
        __m512 all[kRows];
        for (auto& one : all) one = _mm512_setzero_ps();
        const Nf4& packed = matrix.packed;
        if (packed.nested_absmax)
            add_lines<kRows>(Doubly{static_cast<const uint8_t*>(packed.absmax), packed.dynamic, packed.nested_absmax, packed.offset}, codes, block,
                             left, x, all);
        else
            add_lines<kRows>(Singly{static_cast<const float*>(packed.absmax)}, codes, block, left, x, all);
        if (left > 0) {
            const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
            const float scale = packed.scale(block);
            add_line<kRows>(_mm512_zextsi256_si512(half), Line::both(scale, scale), x, all);
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sum[r] = _mm512_fmadd_ps(all[r], _mm512_set1_ps(unscale[r]), sum[r]);
    }

private:
    using Scale = typename Line::Scale;
    // The scale of a block is its absmax times nested + offset.
    struct Doubly {
        const uint8_t* codes;
        const float *dynamic, *of_256;
        float offset;
        HALFBYTE_ALWAYS float absmax(int64_t block) const { return dynamic[codes[block]]; }
        HALFBYTE_ALWAYS float nested(int64_t block) const { return load(of_256 + uint64_t(block) / kNestedBlock); }
    };
    struct Singly {
        const float* values;
        static constexpr float offset = 0.0f;
        HALFBYTE_ALWAYS float absmax(int64_t block) const { return load(values + block); }
        HALFBYTE_ALWAYS static float nested(int64_t) { return 1.0f; }
    };
    // All whole lines from `codes` on, which begin with `block`.
    template <int kRows, typename Constants>
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS void add_lines(const Constants& of, const uint8_t*& codes, int64_t& block, int64_t& left,
                                                       const uint32_t*& x, __m512* all) const {
        const __m512 offset = _mm512_set1_ps(of.offset);
        while (left >= kSteps) {  // lines whose blocks share a nested absmax, or one whose two blocks do not
            const int64_t share = std::max<int64_t>(1, (kNestedBlock - block % kNestedBlock) / 2), lines = std::min(left / kSteps, share);
            const auto nested = Line::both(of.nested(block), of.nested(block + 1));
            left -= lines * kSteps;
            for (const int64_t end = block + 2 * lines; block < end; block += 2, codes += kLine, x += kRows * kVectors * kTogether) {
                ask_ahead(codes);
                if constexpr (kRows == 1 && Line::kOneRow)
                    Line::add_one(codes, levels, of.absmax(block), of.absmax(block + 1), nested, offset, x, all);
                else
                    add_line<kRows>(_mm512_loadu_si512(codes), Line::scaled(Line::both(of.absmax(block), of.absmax(block + 1)), nested, offset), x, all);
            }
        }
    }
    template <int kRows>
    HALFBYTE_AVX512BF16 HALFBYTE_ALWAYS void add_line(__m512i words, const Scale& scale, const uint32_t* x, __m512* sum) const {
        asm("" : "+v"(words));  // loaded once: compilers would fold the load into each use
        const __m512i indices[] = {words, _mm512_srli_epi16(words, 4), _mm512_srli_epi16(words, 8), _mm512_srli_epi16(words, 12)};
        Line::template add<kRows>(indices, levels, scale, x, sum);
    }
};

// ---- the product -------------------------------------------------------------------------------------------------------

// The sums of the lanes of 16 vectors, each in a lane.
HALFBYTE_AVX512BF16 inline __m512 lane_sums(__m512i* vectors) {
    transpose(vectors);
    __m512 sum[kTogether];
    for (int i = 0; i < kTogether; ++i) sum[i] = _mm512_castsi512_ps(vectors[i]);
    for (int width = kTogether / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) sum[i] = _mm512_add_ps(sum[i], sum[i + width]);
    return sum[0];
}

// Columns first..last of the output, from what `lay_out_walk` made of x and of the pair's rows.
template <int kRows, typename Walk>
HALFBYTE_AVX512BF16 void walk_columns(const Task& task, const Walk& walk, const DenseWalk& pair, const uint32_t* inputs,
                                      const uint32_t* pair_inputs, int64_t first, int64_t last) {
    for (; first < last; first += kTogether) {
        const int64_t count = std::min(kTogether, last - first);
        const auto there = __mmask16(first_words(count));
        __m512i lanes[kRows][kTogether];
        for (int64_t i = 0; i < kTogether; ++i) {
            __m512 sum[kRows];
            for (auto& one : sum) one = _mm512_setzero_ps();
            if (i < count) {
                walk.template add_row<kRows>(first + i, inputs, sum);
                if (pair_inputs) pair.add_row<kRows>(first + i, pair_inputs, sum);
            }
            for (int r = 0; r < kRows; ++r) lanes[r][i] = _mm512_castps_si512(sum[r]);
        }
        const __m256i biases = task.bias ? _mm256_maskz_loadu_epi16(there, task.bias + first) : _mm256_setzero_si256();
        const __m512 wide = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(biases), 16));
        for (int r = 0; r < kRows; ++r) {
            const __m512 sums = _mm512_add_ps(lane_sums(lanes[r]), wide);
            _mm256_mask_storeu_epi16(task.out + r * task.columns + first, there, (__m256i)_mm512_cvtneps_pbh(sums));
        }
    }
}

// Words that the inputs of a row of x take: whole lines.
template <typename Walk>
constexpr int64_t input_words(int64_t steps) {
    return (steps + Walk::kSteps - 1) / Walk::kSteps * Walk::kVectors * kTogether;
}

template <typename Walk>
HALFBYTE_AVX512BF16 void lay_out_walk(const bf16* x, int64_t rows, int64_t steps, uint32_t* out) {
    const int64_t apart = rows * kTogether;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t step = 0; step < steps; step += Walk::kSteps)
            Walk::lay_out(x + r * steps + step, steps - step, out + step / Walk::kSteps * Walk::kVectors * apart + r * kTogether, apart);
}

template <typename Walk>
HALFBYTE_AVX512BF16 void multiply_walking(const Task& task, const Walk& walk, const DenseMatrix& beside, int threads) {
    constexpr std::array of{walk_columns<1, Walk>, walk_columns<2, Walk>, walk_columns<3, Walk>, walk_columns<4, Walk>};
    const auto columns = of[size_t(task.rows - 1)];
    const int64_t words = task.rows * input_words<Walk>(task.steps), pair_words = task.rows * input_words<DenseWalk>(task.pair_steps);
    uint32_t* const inputs = scratch<4, uint32_t>(words + pair_words);
    uint32_t* const pair_inputs = task.pair_steps ? inputs + words : nullptr;
    lay_out_walk<Walk>(task.x, task.rows, task.steps, inputs);
    if (pair_inputs) lay_out_walk<DenseWalk>(task.pair_x, task.rows, task.pair_steps, pair_inputs);
    const DenseWalk pair{beside};
    const int64_t groups = (task.columns + kTogether - 1) / kTogether;
    parallel_shared(groups, std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(1, task.steps)), threads, [&](int64_t begin, int64_t end) {
        columns(task, walk, pair, inputs, pair_inputs, begin * kTogether, std::min(end * kTogether, task.columns));
    });
}

}  // namespace
}  // namespace halfbyte

#endif
