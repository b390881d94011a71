// Quantises to NF4 and int8; reference.py is the specification, to the bit.
//
// A block of 64 is read twice (from the first-level cache the second time): for its absmax, then for its codes. A code
// is the number of bounds (midpoints of neighbouring levels) that lie below the scaled weight. The portable code counts
// all 15, which compilers vectorise well; AVX2 is that same code, compiled for AVX2. AVX-512 instead sorts the scaled
// weight into one of 32 equal cells, each of which holds at most one bound, looks that bound up in a register and
// compares once. The cell is a monotone function that the bounds themselves went through, so no rounding can misplace
// a weight. Rejected: a binary search in registers (twice the instructions).
//
// NaN and infinity show as an absmax whose bits, as an integer, are those of infinity or more; no extra pass.
#include <atomic>

#include "../common.h"

namespace halfbyte {
namespace {

constexpr float kTiny = 1e-38f;  // smallest divisor; what bitsandbytes uses
constexpr uint32_t kInfinity = 0x7f800000;

enum Fault : int { kNone = 0, kNotFinite = 1, kTooLarge = 2 };

// ---- NF4 ------------------------------------------------------------------------------------------------------------

// Encodes `count` (1 to 64) weights; false if one is not finite. A block that is not full divides where a full one
// multiplies by the reciprocal, and stores an absmax of at least kTiny; that too is what bitsandbytes does.
template <typename T, bool full>
HALFBYTE_INLINE bool encode_block(const T* weight, int64_t count, const float* bounds, uint8_t* codes, float* absmax) {
    float values[kBlock] = {};
    uint32_t largest = 0;
    const int64_t n = full ? kBlock : count;
    for (int64_t i = 0; i < n; ++i) values[i] = to_float(load(weight + i));
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, bits_of(values[i]) & 0x7fffffff);
    if (largest >= kInfinity) return false;
    const float divisor = std::max(from_bits(largest), kTiny), factor = 1.0f / divisor;
    *absmax = full ? from_bits(largest) : divisor;
    int32_t code[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) {
        const float scaled = full ? values[i] * factor : values[i] / divisor;
        int32_t below = 0;
        for (int k = 0; k < 15; ++k) below += scaled > bounds[k];
        code[i] = below;
    }
    for (int64_t i = 0; i < (n + 1) / 2; ++i) codes[i] = uint8_t(code[2 * i] << 4 | code[2 * i + 1]);
    return true;
}

template <typename T>
HALFBYTE_INLINE bool encode_blocks(const T* weight, int64_t blocks, const float* bounds, uint8_t* codes, float* absmax) {
    for (int64_t b = 0; b < blocks; ++b)
        if (!encode_block<T, true>(weight + b * kBlock, kBlock, bounds, codes + b * (kBlock / 2), absmax + b)) return false;
    return true;
}

template <typename T>
bool encode_portable(const T* weight, int64_t blocks, const float* bounds, uint8_t* codes, float* absmax) {
    return encode_blocks(weight, blocks, bounds, codes, absmax);
}

#ifdef HALFBYTE_X86
template <typename T>
HALFBYTE_AVX2 bool encode_avx2(const T* weight, int64_t blocks, const float* bounds, uint8_t* codes, float* absmax) {
    return encode_blocks(weight, blocks, bounds, codes, absmax);
}

// 32 weights as two vectors: those with an even index (high nibbles) and those with an odd one (low nibbles).
struct Pairs {
    __m512 even, odd;
};
HALFBYTE_AVX512 inline Pairs deinterleave(__m512 low, __m512 high) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    return {_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high)};
}
HALFBYTE_AVX512 inline Pairs load_pairs(const bf16* weight) {
    const __m512i both = _mm512_loadu_si512(weight);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(int(0xffff0000))))};
}
HALFBYTE_AVX512 inline Pairs load_pairs(const float* weight) {
    return deinterleave(_mm512_loadu_ps(weight), _mm512_loadu_ps(weight + 16));
}
HALFBYTE_AVX512 inline Pairs load_pairs(const f16* weight) {
    const auto* halves = reinterpret_cast<const __m256i*>(weight);
    return deinterleave(_mm512_cvtph_ps(_mm256_loadu_si256(halves)), _mm512_cvtph_ps(_mm256_loadu_si256(halves + 1)));
}

HALFBYTE_INLINE int32_t cell_of(float scaled) { return int32_t(scaled * 15.5f + 16.0f); }  // -1..1 -> 0..31

// For each cell, how many bounds lie in the cells below, and the bound that lies in it (or any that is above).
struct Cells {
    float bound[32];
    int32_t below[32];
};

// False if two bounds share a cell; then the portable code has to do.
bool make_cells(const float* bounds, Cells* cells) {
    for (int cell = 0, k = 0; cell < 32; ++cell) {
        cells->below[cell] = k;
        cells->bound[cell] = k < 15 ? bounds[k] : 2.0f;
        if (k < 15 && cell_of(bounds[k]) == cell) ++k;
        if (k < 15 && cell_of(bounds[k]) == cell) return false;
    }
    return true;
}

