// Rotary embedding of the halves of a head and its gradient; reference.py is the specification.
//
// One pass over x, where torch makes seven of them and as many new tensors. Angles of the type of x: the two products and
// their sum are rounded to it, as torch's operations do; fp32 angles: the sum alone.
#include "rotary.h"

#include "../vector.h"

namespace halfbyte {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements that are worth a thread

template <typename A>
HALFBYTE_INLINE float rounded(float value) {
    return to_float(from_float<A>(value));
}

// [a, b] -> [a cos - b sin, b cos + a sin]; back: the gradient, [a cos + b sin, b cos - a sin] with the sines of the other half.
template <typename T, typename A, bool back>
HALFBYTE_INLINE void turn(const T* HALFBYTE_APART x, const A* HALFBYTE_APART cos, const A* HALFBYTE_APART sin, int64_t half,
                          T* HALFBYTE_APART out) {
    for (int64_t i = 0; i < half; ++i) {
        const float a = to_float(x[i]), b = to_float(x[i + half]);
        const float first = to_float(sin[back ? i + half : i]), second = to_float(sin[back ? i : i + half]);
        out[i] = from_float<T>(rounded<A>(a * to_float(cos[i])) + rounded<A>((back ? b : -b) * first));
        out[i + half] = from_float<T>(rounded<A>(b * to_float(cos[i + half])) + rounded<A>((back ? -a : a) * second));
    }
}

template <typename T, typename A, bool back>
void rotate(const Rotary& r, int threads, int isa) {
    const auto body = [&r](auto, int64_t first, int64_t last) HALFBYTE_BODY {
        for (int64_t i = first; i < last; ++i) {
            const int64_t b = i / r.tokens, t = i % r.tokens, angle = b * r.angles_by + t * r.rotary;
            for (int64_t h = 0; h < r.heads; ++h) {
                const T* const x = static_cast<const T*>(r.x) + b * r.x_by[0] + h * r.x_by[1] + t * r.x_by[2];
                T* const out = static_cast<T*>(r.out) + b * r.out_by[0] + h * r.out_by[1] + t * r.out_by[2];
                turn<T, A, back>(x, static_cast<const A*>(r.cos) + angle, static_cast<const A*>(r.sin) + angle, r.rotary / 2, out);
                if (r.rotary < r.width) std::memcpy(out + r.rotary, x + r.rotary, size_t(r.width - r.rotary) * sizeof(T));
            }
        }
    };
    parallel(r.batch * r.tokens, 1 + kGrain / (1 + r.heads * r.width), threads,
             [&](int64_t first, int64_t last) { for_isa(isa, body, first, last); });
}

template <typename T, typename A>
void rotate_either(const Rotary& r, int threads, int isa) {
    r.back ? rotate<T, A, true>(r, threads, isa) : rotate<T, A, false>(r, threads, isa);
}

}  // namespace
}  // namespace halfbyte

HALFBYTE_API void halfbyte_rotary(const halfbyte::Rotary* call, int dtype, int wide, int threads, int isa) {
    using namespace halfbyte;
    const Rotary& r = *call;
    if (dtype == kF32) return rotate_either<float, float>(r, threads, isa);
    wide ? rotate_either<bf16, float>(r, threads, isa) : rotate_either<bf16, bf16>(r, threads, isa);
}
