// Sizes and layouts of the strips that are computed with the products of tiles.h; those of AMX stand in amx.h.
#pragma once

#include "strip.h"

namespace halfbyte::attention {

constexpr int64_t kRows = 64;  // query rows of a strip
constexpr int64_t kKeys = 64;  // keys of a block

// Rounds to bf16; a NaN stays one, since those that arise from bf16 inputs have no bits in the lower half.
HALFBYTE_INLINE uint32_t rounded(float value) {
    const uint32_t bits = bits_of(value);
    return bits + 0x7fff + (bits >> 16 & 1);
}
HALFBYTE_INLINE void put(float value, float* to) { *to = value; }
HALFBYTE_INLINE void put(float value, bf16* to) { to->bits = uint16_t(rounded(value) >> 16); }

// A row of two neighbouring keys into a grouped buffer: [2][kRows] for fp32, [kRows][2] for bf16.
HALFBYTE_INLINE void put_pair(float even, float odd, int64_t r, float* to) { to[r] = even, to[kRows + r] = odd; }
HALFBYTE_INLINE void put_pair(float even, float odd, int64_t r, bf16* to) {
    reinterpret_cast<uint32_t*>(to)[r] = rounded(even) >> 16 | (rounded(odd) & 0xffff0000);
}

}  // namespace halfbyte::attention
