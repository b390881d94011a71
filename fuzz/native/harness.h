// What the drivers of the native kernels share. A driver is a function `void drive(Input&)` that reads shapes out of an
// input, which the contract of an entry point allows, and calls it on buffers of exactly the promised size.
//
// A buffer lies between two pages that nobody may touch, and ends (or, where the input says so, begins) right at one: a
// single byte too far is a crash, in instructions that AddressSanitizer does not see, too (tiles of AMX), and without any
// sanitizer. What is left of the pages is poisoned where there is AddressSanitizer; without it, it holds a pattern that
// `Buffers::check` looks for afterwards.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#define FUZZ_POISON(data, bytes) ASAN_POISON_MEMORY_REGION(data, bytes)
#define FUZZ_UNPOISON(data, bytes) ASAN_UNPOISON_MEMORY_REGION(data, bytes)
#define FUZZ_ASAN 1
#else
#define FUZZ_POISON(data, bytes) (void)0
#define FUZZ_UNPOISON(data, bytes) (void)0
#define FUZZ_ASAN 0
#endif

extern "C" int halfbyte_isas();

namespace fuzz {

enum Isa : int { kPortable, kAvx2, kAvxVnni, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx };
enum Dtype : int { kF32, kBf16, kF16 };

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "fuzz: %s\n", what);
    std::abort();
}

// The bytes of an input, taken one after another; zeros when they are used up.
struct Input {
    const uint8_t* data;
    size_t size;
    size_t at = 0;

    uint8_t byte() { return at < size ? data[at++] : 0; }
    bool flag() { return byte() & 1; }
    // How many threads a kernel may take: starting some takes longer than all else, so mostly one.
    int threads() {
        const uint8_t value = byte();
        return value % 64 ? 1 : 1 + value / 64;
    }
    // A size from 1: mostly up to `usual`, now and then up to `most`, where other paths begin.
    int64_t count(int64_t usual, int64_t most) { return number(1, byte() % 64 == 63 ? most : usual); }
    // A number in low..high.
    int64_t number(int64_t low, int64_t high) {
        const uint32_t value = byte() | uint32_t(byte()) << 8;
        return low + int64_t(value % uint64_t(high - low + 1));
    }
    int isa(int least = kPortable) {
        static const int there = halfbyte_isas();
        int found[kAmx + 1], count = 0;
        for (int isa = least; isa <= kAmx; ++isa)
            if (there >> isa & 1) found[count++] = isa;
        return count ? found[byte() % count] : -1;
    }
    float real() {
        uint32_t bits = byte();
        for (int i = 1; i < 4; ++i) bits = bits << 8 | byte();
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
};

constexpr int64_t kPage = 4096, kMost = int64_t(1) << 20;  // bytes of the largest buffer
constexpr int kSlots = 80;
constexpr uint8_t kPattern = 0xa5;

// Memory for the buffers of one input. Mapped once; a buffer costs no system call.
class Buffers {
  public:
    explicit Buffers(Input& input) : input_(input) {}
    Buffers(const Buffers&) = delete;
    ~Buffers() {
        for (int i = 0; i < used_; ++i) FUZZ_POISON(slots()[i].begin, size_t(slots()[i].end - slots()[i].begin));
    }

    // `count` elements from a place in a table of random numbers that the input names, and sometimes the first bytes from
    // the input itself. Mostly moderate numbers where `kind` is a dtype; any bits where it is -1.
    template <typename T>
    T* make(int64_t count, int kind = -1) {
        const int64_t bytes = count * int64_t(sizeof(T));
        char* place = take(bytes);
        fill(place, bytes, kind);
        return reinterpret_cast<T*>(place);
    }
    void* of(int dtype, int64_t count) {
        if (dtype == kF32) return make<float>(count, kF32);
        return make<uint16_t>(count, dtype);
    }

