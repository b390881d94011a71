// Shared by the native kernels: the floating-point formats, the split over threads, the instruction sets.
//
// Results are specified to the bit (see reference.py beside each cpu.cpp), so every rounding is spelled out here and
// the library is compiled without contraction of a * b + c. Rejected: the compiler's own _Float16 and __bf16, which
// not every supported compiler has and which promote by rules of their own.
//
// Input pointers need no alignment (a mapped file promises none), hence `load`.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(_MSC_VER)
#define HALFBYTE_API extern "C" __declspec(dllexport)
#define HALFBYTE_INLINE __forceinline
#else
#define HALFBYTE_API extern "C" __attribute__((visibility("default")))
#define HALFBYTE_INLINE inline __attribute__((always_inline))
#endif
#define HALFBYTE_APART __restrict  // what this pointer leads to is reached by no other

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HALFBYTE_X86 1
#include <immintrin.h>
#define HALFBYTE_AVX2 __attribute__((target("avx2,fma,f16c")))
#define HALFBYTE_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")))
#define HALFBYTE_AVX512BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c")))
#define HALFBYTE_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")))
#if !defined(HALFBYTE_OLD_ASSEMBLER) && (__clang_major__ >= 12 || (!defined(__clang__) && __GNUC__ >= 11))
#define HALFBYTE_AVXVNNI 1
#endif
#if defined(__linux__) && (__clang_major__ >= 12 || (!defined(__clang__) && __GNUC__ >= 11))  // a system to ask for it
#define HALFBYTE_AMX \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,fma,f16c")))
#endif
#endif

namespace halfbyte {

constexpr int64_t kBlock = 64;         // weights that share an absmax
constexpr int64_t kNestedBlock = 256;  // absmax values that share a nested absmax

// The numbers that native.py passes.
enum Isa : int { kPortable = 0, kAvx2 = 1, kAvxVnni = 2, kAvx512 = 3, kAvx512Vnni = 4, kAvx512Bf16 = 5, kAmx = 6 };
enum Dtype : int { kF32 = 0, kBf16 = 1, kF16 = 2 };

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

template <typename T>
HALFBYTE_INLINE T load(const T* address) {
    T value;  // of the type's own pointer, clang would take it that it is aligned
    std::memcpy(&value, reinterpret_cast<const char*>(address), sizeof value);
    return value;
}

HALFBYTE_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

HALFBYTE_INLINE float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

HALFBYTE_INLINE float to_float(float value) { return value; }
HALFBYTE_INLINE float to_float(bf16 value) { return from_bits(uint32_t(value.bits) << 16); }
HALFBYTE_INLINE float to_float(f16 value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
    const uint32_t finite = bits_of(from_bits(magnitude << 13) * 0x1p112f);  // exact, subnormals too
    const uint32_t special = 0x7f800000 | magnitude << 13;
    return from_bits(sign | (magnitude >= 0x7c00 ? special : finite));
}

// `value` rounded to the nearest fp16 (ties to even), as a float; magnitudes from 65520 on are not handled.
HALFBYTE_INLINE float round_to_f16(float value) {
    const uint32_t bits = bits_of(value), sign = bits & 0x80000000, magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1)) & ~uint32_t(0x1fff);
    const uint32_t subnormal = bits_of((from_bits(magnitude) + 0.5f) - 0.5f);  // a multiple of 2^-24
    return from_bits(sign | (magnitude < 0x38800000 ? subnormal : normal));
}

template <typename T>
HALFBYTE_INLINE T from_float(float value);
template <>
HALFBYTE_INLINE float from_float<float>(float value) {
    return value;
}
template <>
HALFBYTE_INLINE bf16 from_float<bf16>(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return {uint16_t(value != value ? 0x7fc0 : rounded)};
}
template <>
HALFBYTE_INLINE f16 from_float<f16>(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1)) - 0x38000000;
    const uint32_t subnormal = bits_of(from_bits(magnitude) + 0.5f) - 0x3f000000;
    uint32_t half = magnitude < 0x38800000 ? subnormal : normal >> 13;
    half = magnitude >= 0x477ff000 ? 0x7c00 : half;  // from 65520 on: infinity
    half = magnitude > 0x7f800000 ? 0x7e00 : half;
    return {uint16_t(sign | half)};
}

// Calls work(first, last) for parts of 0..count on up to `threads` threads, this one included; a part holds at least
// `grain` items, because waking a thread costs some microseconds. The cut changes no result.
//
// OpenMP where the compiler has it: its runtime is then the one that torch has loaded, so the threads are torch's own.
// Two pools would fight for the cores, since the threads of each go on spinning for a while after their work.
template <typename Work>
void parallel(int64_t count, int64_t grain, int threads, const Work& work) {
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, count / grain));
    const auto part = [&](int64_t index) { work(count * index / parts, count * (index + 1) / parts); };
    if (parts == 1) return part(0);
#ifdef _OPENMP
#pragma omp parallel for num_threads(int(parts)) schedule(static, 1)
    for (int64_t index = 0; index < parts; ++index) part(index);
#else
    std::vector<std::thread> others;
    for (int64_t index = 1; index < parts; ++index) {
        try {
            others.emplace_back(part, index);
        } catch (...) {  // no more threads to be had
            part(index);
        }
    }
    part(0);
    for (auto& thread : others) thread.join();
#endif
}

// As `parallel`, but each thread takes a stretch of what is left when it is done with one: long ones first, which suits the
// reading of memory, then shorter ones, at least `grain` items, so that no thread waits long for another. A thread may be
// given several, and others in the next call: the result of an item must not depend on the cut.
template <typename Work>
void parallel_shared(int64_t count, int64_t grain, int threads, const Work& work) {
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, count / grain));
    if (parts == 1) return work(0, count);
    std::atomic<int64_t> next{0};
    parallel(parts, 1, int(parts), [&](int64_t, int64_t) {
        for (int64_t first = next.load(std::memory_order_relaxed); first < count;) {
            const int64_t last = std::min(count, first + std::max(grain, (count - first) / (2 * parts)));
            if (!next.compare_exchange_weak(first, last, std::memory_order_relaxed)) continue;
            work(first, last);
            first = next.load(std::memory_order_relaxed);
        }
    });
}

#ifdef HALFBYTE_X86
// The first `count` (none if it is negative) of a vector's 32 words of 16 bits.
HALFBYTE_AVX512 inline __mmask32 first_words(int64_t count) {
    return count >= 32 ? ~__mmask32(0) : count <= 0 ? 0 : (__mmask32(1) << count) - 1;
}
#endif

}  // namespace halfbyte
