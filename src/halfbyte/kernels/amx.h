// Tiles of AMX (Intel's Advanced Matrix Extensions): eight registers of 16 rows of 64 bytes, and products of two of them
// added to a third. A process has to ask Linux for them once, and a thread says how large each tile is before it uses any.
#pragma once

#include "common.h"

#ifdef HALFBYTE_AMX

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

namespace halfbyte {

// Whether the processor has bf16 tiles (and fp16 arithmetic, as all that have them) and the system lets this process use them. Not every compiler that can use tiles
// knows their names in __builtin_cpu_supports.
inline bool may_use_amx() {
    constexpr unsigned kBits = 1u << 22 | 1u << 23 | 1u << 24;  // amx-bf16, avx512-fp16, amx-tile
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBits) == kBits && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

// Between writing what a tile shall hold and loading it: compilers don't know that a tile load reads memory. Between
// storing a tile and reading that they do.
inline void before_tile_loads() { std::atomic_signal_fence(std::memory_order_seq_cst); }

// What a thread loads: palette 1, and of each register the bytes of a row and the rows. A constant, since compilers take
// the instruction for one that reads 8 bytes and leave out what a local one would hold beyond.
struct TileShape {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};
alignas(64) inline constexpr TileShape kShape{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Full tiles in all eight registers of this thread while it lives. Whoever else uses tiles (torch's products do, in the
// same threads) sets its own before, so nothing is kept.
class TileRegisters {
public:
    HALFBYTE_AMX TileRegisters() { _tile_loadconfig(&kShape); }
    HALFBYTE_AMX ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

}  // namespace halfbyte

#endif