    // Nothing was written beside the buffers.
    void check() const {
        for (int i = 0; i < used_ && !FUZZ_ASAN; ++i) {
            const Slot& slot = slots()[i];
            for (const char* c = slot.begin; c < slot.data; ++c)
                if (uint8_t(*c) != kPattern) fail("written before a buffer");
            for (const char* c = slot.data + slot.bytes; c < slot.end; ++c)
                if (uint8_t(*c) != kPattern) fail("written behind a buffer");
        }
    }

  private:
    struct Slot {
        char *begin, *end, *data;  // the pages that are in use, and the buffer in them
        int64_t bytes;
        char* pages;
    };
    static Slot* slots() {
        static Slot made[kSlots] = {};
        return made;
    }

    char* take(int64_t bytes) {
        if (used_ == kSlots || bytes > kMost || bytes < 0) fail("a driver asks for more than there is");
        Slot& slot = slots()[used_++];
        if (!slot.pages) {
            slot.pages = static_cast<char*>(mmap(nullptr, size_t(kMost + 2 * kPage), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
            if (slot.pages == MAP_FAILED || mprotect(slot.pages + kPage, size_t(kMost), PROT_READ | PROT_WRITE)) fail("no memory");
            FUZZ_POISON(slot.pages + kPage, size_t(kMost));
        }
        // At the end of all pages, before the last one that is closed; or at their beginning, behind the first.
        const bool ends = !(input_.byte() & 128);
        const int64_t room = (bytes + kPage - 1) / kPage * kPage;
        slot.begin = ends ? slot.pages + kPage + kMost - room : slot.pages + kPage;
        slot.end = slot.begin + room;
        slot.data = ends ? slot.end - bytes : slot.begin;
        slot.bytes = bytes;
        FUZZ_UNPOISON(slot.begin, size_t(room));
        if (!FUZZ_ASAN) std::memset(slot.begin, kPattern, size_t(room));
        FUZZ_POISON(slot.begin, size_t(slot.data - slot.begin));
        FUZZ_POISON(slot.data + bytes, size_t(slot.end - slot.data - bytes));
        return slot.data;
    }

    void fill(char* data, int64_t bytes, int kind) {
        const int64_t seed = input_.byte() | int64_t(input_.byte()) << 8, from = seed / 8 * 8;
        const char* random = table(seed % 8 == 7 ? -1 : kind);
        for (int64_t i = 0; i < bytes; i += kTable - from) {
            const int64_t left = bytes - i;
            std::memcpy(data + i, random + from, size_t(left < kTable - from ? left : kTable - from));
        }
        const int64_t own = input_.byte() & 3 ? 0 : bytes < 64 ? bytes : 64;  // the input's very bytes
        for (int64_t i = 0; i < own; ++i) data[i] = char(input_.byte());
    }

    // Random bytes: numbers of moderate size of a dtype, or of -1, any.
    static constexpr int64_t kTable = 1 << 17;
    static const char* table(int kind) {
        static char* made[4];
        char*& found = made[kind + 1];
        if (found) return found;
        found = static_cast<char*>(std::malloc(kTable));
        uint64_t state = 0x9e3779b97f4a7c15u;
        for (int64_t i = 0; i < kTable; i += 8) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            uint64_t word = state;
            if (kind == kF32) word = (word & 0x80ffffff80ffffffu) | 0x3e0000003e000000u;
            if (kind == kBf16) word = (word & 0x80ff80ff80ff80ffu) | 0x3e003e003e003e00u;
            if (kind == kF16) word = (word & 0x8fff8fff8fff8fffu) | 0x3000300030003000u;
            std::memcpy(found + i, &word, 8);
        }
        return found;
    }

    Input& input_;
    int used_ = 0;
};

inline bool same(const void* a, const void* b, int64_t bytes) { return std::memcmp(a, b, size_t(bytes)) == 0; }

}  // namespace fuzz

// The one function of a driver, under the name that libFuzzer calls.
#define FUZZ_DRIVER(drive)                                                        \
    extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {     \
        fuzz::Input input{data, size};                                            \
        drive(input);                                                             \
        return 0;                                                                 \
    }
