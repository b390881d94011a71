// Attention forward and backward on the CPU: instruction sets and threads; reference.py is the specification.
//
// forward.h and backward.h compute a strip, a unit of work (strip.h), forward_amx.h and backward_amx.h do so in AMX tiles,
// and few.h computes a head of few queries. The backward pass goes through the strips of a key/value head and adds to
// dK and dV of the whole head. Where there are few key/value heads the strips of one are dealt to several accumulators,
// added in a fixed order; how many depends on the shapes alone, so neither the number of threads nor a second run
// changes a bit. The price is that more threads than 8 help only where there are more heads.
// Rejected: packing K and V once per head for all strips, which saves 3 % and needs buffers of the size of both.
//
// Elements of the products are bf16 for bf16 inputs on AVX-512 BF16 and AMX (P and dS are rounded to it, as in any bf16
// attention), else fp32. Widths are padded with zeros to a multiple of 16, of AMX 32, on the way into the buffers.
#include "backward.h"
#include "backward_amx.h"
#include "few.h"
#include "forward.h"
#include "forward_amx.h"

namespace halfbyte::attention {
namespace {

constexpr int64_t kUnits = 8;  // accumulators of dK and dV that there are at least, where the strips suffice

// ---- instruction sets -----------------------------------------------------------------------------------------------

// sums [count][padded], times `scale` -> rows of `width`, `by` apart.
template <typename T>
HALFBYTE_INLINE void store_rows(const float* HALFBYTE_APART sums, int64_t padded, float scale, int64_t count,
                                int64_t width, T* to, int64_t by) {
    for (int64_t j = 0; j < count; ++j, sums += padded, to += by) {
        T* HALFBYTE_APART row = to;
        for (int64_t d = 0; d < width; ++d) row[d] = from_float<T>(sums[d] * scale);
    }
}

// Of each: the rows of a strip, the multiple that widths are padded to, the rows that sums over a head have more than
// keys, what a thread holds while it computes strips, and how it computes one and stores sums.
#define HALFBYTE_STRIPS(Name, Tiles, TARGET)                                                             \
    struct Name {                                                                                        \
        static constexpr int64_t kStrip = kRows, kWidth = kVector, kBeyond = 0;                          \
        struct Thread {};                                                                                \
        template <typename T>                                                                            \
        TARGET static void forward(const Attention& a, const Strip& strip) {                             \
            strip_forward<Tiles, T>(a, strip);                                                           \
        }                                                                                                \
        template <typename T>                                                                            \
        TARGET static void backward(const Attention& a, const Strip& strip, float* d_k, float* d_v) {    \
            strip_backward<Tiles, T>(a, strip, d_k, d_v);                                                \
        }                                                                                                \
        template <typename T>                                                                            \
        TARGET static void store(const float* sums, int64_t padded, float scale, int64_t count,          \
                                 int64_t width, T* to, int64_t by) {                                     \
            store_rows(sums, padded, scale, count, width, to, by);                                       \
        }                                                                                                \
    };
HALFBYTE_STRIPS(Portable, PortableTiles, )
#ifdef HALFBYTE_X86
HALFBYTE_STRIPS(Avx2, Avx2Tiles, HALFBYTE_AVX2)
HALFBYTE_STRIPS(Avx512, Avx512Tiles, HALFBYTE_AVX512)
HALFBYTE_STRIPS(Avx512Bf16, Avx512Bf16Tiles, HALFBYTE_AVX512BF16)
#endif
#undef HALFBYTE_STRIPS

#ifdef HALFBYTE_AMX
struct Amx : Avx512Bf16 {
    static constexpr int64_t kStrip = kAmxRows, kWidth = kSide, kBeyond = kSide - 1;
    using Thread = TileRegisters;
    template <typename T>
    static void forward(const Attention& a, const Strip& strip) {
        strip_forward_amx(a, strip);
    }
    template <typename T>
    static void backward(const Attention& a, const Strip& strip, float* d_k, float* d_v) {
        strip_backward_amx(a, strip, d_k, d_v);
    }
};
#endif

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

HALFBYTE_INLINE int64_t strips_per_head(const Attention& a, int64_t rows) {
    return (a.queries * (a.q_heads / a.heads) + rows - 1) / rows;
}

// Units worth waking a thread for, if one takes `products` multiplications.
HALFBYTE_INLINE int64_t grain_of(int64_t products) { return 1 + (1 << 20) / std::max<int64_t>(1, products); }

template <typename Kernels, typename T>
void forward(const Attention& a, int threads) {
    const auto visible = visible_ranges(a);
    const int64_t strips = strips_per_head(a, Kernels::kStrip);
    const int64_t grain = grain_of(std::min(Kernels::kStrip, a.queries * a.q_heads / a.heads) * a.keys * a.width);
    parallel(a.batch * a.heads * strips, grain, threads, [&](int64_t first, int64_t last) {
        [[maybe_unused]] const typename Kernels::Thread held;
        for (int64_t unit = first; unit < last; ++unit) {
            const int64_t head = unit / strips, place = unit % strips;  // short strips and long ones by turns
            const int64_t index = place % 2 ? strips - 1 - place / 2 : place / 2;
            const int64_t b = head / a.heads;
            const Strip strip(a, visible[size_t(b)], b, head % a.heads, index, Kernels::kStrip);
            Kernels::template forward<T>(a, strip);
        }
    });
}

#ifdef HALFBYTE_X86
void forward_few(const Attention& a, int threads) {
    const auto visible = visible_ranges(a);
    const int64_t heads = a.batch * a.heads, parts = few_parts(a), size = Partial::size(whole(a.width));
    const std::unique_ptr<float[]> partials(new float[size_t(heads * parts * size)]);
    const int64_t bytes = a.keys / parts * a.width * 4, grain = 1 + (1 << 17) / std::max<int64_t>(1, bytes);
    const auto strip_of = [&](int64_t head) {
        return Strip(a, visible[size_t(head / a.heads)], head / a.heads, head % a.heads, 0, kFewRows);
    };
    parallel(heads * parts, grain, threads, [&](int64_t first, int64_t last) {
        for (int64_t unit = first; unit < last; ++unit) {
            const int64_t part = unit % parts;
            const Strip strip = strip_of(unit / parts);
            const int64_t keys = (strip.keys.count() + parts - 1) / parts;
            const int64_t begin = strip.keys.first + part * keys;
            attend_few(a, strip, {begin, std::min(begin + keys, strip.keys.last)}, partials.get() + unit * size);
            if (parts == 1) finish_few(a, strip, partials.get() + unit * size, 1);
        }
    });
    for (int64_t head = 0; parts > 1 && head < heads; ++head)
        finish_few(a, strip_of(head), partials.get() + head * parts * size, parts);
}
#endif

template <typename Kernels, typename T>
void backward(const Attention& a, int threads) {
    const auto visible = visible_ranges(a);
    const int64_t padded = (a.width + Kernels::kWidth - 1) / Kernels::kWidth * Kernels::kWidth;
    const int64_t size = 2 * (a.keys + Kernels::kBeyond) * padded;
    const int64_t strips = strips_per_head(a, Kernels::kStrip), heads = a.batch * a.heads;
    const int64_t parts = std::min(strips, (kUnits + heads - 1) / heads);
    std::vector<float> shared(size_t(parts > 1 ? heads * parts * size : 0));
    const auto finish = [&](int64_t head, const float* sums) {
        T* d_k = static_cast<T*>(a.d_k) + head / a.heads * a.d_k_by[0] + head % a.heads * a.d_k_by[1];
        T* d_v = static_cast<T*>(a.d_v) + head / a.heads * a.d_v_by[0] + head % a.heads * a.d_v_by[1];
        Kernels::store(sums, padded, a.scale, a.keys, a.width, d_k, a.d_k_by[2]);
        Kernels::store(sums + size / 2, padded, 1.0f, a.keys, a.width, d_v, a.d_v_by[2]);
    };
    const int64_t products = strips / parts * Kernels::kStrip * a.keys * a.width;
    parallel(heads * parts, grain_of(products), threads, [&](int64_t first, int64_t last) {
        [[maybe_unused]] const typename Kernels::Thread held;
        std::vector<float> own(size_t(parts > 1 ? 0 : size));
        for (int64_t unit = first; unit < last; ++unit) {
            const int64_t head = unit / parts, b = head / a.heads;
            float* sums = parts > 1 ? shared.data() + unit * size : own.data();
            std::fill(sums, sums + size, 0.0f);
            for (int64_t index = unit % parts; index < strips; index += parts) {
                const Strip strip(a, visible[size_t(b)], b, head % a.heads, index, Kernels::kStrip);
                Kernels::template backward<T>(a, strip, sums, sums + size / 2);
            }
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
    const bool few = !back && a.queries * (a.q_heads / a.heads) <= kFewRows;
    static const bool has_bf16 = __builtin_cpu_supports("avx512bf16");  // where it is slow, it keeps up with memory all the same
    if (isa >= kAvx512Vnni && has_bf16 && dtype == kBf16 && few) return forward_few(a, threads);
#ifdef HALFBYTE_AMX
    if (isa >= kAmx && dtype == kBf16) return run<Amx, bf16>(a, back, threads);
#endif
    if (isa >= kAvx512Bf16 && dtype == kBf16) return run<Avx512Bf16, bf16>(a, back, threads);
    if (isa >= kAvx512) return run_as<Avx512>(a, dtype, back, threads);
    if (isa >= kAvx2) return run_as<Avx2>(a, dtype, back, threads);
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
