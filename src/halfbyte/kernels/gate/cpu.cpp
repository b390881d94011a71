// act(gate) * up and its gradients; reference.py is the specification, autograd that of the backward pass.
//
// Each element is read once and written once, everything between in fp32. The rows of gate and up may lie apart (a
// fused projection has them side by side), so a row has a stride; within it elements are contiguous.
#include <cmath>

#include "../vector.h"
#include "gate.h"

namespace halfbyte {
namespace {

enum Act : int { kSilu = 0, kGelu = 1, kGeluTanh = 2 };  // the numbers of `ACTS` in __init__.py

constexpr int64_t kGrain = 1 << 14;  // elements that are worth a thread

struct Curve {
    float value, slope;  // act(x) and act'(x)
};

struct Sigmoid {
    float value, slope;
};

// 1 / (1 + e^-x), without overflow and without loss where it or its slope is small.
template <typename Has>
HALFBYTE_INLINE Sigmoid sigmoid(Has has, float x) {
    const float e = exp_negative(has, -std::fabs(x)), inverse = 1.0f / (1.0f + e);
    return {(x < 0.0f ? e : 1.0f) * inverse, e * inverse * inverse};
}

template <typename Has>
HALFBYTE_INLINE Curve silu(Has has, float x) {
    const Sigmoid s = sigmoid(has, x);
    return {x * s.value, mul_add(has, x, s.slope, s.value)};
}

// 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3); Hendrycks & Gimpel 2016, arXiv:1606.08415
template <typename Has>
HALFBYTE_INLINE Curve gelu_tanh(Has has, float x) {
    const float square = x * x;
    const Sigmoid s = sigmoid(has, x * mul_add(has, square, 0.0713548162f, 1.59576912f));
    const float slope = s.slope * mul_add(has, square, 0.214064449f, 1.59576912f);
    return {x * s.value, mul_add(has, x, slope, s.value)};
}

// x Phi(x), Phi(-|x|) = erfc(z) / 2 with z = |x| / sqrt 2. erfc(z) e^(z^2) / t, t = 1 / (1 + 0.4 z), is a minimax fit
// of degree 8 for z up to 9.3 (where erfc is below the smallest float), relative error 6e-8.
template <typename Has>
HALFBYTE_INLINE Curve gelu(Has has, float x) {
    const float t = 1.0f / (1.0f + 0.282842712f * std::fabs(x));
    const float bell = exp_negative(has, -0.5f * (x * x));
    float p = 0.0398353878f;
    p = mul_add(has, p, t, -0.133336042f);
    p = mul_add(has, p, t, 0.0693517122f);
    p = mul_add(has, p, t, 0.104967573f);
    p = mul_add(has, p, t, 0.0678112716f);
    p = mul_add(has, p, t, 0.198575673f);
    p = mul_add(has, p, t, 0.200535087f);
    p = mul_add(has, p, t, 0.226636793f);
    p = mul_add(has, p, t, 0.2256226f);
    const float tail = 0.5f * (p * t * bell), below = x < 0.0f ? tail : 1.0f - tail;
    return {x * below, below + x * (0.398942280f * bell)};
}

template <int act, typename Has>
HALFBYTE_INLINE Curve curve(Has has, float x) {
    if constexpr (act == kSilu) return silu(has, x);
    if constexpr (act == kGelu) return gelu(has, x);
    return gelu_tanh(has, x);
}

template <typename T, int act, typename Has>
HALFBYTE_INLINE void gate_row(Has has, const T* HALFBYTE_APART gate, const T* HALFBYTE_APART up, int64_t columns,
                              T* HALFBYTE_APART out) {
    for (int64_t i = 0; i < columns; ++i)
        out[i] = from_float<T>(curve<act>(has, to_float(gate[i])).value * to_float(up[i]));
}

template <typename T, int act, typename Has>
HALFBYTE_INLINE void backward_row(Has has, const T* HALFBYTE_APART dy, const T* HALFBYTE_APART gate,
                                  const T* HALFBYTE_APART up, int64_t columns, T* HALFBYTE_APART dgate,
                                  T* HALFBYTE_APART dup) {
    for (int64_t i = 0; i < columns; ++i) {
        const float grad = to_float(dy[i]);
        const Curve at = curve<act>(has, to_float(gate[i]));
        dgate[i] = from_float<T>(grad * to_float(up[i]) * at.slope);
        dup[i] = from_float<T>(grad * at.value);
    }
}

template <typename T, int act>
void gate(const T* gate, const T* up, int64_t rows, int64_t columns, int64_t stride, T* out, int threads, int isa) {
    const auto body = [=](auto has, int64_t first, int64_t last) HALFBYTE_BODY {
        for (int64_t r = first; r < last; ++r)
            gate_row<T, act>(has, gate + r * stride, up + r * stride, columns, out + r * columns);
    };
    parallel(rows, 1 + kGrain / columns, threads,
             [&](int64_t first, int64_t last) { for_isa(isa, body, first, last); });
}

template <typename T, int act>
void gate_backward(const T* dy, const T* gate, const T* up, int64_t rows, int64_t columns, int64_t stride, T* dgate,
                   T* dup, int threads, int isa) {
    const auto body = [=](auto has, int64_t first, int64_t last) HALFBYTE_BODY {
        for (int64_t r = first; r < last; ++r) {
            const int64_t here = r * stride;
            backward_row<T, act>(has, dy + r * columns, gate + here, up + here, columns, dgate + here, dup + here);
        }
    };
    parallel(rows, 1 + kGrain / columns, threads,
             [&](int64_t first, int64_t last) { for_isa(isa, body, first, last); });
}

template <typename T>
void gate_of(int act, const void* gate_in, const void* up_in, int64_t rows, int64_t columns, int64_t stride, void* out,
             int threads, int isa) {
    const auto run = act == kSilu ? gate<T, kSilu> : act == kGelu ? gate<T, kGelu> : gate<T, kGeluTanh>;
    run(static_cast<const T*>(gate_in), static_cast<const T*>(up_in), rows, columns, stride, static_cast<T*>(out),
        threads, isa);
}

template <typename T>
void gate_backward_of(int act, const void* dy, const void* gate_in, const void* up_in, int64_t rows, int64_t columns,
                      int64_t stride, void* dgate, void* dup, int threads, int isa) {
    const auto run = act == kSilu   ? gate_backward<T, kSilu>
                     : act == kGelu ? gate_backward<T, kGelu>
                                    : gate_backward<T, kGeluTanh>;
    run(static_cast<const T*>(dy), static_cast<const T*>(gate_in), static_cast<const T*>(up_in), rows, columns, stride,
        static_cast<T*>(dgate), static_cast<T*>(dup), threads, isa);
}

}  // namespace
}  // namespace halfbyte

using namespace halfbyte;

HALFBYTE_API void halfbyte_gate(const void* gate, const void* up, int64_t rows, int64_t columns, int64_t stride,
                                void* out, int act, int dtype, int threads, int isa) {
    (dtype == kBf16 ? gate_of<bf16> : gate_of<float>)(act, gate, up, rows, columns, stride, out, threads, isa);
}

// The gradient dy of out -> those of gate and up, which have the stride of gate and up.
HALFBYTE_API void halfbyte_gate_backward(const void* dy, const void* gate, const void* up, int64_t rows,
                                         int64_t columns, int64_t stride, void* dgate, void* dup, int act, int dtype,
                                         int threads, int isa) {
    (dtype == kBf16 ? gate_backward_of<bf16> : gate_backward_of<float>)(act, dy, gate, up, rows, columns, stride, dgate,
                                                                        dup, threads, isa);
}
