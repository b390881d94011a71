// Decoding NF4 and int8, shared by dequantise/ and product/.
//
// The 16 levels times a block's absmax, rounded to the output type, are a table of 16 entries; each weight is then a
// look-up. AVX-512 holds the table in one register and looks 32 (16-bit outputs) or 16 (fp32) nibbles up at once; AVX2
// does it with byte shuffles (for fp32 of the levels themselves, which are multiplied after); the portable code with loads.
// Rejected: multiplying and rounding every weight to 16 bits, four times the work.
#pragma once

#include "common.h"

namespace halfbyte {
namespace {

struct Nf4 {
    const uint8_t* codes;        // two weights a byte, the first in the high nibble
    const void* absmax;          // fp32 [blocks]; uint8 [blocks] with double quantisation
    const float* nested_absmax;  // fp32 [(blocks + 255) / 256], or null
    float offset;
    const float* levels;   // fp32 [16]
    const float* dynamic;  // fp32 [256]

    HALFBYTE_INLINE float scale(int64_t block) const {
        if (!nested_absmax) return load(static_cast<const float*>(absmax) + block);
        const float nested = load(nested_absmax + uint64_t(block) / kNestedBlock);
        return dynamic[static_cast<const uint8_t*>(absmax)[block]] * nested + offset;
    }
};

// The scales of blocks first..first + count. The look-ups and the arithmetic apart, so that the latter is vectorised.
HALFBYTE_INLINE void take_scales(const Nf4& packed, int64_t first, int64_t count, float* out) {
    if (!packed.nested_absmax) {
        std::memcpy(out, static_cast<const float*>(packed.absmax) + first, size_t(count) * sizeof(float));
        return;
    }
    const auto* codes = static_cast<const uint8_t*>(packed.absmax) + first;
    for (int64_t b = 0; b < count; ++b) out[b] = packed.dynamic[codes[b]];
    for (int64_t b = 0; b < count;) {
        const int64_t end = std::min(count, ((first + b) / kNestedBlock + 1) * kNestedBlock - first);
        const float nested = load(packed.nested_absmax + (first + b) / kNestedBlock), offset = packed.offset;
        for (; b < end; ++b) out[b] = out[b] * nested + offset;
    }
}

template <typename T>
HALFBYTE_INLINE void make_table(const Nf4& packed, int64_t block, T* table) {
    const float scale = packed.scale(block);
    for (int k = 0; k < 16; ++k) table[k] = from_float<T>(packed.levels[k] * scale);
}

// Weights first..last of one block.
template <typename T>
void decode_part(const Nf4& packed, int64_t first, int64_t last, T* out) {
    T table[16];
    make_table(packed, first / kBlock, table);
    for (int64_t i = first; i < last; ++i) out[i - first] = table[i % 2 ? packed.codes[i / 2] & 15 : packed.codes[i / 2] >> 4];
}

template <typename T>
void decode_portable(const Nf4& packed, int64_t first_block, int64_t last_block, T* out) {
    for (int64_t b = first_block; b < last_block; ++b, out += kBlock) {
        T table[16];
        make_table(packed, b, table);
        const uint8_t* codes = packed.codes + b * (kBlock / 2);
        for (int64_t i = 0; i < kBlock / 2; ++i) {
            out[2 * i] = table[codes[i] >> 4];
            out[2 * i + 1] = table[codes[i] & 15];
        }
    }
}

#ifdef HALFBYTE_X86
// The 16 levels by their bytes, for byte shuffles: 12 shuffles give 32 levels in fp32.
struct Planes {
    __m256i bytes[4];  // the lowest bytes first, each twice

    HALFBYTE_AVX2 explicit Planes(const float* levels) {
        alignas(16) uint8_t apart[4][16];
        for (int k = 0; k < 16; ++k)
            for (int p = 0; p < 4; ++p) apart[p][k] = uint8_t(bits_of(levels[k]) >> 8 * p);
        for (int p = 0; p < 4; ++p) bytes[p] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(apart[p])));
    }
    // Of 32 indices in bytes. out[q] has those of bytes 4 q to 4 q + 3 of both lanes.
    HALFBYTE_AVX2 HALFBYTE_INLINE void look_up(__m256i index, __m256* out) const {
        __m256i found[4];
        for (int p = 0; p < 4; ++p) found[p] = _mm256_shuffle_epi8(bytes[p], index);
        const __m256i front_low = _mm256_unpacklo_epi8(found[0], found[1]), front_high = _mm256_unpacklo_epi8(found[2], found[3]);
        const __m256i back_low = _mm256_unpackhi_epi8(found[0], found[1]), back_high = _mm256_unpackhi_epi8(found[2], found[3]);
        out[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(front_low, front_high));
        out[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(front_low, front_high));
        out[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(back_low, back_high));
        out[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(back_low, back_high));
    }
};