struct CellVectors {
    __m512 bound0, bound1;
    __m512i below0, below1;
};
HALFBYTE_AVX512 inline __m512i encode16(__m512 value, __m512 factor, const CellVectors& cells) {
    const __m512 scaled = _mm512_mul_ps(value, factor);
    const __m512 position = _mm512_add_ps(_mm512_mul_ps(scaled, _mm512_set1_ps(15.5f)), _mm512_set1_ps(16.0f));
    const __m512i cell = _mm512_cvttps_epi32(position);
    const __m512 bound = _mm512_permutex2var_ps(cells.bound0, cell, cells.bound1);
    const __m512i below = _mm512_permutex2var_epi32(cells.below0, cell, cells.below1);
    return _mm512_mask_add_epi32(below, _mm512_cmp_ps_mask(scaled, bound, _CMP_GT_OQ), below, _mm512_set1_epi32(1));
}
HALFBYTE_AVX512 inline __m128i encode32(const Pairs& pairs, __m512 factor, const CellVectors& cells) {
    const __m512i high = encode16(pairs.even, factor, cells), low = encode16(pairs.odd, factor, cells);
    return _mm512_cvtepi32_epi8(_mm512_or_si512(_mm512_slli_epi32(high, 4), low));
}
HALFBYTE_AVX512 inline __m512i magnitude_max(const Pairs& pairs) {
    const __m512i mask = _mm512_set1_epi32(0x7fffffff);
    return _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(pairs.even), mask),
                            _mm512_and_si512(_mm512_castps_si512(pairs.odd), mask));
}

template <typename T>
HALFBYTE_AVX512 bool encode_avx512(const T* weight, int64_t blocks, const float* bounds, uint8_t* codes, float* absmax) {
    Cells table;
    if (!make_cells(bounds, &table)) return encode_blocks(weight, blocks, bounds, codes, absmax);
    const CellVectors cells{_mm512_loadu_ps(table.bound), _mm512_loadu_ps(table.bound + 16),
                            _mm512_loadu_si512(table.below), _mm512_loadu_si512(table.below + 16)};
    for (int64_t b = 0; b < blocks; ++b) {
        const Pairs first = load_pairs(weight + b * kBlock), second = load_pairs(weight + b * kBlock + 32);
        const uint32_t largest = _mm512_reduce_max_epu32(_mm512_max_epu32(magnitude_max(first), magnitude_max(second)));
        if (largest >= kInfinity) return false;
        absmax[b] = from_bits(largest);
        const __m512 factor = _mm512_set1_ps(1.0f / std::max(from_bits(largest), kTiny));
        auto* out = reinterpret_cast<__m128i*>(codes + b * (kBlock / 2));
        _mm_storeu_si128(out, encode32(first, factor, cells));
        _mm_storeu_si128(out + 1, encode32(second, factor, cells));
    }
    return true;
}
#endif

template <typename T>
int quantise_nf4(const T* weight, int64_t n, const float* bounds, uint8_t* codes, float* absmax, int threads, int isa) {
    auto encode = encode_portable<T>;
#ifdef HALFBYTE_X86
    if (isa >= kAvx2) encode = encode_avx2<T>;
    if (isa >= kAvx512) encode = encode_avx512<T>;
#else
    (void)isa;
#endif
    const int64_t blocks = n / kBlock, rest = n % kBlock;
    std::atomic<bool> finite{true};
    parallel(blocks, 2048, threads, [&](int64_t first, int64_t last) {
        if (!encode(weight + first * kBlock, last - first, bounds, codes + first * (kBlock / 2), absmax + first))
            finite = false;
    });
    if (rest && !encode_block<T, false>(weight + blocks * kBlock, rest, bounds, codes + blocks * (kBlock / 2), absmax + blocks))
        finite = false;
    return finite ? kNone : kNotFinite;
}

// ---- int8 -----------------------------------------------------------------------------------------------------------

template <typename T>
HALFBYTE_INLINE int encode_row(const T* __restrict weight, int64_t columns, int8_t* __restrict codes, float* scale) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < columns; ++i) largest = std::max(largest, bits_of(to_float(load(weight + i))) & 0x7fffffff);
    if (largest >= kInfinity) return kNotFinite;
    if (from_bits(largest) > 65504.0f) return kTooLarge;
    *scale = round_to_f16(from_bits(largest));  // rounding keeps the order, so this is the absmax of the rounded row
    const float factor = *scale > 0.0f ? (1.0f / *scale) * 127.0f : 0.0f;  // torch's 127 / scale: rounded twice
    for (int64_t i = 0; i < columns; ++i) {
        const float scaled = round_to_f16(to_float(load(weight + i))) * factor;
        codes[i] = int8_t(int32_t((scaled + 0x1.8p23f) - 0x1.8p23f));  // to the nearest integer, ties to even
    }
    return kNone;
}

