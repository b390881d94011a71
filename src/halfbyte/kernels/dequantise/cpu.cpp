// Dequantises NF4 and int8; reference.py is the specification, to the bit, decode.h has the method.
#include "../amx.h"
#include "../decode.h"

#ifdef HALFBYTE_X86
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace halfbyte {
namespace {

constexpr int64_t kCached = 16 << 20;  // bytes; of a larger output the first part has left the caches before it is used

// A range may start and end anywhere; each thread takes whole blocks.
template <typename T>
void dequantise_nf4(const Nf4& packed, int64_t first, int64_t last, T* out, int threads, int isa) {
    const int64_t first_block = first / kBlock, last_block = (last + kBlock - 1) / kBlock;
    parallel(last_block - first_block, 4096, threads, [&](int64_t begin, int64_t end) {
        const int64_t from = std::max(first, (first_block + begin) * kBlock), to = std::min(last, (first_block + end) * kBlock);
        decode_range(packed, from, to, out + (from - first), isa, (last - first) * int64_t(sizeof(T)) > kCached);
    });
}

template <typename T>
void dequantise_int8(const int8_t* codes, const float* scale, int64_t rows, int64_t columns, T* out, int threads, int isa) {
    parallel(rows, 1 + (1 << 18) / columns, threads, [&](int64_t first, int64_t last) {
        int8_decoder<T>(isa)(codes + first * columns, scale + first, last - first, columns, out + first * columns);
    });
}

#ifdef HALFBYTE_X86
bool has_f16c() {  // a name that clang 17 does not know
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
[[maybe_unused]] bool has_avx_vnni() {  // likewise; clang knows it from 19 on
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

}  // namespace
}  // namespace halfbyte

using namespace halfbyte;

// Raised whenever a function's arguments change, so that native.py refuses a library built from older sources.
HALFBYTE_API int halfbyte_interface() { return 11; }

// The instruction sets that this processor and this build have: a bit for each Isa.
HALFBYTE_API int halfbyte_isas() {
    int found = 1 << kPortable;
#ifdef HALFBYTE_X86
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return found;
    found |= 1 << kAvx2;
#ifdef HALFBYTE_AVXVNNI
    if (has_avx_vnni()) found |= 1 << kAvxVnni;
#endif
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq"))
        return found;
    found |= 1 << kAvx512;
    if (!__builtin_cpu_supports("avx512vnni")) return found;
    found |= 1 << kAvx512Vnni;
    if (!__builtin_cpu_supports("avx512bf16")) return found;
    found |= 1 << kAvx512Bf16;
#ifdef HALFBYTE_AMX
    if (may_use_amx()) found |= 1 << kAmx;
#endif
#endif
    return found;
}

// The one that is taken unless told otherwise: the last one, as a rule. Without AMX, Intel's processors take two cycles for a
// `vdpbf16ps`, in which they multiply four times as much by `vpdpwssd`.
HALFBYTE_API int halfbyte_preferred_isa() {
    int best = kPortable;
    for (int isa = kPortable; isa <= kAmx; ++isa)
        if (halfbyte_isas() >> isa & 1) best = isa;
#ifdef HALFBYTE_X86
    if (best == kAvx512Bf16 && __builtin_cpu_is("intel")) return kAvx512Vnni;
#endif
    return best;
}

// Ask for huge pages where [data, data + bytes) has not been touched yet: with small ones a large new matrix takes longer
// to map than to fill. Only a wish; without it nothing but time changes.
HALFBYTE_API void halfbyte_wish_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kPage = 4096;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kPage * kPage;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

// Weights first..last of the flat tensor -> out [last - first] of type `dtype`.
HALFBYTE_API void halfbyte_dequantise_nf4(const uint8_t* codes, const void* absmax, const float* nested_absmax,
                                          float offset, const float* levels, const float* dynamic, int64_t first,
                                          int64_t last, void* out, int dtype, int threads, int isa) {
    const Nf4 packed{codes, absmax, nested_absmax, offset, levels, dynamic};
    if (dtype == kBf16) return dequantise_nf4(packed, first, last, static_cast<bf16*>(out), threads, isa);
    if (dtype == kF16) return dequantise_nf4(packed, first, last, static_cast<f16*>(out), threads, isa);
    dequantise_nf4(packed, first, last, static_cast<float*>(out), threads, isa);
}

// codes int8 [rows, columns], scale fp32 [rows] -> out [rows, columns] of type `dtype`.
HALFBYTE_API void halfbyte_dequantise_int8(const int8_t* codes, const float* scale, int64_t rows, int64_t columns,
                                           void* out, int dtype, int threads, int isa) {
    if (dtype == kBf16) return dequantise_int8(codes, scale, rows, columns, static_cast<bf16*>(out), threads, isa);
    if (dtype == kF16) return dequantise_int8(codes, scale, rows, columns, static_cast<f16*>(out), threads, isa);
    dequantise_int8(codes, scale, rows, columns, static_cast<float*>(out), threads, isa);
}