HALFBYTE_AVX2 HALFBYTE_INLINE void decode_block(const uint8_t* codes, const Planes& planes, __m256 scale, float* out) {
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);  // so that what is looked up lies in order
    for (int half = 0; half < 2; ++half) {                            // 16 bytes, 32 weights
        const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes) + half));
        const __m256i index = _mm256_and_si256(_mm256_or_si256(_mm256_srli_epi16(wide, 4), _mm256_slli_epi16(wide, 8)), _mm256_set1_epi8(15));
        __m256 levels[4];
        planes.look_up(_mm256_permutevar8x32_epi32(index, order), levels);
        for (int q = 0; q < 4; ++q) _mm256_storeu_ps(out + 32 * half + 8 * q, _mm256_mul_ps(levels[q], scale));
    }
}

HALFBYTE_AVX2 inline __m128i round8(__m256 values, bf16) {
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    const __m256i words = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
HALFBYTE_AVX2 inline __m128i round8(__m256 values, f16) {
    return _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// 16-bit outputs: the table's low and high bytes are looked up by a shuffle each and put together again.
template <typename T>
HALFBYTE_AVX2 inline void decode_block(const uint8_t* codes, __m256 front, __m256 back, T* out) {
    const __m128i words0 = round8(front, T{}), words1 = round8(back, T{}), byte = _mm_set1_epi16(255);
    const __m256i low_bytes = _mm256_broadcastsi128_si256(
        _mm_packus_epi16(_mm_and_si128(words0, byte), _mm_and_si128(words1, byte)));
    const __m256i high_bytes = _mm256_broadcastsi128_si256(
        _mm_packus_epi16(_mm_srli_epi16(words0, 8), _mm_srli_epi16(words1, 8)));
    for (int half = 0; half < 2; ++half) {  // 16 bytes, 32 weights
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes) + half);
        const __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
        const __m128i odd = _mm_and_si128(bytes, _mm_set1_epi8(15));
        // weights 0..7 and 16..23 in the lower halves of the lanes, so that unpacking leaves them in order
        __m256i index = _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
        index = _mm256_permute4x64_epi64(index, 0xd8);
        const __m256i low = _mm256_shuffle_epi8(low_bytes, index), high = _mm256_shuffle_epi8(high_bytes, index);
        auto* target = reinterpret_cast<__m256i*>(out + half * 32);
        _mm256_storeu_si256(target, _mm256_unpacklo_epi8(low, high));
        _mm256_storeu_si256(target + 1, _mm256_unpackhi_epi8(low, high));
    }
}

template <typename T>
HALFBYTE_AVX2 void decode_avx2(const Nf4& packed, int64_t first_block, int64_t last_block, T* out) {
    const __m256 front = _mm256_loadu_ps(packed.levels), back = _mm256_loadu_ps(packed.levels + 8);
    const Planes planes(packed.levels);
    for (int64_t b = first_block; b < last_block; ++b, out += kBlock) {
        const uint8_t* codes = packed.codes + b * (kBlock / 2);
        const __m256 scale = _mm256_set1_ps(packed.scale(b));
        if constexpr (sizeof(T) == 4)
            decode_block(codes, planes, scale, out);
        else
            decode_block(codes, _mm256_mul_ps(front, scale), _mm256_mul_ps(back, scale), out);
    }
}

HALFBYTE_AVX512 inline __m256i round16(__m512 values, bf16) {
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_set1_epi32(_mm512_srli_epi32(rounded, 16), nan, 0x7fc0));
}
HALFBYTE_AVX512 inline __m256i round16(__m512 values, f16) {
    return _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <bool kPast>
HALFBYTE_AVX512 inline void put(void* out, __m512i values) {
    if constexpr (kPast)
        _mm512_stream_si512(static_cast<__m512i*>(out), values);
    else
        _mm512_storeu_si512(out, values);
}

// The 32 codes of 16 bytes, in the lowest 4 bits of 16; what is above them is noise.
HALFBYTE_AVX512 inline __m512i codes_in_words(const uint8_t* codes) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    return _mm512_or_si512(_mm512_srli_epi32(wide, 4), _mm512_slli_epi32(wide, 16));
}