template <typename T>
HALFBYTE_INLINE int encode_rows(const T* weight, int64_t rows, int64_t columns, int8_t* codes, float* scale) {
    for (int64_t r = 0; r < rows; ++r)
        if (const int fault = encode_row(weight + r * columns, columns, codes + r * columns, scale + r)) return fault;
    return kNone;
}

template <typename T>
int encode_rows_portable(const T* weight, int64_t rows, int64_t columns, int8_t* codes, float* scale) {
    return encode_rows(weight, rows, columns, codes, scale);
}
#ifdef HALFBYTE_X86
template <typename T>
HALFBYTE_AVX2 int encode_rows_avx2(const T* weight, int64_t rows, int64_t columns, int8_t* codes, float* scale) {
    return encode_rows(weight, rows, columns, codes, scale);
}
template <typename T>
HALFBYTE_AVX512 int encode_rows_avx512(const T* weight, int64_t rows, int64_t columns, int8_t* codes, float* scale) {
    return encode_rows(weight, rows, columns, codes, scale);
}
#endif

template <typename T>
int quantise_int8(const T* weight, int64_t rows, int64_t columns, int8_t* codes, float* scale, int threads, int isa) {
    auto encode = encode_rows_portable<T>;
#ifdef HALFBYTE_X86
    if (isa >= kAvx2) encode = encode_rows_avx2<T>;
    if (isa >= kAvx512) encode = encode_rows_avx512<T>;
#else
    (void)isa;
#endif
    std::atomic<int> fault{kNone};
    parallel(rows, 1 + (1 << 17) / columns, threads, [&](int64_t first, int64_t last) {
        const int found = encode(weight + first * columns, last - first, columns, codes + first * columns, scale + first);
        if (found) fault = found;
    });
    return fault;
}

}  // namespace
}  // namespace halfbyte

using namespace halfbyte;

// weight [n] -> codes uint8 [(n + 1) / 2], absmax fp32 [(n + 63) / 64]; bounds fp32 [15]. Returns a Fault.
HALFBYTE_API int halfbyte_quantise_nf4(const void* weight, int dtype, int64_t n, const float* bounds, uint8_t* codes,
                                       float* absmax, int threads, int isa) {
    if (dtype == kBf16) return quantise_nf4(static_cast<const bf16*>(weight), n, bounds, codes, absmax, threads, isa);
    if (dtype == kF16) return quantise_nf4(static_cast<const f16*>(weight), n, bounds, codes, absmax, threads, isa);
    return quantise_nf4(static_cast<const float*>(weight), n, bounds, codes, absmax, threads, isa);
}

// Double quantisation: absmax fp32 [blocks] - offset -> codes uint8 [blocks], nested_absmax fp32 [(blocks + 255) / 256].
// `lookup` uint8 [65536] gives the code of the quotient that is scaled from -1..1 to 0..65535 (see reference.py).
HALFBYTE_API void halfbyte_quantise_absmax(const float* absmax, int64_t blocks, float offset, const uint8_t* lookup,
                                           uint8_t* codes, float* nested_absmax, int threads) {
    parallel((blocks + kNestedBlock - 1) / kNestedBlock, 64, threads, [=](int64_t first, int64_t last) {
        for (int64_t nested = first; nested < last; ++nested) {
            const int64_t begin = nested * kNestedBlock, end = std::min(begin + kNestedBlock, blocks);
            float largest = 0.0f;
            for (int64_t i = begin; i < end; ++i) largest = std::max(largest, from_bits(bits_of(absmax[i] - offset) & 0x7fffffff));
            nested_absmax[nested] = largest;
            if (largest == 0.0f) {
                std::memset(codes + begin, 0, size_t(end - begin));
                continue;
            }
            const float factor = 1.0f / largest;  // infinite if `largest` is below 2^-128; 0 * factor is then NaN
            for (int64_t i = begin; i < end; ++i) {
                const float scaled = (absmax[i] - offset) * factor;
                const float share = (std::min(std::max(scaled, -1.0f), 1.0f) + 1.0f) * 0.5f;
                codes[i] = scaled == scaled ? lookup[int32_t(share * 65535.0f + 0.5f)] : 0;
            }
        }
    });
}

// weight [rows, columns] -> codes int8 [rows, columns], scale fp32 [rows]. Returns a Fault.
HALFBYTE_API int halfbyte_quantise_int8(const void* weight, int dtype, int64_t rows, int64_t columns, int8_t* codes,
                                        float* scale, int threads, int isa) {
    if (dtype == kBf16)
        return quantise_int8(static_cast<const bf16*>(weight), rows, columns, codes, scale, threads, isa);
    if (dtype == kF16) return quantise_int8(static_cast<const f16*>(weight), rows, columns, codes, scale, threads, isa);
    return quantise_int8(static_cast<const float*>(weight), rows, columns, codes, scale, threads, isa);
}
