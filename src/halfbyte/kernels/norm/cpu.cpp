// RMSNorm, forward and backward; reference.py is the specification, autograd that of the backward pass.
//
// A row is read twice, the second time from the cache, and written once. Kept for the backward pass: x as it came, and
// rstd = 1 / sqrt(mean(x^2) + eps) in fp32, a number a row. Sums in fp32 over 64 lanes.
#include <cmath>

#include "../vector.h"

namespace halfbyte {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements that are worth a thread

template <typename T>
std::vector<float> widened(const T* weight, int64_t columns, float shift) {
    std::vector<float> wide(columns);
    for (int64_t i = 0; i < columns; ++i) wide[i] = to_float(load(weight + i)) + shift;
    return wide;
}

template <typename T, bool narrow>
HALFBYTE_INLINE void norm_row(const T* HALFBYTE_APART x, const float* HALFBYTE_APART scale, int64_t columns, float eps,
                              T* HALFBYTE_APART y, float* rstd) {
    const float squares = sum_of(columns, [=](int64_t i) HALFBYTE_BODY { return to_float(x[i]) * to_float(x[i]); });
    const float factor = 1.0f / std::sqrt(squares / float(columns) + eps);
    for (int64_t i = 0; i < columns; ++i) {
        const float normed = to_float(x[i]) * factor;
        y[i] = from_float<T>((narrow ? to_float(from_float<T>(normed)) : normed) * scale[i]);
    }
    *rstd = factor;
}

template <typename T>
void norm(const T* x, const T* weight, int64_t rows, int64_t columns, float eps, float shift, int narrow, T* y,
          float* rstd, int threads, int isa) {
    const std::vector<float> wide = widened(weight, columns, shift);
    const float* scale = wide.data();
    const auto narrowed = [=](auto, int64_t first, int64_t last) HALFBYTE_BODY {
        for (int64_t r = first; r < last; ++r)
            norm_row<T, true>(x + r * columns, scale, columns, eps, y + r * columns, rstd + r);
    };
    const auto plain = [=](auto, int64_t first, int64_t last) HALFBYTE_BODY {
        for (int64_t r = first; r < last; ++r)
            norm_row<T, false>(x + r * columns, scale, columns, eps, y + r * columns, rstd + r);
    };
    parallel(rows, 1 + kGrain / columns, threads, [&](int64_t first, int64_t last) {
        narrow ? for_isa(isa, narrowed, first, last) : for_isa(isa, plain, first, last);
    });
}

// y = n * scale with n = x * rstd, so dx = rstd * (g - n * mean(g * n)) where g = dy * scale.
template <typename T>
HALFBYTE_INLINE void backward_row(const T* HALFBYTE_APART dy, const T* HALFBYTE_APART x,
                                  const float* HALFBYTE_APART scale, int64_t columns, float rstd,
                                  T* HALFBYTE_APART dx) {
    const float dot = sum_of(columns, [=](int64_t i) HALFBYTE_BODY {
        return to_float(dy[i]) * scale[i] * to_float(x[i]);
    });
    const float pull = dot * rstd / float(columns) * rstd;
    for (int64_t i = 0; i < columns; ++i)
        dx[i] = from_float<T>((to_float(dy[i]) * scale[i] - to_float(x[i]) * pull) * rstd);
}

template <typename T>
void norm_backward(const T* dy, const T* x, const T* weight, const float* rstd, int64_t rows, int64_t columns,
                   float shift, T* dx, int threads, int isa) {
    const std::vector<float> wide = widened(weight, columns, shift);
    const float* scale = wide.data();
    const auto body = [=](auto, int64_t first, int64_t last) HALFBYTE_BODY {
        for (int64_t r = first; r < last; ++r)
            backward_row(dy + r * columns, x + r * columns, scale, columns, rstd[r], dx + r * columns);
    };
    parallel(rows, 1 + kGrain / columns, threads,
             [&](int64_t first, int64_t last) { for_isa(isa, body, first, last); });
}

}  // namespace
}  // namespace halfbyte

using namespace halfbyte;

// x [rows, columns], weight [columns] -> y [rows, columns], all of type `dtype` (fp32 or bf16), and rstd fp32 [rows].
// The scale is weight + shift; `narrow`: what is normed is rounded to `dtype` before it is scaled.
HALFBYTE_API void halfbyte_rms_norm(const void* x, const void* weight, int64_t rows, int64_t columns, float eps,
                                    float shift, int narrow, void* y, float* rstd, int dtype, int threads, int isa) {
    if (dtype == kBf16)
        return norm(static_cast<const bf16*>(x), static_cast<const bf16*>(weight), rows, columns, eps, shift, narrow,
                    static_cast<bf16*>(y), rstd, threads, isa);
    norm(static_cast<const float*>(x), static_cast<const float*>(weight), rows, columns, eps, shift, 0,
         static_cast<float*>(y), rstd, threads, isa);
}

// The gradient dy of y -> dx, that of x; both [rows, columns] of type `dtype`.
HALFBYTE_API void halfbyte_rms_norm_backward(const void* dy, const void* x, const void* weight, const float* rstd,
                                             int64_t rows, int64_t columns, float shift, void* dx, int dtype,
                                             int threads, int isa) {
    if (dtype == kBf16)
        return norm_backward(static_cast<const bf16*>(dy), static_cast<const bf16*>(x),
                             static_cast<const bf16*>(weight), rstd, rows, columns, shift, static_cast<bf16*>(dx),
                             threads, isa);
    norm_backward(static_cast<const float*>(dy), static_cast<const float*>(x), static_cast<const float*>(weight), rstd,
                  rows, columns, shift, static_cast<float*>(dx), threads, isa);
}