// kPast: the output goes past the caches to memory, which then need not be read before it is written; `out` is aligned
// to 64 bytes.
template <typename T, bool kPast = false>
HALFBYTE_AVX512 void decode_avx512(const Nf4& packed, int64_t first_block, int64_t last_block, T* out) {
    const __m512 levels = _mm512_loadu_ps(packed.levels);
    for (int64_t b = first_block; b < last_block; ++b, out += kBlock) {
        const uint8_t* codes = packed.codes + b * (kBlock / 2);
        const __m512 scaled = _mm512_mul_ps(levels, _mm512_set1_ps(packed.scale(b)));
        if constexpr (sizeof(T) == 4) {
            for (int i = 0; i < kBlock / 16; ++i) {  // 8 bytes, 16 weights; the look-up uses an index's low 4 bits
                const auto* bytes = reinterpret_cast<const __m128i*>(codes + 8 * i);
                const __m512i wide = _mm512_cvtepu8_epi64(_mm_loadl_epi64(bytes));
                const __m512i index = _mm512_or_si512(_mm512_srli_epi64(wide, 4), _mm512_slli_epi64(wide, 32));
                put<kPast>(out + 16 * i, _mm512_castps_si512(_mm512_permutexvar_ps(index, scaled)));
            }
        } else {
            const __m512i table = _mm512_broadcast_i64x4(round16(scaled, T{}));  // twice: the index's bit 4 is noise
            for (int i = 0; i < kBlock / 32; ++i) put<kPast>(out + 32 * i, _mm512_permutexvar_epi16(codes_in_words(codes + 16 * i), table));
        }
    }
}
#endif

// The decoder of whole blocks of NF4 for an instruction set.
template <typename T>
auto nf4_decoder(int isa) {
    auto decode = decode_portable<T>;
#ifdef HALFBYTE_X86
    if (isa >= kAvx2) decode = decode_avx2<T>;
    if (isa >= kAvx512) decode = decode_avx512<T>;
#else
    (void)isa;
#endif
    return decode;
}

// Weights first..last of the flat tensor -> out [last - first], in this thread; `past` the caches where that is possible.
template <typename T>
void decode_range(const Nf4& packed, int64_t first, int64_t last, T* out, int isa, bool past = false) {
    const int64_t first_block = (first + kBlock - 1) / kBlock, last_block = last / kBlock;
    if (first_block > last_block) return decode_part(packed, first, last, out);  // inside one block
    if (first < first_block * kBlock) decode_part(packed, first, first_block * kBlock, out);
    T* const whole = out + (first_block * kBlock - first);
    auto decode = nf4_decoder<T>(isa);
#ifdef HALFBYTE_X86
    if (past && isa >= kAvx512 && reinterpret_cast<uintptr_t>(whole) % 64 == 0) decode = decode_avx512<T, true>;
#endif
    decode(packed, first_block, last_block, whole);
#ifdef HALFBYTE_X86
    if (past) _mm_sfence();
#endif
    if (last_block * kBlock < last) decode_part(packed, last_block * kBlock, last, out + (last_block * kBlock - first));
}

// ---- int8 -----------------------------------------------------------------------------------------------------------

template <typename T>
HALFBYTE_INLINE void decode_rows(const int8_t* codes, const float* scale, int64_t rows, int64_t columns, T* out) {
    for (int64_t r = 0; r < rows; ++r) {
        const float row_scale = load(scale + r);
        for (int64_t i = r * columns; i < (r + 1) * columns; ++i)
            out[i] = from_float<T>((float(codes[i]) * row_scale) * (1.0f / 127.0f));
    }
}
template <typename T>
void decode_rows_portable(const int8_t* codes, const float* scale, int64_t rows, int64_t columns, T* out) {
    decode_rows(codes, scale, rows, columns, out);
}
#ifdef HALFBYTE_X86
template <typename T>
HALFBYTE_AVX2 void decode_rows_avx2(const int8_t* codes, const float* scale, int64_t rows, int64_t columns, T* out) {
    decode_rows(codes, scale, rows, columns, out);
}
template <typename T>
HALFBYTE_AVX512 void decode_rows_avx512(const int8_t* codes, const float* scale, int64_t rows, int64_t columns, T* out) {
    decode_rows(codes, scale, rows, columns, out);
}
#endif

// The decoder of rows of int8 for an instruction set.
template <typename T>
auto int8_decoder(int isa) {
    auto decode = decode_rows_portable<T>;
#ifdef HALFBYTE_X86
    if (isa >= kAvx2) decode = decode_rows_avx2<T>;
    if (isa >= kAvx512) decode = decode_rows_avx512<T>;
#else
    (void)isa;
#endif
    return decode;
}

}  // namespace
}  // namespace halfbyte
