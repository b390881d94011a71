// Tiles of AMX (Intel's Advanced Matrix Extensions): eight registers of 16 rows of 64 bytes, and products of two of them
// added to a third. A process has to ask Linux for them once, and a thread says how large each tile is before it uses any.
#pragma once

#include "common.h"

#ifdef HALFBYTE_AMX

#include <sys/syscall.h>
#include <unistd.h>

namespace halfbyte {

// Whether the processor has bf16 tiles and the system lets this process use them.
inline bool may_use_amx() {
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

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
