// Attention forward and backward on the CPU: instruction sets and threads; reference.py is the specification.
//
// forward.h and backward.h compute a strip, a unit of work (strip.h). The backward pass goes through the strips of a
// key/value head and adds to dK and dV of the whole head. Where there are few key/value heads the strips of one are
// dealt to several accumulators, added in a fixed order; how many depends on the shapes alone, so neither the number of
// threads nor a second run changes a bit. The price is that more threads than 8 help only where there are more heads.
// Rejected: packing K and V once per head for all strips, which saves 3 % and needs buffers of the size of both.
//
// Elements of the products are bf16 for bf16 inputs on AVX-512 BF16 (P and dS are rounded to it, as in any bf16
// attention), else fp32. Widths are padded with zeros to a multiple of 16 on the way into the buffers.
#include "backward.h"
#include "forward.h"

namespace halfbyte::attention {
namespace {

constexpr int64_t kUnits = 8;  // accumulators of dK and dV that there are at least, where the strips suffice

// ---- instruction sets -----------------------------------------------------------------------------------------------

#define HALFBYTE_STRIPS(Name, Base, TARGET)                                                              \
    struct Name : Base {                                                                                 \
        template <typename T>                                                                            \
        TARGET static void forward(const Attention& a, const Strip& strip) {                             \
            strip_forward<Base, T>(a, strip);                                                            \
        }                                                                                                \
        template <typename T>                                                                            \
        TARGET static void backward(const Attention& a, const Strip& strip, float* d_k, float* d_v) {    \
            strip_backward<Base, T>(a, strip, d_k, d_v);                                                 \
        }                                                                                                \
    };
HALFBYTE_STRIPS(Portable, PortableTiles, )
#ifdef HALFBYTE_X86
HALFBYTE_STRIPS(Avx2, Avx2Tiles, HALFBYTE_AVX2)
HALFBYTE_STRIPS(Avx512, Avx512Tiles, HALFBYTE_AVX512)
HALFBYTE_STRIPS(Avx512Bf16, Avx512Bf16Tiles, HALFBYTE_AVX512BF16)
#endif
#undef HALFBYTE_STRIPS

// ---- the split over threads -----------------------------------------------------------------------------------------

// Of each batch: from the first visible key to the last.
std::vector<Range> visible_ranges(const Attention& a) {
    std::vector<Range> ranges(size_t(a.batch), Range{0, a.keys});
    for (int64_t b = 0; a.visible && b < a.batch; ++b) {
        const uint8_t* row = a.visible + b * a.visible_by;
        Range& range = ranges[size_t(b)];
        while (range.first < range.last && !row[range.first]) ++range.first;
        while (range.first < range.last && !row[range.last - 1]) --range.last;
    }
    return ranges;
}

HALFBYTE_INLINE int64_t strips_per_head(const Attention& a) {
    return (a.queries * (a.q_heads / a.heads) + kRows - 1) / kRows;
}

// Units worth waking a thread for, if one takes `products` multiplications.
HALFBYTE_INLINE int64_t grain_of(int64_t products) { return 1 + (1 << 20) / std::max<int64_t>(1, products); }

template <typename Kernels, typename T>
void forward(const Attention& a, int threads) {
    const auto visible = visible_ranges(a);
    const int64_t strips = strips_per_head(a);
    const int64_t grain = grain_of(std::min(kRows, a.queries * a.q_heads / a.heads) * a.keys * a.width);
    parallel(a.batch * a.heads * strips, grain, threads, [&](int64_t first, int64_t last) {
        for (int64_t unit = first; unit < last; ++unit) {
            const int64_t head = unit / strips, place = unit % strips;  // short strips and long ones by turns
            const int64_t index = place % 2 ? strips - 1 - place / 2 : place / 2;
            const int64_t b = head / a.heads;
            Kernels::template forward<T>(a, Strip(a, visible[size_t(b)], b, head % a.heads, index));
        }
    });
}

template <typename T>
void store_keys(const Attention& a, void* base, const int64_t* by, int64_t head, const float* sums, float scale) {
    T* to = static_cast<T*>(base) + head / a.heads * by[0] + head % a.heads * by[1];
    const int64_t padded = padded_width(a);
    for (int64_t j = 0; j < a.keys; ++j)
        for (int64_t d = 0; d < a.width; ++d) to[j * by[2] + d] = from_float<T>(sums[j * padded + d] * scale);
}

template <typename Kernels, typename T>
void backward(const Attention& a, int threads) {
    const auto visible = visible_ranges(a);
    const int64_t strips = strips_per_head(a), heads = a.batch * a.heads, size = 2 * a.keys * padded_width(a);
    const int64_t parts = std::min(strips, (kUnits + heads - 1) / heads);
    std::vector<float> shared(size_t(parts > 1 ? heads * parts * size : 0));
    const auto finish = [&](int64_t head, const float* sums) {
        store_keys<T>(a, a.d_k, a.d_k_by, head, sums, a.scale);
        store_keys<T>(a, a.d_v, a.d_v_by, head, sums + size / 2, 1.0f);
    };
    const int64_t products = strips / parts * kRows * a.keys * a.width;
    parallel(heads * parts, grain_of(products), threads, [&](int64_t first, int64_t last) {
        std::vector<float> own(size_t(parts > 1 ? 0 : size));
        for (int64_t unit = first; unit < last; ++unit) {
            const int64_t head = unit / parts, b = head / a.heads;
            float* sums = parts > 1 ? shared.data() + unit * size : own.data();
            std::fill(sums, sums + size, 0.0f);
            for (int64_t index = unit % parts; index < strips; index += parts)
                Kernels::template backward<T>(a, Strip(a, visible[size_t(b)], b, head % a.heads, index), sums,
                                              sums + size / 2);
            if (parts == 1) finish(head, sums);
        }
    });
    if (parts == 1) return;
    parallel(heads, 1, threads, [&](int64_t first, int64_t last) {
        for (int64_t head = first; head < last; ++head) {
            float* sums = shared.data() + head * parts * size;
            for (int64_t part = 1; part < parts; ++part)
                for (int64_t i = 0; i < size; ++i) sums[i] += sums[part * size + i];
            finish(head, sums);
        }
    });
}

template <typename Kernels, typename T>
void run(const Attention& a, bool back, int threads) {
    back ? backward<Kernels, T>(a, threads) : forward<Kernels, T>(a, threads);
}

template <typename Kernels>
void run_as(const Attention& a, int dtype, bool back, int threads) {
    if (dtype == kBf16) return run<Kernels, bf16>(a, back, threads);
    if (dtype == kF16) return run<Kernels, f16>(a, back, threads);
    run<Kernels, float>(a, back, threads);
}

void dispatch(const Attention& a, int dtype, bool back, int threads, int isa) {
#ifdef HALFBYTE_X86
    if (isa >= kAvx512Bf16 && dtype == kBf16) return run<Avx512Bf16, bf16>(a, back, threads);
    if (isa >= kAvx512) return run_as<Avx512>(a, dtype, back, threads);
    if (isa == kAvx2) return run_as<Avx2>(a, dtype, back, threads);
#else
    (void)isa;
#endif
    run_as<Portable>(a, dtype, back, threads);
}

}  // namespace
}  // namespace halfbyte::attention

using namespace halfbyte::attention;

// Writes `write` and `lse`; tensors of type `dtype`.
HALFBYTE_API void halfbyte_attention_forward(const Attention* a, int dtype, int threads, int isa) {
    dispatch(*a, dtype, false, threads, isa);
}

// Reads out, lse and d_out; writes d_q, d_k and d_v.
HALFBYTE_API void halfbyte_attention_backward(const Attention* a, int dtype, int threads, int isa) {
    dispatch(*a, dtype, true, threads, isa);
}
